"""HLS playlists: golden files, the arithmetic of rates, and what must be refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.errors import FormatError
from oca.title import hls
from oca.title.location import Location
from oca.title.model import File, Period, Title, Track
from oca.title.segments import Segment, SegmentIndex

GOLDEN = Path(__file__).parent / "golden"
LOCATIONS = (
    Location("north-1", "http://north-1.example:8080/t/bbb/0123/"),
    Location("origin", "https://origin.example/t/bbb/0123/"),
)
STEERING = "https://control.example/steer/bbb/0123?s=1&c=2"


def index(sizes: list[int], durations: list[int], timescale: int = 25) -> SegmentIndex:
    """A segment index of the given sizes (bytes) and durations (ticks)."""
    offsets, times = accumulate(sizes, initial=1000), accumulate(durations, initial=0)
    rows = zip(offsets, sizes, times, durations, strict=False)
    return SegmentIndex(timescale, 900, tuple(Segment(o, b, t, d, -(-b // 10)) for o, b, t, d in rows))


INDEXES = {
    "v-240-235": index([110_000, 120_000, 40_000], [100, 100, 32]),
    "v-720-3000": index([1_400_000, 1_500_000, 500_000], [100, 100, 32]),
    "a-und-128": index([64_000, 64_000, 20_480], [191_488, 192_512, 60_928], 48_000),
}
for name, size in {
    "a-en-128": 64_000,
    "a-en-384": 192_000,
    "a-en-96-opus": 48_000,
    "a-de-128": 65_000,
    "a-de-96-opus": 47_000,
    "a-en-64-2": 32_000,
    "a-en-64-3": 33_000,
}.items():
    INDEXES[name] = index([size, size, size // 4], [191_488, 192_512, 60_928], 48_000)


def track(name: str, **more: Any) -> Track:
    """A track of the golden title."""
    found = INDEXES[name]
    if more["kind"] == "video":
        more["i_frame_bandwidth"], more["i_frame_average_bandwidth"] = hls.i_frame_rates(found)
    common: dict[str, Any] = {
        "timescale": found.timescale,
        "duration": found.duration,
        "segments": len(found.segments),
        "bandwidth": hls.peak_rate(found),
        "average_bandwidth": hls.average_rate(found),
    }
    return Track(name=name, **common, **more)


VIDEO: dict[str, Any] = {"kind": "video", "frame_rate": "25"}
LOW = track("v-240-235", codecs="avc1.640015", width=426, height=240, **VIDEO)
HIGH = track("v-720-3000", codecs="avc1.64001f", width=1280, height=720, **VIDEO)
SOUNDS = tuple(
    track(name, kind="audio", language=name[2:4], codecs=codecs, channels=channels, label=label, role=role)
    for name, codecs, channels, label, role in (
        ("a-en-128", "mp4a.40.2", 2, "English", "main"),
        ("a-en-384", "mp4a.40.2", 6, "English", "main"),
        ("a-en-96-opus", "opus", 2, "English", "main"),
        ("a-de-128", "mp4a.40.2", 2, "German", "alternate"),
        ("a-de-96-opus", "opus", 2, "German", "alternate"),
        ("a-en-64-2", "mp4a.40.2", 1, 'The "Director"', "commentary"),
        ("a-en-64-3", "mp4a.40.2", 1, "English, audio description", "description"),
    )
)
SOUND = track("a-und-128", kind="audio", codecs="mp4a.40.2", language="und", channels=2, sample_rate=48_000)


def title(*tracks: Track, files: Iterable[str] = ()) -> Title:
    """A title of these tracks that lists these files, with a name that needs escaping."""
    listed = dict.fromkeys(files, File(0, "0" * 64, []))
    return Title(id="bbb", name='Buck & "Bunny" <1>\x00', periods=[Period("p0", list(tracks))], files=listed)


def i_frames(*tracks: Track, ranges: bool = False) -> Title:
    """A title of these tracks that has I-frame playlists."""
    return title(*tracks, files=[hls.iframes_name(track, ranges) for track in tracks])


@pytest.mark.parametrize(
    ("name", "title", "locations", "steering"),
    [
        ("static.m3u8", title(LOW, HIGH, SOUND), (), None),
        ("silent.m3u8", title(LOW, HIGH), (), None),
        ("audio.m3u8", title(SOUND), (), None),
        ("steered.m3u8", title(LOW, HIGH, SOUND), LOCATIONS, STEERING),
        ("silent-steered.m3u8", title(LOW), LOCATIONS, STEERING),
        ("static-iframes.m3u8", i_frames(LOW, HIGH, SOUND), (), None),
        ("steered-iframes.m3u8", i_frames(LOW, HIGH, SOUND), LOCATIONS, STEERING),
    ],
)
def test_multivariant(name: str, title: Title, locations: tuple[Location, ...], steering: str | None) -> None:
    """The multivariant playlist is, byte for byte, the golden one."""
    assert hls.multivariant(title, INDEXES, locations, steering) == (GOLDEN / name).read_text()


def test_multivariant_of_ranges() -> None:
    """Every URI in it is that of a playlist of byte ranges, as in the golden one."""
    made = hls.multivariant(i_frames(LOW, HIGH, SOUND, ranges=True), INDEXES, ranges=True)
    assert made == (GOLDEN / "static.ranges.m3u8").read_text()
    uris = re.findall(r'^[^#].*|(?<=URI=")[^"]+', made, re.M)
    assert len(uris) == 5
    assert all(uri.endswith(".ranges.m3u8") for uri in uris)


def test_groups_of_audio() -> None:
    """Each codec and width has a group, all with the same members; as in the golden one, at every location."""
    made = hls.multivariant(title(LOW, HIGH, *SOUNDS), INDEXES, LOCATIONS, STEERING)
    assert made == (GOLDEN / "steered-sounds.m3u8").read_text()
    few = hls.multivariant(title(LOW, SOUNDS[0], SOUNDS[3]), INDEXES)
    assert re.findall(r'GROUP-ID="([^"]*)",NAME="([^"]*)"', few) == [("audio", "English"), ("audio", "German")]
    wide = hls.multivariant(title(LOW, SOUNDS[1], SOUNDS[3]), INDEXES)
    groups = re.findall(r'GROUP-ID="([^"]*)".*URI="([^"]*)\.m3u8"', wide)
    assert groups == [("audio", "a-en-384"), ("audio", "a-de-128")], "one is enough where none has a choice"


@pytest.mark.parametrize("which", [LOW, SOUND])
def test_playlists_of_a_track(which: Track) -> None:
    """The track's playlists are, byte for byte, the golden ones; those of I-frames are made of video only."""
    made = hls.playlists(which, INDEXES[which.name])
    assert made == {name: (GOLDEN / name).read_text() for name in made}
    assert sum("#EXT-X-I-FRAMES-ONLY" in text for text in made.values()) == (2 if which is LOW else 0)


def test_i_frame_playlists_are_announced_where_the_title_has_them() -> None:
    """A version that was packaged before there were any announces none, and one with some announces these."""
    assert "I-FRAME" not in hls.multivariant(title(LOW, HIGH), INDEXES)
    one = title(LOW, HIGH, files=["v-240-235.iframes.m3u8", "v-720-3000.iframes.ranges.m3u8"])
    for ranges, uri in ((False, "v-240-235.iframes.m3u8"), (True, "v-720-3000.iframes.ranges.m3u8")):
        found = [line for line in hls.multivariant(one, INDEXES, ranges=ranges).splitlines() if "I-FRAME" in line]
        assert [line.rpartition("URI=")[2] for line in found] == [f'"{uri}"']


def test_video_range() -> None:
    """It is said of H.264, of variants and I-frames alike; of other codecs and of audio nothing is said."""
    lines = hls.multivariant(i_frames(LOW, HIGH, SOUND), INDEXES, LOCATIONS).splitlines()
    said = [line for line in lines if "VIDEO-RANGE=SDR" in line]
    assert said == [line for line in lines if "RESOLUTION=" in line]
    assert len(said) == 8
    av1 = msgspec.structs.replace(LOW, codecs="av01.0.04M.08")
    assert "VIDEO-RANGE" not in hls.multivariant(title(av1), INDEXES)
    assert "VIDEO-RANGE" not in hls.multivariant(title(SOUND), INDEXES)


def test_an_index_without_i_frames() -> None:
    """It can make no I-frame playlist, and the sentence says where."""
    whole = INDEXES["v-240-235"].segments
    blind = SegmentIndex(25, 900, (whole[0], dataclasses.replace(whole[1], i_frame_bytes=0), whole[2]))
    with pytest.raises(FormatError, match="v-240-235 gives segment 2 no I-frame"):
        hls.iframes(LOW, blind)


@given(
    st.lists(st.tuples(st.integers(1, 10**7), st.integers(1, 200), st.floats(0, 1)), min_size=1, max_size=30),
    st.booleans(),
)
def test_i_frames(rows: list[tuple[int, int, float]], ranges: bool) -> None:
    """An I-frame playlist has of every segment its head, for as long as the segment lasts, at rates that hold.

    Its rates are those of a track that has nothing but these heads.
    """
    found = index([size for size, _, _ in rows], [ticks for _, ticks, _ in rows])
    heads = [max(1, int(size * share)) for size, _, share in rows]
    segments = tuple(
        dataclasses.replace(segment, i_frame_bytes=head) for segment, head in zip(found.segments, heads, strict=True)
    )
    found = SegmentIndex(25, 900, segments)
    which = msgspec.structs.replace(LOW, segments=len(rows))
    text = hls.iframes(which, found, ranges)
    lasts = [round(25 * float(each)) for each in re.findall(r"#EXTINF:([\d.]+),", text)]
    assert lasts == [segment.duration for segment in segments]
    spans = [(int(a), int(b)) for a, b in re.findall(r"#EXT-X-BYTERANGE:(\d+)@(\d+)", text)]
    assert spans == [(s.i_frame_bytes, s.offset if ranges else 0) for s in segments]
    uris = [line for line in text.splitlines() if not line.startswith("#")]
    assert uris == ["v-240-235.mp4" if ranges else f"v-240-235/{n}.m4s" for n in range(1, len(rows) + 1)]
    alone = index(heads, lasts)
    assert hls.i_frame_rates(found) == (hls.peak_rate(alone), hls.average_rate(alone))
    assert int(re.findall(r"TARGETDURATION:(\d+)", text)[0]) == hls.target_duration(found)


def test_only_tracks_with_an_index_are_offered() -> None:
    """A track without an index is left out, and without it the rates are those of the rest."""
    playlist = hls.multivariant(title(LOW, HIGH, SOUND), {"v-240-235": INDEXES["v-240-235"]})
    assert "v-720-3000" not in playlist
    assert f"BANDWIDTH={LOW.bandwidth}," in playlist


@pytest.mark.parametrize(
    ("sizes", "durations", "target", "peak"),
    [
        ([100, 100], [100, 100], 4, 200),
        ([100, 200], [100, 100], 4, 400),
        ([100, 100], [100, 25], 4, 320),  # the short one counts only with its neighbour
        ([100, 10], [100, 49], 4, 200),
        ([10, 10, 50], [100, 100, 50], 4, 200),  # with half a target it counts alone
        ([1], [5], 1, 40),  # shorter than any set: the average
        ([3], [110], 4, 6),  # rounded up
        ([100], [112], 4, 179),
        ([100], [113], 5, 177),
    ],
)
def test_peak(sizes: list[int], durations: list[int], target: int, peak: int) -> None:
    """The peak is the highest rate of any contiguous set of 0.5 to 1.5 target durations, rounded up."""
    found = index(sizes, durations)
    assert hls.target_duration(found) == target
    assert hls.peak_rate(found) == peak


@given(st.lists(st.tuples(st.integers(1, 10**7), st.integers(1, 200)), min_size=1, max_size=30))
def test_rates(rows: list[tuple[int, int]]) -> None:
    """The peak is the brute-force maximum, rounded up; the average times the duration is all of the bytes."""
    sizes, durations = [size for size, _ in rows], [ticks for _, ticks in rows]
    found = index(sizes, durations)
    target, count = 25 * hls.target_duration(found), len(rows)
    sets = [(sum(sizes[a:b]), sum(durations[a:b])) for a in range(count) for b in range(a + 1, count + 1)]
    rates = [-(-8 * 25 * size // ticks) for size, ticks in sets if 0.5 * target <= ticks <= 1.5 * target]
    assert hls.peak_rate(found) == max(rates, default=hls.average_rate(found))
    assert 0 <= hls.average_rate(found) * sum(durations) - 8 * 25 * sum(sizes) < sum(durations)


def test_quotes_cannot_leave_a_string() -> None:
    """A language with a quote or a line break in it cannot write lines of the playlist."""
    evil = track("a-und-128", kind="audio", codecs='x"\n', language='de"\n#EXT-X-ENDLIST', channels=2, sample_rate=1)
    playlist = hls.multivariant(title(LOW, evil), INDEXES)
    assert 'LANGUAGE="de#EXT-X-ENDLIST"' in playlist
    assert len(playlist.splitlines()) == 6


@pytest.mark.parametrize(
    ("ident", "base"),
    [
        ("a b", "http://a/"),
        ("", "http://a/"),
        ("a", "http://a"),
        ("a", 'http://a"/'),
        ("a", "ftp://a/"),
        ("a", "/t/"),
    ],
)
def test_bad_location(ident: str, base: str) -> None:
    """A location that would break a manifest is refused."""
    with pytest.raises(FormatError, match="location"):
        Location(ident, base)


@pytest.mark.parametrize(("locations", "url"), [((), STEERING), (LOCATIONS, 'http://x/"'), (LOCATIONS, "/steer")])
def test_bad_steering(locations: tuple[Location, ...], url: str) -> None:
    """Steering needs a location to start from and a URL fit for a playlist."""
    with pytest.raises(FormatError):
        hls.multivariant(title(LOW), INDEXES, locations, url)
