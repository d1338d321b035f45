"""Every manifest of a matrix of titles: right by the DASH schema and the strict HLS parser, and played to its end.

Takes minutes, so its name is not one that `make test` collects; `make test-all` names it.
$OCA_DASH_SCHEMA is the path of DASH-MPD.xsd.
"""

from __future__ import annotations

import json
import os
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import xmlschema
from playwright.sync_api import Browser, Page

from bench.fleet import Fleet
from oca.title.model import Title
from oca.title.model import read as read_title
from packager import ffmpeg, package
from packager.encryption import encrypt, keys
from tests.e2e.test_encryption import AUDIO, DASH, HLS, KEYS, SCRIPTS, SHAKA_PLAYER, VIDEO
from tests.matrix.conftest import SCHEMA
from tests.matrix.pairwise import Row, pairwise
from tests.packager.test_hls_strict import parsed

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1800)]
NODE = Path(__file__).parents[2] / "node_modules"
SECONDS = 6
# Two rungs; a grey of its own for each picture would say nothing more here.
PICTURE = ("-f", "lavfi", "-i", f"testsrc2=s=512x288:r=25:d={SECONDS}")
CODECS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "av1": ("av1",),
    "h264+av1": ("h264", "av1"),
}
# Chromium has no HEVC: such titles are checked and not played.
PLAYED = {"h264", "av1", "h264+av1"}


@dataclass(frozen=True)
class Sound:
    """What ffmpeg is given to make the sound of a source, and what the build is told of it beside."""

    source: tuple[str, ...] = ()
    order: tuple[tuple[str, Any], ...] = ()


def tone(layout: str) -> tuple[str, ...]:
    """A tone in as many channels as the layout has."""
    return (*("-f", "lavfi", "-i", f"sine=440:r=48000:d={SECONDS},aformat=channel_layouts={layout}"), "-c:a", "aac")


# An English and a German tone, of other heights, in one file.
LANGUAGES = (
    *("-f", "lavfi", "-i", f"sine=440:r=48000:d={SECONDS}", "-f", "lavfi", "-i", f"sine=660:r=48000:d={SECONDS}"),
    *("-map", "0:v", "-map", "1:a", "-map", "2:a", "-c:a", "aac", "-ac", "2"),
    *("-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu"),
)
SOUNDS = {
    "none": Sound(),
    "stereo": Sound(tone("stereo")),
    "mono": Sound(tone("mono")),
    "5.1": Sound(tone("5.1")),
    "opus": Sound(tone("stereo"), (("audio_codecs", ("opus",)),)),
    "languages": Sound(LANGUAGES, (("audio_codecs", ("aac", "opus")),)),
}
CAPTIONS = {"none": (), "one": ("en",), "two": ("en", "de:captions")}
ENCRYPTION = ("none", "cenc", "cbcs")
THUMBNAILS = {"on": True, "off": False}
ROWS = pairwise(
    {
        "codecs": list(CODECS),
        "audio": list(SOUNDS),
        "captions": list(CAPTIONS),
        "encryption": ENCRYPTION,
        "thumbnails": list(THUMBNAILS),
    }
)
FORMS = {"live": ("manifest.mpd", "master.m3u8"), "ranges": ("ondemand.mpd", "master.ranges.m3u8")}
PLAYERS = {
    f"{player} {name}": (script, name)
    for mpd, m3u8 in FORMS.values()
    for player, script, name in (
        ("dash.js", DASH, mpd),
        ("shaka", SHAKA_PLAYER, mpd),
        ("shaka", SHAKA_PLAYER, m3u8),
        ("hls.js", HLS, m3u8),
    )
}
# dash.js may leave `ended` false at the end, so the time tells.
AT_THE_END = f"video.currentTime > {SECONDS} - 0.3 || said.length"
SEEN = (
    "[said, video.currentTime, video.webkitDecodedFrameCount, video.webkitAudioDecodedByteCount, !!video.mediaKeys]"
)


def id_of(row: Row) -> str:
    """The row as a title's id; pytest's name for it, too."""
    return "-".join(row.values()).replace("+", ".")


@dataclass(frozen=True)
class Matrix:
    """The fleet that serves the titles, and of each what was published and where."""

    fleet: Fleet
    titles: dict[str, tuple[Title, Path]]

    def personalised(self, title: str, name: str) -> str:
        """A manifest as the controller makes it for a viewer."""
        url = f"{self.fleet.controller}/play/{title}/{name}"
        with urllib.request.urlopen(url, timeout=60) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory, licences: str) -> Iterator[Matrix]:
    """A box that holds the title of every row, and a controller that sends viewers there."""
    home, binary, program = tmp_path_factory.mktemp("matrix"), ffmpeg.find(), encrypt.find()
    given = keys.given([f"video={VIDEO}:{KEYS[VIDEO]}", f"audio={AUDIO}:{KEYS[AUDIO]}"])
    (home / "en.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.500\nHello\n")
    (home / "de.vtt").write_text("WEBVTT\n\n00:02.000 --> 00:05.000\nGrün\n")
    for name, sound in SOUNDS.items():
        encoder = ("-c:v", "libx264", "-preset", "ultrafast")
        binary.run(["-v", "error", *PICTURE, *sound.source, *encoder, f"{home}/{name}.mp4"])
    titles = {}
    with Fleet(home / "fleet") as fleet:
        fleet.start_controller()
        store = fleet.add("west-1", "west").store
        for row in ROWS:
            order = package.Order(
                *(home / f"{row['audio']}.mp4", store, id_of(row), id_of(row)),
                preset="ultrafast",
                codecs=CODECS[row["codecs"]],
                captions=tuple(f"{each}={home}/{each[:2]}.vtt" for each in CAPTIONS[row["captions"]]),
                thumbnails=THUMBNAILS[row["thumbnails"]],
            )
            order = replace(order, **dict(SOUNDS[row["audio"]].order))
            if row["encryption"] in ("cenc", "cbcs"):
                urls = (f"{licences}/licence", f"{licences}/key/{{kid}}")
                order = replace(order, encryption=encrypt.Encryption(program, row["encryption"], given, *urls))
            built = package.build(binary, order)
            titles[id_of(row)] = (read_title(built.path)[0], built.path)
        fleet.start("west-1")
        zones = home / "coverage.json"
        place = {"latitude": 52.5, "longitude": 13.4}
        zones.write_text(json.dumps({"coverageZones": {"west": {"network": ["127.0.0.0/8"], "coordinates": place}}}))
        fleet.ocactl("coverage", "set", str(zones))
        for name in titles:
            fleet.ocactl("title", "add", str(store / name))
        for name in titles:
            asked = ("steer", "explain", "--client", "127.0.0.1", "--title", name)
            fleet.wait_for(
                f"steering of {name}",
                lambda asked=asked: any(each["rank"] is not None for each in fleet.ocactl(*asked)["candidates"]),
                seconds=120,
            )
        yield Matrix(fleet, titles)


@pytest.fixture(scope="module")
def schema() -> xmlschema.XMLSchema:
    """The schema of MPDs; its own copy of XLink's is read, so nothing is asked of the network."""
    path = os.environ.get(SCHEMA)
    if not path:
        pytest.skip(f"${SCHEMA} is not set: no MPD is held against the DASH schema")
    return xmlschema.XMLSchema(path, allow="local")


@pytest.mark.parametrize("row", ROWS, ids=id_of)
def test_every_mpd_is_right_by_the_schema(schema: xmlschema.XMLSchema, matrix: Matrix, row: Row) -> None:
    """Those on disk, and those made for a viewer, without ContentSteering: no edition of the schema has it yet."""
    name, where = id_of(row), matrix.titles[id_of(row)][1]
    for manifest in (mpd for mpd, _ in FORMS.values()):
        made = ET.fromstring(matrix.personalised(name, manifest))
        (steering,) = made.findall("{urn:mpeg:dash:schema:mpd:2011}ContentSteering")
        made.remove(steering)
        for text in ((where / manifest).read_text(), ET.tostring(made, encoding="unicode")):
            assert [f"{error.path}: {error.reason}" for error in schema.iter_errors(text)] == []


def test_the_schema_tells_right_from_wrong(schema: xmlschema.XMLSchema, matrix: Matrix) -> None:
    """An attribute that nobody knows, a missing one and a wrong order are found, so that silence says something."""
    text = (matrix.titles[id_of(ROWS[0])][1] / "manifest.mpd").read_text()
    assert schema.is_valid(text)
    for old, new in (
        ("segmentAlignment", "segmentsAligned"),
        (' minBufferTime="', ' xml:base="'),
        ("<Period", "<BaseURL>late</BaseURL><UTCTiming/><Period"),
    ):
        assert old in text
        assert not schema.is_valid(text.replace(old, new, 1)), new


@pytest.mark.parametrize("row", ROWS, ids=id_of)
def test_every_playlist_is_strictly_right(matrix: Matrix, row: Row) -> None:
    """Of segments, byte ranges, I-frames, captions and thumbnails, and the multivariant ones made for a viewer."""
    name = id_of(row)
    title, where = matrix.titles[name]
    made = [matrix.personalised(name, m3u8) for _, m3u8 in FORMS.values()]
    masters = [(where / m3u8).read_text() for _, m3u8 in FORMS.values()]
    rungs = sum(track.kind == "video" for track in title.tracks)
    assert rungs == 2 * len(CODECS[row["codecs"]])
    # Every variant is there with each coding of the sound, in stereo and in more channels.
    groups = {(track.codecs.partition(".")[0], track.channels > 2) for track in title.tracks if track.kind == "audio"}
    for found in parsed(made + masters):
        assert (found["variants"], found["iframes"]) == (rungs * max(1, len(groups)), rungs)
    lists = [file for file in title.files if file.endswith(".m3u8") and not file.startswith("master.")]
    wanted = len(title.tracks) * 2 + rungs * 2 + len(title.captions) + len(title.thumbnails)
    assert len(lists) == wanted
    for file, found in zip(lists, parsed([(where / file).read_text() for file in lists]), strict=True):
        assert found["seconds"] == pytest.approx(SECONDS, abs=0.001), file


def begin(page: Page, base: str, player: str, licences: str) -> None:
    """Open the title in a player, on a page that has nothing else to do with it."""
    script, name = PLAYERS[player]
    for each in SCRIPTS:
        page.add_script_tag(path=NODE / each)
    page.evaluate(f"([url, licences, keys]) => {{{script}}}", [f"{base}/{name}", f"{licences}/licence", None])


@pytest.mark.parametrize("row", [row for row in ROWS if row["codecs"] in PLAYED], ids=id_of)
def test_every_player_plays_it_to_the_end(matrix: Matrix, browser: Browser, licences: str, row: Row) -> None:
    """In both forms, picture and sound, and nothing that is asked for is refused."""
    name = id_of(row)
    controller = matrix.fleet.controller
    refused: list[str] = []
    with ExitStack() as pages:
        opened: dict[str, Page] = {}
        for player in PLAYERS:
            context = browser.new_context()
            pages.callback(context.close)
            page = opened[player] = context.new_page()
            page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
            page.goto(f"{controller}/healthz")
        refused.clear()  # such as an icon of that page
        for player, page in opened.items():
            begin(page, f"{controller}/play/{name}", player, licences)
        for player, page in opened.items():
            page.wait_for_function(AT_THE_END, timeout=120_000)
            said, time, pictures, sound, encrypted = page.evaluate(SEEN)
            assert said == [], player
            assert time > SECONDS - 0.3, player
            assert pictures > 25, player
            assert (sound > 1000) == (row["audio"] != "none"), player
            assert encrypted == (row["encryption"] != "none"), player
    assert refused == []
