"""Other boxes that do what a test tells them to, over real sockets, and the box under test as the real program."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec

from oca import config, wire
from oca.config import ApplianceSettings
from oca.counters import Counters, render, total
from oca.handover import listen
from oca.http.accesslog import AccessLog
from oca.http.server import Server
from oca.http.slices import Slices
from oca.miss import puller
from oca.miss.answers import Misses
from oca.miss.neighbours import FILE
from oca.store.content import Store
from oca.wire import HeldElsewhere, Neighbours, Source
from tests.conftest import MadeTitle
from tests.programs import held, port_of

OCA = Path(sys.executable).with_name("oca")


@dataclass
class Asked:
    """One request that reached an upstream. `end` is exclusive; `fields` as they came, in lower case."""

    path: str
    start: int
    end: int
    ranged: bool
    fields: str
    data: bytes
    writer: asyncio.StreamWriter

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def body(self) -> bytes:
        return self.data[self.start : self.end]

    @property
    def head(self) -> bytes:
        if not self.ranged:
            return f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.data)}\r\n\r\n".encode()
        span = f"bytes {self.start}-{self.end - 1}/{len(self.data)}"
        length = self.end - self.start
        return f"HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: {span}\r\n\r\n".encode()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Behaviour = Callable[[Asked], Awaitable[None]]


async def honest(asked: Asked) -> None:
    await asked.send(asked.head + asked.body)


def only_media(behaviour: Behaviour) -> Behaviour:
    """Behave so when asked for media; be honest about title.json and indexes."""

    async def behave(asked: Asked) -> None:
        await (behaviour if asked.name.endswith(".mp4") else honest)(asked)

    return behave


async def dies_half_way(asked: Asked) -> None:
    await asked.send(asked.head + asked.body[: len(asked.body) // 2])
    asked.writer.transport.abort()


async def wrong_bytes(asked: Asked) -> None:
    body = bytearray(asked.body)
    body[len(body) // 3] ^= 1
    await asked.send(asked.head + bytes(body))


async def never_begins(asked: Asked) -> None:
    await asyncio.sleep(3600)


async def stalls_half_way(asked: Asked) -> None:
    await asked.send(asked.head + asked.body[: len(asked.body) // 2])
    await asyncio.sleep(3600)


async def fails(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")


async def lacks(asked: Asked) -> None:
    await asked.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


@dataclass
class Upstream:
    """Another box: has a title, and answers each request as `behaviour` says. `port` 0: not started yet."""

    name: str
    made: MadeTitle
    rank: Literal["peer", "tier", "origin"] = "origin"
    behaviour: Behaviour = honest
    port: int = 0
    log: list[Asked] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Go away, and reset every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def source(self) -> Source:
        return Source(appliance=self.name, url=f"http://127.0.0.1:{self.port}", rank=self.rank)

    def asked(self, name: str) -> list[Asked]:
        return [asked for asked in self.log if asked.name == name]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    await self._answer(head, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> None:
        path = head.split(" ")[1]
        data = self.made.bytes_of(path.rpartition("/")[2])
        span = re.search(r"^range: bytes=(\d+)-(\d+)", head, re.M)
        start, end = (int(span[1]), int(span[2]) + 1) if span else (0, len(data))
        asked = Asked(path, start, end, span is not None, head, data, writer)
        self.log.append(asked)
        await self.behaviour(asked)


class Box:
    """The box under test: `oca serve` with settings of its own."""

    def __init__(
        self, directory: Path, on_miss: str, *, workers: int = 1, controllers: str = "[]", **miss: Any
    ) -> None:
        self.store = directory / "box"
        self.store.mkdir(exist_ok=True)
        self._held = [held(), held()]
        self.port, self.admin = map(port_of, self._held)
        self.settings = directory / "oca.toml"
        defaults: dict[str, Any] = {"near_ms": 60_000, "first_byte_s": 15, "stall_s": 30}
        table = "".join(f"{key} = {value}\n" for key, value in (defaults | miss).items())
        self.settings.write_text(
            f'appliance = "me"\nstore = ["{self.store}"]\nurl = "http://127.0.0.1:{self.port}"\n'
            f'listen = "127.0.0.1:{self.port}"\nadmin = "127.0.0.1:{self.admin}"\nworkers = {workers}\n'
            f'on_miss = "{on_miss}"\ncontrollers = {controllers}\n[miss]\n{table}'
        )
        self.process: asyncio.subprocess.Process | None = None
        self.log: list[str] = []
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))

    def know(self, *upstreams: Upstream) -> None:
        """Tell it who has what."""
        tracks: dict[tuple[str, str], dict[str, list[int]]] = {}
        for number, upstream in enumerate(upstreams):
            made = upstream.made
            for track in made.indexes:
                tracks.setdefault((made.id, made.version), {}).setdefault(track, []).append(number)
        held = [
            HeldElsewhere(title=title, version=version, published=1_700_000_000, tracks=row)
            for (title, version), row in tracks.items()
        ]
        boxes = [upstream.source for upstream in upstreams]
        message = Neighbours(appliance="me", generation="g1", boxes=boxes, held=held)
        (self.store / f"{FILE}.new").write_bytes(wire.pack(message))
        (self.store / f"{FILE}.new").rename(self.store / FILE)

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            str(OCA), "serve", "--config", str(self.settings), stderr=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert self.process.stderr is not None
        self.log = []
        self._reading = asyncio.create_task(self._read_log(self.process.stderr))

        async def up() -> bool:
            assert not self._reading.done(), self.log
            return any('"event": "serving"' in line for line in self.log)

        await self.until(up)

    async def _read_log(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.log.append(line.decode())

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)
            await asyncio.wait_for(self.process.wait(), 60)
            await self._reading
            self.process = None

    async def end(self) -> None:
        """Close its client, and let its ports go."""
        await self.session.close()
        for sock in self._held:
            sock.close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body; a body that does not come in full raises aiohttp.ClientPayloadError."""
        async with self.session.get(self.url(path), allow_redirects=False, headers=headers) as response:
            return response.status, await response.read()

    async def metrics(self) -> str:
        async with self.session.get(f"http://127.0.0.1:{self.admin}/metrics") as response:
            return await response.text()

    async def metric(self, name: str) -> float:
        """The value of a metric, labels included in its name; 0 if it is not there."""
        for line in (await self.metrics()).splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(60):
            while not await condition():
                await asyncio.sleep(0.05)

    def puller(self) -> int:
        """Process id of the puller."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in children.split():
            if b"oca.miss.puller" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        return 0

    def pulled(self) -> int:
        """Bytes that pulled content takes on the disk."""
        return sum(path.stat().st_blocks * 512 for path in (self.store / ".pulled").rglob("*") if path.is_file())


class InsideBox(Box):
    """The same box, its worker's server and its puller in the test's own loop: quicker to start, no less real."""

    _tasks: Sequence[asyncio.Task[None]] = ()

    async def start(self) -> None:
        settings = config.load(self.settings, ApplianceSettings)
        store = Store([self.store])
        store.prepare()
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        theirs.setblocking(False)
        self._theirs, self._told = theirs, Counters()
        asyncio.get_running_loop().add_reader(self._ours, self._hear)
        self._sock = listen("127.0.0.1", self.port)
        self._server = Server([self._sock], Slices(store), AccessLog(""))
        misses = Misses(self._server, settings)
        await misses.look()
        self._tasks = [
            asyncio.create_task(puller.pull(settings, theirs)),
            asyncio.create_task(self._server.run()),
            asyncio.create_task(misses.run()),
        ]

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._ours.recv(1 << 16):
                self._told = msgspec.msgpack.decode(data, type=Counters)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if not self._tasks:
            return
        pulling, *others = self._tasks
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # The end of the channel is the end of the puller, as when its supervisor has died.
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        await pulling
        self._theirs.close()
        self._sock.close()

    async def metrics(self) -> str:
        return render(total([self._server.counters, self._told]), 0, 0, 1, 0)


@contextlib.asynccontextmanager
async def running(box: Box, *upstreams: Upstream) -> AsyncIterator[Box]:
    """Start the upstreams, tell the box of them, start it; all ends with the block."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(box.end)
        for upstream in upstreams:
            await upstream.start()
            stack.push_async_callback(upstream.stop)
        box.know(*upstreams)
        stack.push_async_callback(box.stop, signal.SIGKILL)
        await box.start()
        yield box
