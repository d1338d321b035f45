"""Targets: what the store and the packager read from disk."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

from oca.errors import FormatError
from oca.title import model as title
from oca.title import segments
from oca.title.digest import chunk_count
from packager.boxes.codecs import codec_of
from packager.boxes.mp4 import read_track
from tests.fuzz.check import refused


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[Path]:
    """A file with these bytes, for parsers that open theirs."""
    with tempfile.NamedTemporaryFile(prefix="oca-fuzz-") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def segment_index(data: bytes) -> None:
    """The bytes of a .idx file."""
    try:
        index = segments.decode(data)
    except FormatError as error:
        refused(error)
        return
    assert segments.decode(segments.encode(index)) == index, "written and read, it is another"
    end = index.init_bytes
    assert index.slice(0) == (0, end)
    for number in range(1, len(index.segments) + 1):
        span = index.slice(number)
        assert span is not None
        assert span[0] >= end, f"segment {number} overlaps what is before it"
        assert span[1] > 0, f"segment {number} is empty"
        end = sum(span)
    assert end == index.track_bytes < 1 << 63, "it ends beyond any file"
    assert index.slice(len(index.segments) + 1) is None
    assert index.slice(-1) is None
    assert index.duration == sum(segment.duration for segment in index.segments)


def title_json(data: bytes) -> None:
    """The bytes of a title.json."""
    try:
        made = title.decode(data)
    except FormatError as error:
        refused(error)
        return
    written = title.encode(made)
    again = title.decode(written)
    assert again == made, "written and read, it is another"
    assert title.encode(again) == written, "the same title gives other bytes"
    assert 0 < made.seconds < math.inf, f"it lasts {made.seconds} s"
    assert title.TITLE_JSON not in made.files, "it certifies itself"
    own = [name for track in made.tracks for name in track.files]
    assert sorted([*own, *made.shared_files]) == sorted(made.files), "a file belongs to nothing, or to two"
    for track in made.tracks:
        assert made.track_bytes(track) == sum(made.files[name].bytes for name in track.files)
    for file in made.files.values():
        assert len(file.chunks) == chunk_count(file.bytes, made.chunk_bytes)


def mp4(data: bytes) -> None:
    """A progressive MP4 file, as an encoder leaves it."""
    with as_file(data) as path:
        try:
            track = read_track(path)
            codec_of(track.entry, track.config)
        except FormatError as error:
            refused(error)
            return
    samples = track.samples
    count = len(samples.sizes)
    assert count == len(samples.offsets) == len(samples.durations) == len(samples.compositions) > 0
    assert all(
        offset >= 0 and size >= 0 and offset + size <= len(data)
        for offset, size in zip(samples.offsets, samples.sizes, strict=True)
    ), "a sample lies outside the file"
    assert samples.sync[0] == 0
    assert samples.sync[-1] < count
    assert samples.sync == sorted(set(samples.sync))
    assert track.timescale > 0
    assert all(duration >= 0 for duration in samples.durations)
