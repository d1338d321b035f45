"""A file on its way in: its bytes at their final offsets, and beside it the record of which chunks are written.

The record `.<file>.chunks` (no id starts with a dot, so no title can list a file of that name) is the magic
`OCAL`, format u16, reserved u16, the file's BLAKE3 and the length of its chunks u32, then a u32 per chunk, all
big-endian. A chunk is recorded after its verified bytes are written, so a killed process loses only chunks that were
not complete. The record is a claim, not a proof: after a restart every claimed chunk is read and digested again (some
GB/s, much faster than any uplink). So a chunk needs no fsync of its own, and a disk that lost or changed bytes in a
power cut costs a chunk fetched again, never a wrong file. Everything here blocks: call it from a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from oca.errors import StoreError
from oca.pieces import pieces, step_aside
from oca.title.digest import chunk_count, digest
from oca.title.model import File

_HEAD = struct.Struct(">4sHH32sI")
_ENTRY = struct.Struct(">I")
_MAGIC = b"OCAL"
_FORMAT = 1
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE = 2
# Chunks that may be on their way to the disk before the first of them is taken to be there.
_DRYING = 8
_STEP = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _steps(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths that calls are made for, each of which the kernel does without a pause."""
    for start in range(offset, offset + length, _STEP):
        yield start, min(_STEP, offset + length - start)
        step_aside()


def record_of(path: Path) -> Path:
    """Where the record of the file at `path` is."""
    return path.with_name(f".{path.name}.chunks")


def claimed_chunks(path: Path) -> tuple[int, int]:
    """Of the file at `path`: how many chunks its record claims, and how many it has. Without a record: 0 of 1."""
    try:
        size = path.stat().st_size
        with record_of(path).open("rb") as record:
            head = record.read(_HEAD.size)
            claimed = (os.fstat(record.fileno()).st_size - len(head)) // _ENTRY.size
        magic, version, _, _, chunk_bytes = _HEAD.unpack(head)
    except (OSError, struct.error):
        return 0, 1
    if (magic, version) != (_MAGIC, _FORMAT) or not chunk_bytes:
        return 0, 1
    of = chunk_count(size, chunk_bytes)
    return min(claimed, of), of


class WriteError(StoreError):
    """A write under `path` has failed."""

    def __init__(self, path: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


def write_error(path: Path, error: OSError) -> WriteError:
    """The sentence for a write under `path` that failed."""
    advice = (
        "free space on that disk, or lower storage_bytes in the settings"
        if error.errno in _FULL
        else "check that the disk is healthy and that the user who runs oca-fill may write there"
    )
    return WriteError(path, f"cannot write {path}: {error.strerror}; {advice}")


class Landing:
    """The place at `path` where `file` lands, chunk by chunk, in any order."""

    def __init__(self, path: Path, file: File) -> None:
        self.path = path
        self.file = file
        # Offsets and lengths of what was written lately and may still be on its way to the disk.
        self._drying: deque[tuple[int, int]] = deque()
        self._head = _HEAD.pack(_MAGIC, _FORMAT, 0, bytes.fromhex(file.digest), file.chunk_bytes)

    def claims(self) -> list[int]:
        """Make the place ready; the chunks that an earlier attempt claims to have written, in order.

        All space is taken at once, so that a full disk is found before a byte is fetched and not at the last.
        Raises StoreError.
        """
        claimed = self._read()
        if claimed is not None:
            return claimed
        self.discard()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                if self.file.bytes:
                    os.posix_fallocate(fd, 0, self.file.bytes)
            finally:
                os.close(fd)
            record_of(self.path).write_bytes(self._head)
        except OSError as error:
            self.discard()
            raise write_error(self.path, error) from None
        return []

    def claim(self, chunks: Sequence[int]) -> None:
        """Record these chunks of a file that another hand has put here, or will. Raises StoreError."""
        try:
            record_of(self.path).write_bytes(self._head + b"".join(map(_ENTRY.pack, chunks)))
        except OSError as error:
            raise write_error(self.path, error) from None

    def holds(self, chunk: int) -> bool:
        """Whether the bytes of `chunk` on disk are the published ones. They do not stay in memory."""
        offset, length = self.file.span(chunk)
        try:
            with self.path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                try:
                    return digest(os.pread(file.fileno(), length, offset)) == self.file.chunks[chunk]
                finally:
                    os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)
        except OSError:
            return False

    def settle(self, chunk: int, data: bytes | memoryview) -> None:
        """Write the verified bytes of `chunk`, then record it. Raises StoreError.

        Files are opened anew each time (microseconds against megabytes): a call that outlives its cancelled caller
        can then never write through a descriptor that meanwhile belongs to another file.
        """
        offset, _ = self.file.span(chunk)
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(offset)
                for piece in pieces(data):
                    while piece:
                        piece = piece[file.write(piece) :]
                self._let_dry(file.fileno(), offset, len(data))
            with record_of(self.path).open("ab") as record:
                record.write(_ENTRY.pack(chunk))
        except OSError as error:
            raise write_error(self.path, error) from None

    def _let_dry(self, fd: int, offset: int, length: int) -> None:
        """Have what was written go to the disk now, and forget what has arrived there.

        The page cache is for what viewers watch, and that is not what was just filled. Nothing waits here.
        """
        for start, size in _steps(offset, length):
            _sync_file_range(fd, start, size, _SYNC_FILE_RANGE_WRITE)
        self._drying.append((offset, length))
        while len(self._drying) > _DRYING:
            for start, size in _steps(*self._drying.popleft()):
                # What is not on the disk yet stays where it is.
                os.posix_fadvise(fd, start, size, os.POSIX_FADV_DONTNEED)

    def discard(self) -> None:
        """Remove file and record, the record first. Raises StoreError."""
        try:
            record_of(self.path).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from None

    def _read(self) -> list[int] | None:
        """Chunks claimed by the record; None if there is none of this very file, or the file is not its size."""
        # Claims beyond one per chunk (a chunk fetched again after its claim proved wrong) are cut off here.
        most = _HEAD.size + _ENTRY.size * 4 * len(self.file.chunks)
        try:
            with record_of(self.path).open("rb") as record:
                data = record.read(most)
            if self.path.is_symlink() or self.path.stat().st_size != self.file.bytes:
                return None
        except OSError:
            return None
        if not data.startswith(self._head):
            return None
        rows = data[_HEAD.size : len(data) - (len(data) - _HEAD.size) % _ENTRY.size]
        return sorted({chunk for (chunk,) in _ENTRY.iter_unpack(rows) if chunk < len(self.file.chunks)})
