"""A disk that is slow for chosen processes: their reads are limited by the kernel, in a control group.

Unlike a simulated disk it costs no processor time, and is read through the file system that is there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.cgroup import ControlGroup
from bench.disk import forget
from bench.fleet import FleetError
from oca.blocks import disk_of


class ThrottledDisk(ControlGroup):
    """The disk below `path`, which whoever is let in can read at no more than `bytes_per_s`."""

    def __init__(self, path: Path, bytes_per_s: float) -> None:
        self._path = path
        disk = disk_of(path.stat().st_dev)
        if disk is None:
            raise FleetError(f"{path} is on no disk of its own, so reads cannot be limited")
        # Partitions are not limited, only whole disks.
        self._disk = (disk / "dev").read_text().strip()
        speed = round(bytes_per_s)
        super().__init__(
            "io",
            {"blkio.throttle.read_bps_device": f"{self._disk} {speed}"},
            {"io.max": f"{self._disk} rbps={speed}"},
        )

    @property
    def read_bytes(self) -> int:
        """How much those who were let in have read from it so far; what was in memory does not count."""
        name = "io.stat" if self.unified else "blkio.throttle.io_service_bytes"
        return read_bytes((self.place / name).read_text(), self._disk)

    def drop(self) -> None:
        """Forget what is in memory of the files below `path`."""
        for folder, _, names in os.walk(self._path):
            for name in names:
                if not (file := Path(folder) / name).is_symlink():
                    forget(file)


def read_bytes(said: str, disk: str) -> int:
    """Of a disk, MAJOR:MINOR, by what the kernel says (blkio-controller.rst, cgroup-v2.rst)."""
    found = re.search(rf"^{disk}(?: Read |.* rbytes=)(\d+)", said, re.M)
    return int(found[1]) if found else 0
