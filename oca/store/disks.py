"""The disks of a store: which of them can be used now.

A disk that fails takes only what it holds out of the box, at run time, and comes back by itself once it answers.
Every process finds out by its own looks; that reads fail, which a look does not show, is told to the others by a
marker in a directory of the system's that does not outlive a restart of the machine.

    <root>/.disk        who it is, and who was beside it: an empty directory where a disk was is not a new disk
    <root>/.generation  rewritten after every change of the content
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

GENERATION = ".generation"
IDENTITY = ".disk"
PROBE_S = 30.0
"""How often a failed disk is tried again."""
_SAMPLES = 4
_PAGE = 4096
_MAX_IDENTITY = 1 << 16


@contextmanager
def another_time(path: Path) -> Iterator[Path]:
    """After the block, in which a file is written anew, its modification time is another than it was before.

    By itself it need not be: kernels before 6.13 let clocks of files go on in steps of milliseconds. Raises OSError.
    """
    before = path.stat().st_mtime_ns if path.exists() else 0
    yield path
    if path.stat().st_mtime_ns == before:
        os.utime(path, ns=(before + 1, before + 1))


class Disks:
    """The roots of a store, in the order of the settings, and why some of them are not used."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = list(roots)
        self.failed: dict[Path, str] = {}
        """Why a root is not used, as of the last look."""
        self.refusing: dict[Path, str] = {}
        """Why nothing is written to a root, or removed from it, that is read all the same; we alone know."""
        self._seen: set[Path] = set()
        self._ids: dict[Path, str] = {}

    @property
    def usable(self) -> list[Path]:
        """The roots that worked when last looked at."""
        return [root for root in self.roots if root not in self.failed]

    def look(self) -> str:
        """Find out which roots work; a string that differs after every change of that, or of their content."""
        stamps = []
        for root in self.roots:
            if root not in self._ids:
                self._identity(root)
        for root in self.roots:
            stamp, problem = "0", ""
            try:
                stamp = str((root / GENERATION).stat().st_mtime_ns)
                self._seen.add(root)
                if self._marker(root) is not None:
                    problem = "reads from it failed"
            except FileNotFoundError:
                if root in self._seen:
                    problem = "its content is gone: is it still mounted?"
            except OSError as error:
                problem = str(error.strerror)
            if problem:
                self.failed[root] = problem
            else:
                self.failed.pop(root, None)
            stamps.append("failed" if problem else stamp)
        return ",".join(stamps)

    def missing(self, accept: Path | None = None) -> dict[Path, str]:
        """Sentences about roots that were disks of this box and are empty directories now, but for `accept`."""
        expected: set[str] = set()
        for root in self.roots:
            one = self._identity(root)
            expected.update(one[1] if one is not None else ())
        gone = {}
        for root in self.roots:
            if str(root) in expected and root != accept and _absent(root / IDENTITY):
                gone[root] = (
                    f"store directory {root} was a disk of this box and is empty now: mount the disk, or if it is "
                    f"to be replaced say so with `oca disks --accept {root}`"
                )
                self._seen.add(root)
        return gone

    def identify(self, roots: Sequence[Path]) -> None:
        """Write down on each of `roots` who it is and who is beside it. Raises OSError."""
        found = {root: self._identity(root) for root in roots}
        known: dict[str, str] = {}
        for one in found.values():
            known.update(one[1] if one is not None else {})
        known |= {str(root): one[0] if one is not None else uuid.uuid4().hex for root, one in found.items()}
        for root, one in found.items():
            self._ids[root] = known[str(root)]
            # Others that were beside it stay listed: a program that works on one disk knows of no more.
            if one != (known[str(root)], known):
                text = json.dumps({"format": 1, "id": known[str(root)], "disks": known})
                temporary = root / f"{IDENTITY}.{uuid.uuid4().hex}"
                temporary.write_text(text)
                temporary.rename(root / IDENTITY)

    def _identity(self, root: Path) -> tuple[str, dict[str, str]] | None:
        """Id of a root and of those beside it; None if it has none that can be read."""
        try:
            with (root / IDENTITY).open("rb") as file:
                read = json.loads(file.read(_MAX_IDENTITY))
            name, beside = str(read["id"]), {str(path): str(one) for path, one in read["disks"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if not all(one.isalnum() for one in (name, *beside.values())):
            return None
        self._ids[root] = name
        for path, one in beside.items():
            # So that a disk which cannot be read any more is known by name to who starts now.
            self._ids.setdefault(Path(path), one)
        return name, beside

    def _marker_path(self, root: Path) -> Path | None:
        name = self._ids.get(root)
        place = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or tempfile.gettempdir()
        return Path(place) / f"oca-failed-{name}" if name else None

    def _marker(self, root: Path) -> Path | None:
        """The marker that says that reads from this root failed, if there is one and it is ours."""
        path = self._marker_path(root)
        try:
            return path if path is not None and path.lstat().st_uid == os.geteuid() else None
        except OSError:
            return None

    def blame(self, root: Path) -> str:
        """A read from this root has failed: probe it, and take it out for all processes if it is the disk's fault.

        Blocks. Returns what is wrong with it, "" if nothing: then a file is damaged and not the disk.
        """
        problem = probe(root)
        path = self._marker_path(root)
        if problem and path is not None:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        return problem

    def retry(self) -> None:
        """Probe the roots whose reads failed, and take those back that work again. Blocks."""
        for root in self.roots:
            marker = self._marker(root)
            if marker is not None and not probe(root):
                marker.unlink(missing_ok=True)

    def suspect(self, root: Path) -> bool:
        """A write to this root has failed: whether it is the disk that refuses, and is left alone from now on."""
        problem = probe_writing(root)
        if problem:
            self.refusing[root] = problem
        return bool(problem)

    def forgive(self) -> None:
        """Write to those roots again that have refused and do so no longer. Blocks."""
        for root in list(self.refusing):
            problem = probe_writing(root)
            if problem:
                self.refusing[root] = problem
            else:
                del self.refusing[root]


def _absent(path: Path) -> bool:
    """Whether there is surely no such file; a disk that does not answer proves nothing."""
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def probe(root: Path) -> str:
    """What is wrong with the disk below `root`, "" if it gives what is asked of it; what is in memory is no proof."""
    try:
        (root / GENERATION).stat()
        files = [root / IDENTITY, *_some_files(root)]
        for path in files:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = os.fstat(fd).st_size
                place = random.randrange(max(1, size)) // _PAGE * _PAGE
                os.posix_fadvise(fd, place, _PAGE, os.POSIX_FADV_DONTNEED)
                os.pread(fd, 1, place)
            finally:
                os.close(fd)
    except OSError as error:
        return str(error.strerror)
    return ""


def probe_writing(root: Path) -> str:
    """What is wrong with the disk below `root` for who writes, "" if it takes a page and keeps it."""
    # Named as what a killed process leaves behind, which is swept away (oca.store.content).
    path = root / f".probe.{uuid.uuid4().hex}"
    try:
        try:
            with path.open("xb") as file:
                file.write(bytes(_PAGE))
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
    except OSError as error:
        return str(error.strerror)
    return ""


def _some_files(root: Path) -> list[Path]:
    """A few track files, not always the same."""
    titles = [entry.path for entry in os.scandir(root) if not entry.name.startswith(".") and entry.is_dir()]
    random.shuffle(titles)
    return list(islice((path for title in titles for path in Path(title).glob("*/*.mp4")), _SAMPLES))
