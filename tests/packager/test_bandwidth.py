"""What manifests declare, against the bytes that players get: never below the peak, and within 1 % above."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from oca.title import hls
from packager.package import Built

NS = {"": "urn:mpeg:dash:schema:mpd:2011"}
Parts = list[tuple[int, float]]


@pytest.fixture(params=["packaged", "subtitled"])
def built(request: pytest.FixtureRequest) -> Built:
    """Pictures and sound of the real clip; and a title of 210 s with captions and sheets of thumbnails."""
    found: Built = request.getfixturevalue(request.param)
    return found


def boxes(path: Path) -> Iterator[tuple[str, int]]:
    """Kind and length of each box of a file."""
    data, position = path.read_bytes(), 0
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        yield kind.decode(), size
        position += size


def durations(playlist: Path) -> list[float]:
    """Of its segments, in seconds."""
    return [float(each) for each in re.findall(r"#EXTINF:([\d.]+),", playlist.read_text())]


def segments(built: Built, name: str, padding: bool = False) -> Parts:
    """Bytes and seconds of each segment of a track, as its boxes lie in the file; or with the `padding` after it."""
    sizes: list[int] = []
    for kind, size in boxes(built.path / f"{name}.mp4"):
        if kind == "moof":
            sizes.append(size)
        elif sizes and (kind == "mdat" or padding):
            sizes[-1] += size
    return list(zip(sizes, durations(built.path / f"{name}.m3u8"), strict=True))


def listed(built: Built, playlist: str) -> Parts:
    """The same of a playlist of whole files."""
    text = (built.path / playlist).read_text()
    names = [line for line in text.splitlines() if not line.startswith("#")]
    return [
        ((built.path / name).stat().st_size, length)
        for name, length in zip(names, durations(built.path / playlist), strict=True)
    ]


def peak(parts: Parts) -> float:
    """The highest rate of any run of segments that lasts 0.5 to 1.5 times the longest one; else of all."""
    target = max(1, int(max(length for _, length in parts) + 0.5))
    runs = [parts[first:end] for first in range(len(parts)) for end in range(first + 1, len(parts) + 1)]
    sums = [(sum(size for size, _ in run), sum(length for _, length in run)) for run in runs]
    rates = [8 * size / length for size, length in sums if target / 2 <= length <= target * 1.5]
    return max(rates, default=8 * sums[len(parts) - 1][0] / sums[len(parts) - 1][1])


def check(declared: str | int, measured: float, parts: int = 1) -> None:
    """Whole bits are rounded up, once for each of the `parts` that a variant is made of; EXTINF has microseconds."""
    assert measured * (1 - 1e-6) <= int(declared) <= max(measured * 1.01, measured + parts)


def test_of_dash(built: Built) -> None:
    """Every representation of both forms; who reads the sidx gets the padding between segments as well."""
    for name, padding in (("manifest.mpd", False), ("ondemand.mpd", True)):
        root = ET.parse(built.path / name)
        declared = {each.get("id"): each.get("bandwidth") for each in root.findall(".//Representation", NS)}
        for track in built.title.tracks:
            check(declared.pop(track.name) or 0, peak(segments(built, track.name, padding)))
        for text in built.title.captions:
            # One file for the whole title.
            size = (built.path / text.files[0]).stat().st_size
            check(declared.pop(text.name) or 0, 8 * size / built.title.seconds)
        for tiles in built.title.thumbnails:
            check(declared.pop(tiles.name) or 0, peak(listed(built, tiles.playlist)))
        assert not declared


@pytest.mark.parametrize("ranges", [False, True])
def test_of_hls(built: Built, ranges: bool) -> None:
    """A variant's is its own, the heaviest sound's and the heaviest captions'; I-frames and images are alone."""
    text = (built.path / ("master.ranges.m3u8" if ranges else "master.m3u8")).read_text()
    sound = [peak(segments(built, track.name)) for track in built.title.tracks if track.kind == "audio"]
    words = [peak(listed(built, each.files[1])) for each in built.title.captions]
    beside = max(sound, default=0) + max(words, default=0)
    variants = dict(reversed(each) for each in re.findall(r"#EXT-X-STREAM-INF:BANDWIDTH=(\d+),.*\n(\S+)", text))
    frames = dict(
        reversed(each) for each in re.findall(r'#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=(\d+),.*URI="(.+?)"', text)
    )
    for track in built.title.tracks:
        if track.kind == "audio":
            continue
        check(variants.pop(hls.media_name(track, ranges)), peak(segments(built, track.name)) + beside, 3)
        name = hls.iframes_name(track, ranges)
        sizes = re.findall(r"#EXT-X-BYTERANGE:(\d+)@", (built.path / name).read_text())
        check(frames.pop(name), peak(list(zip(map(int, sizes), durations(built.path / name), strict=True))))
    images = re.findall(r'#EXT-X-IMAGE-STREAM-INF:BANDWIDTH=(\d+),.*URI="(.+?)"', text)
    for rate, uri in images:
        check(rate, peak(listed(built, uri)))
    assert len(images) == len(built.title.thumbnails)
    assert not variants
    assert not frames
