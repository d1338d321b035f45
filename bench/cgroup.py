"""Control groups of the kernel (cgroups(7)): what chosen processes may take of a disk or of the processor."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.fleet import FleetError
from bench.processor import descendants

_MOUNTS = Path("/proc/self/mountinfo")
_MEMBERS = "cgroup.procs"
_number = itertools.count(1)


@dataclass(frozen=True)
class Hierarchy:
    """Where a controller's groups are, by version 2 (`unified`) or version 1."""

    root: Path
    unified: bool


def hierarchy(mounts: str, controller: str) -> Hierarchy | None:
    """Where a controller is, by its name in version 2 and what is mounted (mountinfo, proc(5)); None if nowhere."""
    old = {"io": "blkio"}.get(controller, controller)
    for line in mounts.splitlines():
        mount, _, rest = line.partition(" - ")
        root, (kind, _, options) = Path(mount.split()[4]), rest.split(" ", 2)
        if kind == "cgroup" and old in options.split(","):
            return Hierarchy(root, unified=False)
        if kind == "cgroup2" and controller in (root / "cgroup.controllers").read_text().split():
            return Hierarchy(root, unified=True)
    return None


class ControlGroup:
    """A group of its own, until it is closed. Needs root; FleetError where the kernel does not do it."""

    def __init__(self, controller: str, old: Mapping[str, str], new: Mapping[str, str]) -> None:
        """`old` and `new` are what to write into which files, by version 1 and 2."""
        found = hierarchy(_MOUNTS.read_text(), controller)
        if found is None:
            raise FleetError(f"the kernel has no control groups for {controller} here")
        self.unified = found.unified
        self.place = found.root / f"oca-bench-{os.getpid()}-{next(_number)}"
        try:
            if found.unified:
                (found.root / "cgroup.subtree_control").write_text(f"+{controller}")
            self.place.mkdir()
            for name, text in (new if found.unified else old).items():
                (self.place / name).write_text(text)
        except OSError as error:
            self.close()
            raise FleetError(f"the kernel does not limit {controller} for some: {error}") from error

    def close(self) -> None:
        """Limit nobody any more."""
        if self.place.exists():
            for pid in (self.place / _MEMBERS).read_text().split():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    (self.place.parent / _MEMBERS).write_text(pid)
            self.place.rmdir()

    def admit(self, pid: int) -> None:
        """From now on it is for this process and all below it."""
        for each in descendants(pid):
            (self.place / _MEMBERS).write_text(str(each))
