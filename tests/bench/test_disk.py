"""The slow disk: what is read through it is right, slow only where it is not in memory, and fails on demand."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.disk import Fault, SlowDisk
from oca.store.content import Store
from tests.conftest import MakeTitle


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    """A slow disk at `tmp_path / "disk"` over `tmp_path / "source"`."""
    (tmp_path / "source").mkdir()
    with SlowDisk(tmp_path / "source", tmp_path / "disk", 0.02) as disk:
        yield disk


def test_reads_are_right_and_come_from_memory_the_second_time(disk: SlowDisk, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "source" / "a").write_bytes(data)
    began = time.monotonic()
    assert (tmp_path / "disk" / "a").read_bytes() == data
    assert time.monotonic() - began >= 0.02
    assert disk.reads > 0
    for _ in range(50):
        reads = disk.reads
        assert (tmp_path / "disk" / "a").read_bytes() == data
        if disk.reads == reads:
            break  # a machine that is short of memory takes some of it back meanwhile
    else:
        pytest.fail("no read came from memory")
    disk.drop()
    reads, read_bytes = disk.reads, disk.read_bytes
    assert (tmp_path / "disk" / "a").read_bytes() == data
    assert disk.reads > reads
    assert disk.read_bytes - read_bytes >= len(data)


@pytest.mark.parametrize(("fault", "number"), [("eio", errno.EIO), ("read-eio", errno.EIO)])
def test_it_fails_and_recovers(disk: SlowDisk, tmp_path: Path, fault: Fault, number: int) -> None:
    (tmp_path / "source" / "a").write_bytes(b"x" * 100)
    disk.fail(fault)
    with pytest.raises(OSError, match="Input/output error") as failed:
        (tmp_path / "disk" / "a").read_bytes()
    assert failed.value.errno == number
    disk.fail("ok")
    assert (tmp_path / "disk" / "a").read_bytes() == b"x" * 100


def test_it_fills_up(disk: SlowDisk, tmp_path: Path) -> None:
    disk.fail("enospc")
    with pytest.raises(OSError, match="No space left"):
        (tmp_path / "disk" / "b").write_bytes(b"x")


def test_a_store_lives_on_it(disk: SlowDisk, tmp_path: Path, make_title: MakeTitle) -> None:
    made = make_title(tmp_path / "disk")
    held = Store([tmp_path / "disk"]).held("clip", made.version)
    assert held is not None
    assert held.tracks == {"v1", "a1"}
    assert (tmp_path / "source" / "clip" / made.version / "v1.mp4").is_file()


def test_nothing_stays_mounted(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").touch()
    with SlowDisk(tmp_path / "source", tmp_path / "disk", 0.0):
        assert os.path.ismount(tmp_path / "disk")
    assert not os.path.ismount(tmp_path / "disk")
    assert list((tmp_path / "disk").iterdir()) == []
