"""Captions and thumbnails: in title.json, in both kinds of manifest, static and made for one viewer."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from oca.errors import FormatError
from oca.http.slices import facts_of
from oca.title import dash, hls
from oca.title import model as title_format
from oca.title.filelist import filelist, index_of
from oca.title.location import Location
from oca.title.model import File, Period, Text, Tiles, Title, Track
from oca.title.segments import Segment, SegmentIndex

GOLDEN = Path(__file__).parent / "golden"
NS = {"": "urn:mpeg:dash:schema:mpd:2011"}
STEERING = "https://control.example/steer/bbb/0123?s=1&c=2"
LOCATIONS = (
    Location("north-1", "http://north-1.example:8080/c/2D3R/t/bbb/0123/"),
    Location("origin", "https://origin.example/t/bbb/0123/"),
)
INDEX = SegmentIndex(25, 900, tuple(Segment(2000 + n, 100_000, 100 * n, 100, 9_000) for n in range(55)))
VIDEO = Track(
    name="v-240-235",
    kind="video",
    codecs="avc1.640015",
    timescale=25,
    duration=5500,
    segments=55,
    bandwidth=200_000,
    average_bandwidth=190_000,
    width=426,
    height=240,
    frame_rate="25",
)
CAPTIONS = [
    Text(name="c-en", kind="subtitles", language="en", label="English", bandwidth=300, average_bandwidth=200),
    Text(name="c-de", kind="captions", language="de", label='Für <"Taube">', bandwidth=400, average_bandwidth=100),
    Text(name="c-en-2", kind="forced", language="en", label="Signs\n#X", bandwidth=30, average_bandwidth=20),
]
THUMBNAILS = [
    Tiles(
        name="i-90",
        width=160,
        height=90,
        columns=5,
        rows=5,
        timescale=25,
        interval=200,
        count=28,
        bandwidth=4_000,
    )
]
NAMES = (
    "v-240-235.mp4",
    "v-240-235.idx",
    "c-en.vtt",
    "c-en.m3u8",
    "c-de.vtt",
    "c-de.m3u8",
    "c-en-2.vtt",
    "c-en-2.m3u8",
)
FILES = {name: File(5_000, "0" * 64, ["0" * 64]) for name in (*NAMES, "i-90-1.jpg", "i-90-2.jpg", "i-90.m3u8")}
TITLE = Title(id="bbb", name="Bunny", periods=[Period("p0", [VIDEO], CAPTIONS, THUMBNAILS)], files=FILES)
INDEXES = {"v-240-235": INDEX}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("sidecars.m3u8", hls.multivariant(TITLE, INDEXES)),
        ("sidecars-steered.m3u8", hls.multivariant(TITLE, INDEXES, LOCATIONS, STEERING)),
        ("sidecars.mpd", dash.mpd(TITLE, INDEXES)),
        ("sidecars-steered.mpd", dash.mpd(TITLE, INDEXES, LOCATIONS, STEERING)),
    ],
)
def test_manifests(name: str, made: str) -> None:
    """They are, byte for byte, the golden ones."""
    assert made == (GOLDEN / name).read_text()


def test_captions_are_the_same_with_byte_ranges() -> None:
    """Only the tracks are fetched in another way."""
    lines = [hls.multivariant(TITLE, INDEXES, ranges=ranges).splitlines() for ranges in (False, True)]
    kept = [[line for line in each if "SUBTITLES," in line or "IMAGE" in line] for each in lines]
    assert len(kept[0]) == 4
    assert kept[0] == kept[1]
    sets = [
        ET.fromstring(dash.mpd(TITLE, INDEXES, ondemand=ondemand)).findall(".//AdaptationSet", NS)
        for ondemand in (False, True)
    ]
    texts = [[ET.tostring(each) for each in found if each.get("contentType") != "video"] for found in sets]
    assert len(texts[0]) == 4
    assert texts[0] == texts[1]


def test_rates_hold_what_is_played_together() -> None:
    """A variant's are of the video and the heaviest captions (RFC 8216 4.3.4.2); a sidecar's are all of the file."""
    text = hls.multivariant(TITLE, INDEXES)
    assert "BANDWIDTH=200400,AVERAGE-BANDWIDTH=190200," in text
    root = ET.fromstring(dash.mpd(TITLE, INDEXES))
    found = {str(each.get("id")): str(each.get("bandwidth")) for each in root.iterfind(".//Representation", NS)}
    assert found["c-en"] == str(-(-8 * 5_000 // 220))
    assert found["i-90"] == "4000"


def test_labels_cannot_leave_their_place() -> None:
    """Quotes and line breaks are no part of a name in HLS; in XML they are escaped."""
    names = re.findall(r'NAME="([^"]*)"', hls.multivariant(TITLE, INDEXES))
    assert names == ["English", "Für <Taube>", "Signs#X"]
    root = ET.fromstring(dash.mpd(TITLE, INDEXES))
    assert [each.text for each in root.iterfind(".//Label", NS)] == ["English", 'Für <"Taube">', "Signs\n#X"]


def test_every_location_has_groups_of_its_own() -> None:
    """So that a player that moves takes its captions from where it moves to."""
    text = hls.multivariant(TITLE, INDEXES, LOCATIONS, STEERING)
    for place in LOCATIONS:
        group = re.findall(rf'GROUP-ID="subtitles-{place.id}".*URI="([^"]*)"', text)
        assert group == [f"{place.base}{each.name}.m3u8" for each in CAPTIONS]
        assert f'SUBTITLES="subtitles-{place.id}",CLOSED-CAPTIONS=NONE,PATHWAY-ID="{place.id}"' in text
        assert f'PATHWAY-ID="{place.id}",URI="{place.base}i-90.m3u8"' in text


def test_title_json_of_before_is_the_same() -> None:
    """A title without captions and thumbnails has no word of them; one with them comes back as it was."""
    bare = structs.replace(TITLE, periods=[Period("p0", [VIDEO])])
    data = title_format.encode(bare)
    assert sorted(json.loads(data)["periods"][0]) == ["id", "tracks"]
    assert title_format.decode(title_format.encode(TITLE)) == TITLE
    assert title_format.decode(data).captions == []
    assert (TITLE.captions, TITLE.thumbnails) == (CAPTIONS, THUMBNAILS)
    assert set(TITLE.shared_files) == set(FILES) - set(VIDEO.files)


def captions_of(told: dict[str, Any]) -> Any:
    return told["periods"][0]["captions"][0]


def tiles_of(told: dict[str, Any]) -> Any:
    return told["periods"][0]["thumbnails"][0]


BREAKS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda t: captions_of(t).update(name="../x"), "is not an id"),
    (lambda t: captions_of(t).update(name="c-de"), "have the same name"),
    (lambda t: captions_of(t).update(name="i-90"), "have the same name"),
    (lambda t: captions_of(t).update(name="v-240-235"), "have the same name"),
    (lambda t: captions_of(t).update(kind="lyrics"), "corrupt"),
    (lambda t: captions_of(t).update(language='e"n'), "corrupt"),
    (lambda t: captions_of(t).update(label="x" * 101), "corrupt"),
    (lambda t: captions_of(t).update(bandwidth=0), "corrupt"),
    (lambda t: t["files"].pop("c-en.vtt"), "captions are missing"),
    (lambda t: t["files"].pop("c-de.m3u8"), "captions are missing"),
    (lambda t: t["files"].pop("i-90-2.jpg"), "thumbnails are missing"),
    (lambda t: t["files"].pop("i-90.m3u8"), "thumbnails are missing"),
    (lambda t: tiles_of(t).update(count=51), "thumbnails are missing"),
    (lambda t: tiles_of(t).update(count=1 << 60), "thumbnails are missing"),
    (lambda t: tiles_of(t).update(columns=0), "corrupt"),
    (lambda t: tiles_of(t).update(rows=65), "corrupt"),
    (lambda t: tiles_of(t).update(width=1 << 20), "corrupt"),
    (lambda t: tiles_of(t).update(interval=0), "corrupt"),
]


@pytest.mark.parametrize(("spoil", "words"), BREAKS)
def test_a_corrupt_title_is_refused(spoil: Callable[[dict[str, Any]], Any], words: str) -> None:
    spoilt = json.loads(title_format.encode(TITLE))
    spoil(spoilt)
    with pytest.raises(FormatError, match=words):
        title_format.decode(json.dumps(spoilt).encode())


def test_what_files_are_said_to_be() -> None:
    """A player takes WebVTT for nothing else, whatever language it is in."""
    told = {name: facts_of(TITLE, "0" * 32, 0, name, 0, 1, None, -1).content_type for name in FILES}
    assert told["c-en.vtt"] == "text/vtt; charset=utf-8"
    assert told["c-en.m3u8"] == "application/vnd.apple.mpegurl"
    assert told["i-90-1.jpg"] == "image/jpeg"


def test_a_playlist_of_files() -> None:
    """Byte for byte; the target is the longest, rounded."""
    index = index_of([10, 20], [250, 137], 25)
    assert (hls.peak_rate(index), hls.average_rate(index)) == (30, 16)
    assert filelist(["a.vtt", "b.vtt"], index) == (
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:1\n#EXT-X-PLAYLIST-TYPE:VOD\n"
        "#EXTINF:10.000000,\na.vtt\n#EXTINF:5.480000,\nb.vtt\n#EXT-X-ENDLIST\n"
    )
    tagged = filelist(["a.jpg"], index_of([10], [25], 25), "#ALL", "#EACH").splitlines()
    assert tagged[-5:] == ["#ALL", "#EXTINF:1.000000,", "#EACH", "a.jpg", "#EXT-X-ENDLIST"]
