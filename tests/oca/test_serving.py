"""The segment server under stress and damage: slow, vanishing and greedy clients, and files that change."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import socket
import struct
import time

import pytest

from oca.store.content import is_open

BIG = 12 << 20


@pytest.fixture
async def big(start, make_title, tmp_path):
    """A server with one 12 MiB segment, more than any socket buffer takes at once."""
    # Made before: what is open when a store changes stays so for a minute.
    made = make_title(tmp_path / "store", v1=[BIG, 1000])
    # A busy machine must not look like a slow reader.
    running = await start(grace_s=60.0, sweep_s=0.1, min_bytes_per_s=1 << 20)
    running.made = made
    return running


async def until(condition, seconds=60.0):
    """Wait for a condition of the server to come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def closed(running, reason):
    return running.server.counters.closed.get(reason, 0)


async def test_segment_bytes_leave_by_sendfile(big):
    """Body bytes never pass through the process: only heads are copied."""
    client = await big.connect()
    response = await client.ask(f"{big.made.url}/v1/1.m4s")
    assert response.body == big.made.segment("v1", 1)
    counters = big.server.counters
    assert counters.sendfile_bytes == BIG
    assert counters.copied_bytes < 1000


async def test_a_slow_reader_that_keeps_the_minimum_rate_is_served_to_the_end(big):
    client = await big.connect(limit=1 << 16)
    client.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head
    got = bytearray()
    while len(got) < BIG:
        got += await client.reader.read(1 << 20)
        await asyncio.sleep(0.005)
    assert bytes(got) == big.made.segment("v1", 1)


@pytest.mark.long
async def test_a_reader_below_the_minimum_rate_is_cut_off_and_counted(big):
    big.server.limits = type(big.server.limits)(grace_s=0.6, min_bytes_per_s=1 << 20)
    client = await big.connect(limit=1 << 10)
    client.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: closed(big, "slow-reader") == 1, 60)
    assert big.server.counters.open == 0


async def test_a_stalled_reader_does_not_hold_up_others(big):
    """While one client takes nothing, another is served at once."""
    stalled, quick = await big.connect(limit=1 << 10), await big.connect()
    stalled.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    for _ in range(20):
        assert (await quick.ask(f"{big.made.url}/v1/2.m4s")).body == big.made.segment("v1", 2)


async def test_a_client_that_resets_in_the_middle_leaves_nothing_behind(big, open_files):
    await (await big.connect()).ask(f"{big.made.url}/v1/2.m4s")
    before = open_files()
    for _ in range(20):
        client = await big.connect(limit=1 << 10)
        client.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.reader.readexactly(1000)
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
    await until(lambda: closed(big, "client-gone") == 20)
    await until(lambda: open_files() <= before)


async def test_connections_and_descriptors_do_not_leak(big, open_files):
    """After a thousand connections the process has as many descriptors as before."""
    await (await big.connect()).ask(f"{big.made.url}/v1/2.m4s")
    before = open_files()
    for _ in range(1000):
        reader, writer = await asyncio.open_connection("127.0.0.1", big.port)
        writer.write(f"GET {big.made.url}/v1/2.m4s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.read())[-1000:] == big.made.segment("v1", 2)
        writer.close()
        await writer.wait_closed()
    await until(lambda: big.server.counters.open == 1)
    await until(lambda: open_files() <= before)


async def test_a_truncated_file_ends_the_connection(big):
    """A client sees a broken connection, never bytes of something else; others go on."""
    path = big.made.directory / "v1.mp4"
    good = path.read_bytes()
    client = await big.connect(limit=1 << 10)
    client.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert f"Content-Length: {BIG}".encode() in head
    with path.open("r+b") as file:
        file.truncate(6 << 20)
    got = await client.reader.read(-1)
    assert len(got) < BIG
    assert good[540 : 540 + len(got)] == got
    assert closed(big, "truncated") == 1


async def test_a_file_replaced_or_deleted_while_it_is_sent_is_sent_to_its_end(big):
    """The open file is what was published, whatever happens to its name."""
    expected = big.made.segment("v1", 1)
    client = await big.connect(limit=1 << 10)
    client.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.reader.readuntil(b"\r\n\r\n")
    path = big.made.directory / "v1.mp4"
    path.rename(path.with_name("old"))
    path.write_bytes(b"x" * BIG)
    path.unlink()
    assert await client.reader.readexactly(BIG) == expected


async def test_open_files_tell_what_is_being_served(big, monkeypatch):
    """A file is open while somebody is sent it and for a while after; connections that idle keep none open."""
    media = big.made.directory / "v1.mp4"
    assert not is_open(media)
    client, slow = await big.connect(), await big.connect(limit=1 << 10)
    for _ in range(2):
        await client.ask(f"{big.made.url}/v1/2.m4s")
    slow.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await slow.reader.readexactly(1000)
    assert is_open(media)
    monkeypatch.setattr("oca.http.server.SERVED_S", 0)
    big.server._let_go_at = 0
    await until(lambda: len(big.server.slices._caches.descriptors) == 0)
    assert is_open(media), "somebody is still being sent it"
    slow.writer.transport.abort()
    await until(lambda: not is_open(media))
    assert (await client.ask(f"{big.made.url}/v1/2.m4s")).body == big.made.segment("v1", 2)


async def test_what_leaves_the_store_is_soon_no_longer_served(big):
    """The server sees that the store has changed, and lets go of descriptors it had open."""
    client = await big.connect()
    assert (await client.ask(f"{big.made.url}/v1/2.m4s")).status == 200
    store = big.server.slices.store
    store.remove_track(store.held(big.made.id, big.made.version), "v1")
    async with asyncio.timeout(60):
        while (await client.ask(f"{big.made.url}/v1/2.m4s")).status == 200:
            await asyncio.sleep(0.01)
    gc.collect()
    assert (await client.ask(f"{big.made.url}/v1/2.m4s")).status == 404


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / "title.json").write_bytes(b"{"),
        lambda d: (d / "title.json").write_bytes(b'{"format": 99}'),
        lambda d: (d / "v1.idx").write_bytes((d / "v1.idx").read_bytes()[:-1] + b"\xff"),
        lambda d: (d / "v1.idx").write_bytes(b"\0" * len((d / "v1.idx").read_bytes())),
    ],
)
async def test_a_damaged_title_answers_500_and_the_rest_is_served(start, make_title, damage):
    running = await start()
    bad, good = make_title(running.root, "bad", seed=2), make_title(running.root, "good", seed=3)
    damage(bad.directory)
    client = await running.connect()
    response = await client.ask(f"{bad.url}/v1/1.m4s")
    assert response.status == 500
    assert b"/" not in response.body  # no path of ours is shown to the world
    assert (await client.ask(f"{good.url}/v1/1.m4s")).status == 200


async def test_a_symbolic_link_in_the_store_is_not_followed(start, make_title, tmp_path):
    running = await start()
    made = make_title(running.root)
    secret = tmp_path / "secret"
    size = (made.directory / "v1.mp4").stat().st_size
    secret.write_bytes(b"s" * size)
    (made.directory / "v1.mp4").unlink()
    (made.directory / "v1.mp4").symlink_to(secret)
    assert (await (await running.connect()).ask(f"{made.url}/v1.mp4")).status in (404, 500)


async def test_a_track_that_is_not_held_whole_is_not_served(start, make_title):
    running = await start()
    made = make_title(running.root)
    (made.directory / "v1.idx").unlink()
    client = await running.connect()
    for path in ("v1/1.m4s", "v1.mp4", "v1/init.mp4", "v1.idx"):
        assert (await client.ask(f"{made.url}/{path}")).status == 404
    assert (await client.ask(f"{made.url}/a1/1.m4s")).status == 200


async def test_idle_connections_are_closed(start, make_title):
    running = await start(idle_s=0.2, sweep_s=0.1)
    made = make_title(running.root)
    client = await running.connect()
    assert (await client.ask(f"{made.url}/v1/1.m4s")).status == 200
    assert await client.closed()
    assert closed(running, "idle") == 1


async def test_a_head_that_does_not_come_is_answered_408(start):
    """A client that dribbles its head is told so; one that says nothing at all is closed."""
    running = await start(sweep_s=0.1)
    silent, dribbling = await running.connect(), await running.connect()
    dribbling.send("GET / HT")
    # The time is over when both have been heard as far as they go, however long that took.
    await until(lambda: any(known._buffer for known in running.server._connections))
    assert len(running.server._connections) == 2
    for known in running.server._connections:
        known._deadline = 0.0
    assert (await dribbling.receive()).status == 408
    assert await dribbling.closed()
    assert await silent.closed()
    assert closed(running, "header-timeout") == 1


async def test_too_many_connections_are_told_to_come_back(start, make_title):
    running = await start(connections=2)
    made = make_title(running.root)
    first, _second = await running.connect(), await running.connect()
    assert (await first.ask(f"{made.url}/v1/1.m4s")).status == 200
    third = await running.connect()
    response = await third.receive()
    assert response.status == 503
    assert closed(running, "too-many-connections") == 1


async def test_draining_finishes_what_is_in_progress(big):
    """No new connections, idle ones end, an answer in progress is sent whole."""
    idle, busy = await big.connect(), await big.connect(limit=1 << 10)
    assert (await idle.ask(f"{big.made.url}/v1/2.m4s")).status == 200
    busy.send(f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    await busy.reader.readuntil(b"\r\n\r\n")
    draining = asyncio.create_task(big.server.drain(60))
    assert await idle.closed()
    assert await busy.reader.readexactly(BIG) == big.made.segment("v1", 1)
    second = await busy.receive()
    assert (second["Connection"], second.body) == ("close", big.made.segment("v1", 1))
    assert await busy.closed()
    await draining


async def test_draining_answers_a_connection_that_has_not_asked_yet(big):
    """Its request may be on its way: closing it would fail a request that nobody may repeat blindly."""
    fresh, half, idle = await big.connect(), await big.connect(), await big.connect()
    assert (await idle.ask(f"{big.made.url}/v1/2.m4s")).status == 200
    half.send("GET ")
    await until(lambda: big.server.counters.open == 3)
    draining = asyncio.create_task(big.server.drain(60))
    assert await idle.closed()
    response = await fresh.ask(f"{big.made.url}/v1/2.m4s")
    assert (response["Connection"], response.body) == ("close", big.made.segment("v1", 2))
    half.send(f"{big.made.url}/v1/2.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (await half.receive()).body == big.made.segment("v1", 2)
    for client in (fresh, half):
        assert await client.closed()
        client.writer.close()
    await asyncio.wait_for(draining, 60)


async def test_pipelined_requests_beyond_the_limit_wait_in_the_kernel(big):
    """A client that sends requests ahead without reading answers cannot make the server keep them all."""
    client = await big.connect(limit=1 << 10)
    request = f"GET {big.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\nX: {'x' * 4000}\r\n\r\n"
    client.send(request * 40)
    for _ in range(3):
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head
        assert await client.reader.readexactly(BIG) == big.made.segment("v1", 1)


async def test_access_log_has_a_line_per_response(start, make_title, tmp_path):
    """Each line is JSON with a format number, title, track, segment and what was really sent."""
    path = tmp_path / "access.log"
    running = await start(log=str(path), sweep_s=0.1)
    made = make_title(running.root)
    client = await running.connect()
    await client.ask(f"{made.url}/v1/2.m4s?CMCD=br%3D1")
    await client.ask("/nothing")
    await until(lambda: path.exists() and path.read_text().count("\n") == 2)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first["v"] == 1
    assert (first["title"], first["track"], first["segment"]) == ("clip", "v1", 2)
    assert (first["status"], first["client"]) == (200, "127.0.0.1")
    assert first["sent"] > 4000
    assert first["request"] == f"GET {made.url}/v1/2.m4s?CMCD=br%3D1 HTTP/1.1"
    assert (second["status"], "title" in second) == (404, False)


async def test_what_was_noted_when_the_server_ends_is_written(start, make_title, tmp_path):
    path = tmp_path / "access.log"
    running = await start(log=str(path), sweep_s=3600)
    made = make_title(running.root)
    client = await running.connect()
    asked = [f"{made.url}/v1/{number}.m4s" for number in (1, 2, 1, 2)]
    for target in asked:
        await client.ask(target)
    await running.stop()
    found = [json.loads(line)["request"] for line in path.read_text().splitlines()]
    assert found == [f"GET {target} HTTP/1.1" for target in asked]


async def test_a_hit_is_logged_as_any_other_answer(start, make_title, tmp_path):
    """The short way puts its lines together otherwise, and says the same."""
    path = tmp_path / "access.log"
    running = await start(log=str(path), sweep_s=3600)
    made = make_title(running.root)
    client = await running.connect()
    for query in ("", "", "?CMCD=br%3D1", '?a="\\'):
        await client.ask(f"{made.url}/v1/2.m4s{query}")
    assert running.server.counters.hits == 4
    await running.stop()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [line.pop("request") for line in lines]
    assert asked == [f"GET {made.url}/v1/2.m4s{q} HTTP/1.1" for q in ("", "", "?CMCD=br%3D1", '?a="\\')]
    for line in lines:
        assert 0 <= line.pop("took") < 60
        assert abs(line.pop("at") - time.time()) < 60
        assert line == lines[0]


async def test_a_store_that_vanishes_does_not_end_the_server(start, make_title):
    running = await start(sweep_s=0.1)
    made = make_title(running.root)
    client = await running.connect()
    assert (await client.ask(f"{made.url}/v1/1.m4s")).status == 200
    shutil.rmtree(running.root)
    await until(lambda: running.server.counters.store_changes > 0)
    assert (await client.ask(f"{made.url}/v1/1.m4s")).status == 404
