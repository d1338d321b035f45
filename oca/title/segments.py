"""The segment index (`<track>.idx`): where each segment of a track file lies, and when it plays.

Layout, little-endian and without padding: magic `OCAIDX1` and a zero byte, timescale u32, number of segments u32,
bytes of the init segment u64 (it is the head of the track file); then per segment offset u64, bytes u32, decode time
u64, duration u32, and u32 where its first (I) frame ends, counted from the segment's start. Segments are numbered
from 1. Times are those of the presentation: of audio, whose encoder puts priming samples first, the times after these
are trimmed.

In the track file the init segment is followed by a sidx box with a reference to each segment (ISO/IEC 14496-12
8.16.3, version 1), and that, some padding later, by the segments.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import pairwise

from oca.errors import FormatError

_FAMILY = b"OCAIDX"
MAGIC = _FAMILY + b"1\0"
_HEAD = struct.Struct("<8sIIQ")
_ROW = struct.Struct("<QIQII")
# 24 h of 1 s segments; a file that claims more is refused before anything is allocated for it.
MAX_SEGMENTS = 86_400
MAX_BYTES = _HEAD.size + MAX_SEGMENTS * _ROW.size
"""No index is longer."""
# 14496-12 8.16.3, version 1: the box up to its references, and one of them.
_SIDX_BYTES, _REFERENCE_BYTES = 40, 12


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes [offset, offset + bytes) of the track file; decode time and duration in ticks of the timescale."""

    offset: int
    bytes: int
    time: int
    duration: int
    i_frame_bytes: int


@dataclass(frozen=True, slots=True)
class SegmentIndex:
    """A track's timescale in ticks per second, the length of its init segment in bytes, and its segments."""

    timescale: int
    init_bytes: int
    segments: tuple[Segment, ...]

    @property
    def track_bytes(self) -> int:
        """The least size in bytes that the track file must have."""
        last = self.segments[-1]
        return last.offset + last.bytes

    @property
    def sidx(self) -> tuple[int, int]:
        """Offset and length in bytes of the track file's sidx box; FormatError if the segments leave it no room."""
        length = _SIDX_BYTES + _REFERENCE_BYTES * len(self.segments)
        if self.init_bytes + length > self.segments[0].offset:
            raise FormatError("the track file has no room for a sidx box before its first segment: package it again")
        return self.init_bytes, length

    @property
    def padded(self) -> SegmentIndex:
        """The index of what the sidx box refers to: each segment with the padding up to the next one."""
        lengths = [second.offset - first.offset for first, second in pairwise(self.segments)]
        whole = zip(self.segments, [*lengths, self.segments[-1].bytes], strict=True)
        return replace(self, segments=tuple(replace(segment, bytes=length) for segment, length in whole))

    @property
    def duration(self) -> int:
        """Ticks from the start of the first segment to the end of the last."""
        return self.segments[-1].time + self.segments[-1].duration - self.segments[0].time

    def slice(self, number: int) -> tuple[int, int] | None:
        """Offset and length in bytes of segment `number` (from 1; 0 is the init segment), None if there is none."""
        if number == 0:
            return 0, self.init_bytes
        if 1 <= number <= len(self.segments):
            segment = self.segments[number - 1]
            return segment.offset, segment.bytes
        return None


def encode(index: SegmentIndex) -> bytes:
    """The bytes of the .idx file."""
    head = _HEAD.pack(MAGIC, index.timescale, len(index.segments), index.init_bytes)
    rows = (_ROW.pack(s.offset, s.bytes, s.time, s.duration, s.i_frame_bytes) for s in index.segments)
    return head + b"".join(rows)


def decode(data: bytes, where: str = ".idx") -> SegmentIndex:
    """Read and check the bytes of a segment index; `where` names them in a FormatError."""
    if not data.startswith(_FAMILY):
        raise FormatError(f"{where} is not a segment index: it does not start with {_FAMILY.decode()}")
    if not data.startswith(MAGIC):
        told = data[len(_FAMILY) : len(MAGIC)]
        raise FormatError(f"{where} is of format {told!r}, this program knows format 1: upgrade oca to read it")
    if len(data) < _HEAD.size:
        raise FormatError(f"{where} is corrupt: it ends after {len(data)} bytes, in its head")
    _, timescale, count, init_bytes = _HEAD.unpack_from(data)
    if not 1 <= count <= MAX_SEGMENTS or len(data) != _HEAD.size + count * _ROW.size:
        raise FormatError(f"{where} is corrupt: {len(data)} bytes cannot hold {count} segments")
    if timescale == 0 or init_bytes == 0:
        raise FormatError(f"{where} is corrupt: timescale or init segment is empty")
    segments = tuple(Segment(*row) for row in _ROW.iter_unpack(data[_HEAD.size :]))
    end, time = init_bytes, segments[0].time
    for number, segment in enumerate(segments, 1):
        if segment.bytes == 0 or segment.offset < end or segment.i_frame_bytes > segment.bytes:
            raise FormatError(f"{where} is corrupt: segment {number} is empty or overlaps the one before")
        if segment.duration == 0 or segment.time != time:
            raise FormatError(f"{where} is corrupt: segment {number} does not start where the last one ended")
        end, time = segment.offset + segment.bytes, segment.time + segment.duration
    if end >= 1 << 62:
        raise FormatError(f"{where} is corrupt: offsets beyond any file")
    return SegmentIndex(timescale, init_bytes, segments)
