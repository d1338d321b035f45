"""Real players play Opus and AAC in several languages and channels, by personalised manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from bench.fleet import Fleet
from packager import ffmpeg, package
from tests.e2e.test_encryption import DASH, HLS, NODE, SCRIPTS, SHAKA_PLAYER

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(300)]
SIX = "aevalsrc=" + "|".join(["0.1*sin(2000*t)"] * 6) + ":c=5.1:s=48000:d=5"
SOURCE = (
    *(
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=128x72:r=25:d=5",
        "-f",
        "lavfi",
        "-i",
        SIX,
        "-f",
        "lavfi",
        "-i",
        "sine=300:d=5",
    ),
    *("-map", "0", "-map", "1", "-map", "2", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=ger"),
    *("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le"),
)
# The languages of what a player has to choose from, and how to choose; for each of the players.
DASH_KNOWS = "player.getTracksFor('audio').map(each => each.lang)"
DASH_TAKES = "player.setCurrentTrack(player.getTracksFor('audio').find(each => each.lang === 'de'))"
HLS_KNOWS = "player.audioTracks.map(each => each.lang)"
HLS_TAKES = "player.audioTrack = player.audioTracks.findIndex(each => each.lang === 'de')"
SHAKA_KNOWS = "player.getAudioTracks().map(each => each.language)"
SHAKA_TAKES = "player.selectAudioTrack(player.getAudioTracks().find(each => each.language === 'de'))"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A box with a title in English 5.1 and German, in Opus alone and in both codecs, and a controller."""
    home, binary = tmp_path_factory.mktemp("sound"), ffmpeg.find()
    binary.run(["-v", "error", *SOURCE, str(home / "film.mkv")])
    with Fleet(home / "fleet") as fleet:
        fleet.start_controller()
        store = fleet.add("west-1", "west").store
        for name, codecs in (("opus", ("opus",)), ("both", ("aac", "opus"))):
            order = package.Order(home / "film.mkv", store, name, name, preset="ultrafast", audio_codecs=codecs)
            package.build(binary, order)
        fleet.start("west-1")
        zones = home / "coverage.json"
        place = {"latitude": 52.5, "longitude": 13.4}
        zones.write_text(json.dumps({"coverageZones": {"west": {"network": ["127.0.0.0/8"], "coordinates": place}}}))
        fleet.ocactl("coverage", "set", str(zones))
        for name in ("opus", "both"):
            fleet.ocactl("title", "add", str(store / name))
            asked = ("steer", "explain", "--client", "127.0.0.1", "--title", name)
            fleet.wait_for(
                "steering",
                lambda asked=asked: any(c["rank"] is not None for c in fleet.ocactl(*asked)["candidates"]),
            )
        yield fleet


@pytest.mark.parametrize(
    ("title", "player", "name", "knows", "takes"),
    [
        pytest.param("opus", DASH, "manifest.mpd", DASH_KNOWS, DASH_TAKES, id="dash.js"),
        pytest.param("opus", SHAKA_PLAYER, "manifest.mpd", SHAKA_KNOWS, SHAKA_TAKES, id="shaka-dash"),
        pytest.param("opus", SHAKA_PLAYER, "master.m3u8", SHAKA_KNOWS, SHAKA_TAKES, id="shaka-hls"),
        pytest.param("opus", HLS, "master.m3u8", HLS_KNOWS, HLS_TAKES, id="hls.js"),
        pytest.param("both", DASH, "manifest.mpd", DASH_KNOWS, DASH_TAKES, id="dash.js-both"),
        pytest.param("both", HLS, "master.m3u8", HLS_KNOWS, HLS_TAKES, id="hls.js-both"),
    ],
)
def test_players_play_every_language(
    served: Fleet, page: Page, title: str, player: str, name: str, knows: str, takes: str
) -> None:
    """To the end; they begin with the main language, mostly in stereo and AAC, and can change it."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    base = f"{served.controller}/play/{title}"
    page.goto(f"{served.controller}/healthz")  # not the title's page, which has a player of its own
    for each in SCRIPTS:
        page.add_script_tag(path=NODE / each)
    script = player.replace("const player", "window.player")
    page.evaluate(f"([url, licences, keys]) => {{{script}}}", [f"{base}/{name}", "http://127.0.0.1:1", None])
    page.wait_for_function("video.currentTime > 1 || said.length", timeout=60_000)
    assert page.evaluate("said") == []
    first = {part for url in asked for part in url.split("/") if part.startswith("a-") and "." not in part}
    if player is HLS:  # which goes from group to group as it goes from rung to rung
        assert {part[:5] for part in first} == {"a-en-"}
    else:
        assert first == {"a-en-128" if title == "both" else "a-en-96-opus"}
    assert page.evaluate("video.webkitAudioDecodedByteCount") > 1000
    assert set(page.evaluate(knows)) == {"en", "de"}
    with page.expect_request(
        lambda request: "/a-de-" in request.url and request.url.endswith(".m4s"), timeout=60_000
    ):
        page.evaluate(takes)
    page.wait_for_function("video.ended || said.length", timeout=60_000)
    assert page.evaluate("said") == []
