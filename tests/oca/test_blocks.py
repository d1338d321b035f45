"""Content is read in blocks of 2 MiB where the kernel keeps such; which disks these are, and what is read then."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bench.disk import SlowDisk
from oca import blocks
from oca.blocks import BLOCK, Reach, Reading
from oca.counters import Counters
from oca.http.ahead import Disk, ReadAhead
from oca.http.slices import Descriptor
from oca.residency import Residency
from tests.oca.test_cold import cold_file, put_anew, wanted

SIZE = 3 * BLOCK + 5000
PAGE = 4096


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file of three blocks and a bit, of which nothing is in memory."""
    return cold_file(tmp_path / "cold.bin", SIZE)


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever disk this is."""
    monkeypatch.setattr(blocks, "reading", lambda _device: Reading(Reach.BLOCK))


def _held(descriptor: Descriptor) -> list[int]:
    """Of each block: how many pages from its first on are in memory."""
    return [descriptor.resident(start, BLOCK) // PAGE for start in range(0, SIZE, BLOCK)]


@pytest.mark.parametrize(
    ("file_system", "release", "huge_page", "read_ahead_kb", "reach", "why"),
    [
        ("xfs", "5.18.0", BLOCK, 128, Reach.BLOCK, ""),
        ("xfs", "6.1.0-42-amd64", BLOCK, 2047, Reach.BLOCK, ""),
        ("ext4", "6.16.0", BLOCK, 0, Reach.BLOCK, ""),
        ("ext4", "7.0", BLOCK, 128, Reach.BLOCK, ""),
        (
            "xfs",
            "5.17.9",
            BLOCK,
            128,
            Reach.WINDOW,
            "xfs on Linux 5.17.9 cannot; xfs since Linux 5.18 and ext4 since Linux 6.16 can",
        ),
        ("ext4", "6.12.48+deb13-amd64", BLOCK, 8192, Reach.WINDOW, "ext4 on Linux 6.12.48"),
        ("ext4", "5.99", BLOCK, 128, Reach.WINDOW, "cannot"),
        ("fuse.sshfs", "7.0", BLOCK, 128, Reach.WINDOW, "fuse.sshfs on Linux 7.0 cannot"),
        ("", "7.0", BLOCK, 128, Reach.WINDOW, "this on Linux 7.0 cannot"),
        ("xfs", "unheard of", BLOCK, 128, Reach.WINDOW, "cannot"),
        ("xfs", "6.16.0", 512 << 20, 128, Reach.WINDOW, "huge pages of this kernel are 524288 KiB"),
        ("xfs", "6.16.0", BLOCK, 2048, Reach.FAR, "read-ahead is 2048 KiB: set queue/read_ahead_kb below 2048"),
        ("xfs", "6.16.0", 512 << 20, 8192, Reach.FAR, "read-ahead is 8192 KiB"),
    ],
)
def test_how_a_disk_is_read(
    file_system: str, release: str, huge_page: int, read_ahead_kb: int, reach: Reach, why: str
) -> None:
    found = blocks.suited(file_system, release, huge_page, read_ahead_kb)
    assert found.reach is reach
    assert why in found.why
    assert (reach is Reach.BLOCK) == (found.why == "")


def test_what_is_no_disk_is_not_read_in_blocks() -> None:
    assert "proc on Linux" in blocks.reading(Path("/proc").stat().st_dev).why
    assert "this on Linux" in blocks.reading(os.makedev(4095, 1)).why


def test_the_kernel_is_asked_of_the_disk_that_is_meant(tmp_path: Path) -> None:
    """As findmnt says what it is, and sysfs how far it reads ahead."""
    words = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(tmp_path)]
    kind = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]
    disk = tmp_path.stat().st_dev
    ahead = [
        int((place / "queue/read_ahead_kb").read_text())
        for place in Path("/sys/block").iterdir()
        for number in (place / "dev", *place.glob("*/dev"))
        if number.read_text().strip() == f"{os.major(disk)}:{os.minor(disk)}"
    ]
    huge_page = int(Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").read_text())
    assert blocks.reading(disk) == blocks.suited(kind, os.uname().release, huge_page, (ahead or [0])[0])


def test_the_block_of_a_slice_is_read_and_no_other(cold: Path) -> None:
    descriptor = Descriptor(cold)
    assert descriptor.gather(BLOCK + 300_000, 65536)
    assert _held(descriptor) == [0, 512, 0, 0]


def test_a_slice_over_the_edge_of_a_block_brings_both(cold: Path) -> None:
    descriptor = Descriptor(cold)
    assert descriptor.gather(2 * BLOCK - 1, 2)
    assert _held(descriptor) == [0, 512, 512, 0]


def test_a_block_may_end_with_its_file(cold: Path) -> None:
    descriptor = Descriptor(cold)
    assert descriptor.gather(3 * BLOCK + 10, 10 * BLOCK)
    assert descriptor.resident(3 * BLOCK, 5000) == 5000
    assert _held(descriptor)[:3] == [0, 0, 0]
    assert descriptor.gather(SIZE, 1)
    assert not Residency(descriptor.fd, 0).gather(0, 1)


def test_what_has_been_gathered_is_not_memory_of_the_process(cold: Path) -> None:
    def own() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2])

    descriptor = Descriptor(cold)
    descriptor.gather(0, 1)
    before = own()
    descriptor.gather(0, SIZE)
    assert _held(descriptor)[:3] == [512, 512, 512]
    assert own() - before < BLOCK // PAGE


def test_a_file_that_became_shorter_is_gathered_without_harm(cold: Path) -> None:
    descriptor = Descriptor(cold)
    os.truncate(cold, PAGE)
    assert descriptor.gather(2 * BLOCK, BLOCK)


@pytest.mark.usefixtures("in_blocks")
async def test_windows_end_with_blocks_once_a_disk_is_known_to_have_them(cold: Path) -> None:
    ahead, descriptor = ReadAhead(2, Counters()), Descriptor(cold)
    assert ahead.window(descriptor, 300, 5 * BLOCK) == BLOCK
    assert await wanted(ahead, descriptor, 300, 65536) is None
    assert ahead.window(descriptor, 300, 5 * BLOCK) == BLOCK - 300
    assert ahead.window(descriptor, BLOCK, 5 * BLOCK) == BLOCK
    assert ahead.window(descriptor, BLOCK - 1, 700) == 1
    assert _held(descriptor)[0] == 512
    ahead.close()


@pytest.mark.usefixtures("in_blocks")
async def test_a_disk_that_takes_long_is_asked_for_nothing_but_what_is_wanted(tmp_path: Path) -> None:
    """Or whoever waits behind would wait four times as long, for what nobody may ever ask for."""
    (tmp_path / "behind").mkdir()
    for name, size in (("short.bin", PAGE), ("cold.bin", SIZE)):
        cold_file(tmp_path / "behind" / name, size)
    with SlowDisk(tmp_path / "behind", tmp_path / "disk", delay_s=0.3) as disk:
        ahead = ReadAhead(2, Counters())
        for _ in range(2):
            disk.drop()
            assert await wanted(ahead, Descriptor(tmp_path / "disk" / "short.bin"), 0, PAGE) is None
        before, descriptor = disk.read_bytes, Descriptor(tmp_path / "disk" / "cold.bin")
        assert await wanted(ahead, descriptor, BLOCK, 16 * PAGE) is None
        assert _held(descriptor) == [0, 16, 0, 0]
        assert disk.read_bytes - before == 16 * PAGE
        ahead.close()
        del descriptor


def test_a_disk_is_quick_by_what_it_took_of_late() -> None:
    disk = Disk(os.makedev(4095, 1), 1)
    assert disk.quick(0)
    for seconds, quick in [(0.3, True), (0.3, False), (0.01, False), (0.01, True), (30, False)]:
        disk.took(seconds)
        assert disk.quick(0) is quick, seconds
    for _ in range(30):
        disk.took(0.01)
    assert disk.quick(0.099)
    assert not disk.quick(0.1)
    disk.pool.shutdown()


async def test_where_the_disk_reads_far_by_itself_it_is_let(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "reading", lambda _device: Reading(Reach.FAR, "it does"))
    ahead, descriptor = ReadAhead(2, Counters()), Descriptor(cold)
    assert await wanted(ahead, descriptor, 300, 65536) is None
    assert descriptor.resident(300, 65536) == 65536
    assert ahead.window(descriptor, 300, 5 * BLOCK) == BLOCK
    ahead.close()


@pytest.mark.usefixtures("in_blocks")
async def test_cold_segments_arrive_whole_from_blocks(start, make_title) -> None:
    """Segments within a block, over its edge, over several, asked for whole and in part."""
    running = await start()
    made = make_title(running.root, v1=[BLOCK - 5000, 65_536, 700, 3 * BLOCK, 9000])
    track = next(iter(running.root.rglob("v1.mp4")))
    client = await running.connect()
    for number in (2, 1, 5, 4, 3, 4, 2):
        put_anew(running, track)
        assert (await client.ask(f"{made.url}/v1/{number}.m4s")).body == made.segment("v1", number)
        put_anew(running, track)
        part = await client.ask(f"{made.url}/v1/{number}.m4s", "GET", "Range: bytes=-300")
        assert part.body == made.segment("v1", number)[-300:]
    assert running.server.counters.cold_reads > 7
    assert running.server.counters.cold_sends == 0


@pytest.mark.usefixtures("in_blocks")
async def test_a_failure_of_the_disk_is_told_of_a_block(tmp_path: Path) -> None:
    """Reading a directory fails as a broken disk would."""
    ahead, descriptor = ReadAhead(2, Counters()), Descriptor(tmp_path)
    assert isinstance(await wanted(ahead, descriptor, 0, PAGE), OSError)
    ahead.close()
