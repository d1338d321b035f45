"""BLAKE3 digests of files, whole and per chunk, as long as a title says: the unit in which content is verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from mmap import PAGESIZE
from pathlib import Path

from blake3 import blake3

from oca.pieces import pieces
from oca.residency import Residency

CHUNK_BYTES = 8 << 20
"""Length of a chunk unless a title says otherwise."""
LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 4 << 10, 64 << 20
"""Between these a title may choose: shorter chunks than a page of memory make title.json and the number of requests
explode, longer ones are held in memory as a whole, several at once."""
# How finely is told apart what was in memory before it was read: a small segment.
_WINDOW = 256 << 10
VERSION_BYTES = 16


def digest(data: bytes | bytearray | memoryview) -> str:
    """BLAKE3 of `data` as 64 hexadecimal digits."""
    hasher = blake3()
    for piece in pieces(data):
        hasher.update(piece)
    return hasher.hexdigest()


def version_of(title_json: bytes) -> str:
    """The version a title.json stands for: the first 128 bits of its BLAKE3, as 32 hexadecimal digits."""
    return blake3(title_json).hexdigest(length=VERSION_BYTES)


def chunk_count(size: int, chunk_bytes: int) -> int:
    """How many chunks a file of `size` bytes has; an empty file has one, empty, chunk."""
    return max(1, -(-size // chunk_bytes))


def chunk_span(size: int, chunk: int, chunk_bytes: int) -> tuple[int, int]:
    """Offset and length in bytes of chunk number `chunk` (from 0) of a file of `size` bytes."""
    offset = chunk * chunk_bytes
    return offset, min(chunk_bytes, size - offset)


def read_chunks(path: Path, chunk_bytes: int, *, linger: bool = True) -> Iterator[bytes]:
    """The chunks of the file at `path`, in order; one empty chunk for an empty file.

    Unless what is read may `linger` in memory, what was not there before is not there afterwards: the page cache
    belongs to what viewers watch.
    """
    # Unbuffered: a buffer would read beyond a chunk, into memory that nobody then forgets.
    with path.open("rb", buffering=0) as file:
        guest = None if linger else _Guest(file.fileno(), os.fstat(file.fileno()).st_size)
        offset = 0
        while True:
            if guest is not None:
                guest.come(offset + chunk_bytes)
            chunk = _read(file, chunk_bytes)
            if guest is not None:
                guest.go(offset + len(chunk))
            if chunk or not offset:
                yield chunk
            offset += len(chunk)
            if len(chunk) < chunk_bytes:
                return


def _read(file: FileIO, length: int) -> bytes:
    """The next `length` bytes, fewer only at the end of the file."""
    data = file.read(length)
    while 0 < len(data) < length and (more := file.read(length - len(data))):
        data += more
    return data


class _Guest:
    """Takes out of memory what reading an open file from its start brings in, page by page."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._residency = Residency(fd, size)
        # Windows that were not wholly in memory before, as start and end; how far has been looked.
        self._strange: list[tuple[int, int]] = []
        self._seen = 0
        # No reading ahead of us: only what was asked for can be forgotten again.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)

    def come(self, end: int) -> None:
        """What lies before offset `end` is about to be read: see what of it is in memory."""
        # Whole pages: one that two chunks share is looked at before either is read.
        end = -(-min(end, self._size) // PAGESIZE) * PAGESIZE
        bounds = [*range(self._seen - self._seen % _WINDOW, end, _WINDOW), end]
        windows = [(max(start, self._seen), stop) for start, stop in pairwise(bounds)]
        self._strange += [(start, stop) for start, stop in windows if not self._resident(start, stop)]
        self._seen = max(self._seen, end)

    def go(self, done: int) -> None:
        """What lies before offset `done` has been read: forget what was not in memory, but a page half read."""
        done = self._seen if done >= self._size else done - done % PAGESIZE
        for start, end in self._strange:
            if start < done:
                os.posix_fadvise(self._fd, start, min(end, done) - start, os.POSIX_FADV_DONTNEED)
        self._strange = [(max(start, done), end) for start, end in self._strange if end > done]

    def _resident(self, start: int, end: int) -> bool:
        length = min(end, self._size) - start
        return self._residency.resident(start, length) == length


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes, BLAKE3 of the whole, and BLAKE3 of each chunk, of one file."""

    bytes: int
    whole: str
    chunks: list[str]


def file_digest(
    path: Path, chunk_bytes: int = CHUNK_BYTES, progress: Callable[[int], None] | None = None
) -> FileDigest:
    """Read the file once and digest it, whole and in chunks; `progress` gets the bytes of each chunk read."""
    whole, chunks, size = blake3(), [], 0
    for chunk in read_chunks(path, chunk_bytes):
        whole.update(chunk)
        chunks.append(digest(chunk))
        size += len(chunk)
        if progress is not None:
            progress(len(chunk))
    return FileDigest(size, whole.hexdigest(), chunks)
