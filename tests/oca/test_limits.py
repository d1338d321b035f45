"""What clients may take of a box: each limit reached over real sockets, and its reason in log and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect

from oca import config, handover
from oca.config import ApplianceSettings
from oca.counters import render
from oca.errors import ConfigError
from oca.http import reasons
from oca.http.census import Census, Ledger, client_of, packed
from oca.http.farewell import Farewell
from oca.http.limits import LimitSettings, Prefixes, refusal, retry_after
from tests.conftest import MadeTitle, MakeTitle
from tests.oca.conftest import Client, Running, Start
from tests.oca.test_appliance import Appliance, until

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"
BIG = 12 << 20
MIB = 1 << 20
NAME = 'appliance = "n1"\nstore = ["/srv/oca"]\nurl = "http://n1.example:8080"\n'


async def soon(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition of the server to come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def refused(running: Running, what: str, reason: str) -> int:
    """How often the metrics page says that something was refused."""
    page = render(running.server.counters, 0, 0, 1, 0)
    found = re.search(f'oca_refusals_total{{of="{what}",reason="{reason}"}} ([0-9]+)', page)
    return int(found[1]) if found else 0


# --- settings ---


def rows() -> list[str]:
    """The table of the documentation, as the settings describe themselves."""
    found = inspect.type_info(LimitSettings)
    assert isinstance(found, inspect.StructType)
    table = []
    for field in found.fields:
        assert isinstance(field.type, inspect.Metadata), field.name
        about, danger = (field.type.extra_json_schema or {})["description"], (field.type.extra or {})["danger"]
        default = ", ".join(field.default) if isinstance(field.default, tuple) else f"{field.default:,}"
        table.append(f"| `{field.name}` | {default.removesuffix('.0')} | {about} | {danger} |")
    return table


def test_the_page_documents_every_limit() -> None:
    """Effect, danger and default, in the words of the settings; and every reason by which a client is refused."""
    page = PAGE.read_text()
    assert [line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 5] == rows()
    for reason in (
        reasons.TOO_MANY_CONNECTIONS,
        reasons.TOO_MANY_FROM_CLIENT,
        reasons.TOO_MANY_BYTES,
        reasons.HEADER_TIMEOUT,
        reasons.IDLE,
        reasons.SLOW_READER,
    ):
        assert f"`{reason.name}`" in page


def load(tmp_path: Path, table: str) -> LimitSettings:
    path = tmp_path / "oca.toml"
    path.write_text(f"{NAME}[limits]\n{table}\n")
    return config.load(path, ApplianceSettings).limits


def test_limits_are_a_table_of_the_settings(tmp_path: Path) -> None:
    found = load(
        tmp_path, 'connections = 5\nheader_s = 3\nexempt = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]'
    )
    assert found == LimitSettings(
        connections=5, header_s=3.0, exempt=("192.0.2.0/24", "2001:db8::/32", "198.51.100.7")
    )
    assert load(tmp_path, "") == LimitSettings()
    assert load(tmp_path, "exempt = []").exempt == ()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('exempt = ["example.org"]', "exempt has 'example.org', which is no prefix: write an address and a length"),
        ('exempt = ["192.0.2.0/33"]', "exempt has '192.0.2.0/33', which is no prefix"),
        (
            'exempt = ["10.1.2.3/8"]',
            "exempt has '10.1.2.3/8', with address bits beyond its length: 10.0.0.0/8 may be",
        ),
        ('exempt = ["2001:db8::1/32"]', "with address bits beyond its length: 2001:db8::/32 may be meant"),
        ("exempt = [7]", r"line [0-9]+: limits.exempt\[0\]: Expected"),
        ("header_s = 0", r"line [0-9]+: limits.header_s: Expected `float` > 0.0, which 0 is not"),
        ("min_bytes_per_s = 0", r"min_bytes_per_s"),
        ("connections = 0", r"limits.connections: Expected `int` >= 1, which 0 is not"),
        ("connections_per_client = -1", "connections_per_client"),
        ("in_flight_bytes = -1", "in_flight_bytes"),
        ("unsent_bytes = -1", "unsent_bytes"),
        ("sweep_s = 1", "unknown field `sweep_s`"),
    ],
)
def test_a_wrong_limit_is_one_sentence(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as raised:
        load(tmp_path, table)
    assert "oca.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("prefix", "inside", "outside"),
    [
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255", "::ffff:192.0.2.9"], ["192.0.3.0", "::192.0.2.1", "c000::200"]),
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.6"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
        ("::/0", ["::1", "2001:db8::"], ["192.0.2.7", "::ffff:192.0.2.7"]),
        ("::1/128", ["::1"], ["::2", "::", "127.0.0.1"]),
        ("2001:db8:1:2:8000::/65", ["2001:db8:1:2:8000::1"], ["2001:db8:1:2::1"]),
        ("::ffff:192.0.2.0/120", ["192.0.2.9", "::ffff:192.0.2.9"], ["192.0.3.9"]),
    ],
)
def test_prefixes_hold_what_they_hold(prefix: str, inside: list[str], outside: list[str]) -> None:
    for listed in ([prefix], ["203.0.113.0/25", "2001:db8:ff::/48", prefix]):
        found = Prefixes(listed)
        assert all(found.cover(packed(address)) for address in inside)
        assert not any(found.cover(packed(address)) for address in outside)


def test_loopback_is_spared_unless_said_otherwise() -> None:
    spared = Prefixes(LimitSettings().exempt)
    assert all(spared.cover(packed(text)) for text in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"))
    # Inside a provider's network each address of the space for CGNAT (RFC 6598) is one subscriber.
    assert not spared.cover(packed("100.64.0.1"))


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({}, None),
        ({"connections": 9, "from_client": 2, "in_flight": 1000}, None),
        ({"connections": 10}, reasons.TOO_MANY_CONNECTIONS),
        ({"from_client": 3}, reasons.TOO_MANY_FROM_CLIENT),
        ({"in_flight": 1001}, reasons.TOO_MANY_BYTES),
        ({"connections": 11, "from_client": 4, "in_flight": 2000}, reasons.TOO_MANY_FROM_CLIENT),
        ({"connections": 11, "in_flight": 2000}, reasons.TOO_MANY_CONNECTIONS),
    ],
)
def test_one_more_is_refused_at_the_limit(counts: dict[str, int], reason: reasons.Reason | None) -> None:
    limits = LimitSettings(connections=10, connections_per_client=3, in_flight_bytes=1000)
    assert refusal(limits, **counts) is reason


def test_zero_sets_no_limit() -> None:
    limits = LimitSettings(connections_per_client=0, in_flight_bytes=0)
    assert refusal(limits, from_client=10_000, in_flight=1 << 60) is None


def test_refused_clients_come_back_at_different_times() -> None:
    lines = {retry_after() for _ in range(200)}
    assert lines == {f"Retry-After: {seconds}\r\n" for seconds in range(2, 7)}


# --- one server ---


async def turned_away(client: Client, words: str) -> None:
    """The client reads a whole 503 that says why, and then the end of the connection."""
    response = await client.receive()
    assert response.status == 503
    assert 2 <= int(response["Retry-After"]) <= 6
    assert (response["Connection"], response["Cache-Control"]) == ("close", "no-store")
    assert words in response.body.decode()
    assert await client.closed()
    client.writer.close()


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


async def test_connections_beyond_the_limit_are_told_why(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """In answer, access log and metrics; and when there is room again, the next one is served."""
    log = tmp_path / "access.log"
    running = await start(log=str(log), connections=2, sweep_s=0.05)
    made = make_title(running.root)
    first, second = await running.connect(), await running.connect()
    for client in (first, second):
        assert (await client.ask(f"{made.url}/v1/1.m4s")).status == 200
    third = await running.connect()
    third.send(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await turned_away(third, "this box has as many connections as it may have")
    assert refused(running, "connection", "too-many-connections") == 1
    assert running.server.counters.closed == {"too-many-connections": 1}
    assert running.server.counters.statuses[503] == 1
    await soon(lambda: len(lines_of(log)) == 3)
    line = lines_of(log)[-1]
    assert (line["status"], line["cut"], line["client"]) == (503, "too-many-connections", "127.0.0.1")
    assert line["sent"] > 100
    second.writer.close()
    await soon(lambda: running.server.counters.open == 1)
    assert (await (await running.connect()).ask(f"{made.url}/v1/1.m4s")).status == 200


async def test_one_client_has_a_limit_and_others_do_not_feel_it(
    start: Start, make_title: MakeTitle, tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    running = await start(log=str(log), connections_per_client=3, exempt=(), sweep_s=0.05)
    made = make_title(running.root)
    greedy = [await running.connect() for _ in range(3)]
    for client in greedy:
        assert (await client.ask(f"{made.url}/v1/1.m4s")).status == 200
    for _ in range(2):
        await turned_away(await running.connect(), "this address has as many connections here")
    other = await running.connect(local_addr=("127.0.0.2", 0))
    assert (await other.ask(f"{made.url}/v1/1.m4s")).status == 200
    assert refused(running, "connection", "too-many-from-client") == 2
    await soon(lambda: [line["cut"] for line in lines_of(log) if "cut" in line] == ["too-many-from-client"] * 2)
    greedy[0].writer.close()
    await soon(lambda: running.server.counters.open == 3)
    assert (await (await running.connect()).ask(f"{made.url}/v1/1.m4s")).status == 200


async def test_listed_prefixes_are_spared(start: Start, make_title: MakeTitle) -> None:
    """Their clients have no limit of their own; the limit of all connections counts for them too."""
    running = await start(connections_per_client=2, connections=6, exempt=("127.0.0.0/30",))
    made = make_title(running.root)
    for _ in range(4):
        assert (await (await running.connect()).ask(f"{made.url}/v1/1.m4s")).status == 200
    for _ in range(2):
        outside = await running.connect(local_addr=("127.0.0.9", 0))
        assert (await outside.ask(f"{made.url}/v1/1.m4s")).status == 200
    await turned_away(await running.connect(local_addr=("127.0.0.9", 0)), "this address")
    await turned_away(await running.connect(), "this box")


@pytest.fixture
def census() -> Iterator[Census]:
    made = Census()
    yield made
    made.close()


def ledger(census: Census) -> Ledger:
    return Ledger(census.fd, census.admit())


async def test_an_ipv6_64_is_one_client(start: Start, make_title: MakeTitle, census: Census) -> None:
    """::1 is counted with what other addresses of ::/64 have in another worker, not with those of the next /64."""
    running = await start(host="::1", connections_per_client=3, exempt=(), ledger=ledger(census))
    made, elsewhere = make_title(running.root), ledger(census)
    for text in ("::2", "::ffff:ffff:ffff:1", "0:0:0:1::2"):
        elsewhere.enter(elsewhere.buckets(client_of(packed(text))))
    assert (await (await running.connect("::1")).ask(f"{made.url}/v1/1.m4s")).status == 200
    await turned_away(await running.connect("::1"), "this address")
    elsewhere.leave(elsewhere.buckets(client_of(packed("::2"))))
    assert (await (await running.connect("::1")).ask(f"{made.url}/v1/1.m4s")).status == 200


async def test_ipv4_on_an_ipv6_socket_is_the_same_client(start: Start, make_title: MakeTitle, census: Census) -> None:
    running = await start(host="::", connections_per_client=2, exempt=(), ledger=ledger(census))
    made, elsewhere = make_title(running.root), ledger(census)
    elsewhere.enter(elsewhere.buckets(client_of(packed("127.0.0.1"))))
    assert (await (await running.connect()).ask(f"{made.url}/v1/1.m4s")).status == 200
    await turned_away(await running.connect(), "this address")
    other = await running.connect(local_addr=("127.0.0.2", 0))
    assert (await other.ask(f"{made.url}/v1/1.m4s")).status == 200


async def test_bytes_in_flight_refuse_connections_and_requests(
    start: Start, make_title: MakeTitle, tmp_path: Path
) -> None:
    """While too much waits for its readers nothing is begun; answers that are under way go on to their end."""
    log = tmp_path / "access.log"
    running = await start(log=str(log), in_flight_bytes=MIB, sweep_s=0.05)
    made = make_title(running.root, v1=[BIG, 1000])
    idle, slow = await running.connect(), await running.connect(limit=1 << 10)
    assert (await idle.ask(f"{made.url}/v1/2.m4s")).status == 200
    slow.send(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await slow.reader.readuntil(b"\r\n\r\n")
    await soon(lambda: running.server.refusing is reasons.TOO_MANY_BYTES)
    assert "oca_in_flight_bytes 0" not in render(running.server.counters, 0, 0, 1, 0)
    await turned_away(await running.connect(), "as many bytes wait for their readers")
    idle.send(f"GET {made.url}/v1/2.m4s HTTP/1.1\r\nHost: a.example:8080\r\n\r\n")
    await turned_away(idle, "as many bytes wait for their readers")
    assert [refused(running, what, "too-many-bytes") for what in ("connection", "request")] == [1, 1]
    assert await slow.reader.readexactly(BIG) == made.segment("v1", 1)
    await soon(lambda: running.server.refusing is None)
    assert running.server.in_flight == 0
    assert (await slow.ask(f"{made.url}/v1/2.m4s")).status == 200
    assert (await (await running.connect()).ask(f"{made.url}/v1/2.m4s")).status == 200
    await soon(lambda: "too-many-bytes" in [line.get("cut") for line in lines_of(log)])


async def test_bytes_in_flight_count_over_all_workers(start: Start, make_title: MakeTitle, census: Census) -> None:
    running = await start(in_flight_bytes=MIB, sweep_s=0.05, ledger=ledger(census))
    made, elsewhere = make_title(running.root), ledger(census)
    elsewhere.publish(2 * MIB)
    await turned_away(await running.connect(), "as many bytes wait")
    elsewhere.publish(MIB)
    await soon(lambda: running.server.refusing is None)
    assert (await (await running.connect()).ask(f"{made.url}/v1/1.m4s")).status == 200


async def test_a_slow_reader_is_cut_off_for_a_reason(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    running = await start(log=str(log), grace_s=0.2, min_bytes_per_s=1 << 30, sweep_s=0.05)
    made = make_title(running.root, v1=[BIG])
    slow = await running.connect(limit=1 << 10)
    slow.send(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await soon(lambda: [line["cut"] for line in lines_of(log)] == ["slow-reader"])
    assert running.server.counters.closed == {"slow-reader": 1}
    assert running.server.in_flight == 0


async def test_draining_is_not_forgotten_when_refusing_ends(start: Start, make_title: MakeTitle) -> None:
    """A server that drains still closes after each answer once there is room again."""
    running = await start(in_flight_bytes=MIB, sweep_s=0.05)
    made = make_title(running.root, v1=[BIG, 1000])
    slow = await running.connect(limit=1 << 10)
    slow.send(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await slow.reader.readuntil(b"\r\n\r\n")
    await soon(lambda: running.server.refusing is not None)
    draining = asyncio.create_task(running.server.drain(60))
    assert await slow.reader.readexactly(BIG) == made.segment("v1", 1)
    assert await slow.closed()
    await draining
    await soon(lambda: running.server.refusing is None)
    assert not running.server.usual


# --- how they are turned away ---


@pytest.fixture
async def farewell() -> AsyncIterator[Farewell]:
    made = Farewell(asyncio.get_running_loop(), most=2)
    yield made
    made.close()


async def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection, ours non-blocking as an accepted one is."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    theirs.settimeout(60)
    return ours, theirs


async def test_last_words_survive_a_request_that_nobody_read(farewell: Farewell) -> None:
    """Without patience the request would turn the close into a reset, and the answer would be lost."""
    ours, theirs = await pair()
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert farewell.say(ours, b"go away", now=0.0) == 7
    await asyncio.sleep(0.05)
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.sleep(0.05)
    assert theirs.recv(100) == b"go away"
    assert theirs.recv(100) == b""
    assert len(farewell) == 1
    theirs.close()
    await soon(lambda: len(farewell) == 0)
    assert ours.fileno() == -1


async def test_patience_has_an_end(farewell: Farewell) -> None:
    """In time, in bytes and in number."""
    ours, theirs = await pair()
    farewell.say(ours, b"go away", now=100.0)
    farewell.expire(101.9)
    assert len(farewell) == 1
    farewell.expire(102.0)
    assert (len(farewell), ours.fileno()) == (0, -1)
    theirs.close()

    ours, theirs = await pair()
    farewell.say(ours, b"go away", now=0.0)
    with contextlib.suppress(ConnectionError):
        theirs.sendall(b"x" * 100_000)
    await soon(lambda: len(farewell) == 0)
    theirs.close()

    pairs = [await pair() for _ in range(4)]
    for ours, theirs in pairs:
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        farewell.say(ours, b"go away", now=0.0)
    assert [ours.fileno() == -1 for ours, _ in pairs] == [False, False, True, True]
    for _, theirs in pairs:
        assert theirs.recv(100) == b"go away"
        theirs.close()
    await soon(lambda: len(farewell) == 0)


async def test_a_client_that_is_gone_already_is_no_error(farewell: Farewell) -> None:
    ours, theirs = await pair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    farewell.say(ours, b"go away", now=0.0)
    await soon(lambda: len(farewell) == 0)


@pytest.mark.parametrize("bound", [64 << 10, 256 << 10])
def test_the_kernel_holds_little_of_what_nobody_reads(tmp_path: Path, make_title: MakeTitle, bound: int) -> None:
    """A connection whose client does not read takes no more than the bound; by itself the kernel takes far more."""
    made = make_title(tmp_path, v1=[BIG])
    held = []
    with (made.directory / "v1.mp4").open("rb") as file, handover.listen("127.0.0.1", 0) as listening:
        listening.setblocking(True)
        for wanted in (bound, 0):
            handover.bound_unsent([listening], wanted)
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(listening.getsockname())
                ours, _ = listening.accept()
                with ours:
                    ours.setblocking(False)
                    held.append(fill(ours, file.fileno()))
    assert bound <= held[0] < bound + (64 << 10) + LARGEST_PACKET
    assert held[1] > MIB


LARGEST_PACKET = 64 << 10
UNSENT = 0x894B  # SIOCOUTQNSD of Linux's sockios.h


def fill(sock: socket.socket, fd: int) -> int:
    """Give a socket all that it takes, until it takes nothing for a while; the bytes that it could not send."""
    offset, quiet = 0, 0
    while quiet < 10:
        try:
            offset += os.sendfile(sock.fileno(), fd, offset, BIG - offset)
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.01)
    count: int = struct.unpack("i", fcntl.ioctl(sock, UNSENT, bytes(4)))[0]
    return count


async def test_a_flood_leaves_nothing_behind(
    start: Start, make_title: MakeTitle, open_files: Any, tmp_path: Path
) -> None:
    """Hundreds that are turned away at once, whatever they do then; who is inside is served on."""
    # Made before: what is open when a store changes stays so for a minute.
    made = make_title(tmp_path / "store")
    running = await start(connections=1, sweep_s=0.05)
    inside = await running.connect()
    assert (await inside.ask(f"{made.url}/v1/1.m4s")).status == 200
    before = open_files()
    flood = []
    for number in range(300):
        client = await asyncio.open_connection("127.0.0.1", running.port)
        if number % 3 == 0:
            client[1].transport.abort()
        elif number % 3 == 1:
            client[1].write(b"GET / HTTP/1.1\r\n\r\n")
        flood.append(client)
        if number % 50 == 0:
            assert (await inside.ask(f"{made.url}/v1/1.m4s")).status == 200
    await soon(lambda: refused(running, "connection", "too-many-connections") == 300)
    for reader, writer in flood:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await soon(lambda: open_files() <= before)
    assert running.server.counters.open == 1


# --- the whole box ---


class Box(Appliance):
    """`oca serve` with limits, and clients of it."""

    def __init__(self, directory: Path, workers: int, limits: str) -> None:
        super().__init__(directory, [], workers)
        self.log = directory / "access.log"
        self.settings.write_text(f"{self.settings.read_text()}[limits]\n{limits}\n")
        self.clients: list[socket.socket] = []

    def ask(self, made: MadeTitle, source: str = "127.0.0.1") -> int:
        """Status of one answer on a fresh connection, which stays open if it is 200."""
        client = socket.create_connection(("127.0.0.1", self.port), 60, source_address=(source, 0))
        client.sendall(f"GET {made.url}/v1/2.m4s HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        got = b""
        while b"\r\n\r\n" not in got:
            got += client.recv(1 << 16)
        status = int(got.split()[1])
        if status == 200:
            self.clients.append(client)
        else:
            client.close()
        return status

    def let_go(self) -> None:
        """Close all clients."""
        for client in self.clients:
            client.close()
        self.clients.clear()


@pytest.fixture
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    made = Box(tmp_path, 2, request.param)
    yield made
    made.let_go()
    made.end()


@pytest.mark.long
@pytest.mark.parametrize("box", ["connections_per_client = 12\nexempt = []"], indirect=True)
def test_workers_count_a_client_together(box: Box, make_title: MakeTitle) -> None:
    """Over two workers a client has exactly its limit; what a killed worker had is counted no more.

    A reload keeps the count of connections that the old workers still serve.
    """
    made = make_title(box.store)
    box.start()
    assert [box.ask(made) for _ in range(14)] == [200] * 12 + [503] * 2
    assert box.ask(made, "127.0.0.2") == 200
    until(lambda: 'oca_refusals_total{of="connection",reason="too-many-from-client"} 2' in box.metrics())
    until(lambda: [line.get("cut") for line in lines_of(box.log)].count("too-many-from-client") == 2)
    until(lambda: "oca_connections_open 13" in box.metrics())
    os.kill(max(box.workers(), key=lambda pid: len(list(Path(f"/proc/{pid}/fd").iterdir()))), signal.SIGKILL)
    until(lambda: "oca_workers 2" in box.metrics() and "oca_worker_deaths_total 1" in box.metrics())
    alive = [client for client in box.clients[:12] if still_open(client)]
    assert len(alive) < 12, "no connection was in the killed worker"
    assert [box.ask(made) for _ in range(13 - len(alive))] == [200] * (12 - len(alive)) + [503]
    box.let_go()
    until(lambda: "oca_connections_open 0" in box.metrics())
    assert [box.ask(made) for _ in range(13)] == [200] * 12 + [503]
    assert box.stop() == 0


def still_open(client: socket.socket) -> bool:
    """Whether the other end has not ended; a reset of a killed process is an end as well."""
    client.settimeout(0.2)
    try:
        while client.recv(1 << 16):
            pass
    except TimeoutError:
        return True
    except ConnectionError:
        return False
    return False


@pytest.mark.long
@pytest.mark.parametrize("box", ["connections_per_client = 6\nexempt = []"], indirect=True)
def test_old_workers_count_while_they_drain(box: Box, make_title: MakeTitle) -> None:
    """After a reload a client cannot have its limit once more, as long as the old workers still send to it."""
    made = make_title(box.store, v1=[BIG, 1000])
    box.start()
    clients = []
    for _ in range(4):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", box.port))
        client.sendall(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b"200 OK" in client.recv(15)
        clients.append(client)
    # Some of these are in each of the workers, which ends them as soon as it no longer accepts.
    assert [box.ask(made, f"127.0.0.{number}") for number in range(10, 34)] == [200] * 24
    old = set(box.workers())
    assert box.process is not None
    box.process.send_signal(signal.SIGHUP)
    until(lambda: not any(still_open(client) for client in box.clients), 60)
    assert [box.ask(made) for _ in range(4)] == [200, 200, 503, 503]
    assert old & set(box.workers()), "the old workers were gone before anything was measured"
    for client in clients:
        client.close()
    box.let_go()
    box.wait_for("serving")
    until(lambda: "oca_connections_open 0" in box.metrics())
    assert [box.ask(made) for _ in range(7)] == [200] * 6 + [503]
    assert box.stop() == 0


def resident(pids: list[int]) -> int:
    """Bytes of memory that processes have."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def many_files() -> Iterator[int]:
    """As many descriptors as this process may have, and so the programs it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


LONG = "header_s = 300\nidle_s = 300\ngrace_s = 300\nin_flight_bytes = 0"


@pytest.mark.long
@pytest.mark.parametrize("box", [LONG], indirect=True)
def test_thousands_who_hold_connections_cost_little_and_stop_nobody(
    box: Box, make_title: MakeTitle, many_files: int
) -> None:
    """2,000 that never read what they asked for and thousands that are idle; others are served all the same.

    A stalled reader costs the processes less than 64 KiB, and an idle connection less still.
    """
    made = make_title(box.store, v1=[4 * MIB, 3000])
    hot, stalled = f"{made.url}/v1/2.m4s", 2000
    idle = min(10_000, many_files - stalled - 500)
    box.start()
    for _ in range(20):
        assert box.get(hot)[1] == made.segment("v1", 2)

    def hold(number: int, line: str) -> None:
        for _ in range(number):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            # Reset when it is closed, so that thousands of ports are free again at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.settimeout(60)
            client.connect(("127.0.0.1", box.port))
            if line:
                client.sendall(line.encode())
            box.clients.append(client)

    before = resident(box.workers())
    hold(stalled, f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\nUser-Agent: {'x' * 100}\r\n\r\n")
    until(lambda: f'oca_responses_total{{status="200"}} {stalled + 20}' in box.metrics(), 60)
    per_stalled = (resident(box.workers()) - before) / stalled
    assert per_stalled < 64 << 10
    before = resident(box.workers())
    hold(idle, "")
    until(lambda: f"oca_connections_open {stalled + idle}" in box.metrics(), 60)
    per_idle = (resident(box.workers()) - before) / idle
    assert per_idle < 32 << 10
    for _ in range(50):
        assert box.get(hot)[1] == made.segment("v1", 2)
    assert "oca_refusals_total{" not in box.metrics()
