"""Encrypted samples: where they lie in a fragmented file, and what players must be told of each (ISO/IEC 23001-7).

The file comes from another program, so it is hostile until checked, as in `mp4`.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from oca.errors import FormatError
from packager.boxes.mp4 import boxes

_MAX_BOX = 256 << 20
# 14496-12 8.8.8.1, in the order of a row: duration, size, flags, composition offset
_ROW_FLAGS = (0x100, 0x200, 0x400, 0x800)
_ENTRIES = {"encv": 78, "enca": 28}  # bytes before the boxes of the sample entry, as in `mp4`


@dataclass(frozen=True, slots=True)
class Sealed:
    """Sizes and places in the file at `path` of all samples, and the `sinf` box that belongs into their entry.

    `auxiliary` holds what senc says of one sample after the other, `starts` where that begins for each, and at last
    its end: IV, unless one is the same for all, and subsamples if there are any. `pssh` are the boxes for moov.
    """

    path: Path
    sizes: array[int]
    offsets: array[int]
    auxiliary: bytes
    starts: array[int]
    subsamples: bool
    sinf: bytes
    pssh: bytes = b""

    def boxes(self, first: int, end: int) -> tuple[bytes, bytes]:
        """The bodies of saiz and senc for samples [first, end), full box headers included; empty if senc would be."""
        told = self.auxiliary[self.starts[first] : self.starts[end]]
        if not told:
            return b"", b""
        lengths = bytes(self.starts[n + 1] - self.starts[n] for n in range(first, end))
        same = len(set(lengths)) == 1
        saiz = struct.pack(">IBI", 0, lengths[0] if same else 0, end - first) + (b"" if same else lengths)
        return saiz, struct.pack(">II", 2 if self.subsamples else 0, end - first) + told


def read(path: Path, scheme: str, kid: str) -> Sealed:
    """The samples of the only track of a fragmented file; FormatError if they are not encrypted as is said."""
    sizes: array[int] = array("q")
    offsets: array[int] = array("q")
    starts: array[int] = array("q", (0,))
    told = bytearray()
    subsamples: set[bool] = set()
    sinf, iv_bytes = b"", 0
    try:
        with path.open("rb") as file:
            for kind, start, body in _top(file):
                if kind == "moov":
                    sinf, iv_bytes = _protection(body, scheme, kid)
                elif kind == "moof":
                    traf = dict(boxes(dict(boxes(body))["traf"]))
                    _run(traf, start, sizes, offsets)
                    with_subsamples = _senc(traf.get("senc"), len(sizes) - len(starts) + 1, iv_bytes, told, starts)
                    subsamples.add(with_subsamples)
            if not sinf or not sizes or len(subsamples) != 1:
                raise ValueError("it has no encrypted samples, or of two kinds")
            if max(s + o for s, o in zip(sizes, offsets, strict=True)) > path.stat().st_size:
                raise ValueError("a sample leaves the file")
    except (struct.error, IndexError, KeyError, StopIteration, ValueError) as error:
        raise FormatError(f"{path} is not a track encrypted with {scheme}: {error or type(error).__name__}") from None
    return Sealed(path, sizes, offsets, bytes(told), starts, subsamples == {True}, sinf)


def _top(file: BinaryIO) -> Iterator[tuple[str, int, bytes]]:
    """Type, place and body of each moov and moof of the file."""
    position = 0
    while len(head := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", head)
        before = 8
        if size == 1:
            (size,), before = struct.unpack(">Q", file.read(8)), 16
        if size < before:
            raise ValueError(f"box {kind!r} at {position} claims {size} bytes")
        if kind in (b"moov", b"moof"):
            if size > _MAX_BOX:
                raise ValueError(f"box {kind!r} takes {size} bytes, more than the {_MAX_BOX} allowed")
            yield kind.decode(), position, file.read(size - before)
        position += size
        file.seek(position)


def _protection(moov: bytes, scheme: str, kid: str) -> tuple[bytes, int]:
    """The whole sinf box of the track, and the length in bytes of its samples' IVs; ValueError if it is another's."""
    view: bytes | memoryview = moov
    for name in ("trak", "mdia", "minf", "stbl", "stsd"):
        view = dict(boxes(view))[name]
    entry, body = next(boxes(view[8:]))
    sinf = bytes(dict(boxes(body[_ENTRIES[entry] :]))["sinf"])
    inner = dict(boxes(sinf))
    found, tenc = bytes(inner["schm"][4:8]), dict(boxes(inner["schi"]))["tenc"]
    # 23001-7 8.2: version and flags, reserved, pattern, is protected, IV size, KID
    if found != scheme.encode() or tenc[6] != 1 or tenc[8:24].hex() != kid:
        raise ValueError(f"it is encrypted with {found!r} and key id {tenc[8:24].hex()}")
    return struct.pack(">I4s", 8 + len(sinf), b"sinf") + sinf, tenc[7]


def _run(traf: dict[str, memoryview], moof: int, sizes: array[int], offsets: array[int]) -> None:
    """Add the samples of a fragment whose moof box begins at `moof` (14496-12 8.8.7, 8.8.8)."""
    tfhd, trun = traf["tfhd"], traf["trun"]
    (flags,) = struct.unpack_from(">I", tfhd)
    place = 8 + 8 * bool(flags & 0x1) + 4 * bool(flags & 0x2) + 4 * bool(flags & 0x8)
    (usual,) = struct.unpack_from(">I", tfhd, place) if flags & 0x10 else (0,)
    flags, count, position = struct.unpack_from(">IIi", trun)
    if not flags & 0x1 or not (flags & 0x200 or usual):
        raise ValueError("a fragment does not say where its samples are, or how long")
    columns = sum(bool(flags & flag) for flag in _ROW_FLAGS)
    start = 12 + 4 * bool(flags & 0x4)
    if start + 4 * columns * count > len(trun):
        raise ValueError(f"trun claims {count} rows in {len(trun)} bytes")
    rows = struct.unpack_from(f">{columns * count}I", trun, start)
    mine = rows[bool(flags & 0x100) :: columns] if flags & 0x200 else (usual,) * count
    position += moof
    for size in mine:
        sizes.append(size)
        offsets.append(position)
        position += size


def _senc(senc: memoryview | None, count: int, iv_bytes: int, told: bytearray, starts: array[int]) -> bool:
    """Add what senc says of `count` samples, and tell whether there are subsamples (23001-7 7.2)."""
    flags, said = struct.unpack_from(">II", senc) if senc is not None else (0, 0)
    if said != count and (senc is not None or iv_bytes):
        raise ValueError(f"senc is about {said} samples of {count}")
    position = 8
    for _ in range(count):
        end = position + iv_bytes
        if senc is not None and flags & 2:
            end += 2 + 6 * struct.unpack_from(">H", senc, end)[0]
        if end - position > 255 or (senc is not None and end > len(senc)):
            raise ValueError("senc is cut off, or says more of a sample than saiz can")
        told += senc[position:end] if senc is not None else b""
        starts.append(len(told))
        position = end
    return bool(flags & 2)
