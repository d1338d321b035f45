"""The content store: verified versions of titles on one or more disks, as plain directories.

    <root>/<title>/<version>/<file>            verified, and never modified
    <root>/.filling/<title>/<version>/<file>   on its way in; nobody but the fill agent looks here
    <root>/.quarantine/<title>/<version>/...   was verified and is damaged now: not served, kept for its good chunks
    <root>/.pulled/...                         passed on for want of it here (oca.miss.pulled); bounded, not reported
    <root>/.generation, .disk                  see oca.store.disks

Presence under its final name is what "verified" means: files arrive there only by rename, after fsync, and
title.json first. A track is held when title.json, all files that belong to no track, `<track>.mp4` and `<track>.idx`
are there at their full size.
The modification time of title.json is the publication time of the version, the same on every box.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import stat
import uuid
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from oca.errors import FormatError, StoreError
from oca.ids import is_id, is_version
from oca.store.disks import GENERATION, Disks, another_time
from oca.store.landing import Landing, record_of
from oca.title import model as title_format
from oca.title.model import TITLE_JSON, Title

FILLING = ".filling"
QUARANTINE = ".quarantine"
PULLED = ".pulled"
# Left free on a disk that new content goes to: a full one would fail its other writers.
_RESERVE = 0.02


SERVED_S = 60.0
"""For how long at least a file stays open after it was last sent to somebody, and at most twice as long."""
# What `write_durably` writes to before it renames it.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")
_DEAD_S = 3600.0


def is_leftover(path: Path, now: float) -> bool:
    """Whether it was being written by somebody who has died: an hour is more than any write takes."""
    try:
        return _TEMPORARY.fullmatch(path.name) is not None and path.lstat().st_mtime < now - _DEAD_S
    except OSError:
        return False


def fsync_directory(path: Path) -> None:
    """Make the names in directory `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary neighbour: afterwards all of it is there, or the old file."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version in the store: its directory, title.json, publication time (UTC, whole seconds), tracks held."""

    directory: Path
    title: Title
    version: str
    published: int
    tracks: frozenset[str]


class Store:
    """The verified content under a list of root directories; each version lives on one of them."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [Path(root) for root in roots]
        self.disks = Disks(self.roots)

    @property
    def usable(self) -> list[Path]:
        """The roots that worked when last looked at, see `generation`."""
        return self.disks.usable

    def prepare(self, *, accept: Path | None = None) -> list[str]:
        """Create what is missing, and prove that the roots can be written.

        Sentences about those that cannot be used, while others can; StoreError if none can. `accept` is a root that
        replaces another.
        """
        problems = self.disks.missing(accept)
        for root in self.roots:
            if root in problems:
                continue
            try:
                (root / FILLING).mkdir(parents=True, exist_ok=True)
                probe = root / FILLING / f".probe-{uuid.uuid4().hex}"
                probe.touch()
                probe.unlink()
                self.disks.refusing.pop(root, None)
                if not (root / GENERATION).exists():
                    self._changed(root)
            except OSError as error:
                self.disks.refusing[root] = str(error.strerror)
                problems[root] = (
                    f"store directory {root} cannot be written ({error.strerror}): "
                    "create it, or give it to the user that runs oca"
                )
        if len(problems) == len(self.roots):
            raise StoreError("; ".join(problems.values()))
        self.disks.identify([root for root in self.roots if root not in problems])
        self.disks.look()
        return list(problems.values())

    @property
    def writable(self) -> list[Path]:
        """Those of `usable` that have not refused a write."""
        return [root for root in self.usable if root not in self.disks.refusing]

    def root_of(self, path: Path) -> Path | None:
        """The root that this path is below."""
        return next((root for root in self.roots if path.is_relative_to(root)), None)

    def generation(self) -> str:
        """A string that differs after every change of the store's content, or of the disks that can be used."""
        return self.disks.look()

    def blame(self, title: str, version: str) -> None:
        """A read of this version's files has failed: take its disk out if that is at fault. Blocks."""
        try:
            directory = self.directory(title, version)
        except OSError:
            return  # the next look finds out by itself
        if directory is not None:
            self.disks.blame(directory.parents[1])

    def _changed(self, root: Path) -> None:
        with another_time(root / GENERATION) as path:
            write_durably(path, uuid.uuid4().hex.encode())

    def directory(self, title: str, version: str) -> Path | None:
        """The directory that holds this version, or None. Links are not followed: they could lead anywhere."""
        if is_id(title) and is_version(version):
            for root in self.usable:
                directory = root / title / version
                if _is_directory(directory.parent) and _is_directory(directory):
                    return directory
        return None

    def versions(self) -> Iterator[tuple[str, str]]:
        """Every (title, version) that has a directory here, sorted; not yet checked."""
        found = {
            (title.name, version.name)
            for root in self.usable
            for title in _directories(root)
            if is_id(title.name)
            for version in _directories(title)
            if is_version(version.name)
        }
        return iter(sorted(found))

    def held(self, title: str, version: str) -> HeldVersion | None:
        """What is held of this version; None if nothing; FormatError if its title.json is corrupt."""
        directory = self.directory(title, version)
        if directory is None or _size(directory / TITLE_JSON) < 0:
            return None
        read, found = title_format.read(directory)
        if found != version or read.id != title:
            raise FormatError(f"{directory / TITLE_JSON} is corrupt: it is {read.id} {found}, not {title} {version}")
        published = int((directory / TITLE_JSON).stat().st_mtime)

        def there(names: Iterable[str]) -> bool:
            return all(_size(directory / name) == read.files[name].bytes for name in names)

        # Without its manifests nobody plays it: a version that lacks one of them is as good as not here.
        tracks = frozenset(t.name for t in read.tracks if there(t.files)) if there(read.shared_files) else frozenset()
        return HeldVersion(directory, read, version, published, tracks)

    def used_bytes(self) -> int:
        """Bytes of all files in the store, those on their way in included, those pulled for want of them not."""
        return sum(
            max(0, _size(Path(folder) / name))
            for root in self.usable
            for folder, _, names in os.walk(root)
            if Path(folder) != root and not Path(folder).is_relative_to(root / PULLED)
            for name in names
        )

    def version_bytes(self, title: str, version: str) -> int:
        """Bytes of the files of a version; 0 if it is not here."""
        directory = self.directory(title, version)
        return sum(max(0, _size(path)) for path in directory.iterdir()) if directory is not None else 0

    def staging(self, title: str, version: str, avoid: Container[Path] = ()) -> Path:
        """The directory in which files of this version wait to be committed; made if missing.

        It is on the disk that already holds the version, else on the one with the most free space, so that a
        commit is a rename; never on one of `avoid`. StoreError if no disk can be used.
        """
        self.generation()
        holder = next((root for root in self.usable if (root / title / version).is_dir()), None)
        roots = [root for root in self.writable if root not in avoid and holder in (None, root)]
        if not roots:
            why = self.disks.failed | self.disks.refusing
            raise StoreError("; ".join(f"{root}: {problem}" for root, problem in why.items()) or "no disk is left")
        begun = next((root for root in roots if (root / FILLING / title / version).is_dir()), None)
        staging = (begun or max(roots, key=_room)) / FILLING / title / version
        staging.mkdir(parents=True, exist_ok=True)
        return staging

    def room(self, root: Path) -> float:
        """Bytes that new content on a disk may still take, beyond what is kept free for its other writers."""
        return _room(root)

    def commit(
        self, title: str, version: str, names: Sequence[str], published: int, staging: Path | None = None
    ) -> None:
        """Move verified files from staging to their final place, durably and in order; title.json gets its time.

        Committing what is already committed does nothing, so a crash half way is mended by doing it again.
        """
        staging = staging or self.staging(title, version)
        root = staging.parents[2]
        final = root / title / version
        final.mkdir(parents=True, exist_ok=True)
        for name in names:
            source = staging / name
            if not source.exists():
                continue
            os.utime(source, (published, published))
            with source.open("rb") as file:
                os.fsync(file.fileno())
                # What was just filled has no place in memory before what viewers watch.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            source.rename(final / name)
        # Those above as well, new or not: who made them may have been killed before this.
        for folder in (final, final.parent, root):
            fsync_directory(folder)
        self._changed(root)

    def remove_track(self, held: HeldVersion, track: str) -> None:
        """Delete one track's files; the whole version once no track of it is left."""
        files = next(t.files for t in held.title.tracks if t.name == track)
        for name in files:
            (held.directory / name).unlink(missing_ok=True)
        if held.tracks <= {track}:
            self.drop(held.directory)
            return
        self._changed(held.directory.parents[1])

    def copies(self, title: str, version: str) -> list[Path]:
        """The directories of a version, one on each disk that has one, the best first: it holds the most tracks.

        More than one there are once a disk is back whose content was brought anew meanwhile.
        """

        def tracks(directory: Path) -> int:
            with suppress(FormatError):
                held = Store([directory.parents[1]]).held(title, version)
                return len(held.tracks) if held is not None else 0
            return 0

        found = [root / title / version for root in self.usable if _is_directory(root / title / version)]
        return sorted(found, key=lambda directory: -tracks(directory)) if len(found) > 1 else found

    def drop(self, directory: Path) -> None:
        """Delete a version, or one of several copies of it."""
        # title.json goes first: without it nothing of the rest is ever read again.
        (directory / TITLE_JSON).unlink(missing_ok=True)
        shutil.rmtree(directory)
        self._changed(directory.parents[1])

    def quarantine(self, held: HeldVersion, name: str, good: Sequence[int]) -> Path:
        """Take a damaged file out of a version: it is read no longer. Returns where it is.

        `good` are the chunks of it that are whole: a fill that brings the file again fetches only the others.
        """
        root = held.directory.parents[1]
        place = root / QUARANTINE / held.title.id / held.version / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Landing(place, held.title.files[name]).claim(good)
        (held.directory / name).rename(place)
        # Where it is before where it was, so that it is somewhere at any time.
        for folder in (*place.parents[:3], root, held.directory):
            fsync_directory(folder)
        self._changed(root)
        return place

    def recover(self, title: str, version: str, name: str, staging: Path) -> None:
        """Move what is in quarantine of a file to `staging`, for a fill to mend; what is there already stays."""
        root = staging.parents[2]
        place, wanted = root / QUARANTINE / title / version / name, staging / name
        # The file first: until its record follows, it counts as if nothing of it were whole.
        for source, target in ((place, wanted), (record_of(place), record_of(wanted))):
            with suppress(FileNotFoundError):
                if target.exists():
                    source.unlink()
                else:
                    source.rename(target)
        for folder in (place.parent, place.parent.parent):
            with suppress(OSError):
                folder.rmdir()

    def publish(self, staged: Path, title: str, version: str, published: int) -> Path:
        """Publish the complete directory `staged` (on the same file system) as this version; returns its place.

        Atomic: a reader sees all of it or nothing. Publishing a version that is already there discards `staged`.
        """
        root = self.roots[0]
        final = root / title / version
        for path in staged.iterdir():
            os.utime(path, (published, published))
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fsync_directory(staged)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_dir():
            shutil.rmtree(staged)
        else:
            staged.rename(final)
        # Though it was there before: who put it there may have been killed before this.
        fsync_directory(final.parent)
        fsync_directory(root)
        self._changed(root)
        return final


def _is_directory(path: Path) -> bool:
    """Whether it is one, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _directories(path: Path) -> list[Path]:
    """The directories in a directory; none if it cannot be read, which the next look at the disks will explain."""
    try:
        return [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def is_open(path: Path) -> bool:
    """Whether any process has the file open, as servers have what they have sent within SERVED_S.

    A write lease is granted only to who has the file for themselves (fcntl(2), F_SETLEASE). Where leases cannot be
    had, by the file system or because the file is somebody else's, nothing is known, and this says no.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # Who opens the file meanwhile waits until it is given back, which is at once; we are told so by a signal, and
        # the usual one would end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


def _room(root: Path) -> float:
    """Bytes that may still be written to a disk."""
    usage = shutil.disk_usage(root)
    return usage.free - _RESERVE * usage.total


def _size(path: Path) -> int:
    """Size in bytes, -1 if there is no such regular file."""
    try:
        return path.stat().st_size if path.is_file() and not path.is_symlink() else -1
    except OSError:
        return -1
