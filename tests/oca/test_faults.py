"""Content that goes bad while it is served: right bytes or a broken connection, never wrong bytes; others go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bench.disk import SlowDisk
from tests.oca.test_serving import until

BIG = 12 << 20
SLOW_S = 0.02


@pytest.fixture
def delay_s() -> float:
    """What every read from the disk behind FUSE takes longer."""
    return 0.0


@pytest.fixture
async def served(
    start: Any, make_title: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay_s: float
) -> AsyncIterator[Any]:
    """A server with a good disk that holds `steady`, and one behind FUSE that holds `shaky`, with big segments."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    (tmp_path / "behind").mkdir()
    with SlowDisk(tmp_path / "behind", tmp_path / "bad", delay_s) as disk:
        running = await start(more=[tmp_path / "bad"], sweep_s=0.1)
        running.disk = disk
        running.steady = make_title(running.root, name="steady", v1=[BIG, 1000])
        running.shaky = make_title(tmp_path / "bad", name="shaky", seed=2, v1=[BIG, 4 << 20, 1000])
        disk.drop()
        yield running


async def body(client: Any, most: int = 1 << 30) -> bytes:
    """What arrives of the body that follows a head, until it is whole, `most`, or the connection breaks."""
    got = b""
    try:
        while len(got) < most and (part := await client.reader.read(1 << 20)):
            got += part
    except ConnectionError:
        pass
    return got


async def begin(running: Any, url: str) -> tuple[Any, bytes]:
    """Ask for a big segment and take its first bytes."""
    client = await running.connect(limit=1 << 12)
    client.send(f"GET {url} HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    return client, await client.reader.readexactly(1000)


def _truncate(path: Path) -> None:
    os.truncate(path, 5 << 20)


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(os.urandom(path.stat().st_size))
    other.rename(path)


def _shorter(path: Path) -> None:
    path.with_name("other").write_bytes(b"short")
    path.with_name("other").rename(path)


def _chmod(path: Path) -> None:
    path.chmod(0)


def _delete(path: Path) -> None:
    path.unlink()


def _delete_all(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("harm", [_truncate, _replace, _shorter, _chmod, _delete, _delete_all])
async def test_a_file_is_harmed_while_it_is_sent(served: Any, harm: Callable[[Path], None]) -> None:
    """The client has the right bytes, or a connection that broke after some of them; others are served on."""
    expected = served.steady.segment("v1", 1)
    client, first = await begin(served, f"{served.steady.url}/v1/1.m4s")
    harm(served.steady.directory / "v1.mp4")
    got = first + await body(client, len(expected) - len(first))
    assert got == expected[: len(got)]
    if harm is not _truncate:
        assert len(got) == len(expected)
    other = await served.connect()
    assert (await other.ask(f"{served.shaky.url}/v1/3.m4s")).body == served.shaky.segment("v1", 3)


async def test_a_disk_fails_while_its_content_is_sent(served: Any) -> None:
    """The connection breaks, the disk is taken out, what it holds is a miss, others never notice; it heals."""
    expected = served.shaky.segment("v1", 1)
    served.disk.drop()
    client, first = await begin(served, f"{served.shaky.url}/v1/1.m4s")
    served.disk.drop()
    served.disk.fail("read-eio")
    got = first + await body(client)
    assert len(got) < len(expected)
    assert got == expected[: len(got)]
    assert served.server.counters.closed.get("read-error") == 1
    other = await served.connect()
    store = served.server.slices.store
    await until(lambda: len(store.disks.failed) == 1, 60)
    await until(lambda: f"GET {served.shaky.url}/v1/1.m4s".encode() not in served.server.slices.asked, 60)
    assert (await other.ask(f"{served.shaky.url}/v1/3.m4s")).status == 404
    assert (await other.ask(f"{served.steady.url}/v1/2.m4s")).body == served.steady.segment("v1", 2)
    served.disk.fail("ok")
    await asyncio.to_thread(store.disks.retry)
    # What was found to be missing is looked for again after the next sweep.
    async with asyncio.timeout(60):
        while (await other.ask(f"{served.shaky.url}/v1/3.m4s")).status == 404:
            await asyncio.sleep(0.05)
    assert (await other.ask(f"{served.shaky.url}/v1/3.m4s")).body == served.shaky.segment("v1", 3)


async def test_a_disk_that_fails_altogether_makes_misses_of_what_it_holds(served: Any) -> None:
    client = await served.connect()
    served.disk.fail("eio")
    await until(lambda: len(served.server.slices.store.disks.failed) == 1, 60)
    assert (await client.ask(f"{served.shaky.url}/v1/3.m4s")).status == 404
    assert (await client.ask(f"{served.steady.url}/v1/2.m4s")).body == served.steady.segment("v1", 2)


@pytest.mark.long
@pytest.mark.parametrize("delay_s", [SLOW_S])
async def test_a_slow_disk_holds_up_only_those_who_want_its_content(served: Any, unblocked: Any) -> None:
    """Sixteen clients read what is not in memory; looking it up is slow as well; the loop turns all the while."""
    expected = [served.shaky.segment("v1", number)[:3000001] for number in (1, 2)]
    served.disk.drop()
    await asyncio.sleep(0.1)
    unblocked.forgive()
    clients = [await served.connect(limit=1 << 24) for _ in range(16)]
    cold = [
        asyncio.create_task(
            client.ask(f"{served.shaky.url}/v1/{1 + number % 2}.m4s", "GET", "Range: bytes=0-3000000")
        )
        for number, client in enumerate(clients)
    ]
    hot = await served.connect()
    answered = 0
    while not all(task.done() for task in cold):
        assert (await hot.ask(f"{served.steady.url}/v1/2.m4s")).body == served.steady.segment("v1", 2)
        answered += 1
        await asyncio.sleep(0.001)
    for number, task in enumerate(cold):
        assert (await task).body == expected[number % 2]
    assert answered > 10
    assert served.server.counters.cold_reads > 0
    assert unblocked.longest < 0.5, unblocked.where


@pytest.mark.long
async def test_the_watch_over_the_loop_sees_who_blocks_it(unblocked: Any) -> None:
    await asyncio.sleep(0.05)
    time.sleep(0.7)  # noqa: ASYNC251  this is the fault
    await asyncio.sleep(0.05)
    assert unblocked.longest > 0.5
    assert "this is the fault" in unblocked.where
    await asyncio.sleep(0.1)
    unblocked.forgive()
