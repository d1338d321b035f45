"""dash.js, hls.js and Shaka Player play the steered title to its end, also when the appliance that serves them dies.

Nothing here asks how long anything takes: a test fails when a player says that it cannot go on, makes no progress for
a minute, or ends before the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.async_api import Page, async_playwright

from bench.fleet import Fleet, script
from tests.e2e.conftest import CLIP, FLAGS

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
# As long as those of the fleet: Shaka bans a location by its host name, and by any part of it.
PAGE = "127.0.1.110"
BOXES = (("near-1", "near"), ("far-1", "far"))
KILL_AT, POLL_S, LAUNCH_S, STUCK_S, TEST_S = 30, 0.25, 90, 60, 120
LADDER = "[[rungs]]\nlines = 360\nkbps = 750\n\n[[rungs]]\nlines = 720\nkbps = 2400\n"
BUILD = ("--preset", "ultrafast", "--audio", "first", "--channels", "stereo", "--no-thumbnails")
TIMES = ("--loop-to", "60", "--segment-seconds", "2")
MANIFESTS = {"dash": "manifest.mpd", "hls": "master.m3u8", "shaka": "manifest.mpd"}
# A death is felt within eight seconds of the title, which are two of the clock.
PLAYER = """<!doctype html>
<meta charset="utf-8"><link rel="icon" href="data:,"><video muted></video>
<script src="dashjs/dist/modern/umd/dash.all.min.js"></script>
<script src="hls.js/dist/hls.min.js"></script>
<script src="shaka-player/dist/shaka-player.compiled.js"></script>
<script>
const query = new URLSearchParams(location.search), url = query.get("manifest");
const video = document.querySelector("video");
window.seen = { furthest: 0, duration: 0, ended: false, fatal: [] };
const fatal = error => seen.fatal.push(String(error));
// Loading sets the rate back to the default.
video.defaultPlaybackRate = video.playbackRate = 4;
video.addEventListener("timeupdate", () => { seen.furthest = Math.max(seen.furthest, video.currentTime); });
video.addEventListener("ended", () => { seen.ended = true; });
video.addEventListener("error", () => fatal(video.error.message));
const play = {
  dash() {
    const player = dashjs.MediaPlayer().create();
    const tries = value => ({ MediaSegment: value, InitializationSegment: value });
    player.updateSettings({ streaming: {
      buffer: { bufferTimeDefault: 8, bufferTimeAtTopQuality: 8, bufferTimeAtTopQualityLongForm: 8 },
      retryAttempts: tries(1), retryIntervals: tries(200),
    } });
    player.on("playbackEnded", () => { seen.ended = true; });
    player.on("error", event => { if (!RECOVERED.includes(event.error.code)) fatal(event.error.message); });
    player.initialize(video, url, true);
  },
  hls() {
    const player = new Hls({ maxBufferLength: 8, maxMaxBufferLength: 8 });
    player.on(Hls.Events.ERROR, (_, data) => { if (data.fatal) fatal(data.details); });
    player.loadSource(url);
    player.attachMedia(video);
    video.play();
  },
  async shaka() {
    shaka.polyfill.installAll();
    const player = new shaka.Player();
    await player.attach(video);
    player.configure({ streaming: { bufferingGoal: 8, retryParameters: { maxAttempts: 4, baseDelay: 200 } } });
    const told = error => { if (error.severity === shaka.util.Error.Severity.CRITICAL) fatal(error); };
    player.addEventListener("error", event => told(event.detail));
    await player.load(url).catch(told);
    video.play();
  },
};
// dash.js says of each URL that it could not be had, and then asks elsewhere (Errors.js).
const RECOVERED = [27, 28];
play[query.get("player")]();
</script>
"""
LOOK = "({ ...seen, now: video.currentTime, duration: video.duration || 0 })"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files, and the page at its root, and says nothing."""

    def do_GET(self) -> None:
        if urlsplit(self.path).path != "/":
            super().do_GET()
            return
        body = PLAYER.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A controller and two appliances that hold the title, one near and one far: viewers' order is certain."""
    home = tmp_path_factory.mktemp("players")
    (home / "ladder.toml").write_text(LADDER)
    built = home / "built"
    command = [script("oca-pack"), "build", str(CLIP), "--out", str(built), "--title", "demo", *BUILD, *TIMES]
    command += ["--ladder", str(home / "ladder.toml")]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=300)
    # Players find out by themselves that a server is dead: steering, asked once, does not tell them.
    with Fleet(home / "fleet", steer_ttl_s=600, dead_s=600) as fleet:
        fleet.start_controller()
        for box, site in BOXES:
            shutil.copytree(built / "demo", fleet.add(box, site).store / "demo")
        fleet.start(*fleet.boxes)
        zones = {
            "near": {"network": ["0.0.0.0/0"], "coordinates": {"latitude": 52.5, "longitude": 13.4}},
            "far": {"network": ["192.0.2.0/24"], "coordinates": {"latitude": 41.9, "longitude": 12.5}},
        }
        (home / "coverage.json").write_text(json.dumps({"coverageZones": zones}))
        fleet.ocactl("coverage", "set", str(home / "coverage.json"))
        fleet.ocactl("title", "add", str(built / "demo"))
        yield fleet


@pytest.fixture(scope="module")
def front() -> Iterator[str]:
    """Where the page with the players is."""
    with ThreadingHTTPServer((PAGE, 0), partial(Quiet, directory=ROOT / "node_modules")) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://{PAGE}:{server.server_port}/"
        server.shutdown()
        serving.join()


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a browser of its own, whose files are gone afterwards."""
    # Chromium has a socket in there, whose path may have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="oca-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        async with async_playwright() as playwright:
            launching = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=FLAGS, env={**os.environ, "TMPDIR": folder}
            )
            browser = await asyncio.wait_for(launching, LAUNCH_S)
            yield await browser.new_page()
            await asyncio.wait_for(browser.close(), LAUNCH_S)


def order(fleet: Fleet) -> list[str]:
    """The appliances that a viewer on this machine is sent to, nearest first."""
    found = fleet.ocactl("steer", "explain", "--client", "127.0.0.1", "--title", "demo")
    return [row["appliance"] for row in found["candidates"] if row["rank"] is not None]


class Viewer:
    """A player in a page: how far it is, and which appliance sent it how many segments."""

    def __init__(self, fleet: Fleet, page: Page) -> None:
        self._page = page
        self._boxes = {urlsplit(box.url).netloc: box.id for box in fleet.boxes.values()}
        self.segments = dict.fromkeys(fleet.boxes, 0)
        self.seen: dict[str, Any] = {}
        self.trouble: list[str] = []
        """Requests that failed, with the browser's reason or the status."""
        page.on("response", lambda response: self._count(response.url, response.status))
        page.on("requestfailed", lambda request: self.trouble.append(f"{request.url}: {request.failure}"))

    def __repr__(self) -> str:
        return f"{self.segments}, {self.seen}, {self.trouble}"

    def _count(self, url: str, status: int) -> None:
        box = self._boxes.get(urlsplit(url).netloc)
        if box is not None and status == 200 and url.endswith(".m4s"):
            self.segments[box] += 1
        if status >= 400:
            self.trouble.append(f"{url}: {status}")

    @property
    def at_the_end(self) -> bool:
        """Whether the title was played to its end; dash.js may leave the last pictures out."""
        return bool(self.seen["ended"] or 0 < self.seen["duration"] - 0.5 <= self.seen["furthest"])

    async def until(self, seconds: float) -> None:
        """Wait until it has played so far, or to the end."""
        furthest, since = -1.0, time.monotonic()
        while True:
            self.seen = await asyncio.wait_for(self._page.evaluate(LOOK), STUCK_S)
            assert self.seen["fatal"] == []
            if self.at_the_end or self.seen["furthest"] >= seconds:
                return
            if self.seen["furthest"] > furthest:
                furthest, since = self.seen["furthest"], time.monotonic()
            assert time.monotonic() - since < STUCK_S, f"no progress: {self}"
            await asyncio.sleep(POLL_S)


async def begin(fleet: Fleet, front: str, page: Page, player: str) -> Viewer:
    """A viewer with this player, for whom both appliances are there."""
    fleet.wait_for("both being steered to", lambda: order(fleet) == [box for box, _ in BOXES])
    viewer = Viewer(fleet, page)
    url = f"{fleet.controller}/play/demo/{MANIFESTS[player]}"
    await asyncio.wait_for(page.goto(f"{front}?{urlencode({'player': player, 'manifest': url})}"), STUCK_S)
    return viewer


async def half_way(fleet: Fleet, front: str, page: Page, player: str) -> Viewer:
    """A viewer whom the near appliance, and nobody else, has served for half of the title."""
    while True:
        viewer = await begin(fleet, front, page, player)
        await viewer.until(KILL_AT)
        if viewer.segments["near-1"] > 0 and viewer.segments["far-1"] == 0:
            return viewer
        # A player leaves a server for good after one request that failed: it is to leave when we want it to.
        assert viewer.trouble, f"sent elsewhere although nothing failed: {viewer}"


def held(url: str) -> socket.socket:
    """The address of a server that was killed, so that connections are refused and nobody else takes it."""
    address, deadline = urlsplit(url), time.monotonic() + STUCK_S
    assert address.port is not None
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    while True:
        try:
            taken.bind((address.hostname, address.port))  # and no listen
        except OSError:  # what is left of the server goes in a moment
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        else:
            return taken


@pytest.mark.parametrize("player", MANIFESTS)
async def test_a_player_plays_the_steered_title_to_its_end(fleet: Fleet, front: str, page: Page, player: str) -> None:
    async with asyncio.timeout(TEST_S):
        viewer = await half_way(fleet, front, page, player)
        await viewer.until(float("inf"))


@pytest.mark.parametrize("player", MANIFESTS)
async def test_a_player_goes_on_when_its_appliance_dies(fleet: Fleet, front: str, page: Page, player: str) -> None:
    """kill -9 half way: the rest comes from the other one, and nobody told the player."""
    async with asyncio.timeout(TEST_S):
        viewer = await half_way(fleet, front, page, player)
        fleet.kill("near-1")
        try:
            with held(fleet.boxes["near-1"].url):
                await viewer.until(float("inf"))
        finally:
            fleet.start("near-1")  # and wait until it serves: the next one is to be sent there
    assert viewer.segments["far-1"] > 0, viewer
