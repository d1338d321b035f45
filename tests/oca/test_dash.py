"""MPDs: golden files, and that what is in them survives an XML parser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest

from oca.errors import FormatError
from oca.title import dash
from oca.title.location import Location
from oca.title.model import Period, Title, Track
from oca.title.segments import Segment, SegmentIndex

GOLDEN = Path(__file__).parent / "golden"
NS = {"": "urn:mpeg:dash:schema:mpd:2011"}
LOCATIONS = (
    Location("north-1", "http://north-1.example:8080/t/bbb/0123/"),
    Location("origin", "https://origin.example/t/bbb/0123/?a=1&b=2/"),
)
STEERING = "https://control.example/steer/bbb/0123?s=1&c=2"


def index(timescale: int, durations: list[int]) -> SegmentIndex:
    """A segment index of the given durations in ticks."""
    segments, time = [], 0
    for number, duration in enumerate(durations):
        segments.append(Segment(1000 + 100 * number, 100, time, duration, 50))
        time += duration
    return SegmentIndex(timescale, 900, tuple(segments))


VIDEO = index(30000, [120120, 120120, 120120, 60060])
SOUND = index(48000, [191488, 192512, 192512, 96256])
INDEXES = {"v-240-235": VIDEO, "v-720-3000": VIDEO, "a-und-128": SOUND, "a-deu-128": SOUND}


def picture(name: str, codecs: str, width: int, height: int, kbps: int) -> Track:
    """A video track."""
    return Track(
        name=name,
        kind="video",
        codecs=codecs,
        timescale=30000,
        duration=VIDEO.duration,
        segments=4,
        bandwidth=kbps * 1100,
        average_bandwidth=kbps * 1000,
        width=width,
        height=height,
        frame_rate="30000/1001",
    )


def sound(name: str, language: str) -> Track:
    """An audio track."""
    return Track(
        name=name,
        kind="audio",
        codecs="mp4a.40.2",
        timescale=48000,
        duration=SOUND.duration,
        segments=4,
        bandwidth=131_000,
        average_bandwidth=129_000,
        language=language,
        channels=2,
        sample_rate=48_000,
    )


LOW = picture("v-240-235", "avc1.640015", 426, 240, 235)
HIGH = picture("v-720-3000", "avc1.64001f", 1280, 720, 3000)
UND, DEU = sound("a-und-128", "und"), sound("a-deu-128", "deu")
SOUNDS = tuple(
    msgspec.structs.replace(sound(name, name[2:4]), codecs=codecs, channels=channels, label=label, role=role)
    for name, codecs, channels, label, role in (
        ("a-en-128", "mp4a.40.2", 2, "English", "main"),
        ("a-en-512", "mp4a.40.2", 8, "English", "main"),
        ("a-en-96-opus", "opus", 2, "English", "main"),
        ("a-de-128", "mp4a.40.2", 2, "German", "alternate"),
        ("a-en-64-2", "mp4a.40.2", 1, "<Director>\x00", "commentary"),
        ("a-en-64-3", "mp4a.40.2", 1, "English, audio description", "description"),
    )
)
INDEXES |= {track.name: SOUND for track in SOUNDS}


def title(*tracks: Track) -> Title:
    """A title of these tracks, with a name that needs escaping."""
    return Title(id="bbb", name='Buck & "Bunny" <1>\x00', periods=[Period("p0", list(tracks))], files={})


@pytest.mark.parametrize(
    ("name", "tracks", "locations", "steering"),
    [
        ("static.mpd", (LOW, HIGH, UND), (), None),
        ("silent.mpd", (LOW, HIGH), (), None),
        ("steered.mpd", (LOW, HIGH, UND, DEU), LOCATIONS, STEERING),
    ],
)
def test_mpd(name: str, tracks: tuple[Track, ...], locations: tuple[Location, ...], steering: str | None) -> None:
    """The MPD is, byte for byte, the golden one."""
    assert dash.mpd(title(*tracks), INDEXES, locations, steering) == (GOLDEN / name).read_text()


@pytest.mark.parametrize(
    ("name", "locations", "steering"), [("ondemand.mpd", (), None), ("ondemand-steered.mpd", LOCATIONS, STEERING)]
)
def test_ondemand(name: str, locations: tuple[Location, ...], steering: str | None) -> None:
    """The MPD of the on-demand profile is, byte for byte, the golden one."""
    made = dash.mpd(title(LOW, HIGH, UND), INDEXES, locations, steering, ondemand=True)
    assert made == (GOLDEN / name).read_text()


def test_sounds() -> None:
    """Languages, channels, codecs and roles are sets of their own, as in the golden one; one of them is preferred."""
    assert dash.mpd(title(LOW, *SOUNDS), INDEXES) == (GOLDEN / "sounds.mpd").read_text()


def test_ondemand_ranges() -> None:
    """Every track is one file, of which the init segment is the head, and the sidx follows it without a gap."""
    root = ET.fromstring(dash.mpd(title(LOW, HIGH, UND, DEU), INDEXES, ondemand=True))
    assert root.find(".//SegmentTemplate", NS) is None
    found = root.findall(".//Representation", NS)
    assert [each.findtext("BaseURL", None, NS) for each in found] == [
        f"{name}.mp4" for name in ("v-240-235", "v-720-3000", "a-und-128", "a-deu-128")
    ]
    for each in found:
        base, init = each.find("SegmentBase", NS), each.find("SegmentBase/Initialization", NS)
        assert base is not None
        assert init is not None
        # 14496-12 8.16.3: 40 bytes, and 12 for each of four segments
        assert (init.get("range"), base.get("indexRange")) == ("0-899", "900-987")


def test_no_room_for_a_sidx() -> None:
    """A track whose first segment follows on its init segment has no on-demand form."""
    tight = SegmentIndex(30000, 900, (Segment(951, 100, 0, 120120, 50),))
    with pytest.raises(FormatError, match="no room for a sidx"):
        dash.mpd(title(LOW), {"v-240-235": tight}, ondemand=True)
    room = SegmentIndex(30000, 900, (Segment(952, 100, 0, 120120, 50),))
    assert 'indexRange="900-951"' in dash.mpd(title(LOW), {"v-240-235": room}, ondemand=True)


def test_parsed() -> None:
    """A parser gets back what was put in: names, URLs, locations in rank order, and every segment."""
    root = ET.fromstring(dash.mpd(title(LOW, HIGH, UND), INDEXES, LOCATIONS, STEERING))
    assert root.findtext("ProgramInformation/Title", None, NS) == 'Buck & "Bunny" <1>\ufffd'
    assert [(base.get("serviceLocation"), base.text) for base in root.findall("BaseURL", NS)] == [
        (location.id, location.base) for location in LOCATIONS
    ]
    steering = root.find("ContentSteering", NS)
    assert steering is not None
    assert (steering.text, steering.get("defaultServiceLocation")) == (STEERING, "north-1 origin")
    for adaptation, found in zip(root.findall("Period/AdaptationSet", NS), (VIDEO, SOUND), strict=True):
        durations = [
            int(s.get("d", "")) for s in adaptation.iterfind(".//S", NS) for _ in range(int(s.get("r", "0")) + 1)
        ]
        assert durations == [segment.duration for segment in found.segments]


@pytest.mark.parametrize("rate", [(30000, 1001), (24000, 1001), (60000, 1001), (25, 1), (90000, 4004)])
@pytest.mark.parametrize("frames", [1, 29, 353, 1799, 100_003])
def test_the_presentation_lasts_longer_than_its_longest_track(rate: tuple[int, int], frames: int) -> None:
    """By a millisecond, however its end is rounded: dash.js stays short of an end that it does not reach."""
    timescale, ticks = rate
    long = index(timescale, [frames * ticks])
    track = msgspec.structs.replace(LOW, timescale=timescale, duration=long.duration, segments=1)
    for ondemand in (False, True):
        root = ET.fromstring(dash.mpd(title(track), {LOW.name: long}, ondemand=ondemand))
        lasts = Fraction(root.get("mediaPresentationDuration", "").removeprefix("PT").removesuffix("S"))
        assert Fraction("0.0009") < lasts - Fraction(long.duration, timescale) < Fraction("0.0011")


def test_tracks_cut_elsewhere_are_not_switchable() -> None:
    """Tracks whose segments do not start at the same times are in different adaptation sets."""
    indexes = {**INDEXES, "v-720-3000": index(30000, [60060] * 7)}
    root = ET.fromstring(dash.mpd(title(LOW, HIGH), indexes))
    assert len(root.findall("Period/AdaptationSet", NS)) == 2


def test_only_tracks_with_an_index_are_offered() -> None:
    """A track without an index is left out."""
    assert "v-720-3000" not in dash.mpd(title(LOW, HIGH), {"v-240-235": VIDEO})


@pytest.mark.parametrize(("locations", "url"), [((), STEERING), (LOCATIONS, "javascript:0")])
def test_bad_steering(locations: tuple[Location, ...], url: str) -> None:
    """Steering needs a location to start from and an http(s) URL."""
    with pytest.raises(FormatError):
        dash.mpd(title(LOW), INDEXES, locations, url)
