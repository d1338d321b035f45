"""The folder of content that was pulled from other boxes because viewers asked for it here: bounded, by chunks.

    <root>/.pulled/<title>/<version>/<file>/<offset>   verified; its bytes lie at their offset in the track file,
                                                       the rest of it is a hole
    <root>/.pulled/.arriving-<process>/<number>        on its way in

A chunk is named by where it begins, not by its number: how long chunks are is up to each title.

As in the store, presence under the final name is what "verified" means: a chunk gets there by rename, after fsync.
title.json is a single chunk. A chunk that is removed while it is being sent stays readable until it is closed. The
least recently used chunks of the title that was used least recently go first. Everything here blocks, `find` and
`room` for about as long as a name takes to look up or remove; the methods of an arrival are for threads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from oca.errors import StoreError
from oca.ids import is_id, is_version
from oca.store.content import PULLED
from oca.store.landing import write_error
from oca.title.model import TITLE_JSON

_ARRIVING = ".arriving-"
SOCKET = ".puller"
# How often the use of a version is noted on the disk, where it is wanted after a restart only.
_NOTE_S = 60.0
_TRIES = 5


class Key(NamedTuple):
    """The chunk of a file of a version that begins at `offset`, in bytes; that of title.json is all of it."""

    title: str
    version: str
    name: str
    offset: int

    @property
    def place(self) -> str:
        """Its path below the folder."""
        return f"{self.title}/{self.version}/{self.name}/{self.offset}"


class Arrival:
    """A chunk of `length` bytes that is being written, at `place` below the folder."""

    def __init__(self, folder: Path, place: str, key: Key, length: int) -> None:
        self.key, self.place, self.length = key, place, length
        self._path = folder / place
        self._final = folder / key.place
        # A thread may still be writing when its caller has given up: it must not find another file's descriptor.
        self._busy = threading.Lock()
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(self._fd, key.offset, max(1, length))
            os.ftruncate(self._fd, key.offset + length)
        except OSError as error:
            self.discard()
            raise write_error(self._final, error) from None

    def write(self, at: int, data: bytes) -> None:
        """Put bytes at offset `at` of the chunk. Raises StoreError."""
        try:
            view = memoryview(data)
            with self._busy:
                while view:
                    count = os.pwrite(self._fd, view, self.key.offset + at)
                    view, at = view[count:], at + count
        except OSError as error:
            raise write_error(self._final, error) from None

    def read(self) -> bytes:
        """All of it, as readers of the file see it. Raises StoreError."""
        try:
            with self._busy:
                return os.pread(self._fd, self.length, self.key.offset)
        except OSError as error:
            raise StoreError(f"cannot read {self._final}: {error.strerror}; check that the disk is healthy") from None

    def keep(self, modified: int | None = None) -> None:
        """Give it its final name, and a modification time; its bytes must have been verified. Raises StoreError."""
        try:
            with self._busy:
                if modified is not None:
                    os.utime(self._fd, (modified, modified))
                os.fdatasync(self._fd)
                for _ in range(_TRIES):
                    self._final.parent.mkdir(parents=True, exist_ok=True)
                    with suppress(FileNotFoundError):  # making room removes empty folders, this one just now
                        self._path.rename(self._final)
                        break
                os.close(self._fd)
                self._fd = -1
        except OSError as error:
            self.discard()
            raise write_error(self._final, error) from None

    def discard(self) -> None:
        """Remove it; harmless once it is kept."""
        with self._busy:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self._path.unlink(missing_ok=True)


class Pulled:
    """The folder under `root`, of at most `limit` bytes; several processes may be at work in it during a reload."""

    def __init__(self, root: Path, limit: int) -> None:
        self.folder = root / PULLED
        self.limit = limit
        self.bytes = 0
        """Bytes held and on their way in."""
        self._versions: OrderedDict[tuple[str, str], OrderedDict[tuple[str, int], int]] = OrderedDict()
        self._noted: dict[tuple[str, str], float] = {}
        self._count = 0
        self._mine = f"{_ARRIVING}{os.getpid()}"
        self._lock = -1

    def open(self) -> None:
        """Take stock of what is there and remove what should not be. Raises StoreError."""
        try:
            self.folder.mkdir(mode=0o755, exist_ok=True)
            for path in list(self.folder.iterdir()):
                if path.name.startswith(_ARRIVING):
                    self._clear(path)
            (self.folder / self._mine).mkdir()
            self._lock = os.open(self.folder / self._mine, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._take_stock()
        except OSError as error:
            raise StoreError(
                f"cannot use {self.folder}: {error.strerror}; give it to the user that runs oca"
            ) from None
        self.room(0)

    def close(self) -> None:
        """Remove what is still on its way in."""
        shutil.rmtree(self.folder / self._mine, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)

    def find(self, key: Key, length: int) -> bool:
        """Whether all `length` bytes of this chunk are held; it then counts as used now."""
        try:
            size = (self.folder / key.place).stat().st_size
        except OSError:
            size = -1
        held = (key.name, key.offset) in self._versions.get(key[:2], ())
        if size != key.offset + length:
            if held:
                self._forget(key)
            return False
        if not held:
            # The puller before us brought it while we had already taken stock.
            self.bytes += length
            self._enter(key, length)
        self._versions[key[:2]].move_to_end((key.name, key.offset))
        self._versions.move_to_end(key[:2])
        now = time.monotonic()
        if now - self._noted.get(key[:2], -_NOTE_S) >= _NOTE_S:
            self._noted[key[:2]] = now
            os.utime(self.folder / key.title / key.version)
        return True

    def read(self, key: Key) -> bytes:
        """The bytes of a chunk that is held. OSError if it is not."""
        with (self.folder / key.place).open("rb") as file:
            file.seek(key.offset)
            return file.read()

    def arrive(self, key: Key, length: int) -> Arrival:
        """A place for a chunk, with `room` for it made before. Raises StoreError."""
        self._count += 1
        return Arrival(self.folder, f"{self._mine}/{self._count}", key, length)

    def room(self, length: int, key: Key | None = None) -> None:
        """Remove what was used least recently, so that `length` bytes more fit; `release` gives them back.

        The version that `key` belongs to goes last.
        """
        self.bytes += length
        mine = key[:2] if key is not None else None
        for version in sorted(self._versions, key=lambda version: version == mine):
            # What says what the others are goes last.
            for name, offset in sorted(self._versions[version], key=lambda part: part[0] == TITLE_JSON):
                if self.bytes <= self.limit or (version == mine and name == TITLE_JSON):
                    return
                self._remove(Key(version[0], version[1], name, offset))

    def settle(self, key: Key, length: int) -> None:
        """A chunk for which there was `room` is kept now."""
        self._enter(key, length)
        self._versions.move_to_end(key[:2])

    def release(self, length: int) -> None:
        """A chunk for which there was `room` did not come."""
        self.bytes -= length

    def _enter(self, key: Key, length: int) -> None:
        version = self._versions.setdefault(key[:2], OrderedDict())
        # Another process may have brought it meanwhile: the rename replaced its file.
        self.bytes -= version.pop((key.name, key.offset), 0)
        version[key.name, key.offset] = length

    def _remove(self, key: Key) -> None:
        path = self.folder / key.place
        path.unlink(missing_ok=True)
        self._forget(key)
        for folder in (path.parent, path.parents[1], path.parents[2]):
            try:
                folder.rmdir()
            except OSError:
                return

    def _forget(self, key: Key) -> None:
        version = self._versions[key[:2]]
        self.bytes -= version.pop((key.name, key.offset))
        if not version:
            del self._versions[key[:2]]
            self._noted.pop(key[:2], None)

    def _clear(self, path: Path) -> None:
        """Remove the arrivals of a process that is gone; of one that lives they are in use."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
        except BlockingIOError:
            return
        finally:
            os.close(fd)

    def _take_stock(self) -> None:
        """Enter every chunk that is there, the version used last at the end; remove what is no chunk."""
        found: list[tuple[float, Key, int]] = []
        for title in _folders(self.folder, is_id):
            for version in _folders(title, is_version):
                used = version.stat().st_mtime
                for name in _folders(version, is_id):
                    for path in list(name.iterdir()):
                        key = Key(
                            title.name, version.name, name.name, int(path.name) if _is_number(path.name) else -1
                        )
                        length = -1
                        if key.offset >= 0 and path.is_file() and not path.is_symlink():
                            length = path.stat().st_size - key.offset
                        if length < 0:
                            path.unlink()
                        else:
                            found.append((used, key, length))
        for _, key, length in sorted(found):
            self._enter(key, length)
            self.bytes += length


def _folders(path: Path, allowed: Callable[[str], bool]) -> list[Path]:
    """The directories in `path` whose names are allowed, hidden ones left out; whatever else is there is removed."""
    good = []
    for entry in list(path.iterdir()):
        if entry.name.startswith("."):
            continue
        if allowed(entry.name) and entry.is_dir() and not entry.is_symlink():
            good.append(entry)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return good


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
