"""The MP4 reader: a track's samples out of the tables of a progressive file (ISO/IEC 14496-12, 14496-14).

The file is hostile until checked: every count is held against the bytes that carry it, every offset against the
file, and nothing is allocated for what is only claimed.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from oca.errors import FormatError

# 24 h at 60 frames/s need some 100 MB of tables.
_MAX_MOOV = 256 << 20
_MAX_SAMPLES = 16_000_000
_VISUAL_ENTRY = 78  # bytes of a VisualSampleEntry before its boxes, 14496-12 12.1.3
_AUDIO_ENTRY = 28  # bytes of an AudioSampleEntry (version 0) before its boxes, 12.2.3


@dataclass(frozen=True, slots=True)
class Samples:
    """Bytes, place in the file, duration and composition offset (ticks) of each sample; the sync samples, from 0."""

    sizes: array[int]
    offsets: array[int]
    durations: array[int]
    compositions: array[int]
    sync: list[int]


@dataclass(frozen=True, slots=True)
class Track:
    """One track of a progressive file.

    `timescale` is in ticks per second, `start` the media time at which presentation starts (the edit list's),
    `entry` the four characters of the sample entry, `config` its boxes by type, `width` and `height` pixels.
    """

    kind: str
    timescale: int
    start: int
    entry: str
    config: dict[str, bytes]
    width: int
    height: int
    channels: int
    sample_rate: int
    samples: Samples


def read_track(path: Path) -> Track:
    """The only track of the progressive MP4 file at `path`; FormatError if it is anything else."""
    try:
        with path.open("rb") as file:
            moov = _find_moov(file, path)
            return _track(moov, path.stat().st_size)
    except (struct.error, IndexError, KeyError, StopIteration, ValueError) as error:
        raise FormatError(f"{path} is not a sound MP4 file: {error or type(error).__name__}") from None


def boxes(data: bytes | memoryview) -> Iterator[tuple[str, memoryview]]:
    """Type and body of each box in `data`; ValueError where one leaves its parent."""
    view, position = memoryview(data), 0
    while position < len(view):
        size, kind = struct.unpack_from(">I4s", view, position)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", view, position + 8)
            head = 16
        elif size == 0:
            size = len(view) - position
        if size < head or position + size > len(view):
            raise ValueError(f"box {kind!r} claims {size} bytes of the {len(view) - position} there are")
        yield kind.decode("latin-1"), view[position + head : position + size]
        position += size


def _find_moov(file: BinaryIO, path: Path) -> bytes:
    """The body of the moov box, wherever it lies; media data is skipped, not read."""
    end = path.stat().st_size
    position = 0
    while position + 8 <= end:
        file.seek(position)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,) = struct.unpack(">Q", file.read(8))
            head = 16
        elif size == 0:
            size = end - position
        if size < head or position + size > end:
            raise ValueError(f"box {kind!r} at {position} is cut off")
        if kind == b"moov":
            if size > _MAX_MOOV:
                raise ValueError(f"its tables take {size} bytes, more than the {_MAX_MOOV} allowed")
            return file.read(size - head)
        position += size
    raise ValueError("it has no moov box")


def _only(data: bytes | memoryview, *names: str) -> memoryview:
    """The body of the first box at a path of names; KeyError naming the one that is missing."""
    for name in names:
        data = next((body for kind, body in boxes(data) if kind == name), b"")
        if not data:
            raise KeyError(f"no {name} box")
    return memoryview(data)


def head(moov: bytes | memoryview) -> Track:
    """The only track of a moov box's body, without its samples; ValueError or KeyError if there is none."""
    trak = _only_trak(moov)
    media = _only(trak, "mdia")
    mdhd = _only(media, "mdhd")
    (timescale,) = struct.unpack_from(">I", mdhd, 20 if mdhd[0] == 1 else 12)
    if timescale == 0:
        raise ValueError("its timescale is 0")
    kind = bytes(_only(media, "hdlr")[8:12]).decode("latin-1")
    entry, body = next(boxes(_only(media, "minf", "stbl", "stsd")[8:]))
    width = height = channels = sample_rate = 0
    if kind == "vide":
        width, height = struct.unpack_from(">HH", body, 24)
        children = body[_VISUAL_ENTRY:]
    else:
        channels, _, _, sample_rate = struct.unpack_from(">HHIH", body, 16)
        children = body[_AUDIO_ENTRY:]
    config = {name: bytes(child) for name, child in boxes(children)}
    none = Samples(array("q"), array("q"), array("q"), array("q"), [])
    return Track(kind, timescale, _start(trak), entry, config, width, height, channels, sample_rate, none)


def _track(moov: bytes, file_bytes: int) -> Track:
    table = dict(boxes(_only(_only_trak(moov), "mdia", "minf", "stbl")))
    return replace(head(moov), samples=_samples(table, file_bytes))


def _only_trak(moov: bytes | memoryview) -> memoryview:
    traks = [body for kind, body in boxes(moov) if kind == "trak"]
    if len(traks) != 1:
        raise ValueError(f"it has {len(traks)} tracks, not one")
    return traks[0]


def _start(trak: memoryview) -> int:
    """Media time of the first edit that shows media (14496-12 8.6.6), 0 without one."""
    edits = next((body for kind, body in boxes(trak) if kind == "edts"), None)
    if edits is None:
        return 0
    elst = _only(edits, "elst")
    (count,) = struct.unpack_from(">I", elst, 4)
    row = struct.Struct(">QqI" if elst[0] == 1 else ">IiI")
    times = [row.unpack_from(elst, 8 + n * row.size)[1] for n in range(min(count, 16))]
    return next((time for time in times if time >= 0), 0)


def _rows(body: memoryview, form: str) -> list[tuple[int, ...]]:
    """The rows of a table whose count lies before it, as FullBoxes have them."""
    (count,) = struct.unpack_from(">I", body, 4)
    row = struct.Struct(form)
    if 8 + count * row.size > len(body):
        raise ValueError(f"a table claims {count} rows in {len(body)} bytes")
    return list(row.iter_unpack(body[8 : 8 + count * row.size]))


def _runs(rows: list[tuple[int, ...]], count: int, what: str) -> array[int]:
    """Values given as (run, value), one for each of `count` samples."""
    if sum(run for run, _ in rows) != count:
        raise ValueError(f"{what} does not cover {count} samples")
    values: array[int] = array("q")
    for run, value in rows:
        values.extend(array("q", (value,)) * run)
    return values


def _samples(table: dict[str, memoryview], file_bytes: int) -> Samples:
    sizes = _sizes(table["stsz"], file_bytes)
    count = len(sizes)
    compositions = array("q", bytes(8 * count))
    if "ctts" in table:
        # Version 0 is unsigned by the book; writers put negative offsets there all the same, as 32-bit wraps.
        compositions = _runs(_rows(table["ctts"], ">Ii"), count, "ctts")
    sync = list(range(count))
    if "stss" in table:
        sync = [number - 1 for (number,) in _rows(table["stss"], ">I")]
        if not sync or sync[0] != 0 or sync != sorted(set(sync)) or sync[-1] >= count:
            raise ValueError("stss does not start with the first sample, or is not in order")
    durations = _runs(_rows(table["stts"], ">II"), count, "stts")
    return Samples(sizes, _offsets(table, sizes, file_bytes), durations, compositions, sync)


def _sizes(stsz: memoryview, file_bytes: int) -> array[int]:
    fixed, count = struct.unpack_from(">II", stsz, 4)
    if not 1 <= count <= min(_MAX_SAMPLES, file_bytes):
        raise ValueError(f"it has {count} samples, and 1 to {_MAX_SAMPLES} are allowed")
    sizes: array[int] = array("q", (fixed,))
    if fixed:
        sizes *= count
        return sizes
    if 12 + 4 * count > len(stsz):
        raise ValueError(f"stsz claims {count} rows in {len(stsz)} bytes")
    sizes.pop()
    sizes.extend(struct.unpack_from(f">{count}I", stsz, 12))
    return sizes


def _offsets(table: dict[str, memoryview], sizes: array[int], file_bytes: int) -> array[int]:
    """The place of each sample: samples follow one another in a chunk, stsc says how many (14496-12 8.7.4)."""
    large = "co64" in table
    chunks = [row[0] for row in _rows(table["co64" if large else "stco"], ">Q" if large else ">I")]
    runs = _rows(table["stsc"], ">III")
    if not runs or runs[0][0] != 1:
        raise ValueError("stsc does not start with the first chunk")
    offsets: array[int] = array("q")
    ends = [run[0] for run in runs[1:]] + [len(chunks) + 1]
    for (first, per_chunk, _), end in zip(runs, ends, strict=True):
        for start in chunks[first - 1 : end - 1]:
            mine = sizes[len(offsets) : len(offsets) + per_chunk]
            if start + sum(mine) > file_bytes or not mine:
                raise ValueError(f"a chunk at {start} leaves the file")
            offsets.extend(accumulate(mine[:-1], initial=start))
    if len(offsets) != len(sizes):
        raise ValueError(f"its chunks hold {len(offsets)} samples, not {len(sizes)}")
    return offsets
