"""Real players show captions at their times, and find the right thumbnails, behind a token and a steered manifest."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Page
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from bench.fleet import Fleet, script
from oca.title.model import Title, read
from packager import ffmpeg, package

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(300)]
# Every second has a light of its own, so that a picture tells when it is shown.
SECONDS = 70
GREY = f"color=black:s=64x36:r=10:d={SECONDS},geq=lum='16+mod(37*floor(T),220)':cb=128:cr=128"
# The second is shown across the place, at one minute, where segments are cut.
ENGLISH = "1\n00:00:01,000 --> 00:00:02,500\n<i>Hello</i> & bye\n\n2\n00:00:58,000 --> 00:01:04,000\nAcross\n"
GERMAN = "WEBVTT\n\n00:02.000 --> 00:03.000\nGrün\n"
HELLO, ACROSS, GREEN = [1, 2.5, "<i>Hello</i> &amp; bye"], [58, 64, "Across"], [2, 3, "Grün"]
# Everything of a player that the tests use, alike for both.
DASH = """url => new Promise(ready => {
  const player = dashjs.MediaPlayer().create(), video = document.createElement("video");
  video.muted = true;
  document.body.prepend(video);
  const choose = label => new Promise(chosen => {
    const number = player.getTracksFor("text").findIndex(track => track.labels.some(each => each.text === label));
    if (number === player.getCurrentTextTrackIndex()) return chosen();
    // To seek while they are on their way would make it forget them.
    player.on("fragmentLoadingCompleted", event => { if (event.request.mediaType === "text") chosen(); });
    player.setTextTrack(number);
  });
  window.mine = { player, video, choose };
  player.on("streamInitialized", () => ready());
  player.initialize(video, url, false);
})"""
HLS = """url => new Promise(ready => {
  const player = new Hls(), video = document.createElement("video");
  video.muted = true;
  document.body.prepend(video);
  window.mine = { player, video, choose: label => {
    player.subtitleTrack = player.subtitleTracks.findIndex(track => track.name === label); } };
  player.on(Hls.Events.SUBTITLE_TRACKS_UPDATED, () => { if (player.subtitleTracks.length) ready(); });
  player.loadSource(url);
  player.attachMedia(video);
})"""
# What is shown at the time: times and text of cues of the language that is chosen.
CUES = """[...mine.video.textTracks].filter(each => each.mode === "showing")
.flatMap(each => [...each.activeCues || []].map(cue => [cue.startTime, cue.endTime, cue.text]))"""
SHOWN = f"wanted => JSON.stringify({CUES}) === JSON.stringify(wanted)"
# What a thumbnail shows: its place on the sheet, and how light it is there on average.
THUMBNAIL = """time => new Promise(told => mine.player.provideThumbnail(time, found => {
  if (!found) return told(null);
  const image = new Image();
  image.crossOrigin = "anonymous";
  image.onload = () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: found.width, height: found.height });
    const context = canvas.getContext("2d");
    context.drawImage(image, -found.x, -found.y);
    const data = context.getImageData(0, 0, found.width, found.height).data;
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum += data[i];
    const { x, y, width, height } = found;
    told({ at: [x, y, width, height], sheet: [image.width, image.height], light: 4 * sum / data.length });
  };
  image.src = found.url;
}))"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Title]]:
    """A box with a title that has captions and thumbnails, and a controller; viewers need tokens."""
    home = tmp_path_factory.mktemp("captions")
    (home / "en.srt").write_text(ENGLISH)
    (home / "de.vtt").write_text(GERMAN)
    binary, keys = ffmpeg.find(), home / "keys.toml"
    binary.run(["-v", "error", "-f", "lavfi", "-i", GREY, "-c:v", "libx264", "-qp", "10", str(home / "grey.mp4")])
    subprocess.run([script("ocactl"), "token", "new-key", str(keys), "--kid", "1"], check=True)
    with Fleet(home / "fleet", keys=keys) as fleet:
        fleet.start_controller()
        store = fleet.add("west-1", "west").store
        texts = (f"en={home}/en.srt", f"de:captions:Für Taube={home}/de.vtt")
        order = package.Order(home / "grey.mp4", store, "grey", "Grey", preset="ultrafast", captions=texts)
        built = package.build(binary, order)
        fleet.start("west-1")
        zones = home / "coverage.json"
        place = {"latitude": 52.5, "longitude": 13.4}
        zones.write_text(json.dumps({"coverageZones": {"west": {"network": ["127.0.0.0/8"], "coordinates": place}}}))
        fleet.ocactl("coverage", "set", str(zones))
        fleet.ocactl("title", "add", str(store / "grey"))
        asked = ("steer", "explain", "--client", "127.0.0.1", "--title", "grey")
        fleet.wait_for("steering", lambda: any(c["rank"] is not None for c in fleet.ocactl(*asked)["candidates"]))
        yield fleet, read(built.path)[0]


def opened(page: Page, fleet: Fleet, script_: str, name: str) -> None:
    """A player of ours in the page of the title, with the manifest that is made for this viewer."""
    command = [
        script("ocactl"),
        "token",
        "mint",
        "--keys",
        str(fleet.directory.parent / "keys.toml"),
        "--title",
        "grey",
    ]
    minted = subprocess.run([*command, "--for", "10m"], check=True, capture_output=True, text=True).stdout.strip()
    base = f"{fleet.controller}/c/{minted}/play/grey"
    page.goto(base)
    page.evaluate("stop()")  # the page's own player
    page.evaluate(script_, f"{base}/{name}")


def shown(page: Page, time: float, *wanted: list[object]) -> None:
    """Seek, and wait until exactly these cues are shown."""
    for attempt in range(60):
        # While it stands dash.js shows no cues that arrive later, so it is sent there again.
        page.evaluate("time => { mine.video.currentTime = time; }", time + attempt % 2 / 20)
        with suppress(PlaywrightTimeout):
            page.wait_for_function(SHOWN, arg=list(wanted), timeout=2000)
            return
    pytest.fail(f"at {time} s not {wanted} was shown, but {page.evaluate(CUES)}")


PLAYERS = [pytest.param(DASH, "manifest.mpd", id="dash.js"), pytest.param(HLS, "master.m3u8", id="hls.js")]


@pytest.mark.parametrize(("player", "name"), PLAYERS)
def test_players_show_captions_at_their_times(
    served: tuple[Fleet, Title], page: Page, player: str, name: str
) -> None:
    """Of each language, at any place that is sought, what belongs there, once; also where segments are cut."""
    refused: list[str] = []
    types: dict[str, str] = {}
    page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    page.on("response", lambda response: types.update({response.url: response.headers.get("content-type", "")}))
    opened(page, served[0], player, name)
    page.evaluate("mine.choose('English')")
    shown(page, 61, ACROSS)
    shown(page, 1.5, HELLO)
    shown(page, 59, ACROSS)
    shown(page, 30)
    page.evaluate("mine.choose('Für Taube')")
    shown(page, 2.2, GREEN)
    assert refused == []
    assert {kind for url, kind in types.items() if url.endswith(".vtt")} == {"text/vtt; charset=utf-8"}


def test_dashjs_finds_the_right_thumbnails(served: tuple[Fleet, Title], page: Page) -> None:
    """At every time the tile of the picture that is shown then, or up to one interval before."""
    (tiles,) = served[1].thumbnails
    interval = tiles.interval / tiles.timescale
    assert (tiles.count, tiles.sheets) == (25, 1)
    opened(page, served[0], DASH, "manifest.mpd")
    for time in (0, interval - 0.1, interval + 0.1, 31, 60, SECONDS - 0.1):
        number = int(time / interval)
        column, row = number % tiles.columns, number // tiles.columns
        found = page.evaluate(THUMBNAIL, time)
        assert found["at"] == [column * tiles.width, row * tiles.height, tiles.width, tiles.height]
        assert found["sheet"] == [tiles.columns * tiles.width, tiles.rows * tiles.height]
        assert found["light"] == pytest.approx(37 * int(number * interval) % 220 * 255 / 219, abs=6)
