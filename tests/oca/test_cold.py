"""Content that is not in memory: asked about without touching it, read ahead in threads, sent by the loop."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.disk import forget
from oca.counters import Counters
from oca.http.ahead import Done, ReadAhead
from oca.http.server import Server
from oca.http.slices import Descriptor, Facts, Slices
from oca.miss.arriving import ArrivingFile, PullerLine
from oca.miss.errand import Arrived, Found
from oca.miss.pulled import Key
from oca.residency import Residency
from oca.store.content import Store
from oca.title.digest import CHUNK_BYTES
from tests.oca import blocking
from tests.oca.conftest import Running

PAGE = 4096
SIZE = 64 * PAGE + 100


def cold_file(path: Path, size: int) -> Path:
    """A file of which nothing is in memory, on a file system whose cache can be dropped."""
    path.write_bytes(os.urandom(size))
    forget(path)
    return path


def put_anew(running: Running, path: Path) -> None:
    """Replace a file by a copy of which nothing is in memory.

    Forgetting is not certain for what has been sent: pages were seen to stay for a minute after the client had read
    and acknowledged all of them.
    """
    copied = path.with_suffix(".copy")
    shutil.copyfile(path, copied)
    forget(copied)
    copied.rename(path)
    running.server.slices.refresh(f"{path.stat().st_ino} {path.stat().st_mtime_ns}")


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    return cold_file(tmp_path / "cold.bin", SIZE)


def test_a_file_just_written_is_resident_and_a_forgotten_one_is_not(tmp_path: Path, cold: Path) -> None:
    (tmp_path / "warm.bin").write_bytes(bytes(SIZE))
    assert Descriptor(tmp_path / "warm.bin").resident(540, SIZE - 540) == SIZE - 540
    assert Descriptor(cold).resident(540, SIZE - 540) == 0


def test_looking_reads_nothing(cold: Path) -> None:
    descriptor = Descriptor(cold)
    for _ in range(3):
        assert descriptor.resident(0, SIZE) == 0


def test_residency_counts_from_the_offset_to_the_first_missing_page(cold: Path) -> None:
    """Reading one page with read-ahead switched off brings in that page alone."""
    descriptor = Descriptor(cold)
    os.posix_fadvise(descriptor.fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(descriptor.fd, 1, 3 * PAGE)
    assert descriptor.resident(3 * PAGE, SIZE) == PAGE
    assert descriptor.resident(3 * PAGE + 10, SIZE) == PAGE - 10
    assert descriptor.resident(3 * PAGE + 10, 20) == 20
    assert descriptor.resident(2 * PAGE, SIZE) == 0
    assert descriptor.resident(4 * PAGE, 1) == 0


@given(offset=st.integers(0, 2 * SIZE), length=st.integers(1, 2 * SIZE))
def test_what_is_wholly_in_memory_is_ready_from_anywhere(offset: int, length: int) -> None:
    """Also beyond the end of a file, where the sending is to find out that there is nothing."""
    fd = os.memfd_create("whole")
    try:
        os.truncate(fd, SIZE)
        os.pwrite(fd, bytes(SIZE), 0)
        assert Residency(fd, SIZE).resident(offset, length) == length
    finally:
        os.close(fd)


def test_an_empty_file_has_nothing_to_wait_for() -> None:
    fd = os.memfd_create("empty")
    try:
        assert Residency(fd, 0).resident(0, 10) == 10
    finally:
        os.close(fd)


def test_a_truncated_file_is_asked_about_without_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(SIZE))
    descriptor = Descriptor(path)
    os.truncate(path, PAGE)
    assert descriptor.resident(0, PAGE) == PAGE
    assert descriptor.resident(10 * PAGE, PAGE) in (0, PAGE)


async def wanted(ahead: ReadAhead, descriptor: Descriptor, offset: int, length: int) -> OSError | None:
    told: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    ahead.want(descriptor, offset, length, told.set_result)
    return await asyncio.wait_for(told, 60)


async def test_what_waswanted_is_in_memory_afterwards(cold: Path) -> None:
    counters = Counters()
    ahead, descriptor = ReadAhead(2, counters), Descriptor(cold)
    assert await wanted(ahead, descriptor, 540, 10 * PAGE) is None
    assert descriptor.resident(540, 10 * PAGE) == 10 * PAGE
    ahead.close()


async def test_those_who_want_the_same_window_wait_for_one_read(cold: Path) -> None:
    counters = Counters()
    ahead, descriptor = ReadAhead(2, counters), Descriptor(cold)
    assert await asyncio.gather(*(wanted(ahead, descriptor, 0, SIZE) for _ in range(50))) == [None] * 50
    assert (counters.cold_reads, counters.cold_bytes) == (1, SIZE)
    ahead.close()


async def test_a_file_that_became_shorter_ends_the_wait(cold: Path) -> None:
    counters = Counters()
    ahead, descriptor = ReadAhead(2, counters), Descriptor(cold)
    os.truncate(cold, PAGE)
    assert await wanted(ahead, descriptor, 0, SIZE) is None
    ahead.close()


async def test_reading_gives_the_processor_to_the_loop(cold: Path) -> None:
    ahead = ReadAhead(2, Counters())

    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = priority()
    assert await asyncio.wrap_future(ahead.disk(Descriptor(cold)).pool.submit(priority)) == 19
    assert priority() == before < 19
    ahead.close()


async def test_a_failure_of_the_disk_is_told(tmp_path: Path) -> None:
    """Reading a directory fails as a broken disk would."""
    counters = Counters()
    ahead, descriptor = ReadAhead(2, counters), Descriptor(tmp_path)
    error = await wanted(ahead, descriptor, 0, PAGE)
    assert isinstance(error, OSError)
    ahead.close()


async def test_a_part_of_what_was_pulled_is_no_more_than_was_asked_for(tmp_path: Path) -> None:
    """Also one that begins where a longer one began that a disk has just given: ranges may overlap."""
    key = Key("clip", "0" * 32, "v1.mp4", 0)
    place = tmp_path / key.place
    place.parent.mkdir(parents=True)
    cold_file(place, SIZE)
    line, ahead = PullerLine(tmp_path), ReadAhead(2, Counters())
    facts = Facts(key.title, key.version, "v1", -1, 0, SIZE, "video/mp4", '"a"', 0)
    server = cast(Server, SimpleNamespace(ahead=ahead))
    arriving = ArrivingFile(line, server, Found(1, key.name, CHUNK_BYTES, facts))
    assert arriving.ready(0, 5000) == 0, "nothing is known of it yet"
    line.chunk(key, 0).hear(Arrived(1, key.place, 0, SIZE, whole=True))
    assert arriving.ready(0, 5000) == 0, "it is not in memory"
    told = asyncio.Event()
    arriving.when_ready(0, 5000, told.set)
    await asyncio.wait_for(told.wait(), 60)
    assert [arriving.ready(0, length) for length in (5000, 10, 5000)] == [5000, 10, 5000]
    ahead.close()


async def test_a_cold_segment_is_read_ahead_and_arrives_whole(start, make_title) -> None:
    running = await start()
    made = make_title(running.root)
    track = next(iter(running.root.rglob("v1.mp4")))
    client = await running.connect()
    for number in (1, 2):
        put_anew(running, track)
        assert (await client.ask(f"{made.url}/v1/{number}.m4s")).body == made.segment("v1", number)
    assert running.server.counters.cold_reads == 2
    # In memory now, so nothing is read again.
    assert (await client.ask(f"{made.url}/v1/2.m4s")).body == made.segment("v1", 2)
    assert running.server.counters.cold_reads == 2


async def test_nothing_is_sent_that_is_not_in_memory(start, make_title, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole segments, parts of them, several parts, whole files, over and over: every sendfile is looked at."""
    running, sent, waited = await start(), 0, []
    made = make_title(running.root)
    track = next(iter(running.root.rglob("v1.mp4")))
    sendfile = os.sendfile

    def looked_at(out: int, descriptor: int, offset: int, count: int) -> int:
        nonlocal sent
        if threading.current_thread() is threading.main_thread():
            found, sent = Residency(descriptor, track.stat().st_size).resident(offset, count), sent + 1
            waited.extend([(offset, count, found)] if found < count else [])
        return sendfile(out, descriptor, offset, count)

    monkeypatch.setattr("os.sendfile", looked_at)
    client = await running.connect()
    asked = ((1, ()), (1, ()), (2, ("Range: bytes=100-199",)), (2, ("Range: bytes=0-9,200-299",)), (1, ()))
    for number, fields in asked:
        put_anew(running, track)
        await client.ask(f"{made.url}/v1/{number}.m4s", "GET", *fields)
    put_anew(running, track)
    await client.ask(f"{made.url}/v1.mp4")
    assert sent >= len(asked)
    assert waited == []
    assert running.server.counters.cold_reads > 0
    assert running.server.counters.cold_sends == 0


async def test_what_has_left_memory_again_before_it_is_sent_is_counted(start, make_title) -> None:
    """It is sent all the same: if memory is so short, waiting would never end."""
    running = await start()
    made = make_title(running.root)
    track = next(iter(running.root.rglob("v1.mp4")))
    want = running.server.ahead.want

    def lost_again(descriptor: Descriptor, offset: int, length: int, done: Done) -> None:
        def forgotten(error: OSError | None) -> None:
            forget(track)
            done(error)

        want(descriptor, offset, length, forgotten)

    running.server.ahead.want = lost_again
    client = await running.connect()
    forget(track)
    assert (await client.ask(f"{made.url}/v1/1.m4s")).body == made.segment("v1", 1)
    assert running.server.counters.cold_sends == 1


async def test_who_waits_on_the_loop_is_seen(make_title, tmp_path: Path) -> None:
    """The watch that `start` keeps over every test with a server, held against a store that is read on the loop."""
    store = Store([tmp_path / "store"])
    store.prepare()
    made = make_title(tmp_path / "store")
    slices, loop = Slices(store), asyncio.get_running_loop()
    with blocking.seen() as blocked:
        loop.call_soon(slices.find, f"{made.url}/v1/1.m4s")
        loop.call_soon(Descriptor, Path(os.devnull))
        unheard: list[object] = []
        loop.set_exception_handler(lambda _, context: unheard.append(context["exception"]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(blocked) == len(unheard) == 2
    assert blocked[1].startswith("os.open")
