"""The throttled disk: slow for whoever was let in and counted, and no trace of it afterwards."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.cgroup import Hierarchy, hierarchy
from bench.disk import forget
from bench.fleet import FleetError
from bench.throttle import ThrottledDisk, read_bytes

# As the kernel's documents have them.
V1_COUNTS = "8:0 Read 4096\n8:0 Write 81920\n8:0 Total 86016\n18:0 Read 1\nTotal 86016\n"
V2_COUNTS = (
    "18:0 rbytes=7 wbytes=314773504\n"
    "8:0 wbytes=299008 rbytes=90430464 rios=8950 wios=1252 dbytes=50331648 dios=3021\n"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[ThrottledDisk]:
    """The disk below tests' temporary files, at 8 MB/s."""
    try:
        disk = ThrottledDisk(tmp_path, 8e6)
    except FleetError as error:
        pytest.skip(f"not here: {error}")
    with closing(disk):
        yield disk


def _read(path: Path, disk: ThrottledDisk | None = None) -> float:
    """Seconds that another process takes to read a file, let in or not."""
    forget(path)
    reader = subprocess.Popen(["sh", "-c", f"read word; exec cat '{path}'"], stdin=-1, stdout=subprocess.DEVNULL)
    if disk is not None:
        disk.admit(reader.pid)
    began = time.monotonic()
    reader.communicate(b"go\n")
    assert reader.returncode == 0
    return time.monotonic() - began


def test_who_is_let_in_is_slow_and_counted(disk: ThrottledDisk, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(4 << 20))
    before = disk.read_bytes
    _read(tmp_path / "a")
    assert disk.read_bytes == before
    # What a moment's share of 8 MB/s lets through at once is less than a half.
    assert _read(tmp_path / "a", disk) > 0.25
    assert disk.read_bytes - before >= 4 << 20


def test_what_was_dropped_is_read_again(disk: ThrottledDisk, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))
    (tmp_path / "link").symlink_to("/dev/zero")
    disk.admit(os.getpid())
    disk.drop()
    before = disk.read_bytes
    (tmp_path / "a").read_bytes()
    assert disk.read_bytes - before >= 1 << 20


def test_nothing_is_left_of_it(disk: ThrottledDisk) -> None:
    """Processes that are still there are let go."""
    reader = subprocess.Popen(["cat"], stdin=-1)
    disk.admit(reader.pid)
    disk.close()
    assert not disk.place.exists()
    disk.close()
    reader.communicate(b"")


def test_what_is_on_no_disk_is_not_throttled() -> None:
    with pytest.raises(FleetError, match="on no disk of its own"):
        ThrottledDisk(Path("/proc"), 8e6)


def test_what_the_kernel_counts_is_read() -> None:
    assert read_bytes(V1_COUNTS, "8:0") == 4096
    assert read_bytes(V2_COUNTS, "8:0") == 90430464
    assert read_bytes(V2_COUNTS, "18:0") == 7
    assert read_bytes("", "8:0") == 0


def test_the_hierarchy_of_a_controller_is_found(tmp_path: Path) -> None:
    line = "33 28 0:30 / {root} rw,relatime shared:9 - {kind} cgroup {options}\n"
    others = line.format(root="/sys/fs/cgroup/cpu", kind="cgroup", options="rw,cpu,cpuacct")
    blkio = line.format(root="/sys/fs/cgroup/blkio", kind="cgroup", options="rw,blkio")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory\n")
    unified = line.format(root=tmp_path, kind="cgroup2", options="rw,nsdelegate")
    assert hierarchy(others, "io") is None
    assert hierarchy(others, "cpu") == Hierarchy(Path("/sys/fs/cgroup/cpu"), unified=False)
    assert hierarchy(others + blkio, "io") == Hierarchy(Path("/sys/fs/cgroup/blkio"), unified=False)
    assert hierarchy(others + unified, "io") == Hierarchy(tmp_path, unified=True)
    (tmp_path / "cgroup.controllers").write_text("cpu cpuio\n")
    assert hierarchy(unified, "io") is None
