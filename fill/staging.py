"""The staging directories of a store: what is on its way in or in quarantine, and whose they are."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from oca.errors import FormatError, StoreError
from oca.ids import is_id, is_version
from oca.store.content import FILLING, QUARANTINE, Store, is_leftover, is_open
from oca.store.landing import claimed_chunks
from oca.title.model import TITLE_JSON

_LOCK = ".lock"
_PARTS = (".mp4", ".idx")


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file on its way in, or in quarantine: its size in bytes, chunks recorded as whole, and chunks in all."""

    title: str
    version: str
    name: str
    bytes: int
    chunks: int
    of: int
    quarantined: bool = False

    @property
    def of_track(self) -> bool:
        """Whether it belongs to one track, not to the version as a whole."""
        return self.name.endswith(_PARTS)

    @property
    def key(self) -> tuple[str, str, str]:
        """Title, version and track."""
        return self.title, self.version, self.name.rpartition(".")[0]


@contextmanager
def owned(store: Store) -> Iterator[None]:
    """Own the staging of `store` while inside; StoreError if another process does."""
    fds: list[int] = []
    try:
        for root in store.usable:
            flags = os.O_RDWR | os.O_CREAT
            if root in store.disks.refusing:
                # It may take writes again some day: its lock is ours, if it has one.
                flags = os.O_RDONLY
                if not (root / FILLING / _LOCK).exists():
                    continue
            try:
                fds.append(os.open(root / FILLING / _LOCK, flags | os.O_CLOEXEC, 0o644))
                fcntl.flock(fds[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"another oca-fill is at work on the store {root}: stop it first") from None
            except OSError as error:
                raise StoreError(f"store directory {root} cannot be locked: {error.strerror}") from None
        yield
    finally:
        for fd in fds:
            os.close(fd)


def staged(store: Store) -> list[StagedFile]:
    """Every file on its way in or in quarantine, sorted."""
    rows = []
    for directory in _directories(store, store.usable):
        quarantined = directory.parts[-3] == QUARANTINE
        for path in directory.iterdir():
            if is_id(path.name) and path.is_file():
                size = path.stat().st_size
                title, version = directory.parts[-2:]
                rows.append(StagedFile(title, version, path.name, size, *claimed_chunks(path), quarantined))
    return sorted(rows, key=lambda row: (row.title, row.version, row.name))


def sweep(store: Store, missing: Collection[tuple[str, str, str]]) -> list[Path]:
    """Remove what is staged but does not belong to a (title, version, track) of `missing`; returns what went.

    Likewise what somebody left half done who was killed: only the owner of the staging may call this.
    """
    wanted: dict[tuple[str, str], set[str]] = {}
    for title, version, track in missing:
        wanted.setdefault((title, version), set()).add(track)
    gone = _leftovers(store, wanted)
    for directory in _directories(store, store.writable):
        title, version = directory.parts[-2:]
        tracks = wanted.get((title, version))
        if tracks is None:
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):  # other versions of the title may be on their way in
                directory.parent.rmdir()
            gone.append(directory)
            continue
        for path in list(directory.iterdir()):
            name = path.name.removeprefix(".").removesuffix(".chunks")
            # A file of a track; or one that write_durably left behind when it was killed.
            other = name.endswith(_PARTS) and name.rpartition(".")[0] not in tracks
            if other or (path.name.startswith(".") and not path.name.endswith(".chunks")):
                path.unlink(missing_ok=True)
                gone.append(path)
    return gone


def _leftovers(store: Store, wanted: Mapping[tuple[str, str], Collection[str]]) -> list[Path]:
    """Remove from among what is verified whatever a process left that died while it wrote or removed; what went."""
    now = time.time()
    gone = [path for root in store.writable for path in root.glob(".*") if is_leftover(path, now)]
    for key in store.versions():
        gone += _beside_better(store, *key)
        directory = store.directory(*key)
        if directory is None or directory.parents[1] not in store.writable:
            continue
        gone += [path for path in directory.glob(".*") if is_leftover(path, now)]
        if not (directory / TITLE_JSON).exists() and key not in wanted:
            # It is the first file to come and the first to go.
            gone += directory.iterdir()
            gone.append(directory)
            continue
        with suppress(FormatError):
            held = store.held(*key)
            if held is not None and held.tracks:
                kept = {*held.tracks, *wanted.get(key, ())}
                names = [name for track in held.title.tracks if track.name not in kept for name in track.files]
                gone += [path for name in names if (path := directory / name).exists()]
    for path in gone:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    return gone


def _beside_better(store: Store, title: str, version: str) -> list[Path]:
    """Remove copies of a version that has a better one on another disk, unless they are being served; what went."""
    gone = []
    for copy in store.copies(title, version)[1:]:
        if copy.parents[1] in store.writable and not any(is_open(path) for path in copy.glob("*.mp4")):
            store.drop(copy)
            gone.append(copy)
    return gone


def _directories(store: Store, roots: Sequence[Path]) -> list[Path]:
    """Directories of versions; others in there (a packager's, say) are not ours to touch."""
    return [
        version
        for root in roots
        for folder in (root / FILLING, root / QUARANTINE)
        if folder.is_dir()
        for title in folder.iterdir()
        if is_id(title.name) and title.is_dir()
        for version in title.iterdir()
        if is_version(version.name) and version.is_dir()
    ]
