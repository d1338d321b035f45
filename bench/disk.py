"""A directory behind a slow disk that can be told to fail (slowdisk.c), for benchmarks and tests."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal

from bench.compiler import compiled
from bench.fleet import FleetError

Fault = Literal["ok", "eio", "read-eio", "enospc"]


@functools.cache
def _program() -> int:
    """slowdisk.c, compiled once in a process: a descriptor to start it from, whose file is gone."""
    with tempfile.TemporaryDirectory(prefix="oca-disk-") as home:
        return os.open(compiled("slowdisk", Path(home)), os.O_PATH)


def forget(path: Path) -> None:
    """Have nothing of a file in memory; what has been written is on the disk first."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class SlowDisk:
    """What is in `source`, seen at `mountpoint`; every read from it takes `delay_s` longer. Needs root."""

    def __init__(self, source: Path, mountpoint: Path, delay_s: float = 0.010) -> None:
        self._mountpoint = mountpoint
        if os.geteuid() != 0 or not Path("/dev/fuse").exists():
            raise FleetError("a slow disk is simulated through FUSE: run this as root on a kernel that has /dev/fuse")
        program = _program()
        mountpoint.mkdir(parents=True, exist_ok=True)
        command = [f"/proc/self/fd/{program}", str(source), str(mountpoint), str(round(delay_s * 1000))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[program]
        )
        if self._hear() != "mounted":
            self._process.wait()
            raise FleetError(f"{mountpoint} cannot be mounted: the line above says why")

    def __enter__(self) -> SlowDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmount it; whoever still has a file open keeps it until then."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                subprocess.run(["umount", "-l", str(self._mountpoint)], check=False)
            if self._process.stdout is not None:
                self._process.stdout.close()

    def fail(self, fault: Fault) -> None:
        """From now on: everything fails, reads fail, writes fail for lack of room, or nothing fails any more."""
        self._ask(fault)

    @property
    def reads(self) -> int:
        """How many reads have come through to the disk so far; those answered from memory do not."""
        return int(self._ask("reads"))

    @property
    def read_bytes(self) -> int:
        """How many bytes have been read from it so far; those read from memory do not count."""
        return int(self._ask("bytes"))

    def drop(self) -> None:
        """Forget what is in memory of its files."""
        for folder, _, names in os.walk(self._mountpoint):
            for name in names:
                forget(Path(folder) / name)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
