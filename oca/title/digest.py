"""BLAKE3 digests of files, whole and per chunk of 8 MiB: the unit in which content is verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from oca.residency import Residency

CHUNK_BYTES = 8 << 20
# How finely is told apart what was in memory before it was read: a small segment.
_WINDOW = 256 << 10
VERSION_BYTES = 16


def digest(data: bytes | memoryview) -> str:
    """BLAKE3 of `data` as 64 hexadecimal digits."""
    return blake3(data).hexdigest()


def version_of(title_json: bytes) -> str:
    """The version a title.json stands for: the first 128 bits of its BLAKE3, as 32 hexadecimal digits."""
    return blake3(title_json).hexdigest(length=VERSION_BYTES)


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has; an empty file has one, empty, chunk."""
    return max(1, -(-size // CHUNK_BYTES))


def chunk_span(size: int, chunk: int) -> tuple[int, int]:
    """Offset and length in bytes of chunk number `chunk` (from 0) of a file of `size` bytes."""
    offset = chunk * CHUNK_BYTES
    return offset, min(CHUNK_BYTES, size - offset)


def read_chunks(path: Path, *, linger: bool = True) -> Iterator[bytes]:
    """The chunks of the file at `path`, in order; one empty chunk for an empty file.

    Unless what is read may `linger` in memory, what was not there before is not there afterwards: the page cache
    belongs to what viewers watch.
    """
    with path.open("rb") as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        residency = None if linger else Residency(file.fileno(), size)
        if residency is not None:
            # No reading ahead of us: only what was asked for can be forgotten again.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        while True:
            strange = [] if residency is None else _strange(residency, offset, min(CHUNK_BYTES, size - offset))
            chunk = file.read(CHUNK_BYTES)
            for start, length in strange:
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_DONTNEED)
            if chunk or not offset:
                yield chunk
            offset += len(chunk)
            if len(chunk) < CHUNK_BYTES:
                return


def _strange(residency: Residency, offset: int, length: int) -> list[tuple[int, int]]:
    """Offsets and lengths of the windows of a stretch that are not wholly in memory."""
    starts = range(offset, offset + length, _WINDOW)
    windows = [(start, min(_WINDOW, offset + length - start)) for start in starts]
    return [(start, size) for start, size in windows if residency.resident(start, size) < size]


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes, BLAKE3 of the whole, and BLAKE3 of each chunk, of one file."""

    bytes: int
    whole: str
    chunks: list[str]


def file_digest(path: Path, progress: Callable[[int], None] | None = None) -> FileDigest:
    """Read the file once and digest it; `progress` gets the number of bytes of each chunk read."""
    whole, chunks, size = blake3(), [], 0
    for chunk in read_chunks(path):
        # The wheel's own threads: 8 MiB is far above the size where they pay.
        whole.update(chunk)
        chunks.append(digest(chunk))
        size += len(chunk)
        if progress is not None:
            progress(len(chunk))
    return FileDigest(size, whole.hexdigest(), chunks)
