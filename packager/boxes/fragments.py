"""What a finished track file holds, by its own tables: the init segment's, and those of every fragment.

Nothing here knows what was to be written, so that it can be held against that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from oca.errors import FormatError
from oca.title.segments import SegmentIndex
from packager.boxes.codecs import channels_of, codec_of
from packager.boxes.mp4 import boxes, head

# 14496-12 8.8.8.1, in the order of a row: duration, size, flags, composition offset
_ROW_FLAGS = (0x100, 0x200, 0x400, 0x800)


@dataclass(frozen=True, slots=True)
class Held:
    """A track: codecs parameter, size in pixels (of pictures), channels (of sound), number of samples, and for how
    many ticks of the timescale these are shown, without the priming of sound.
    """

    codecs: str
    timescale: int
    width: int
    height: int
    channels: int
    samples: int
    ticks: int

    @property
    def seconds(self) -> Fraction:
        """For how long it is shown."""
        return Fraction(self.ticks, self.timescale)


def read(path: Path, index: SegmentIndex) -> Held:
    """What the track file at `path` with this index holds, encrypted or not; FormatError if it is not sound."""
    samples = ticks = 0
    try:
        with path.open("rb") as file:
            track = head(dict(boxes(file.read(index.init_bytes)))["moov"])
            for number, segment in enumerate(index.segments, 1):
                file.seek(segment.offset)
                size, kind = struct.unpack(">I4s", file.read(8))
                if kind != b"moof" or size > segment.bytes:
                    raise ValueError(f"segment {number} does not begin with a moof box")
                begin, count, length = _fragment(file.read(size - 8))
                if begin != ticks:
                    raise ValueError(f"segment {number} begins at tick {begin}, the one before it ends at {ticks}")
                samples, ticks = samples + count, ticks + length
        entry = track.entry
        if "sinf" in track.config:
            entry = bytes(dict(boxes(track.config["sinf"]))["frma"]).decode("latin-1")
        channels = 0 if track.kind == "vide" else channels_of(entry, track.config)
        codecs = codec_of(entry, track.config)
    except (struct.error, IndexError, KeyError, StopIteration, ValueError) as error:
        raise FormatError(f"{path} is not a sound track file: {error or type(error).__name__}") from None
    shown = ticks - (track.start if track.kind == "soun" else 0)
    return Held(codecs, track.timescale, track.width, track.height, channels, samples, shown)


def _fragment(moof: bytes) -> tuple[int, int, int]:
    """Decode time of the first sample, number of samples, and their ticks (14496-12 8.8.7, 8.8.8, 8.8.12)."""
    traf = dict(boxes(dict(boxes(moof))["traf"]))
    tfhd, tfdt, trun = traf["tfhd"], traf["tfdt"], traf["trun"]
    (begin,) = struct.unpack_from(">Q" if tfdt[0] else ">I", tfdt, 4)
    (flags,) = struct.unpack_from(">I", tfhd)
    place = 8 + 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2)
    (usual,) = struct.unpack_from(">I", tfhd, place) if flags & 0x8 else (0,)
    flags, count = struct.unpack_from(">II", trun)
    columns = sum(bool(flags & flag) for flag in _ROW_FLAGS)
    start = 8 + 4 * bool(flags & 0x1) + 4 * bool(flags & 0x4)
    if start + 4 * columns * count > len(trun):
        raise ValueError(f"trun claims {count} rows in {len(trun)} bytes")
    if not flags & 0x100:
        return begin, count, usual * count
    return begin, count, sum(struct.unpack_from(f">{columns * count}I", trun, start)[::columns])
