"""A real segment server on an ephemeral port, and a raw client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench import certificate
from oca.handover import listen
from oca.http.accesslog import AccessLog
from oca.http.census import Ledger
from oca.http.certificates import Certificates, CertificateSettings, TlsSettings
from oca.http.gate import Gate
from oca.http.limits import LimitSettings
from oca.http.pacing import Pacing
from oca.http.server import Server
from oca.http.slices import Slices
from oca.store.content import Store
from tests.oca import blocking


@dataclass
class Response:
    """A response as it came off the wire."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        values = [value for field, value in self.fields if field.lower() == name.lower()]
        assert len(values) == 1, f"{name} occurs {len(values)} times"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return any(field.lower() == name.lower() for field, _ in self.fields)


class Client:
    """One TCP connection that sends exactly what it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes | str) -> None:
        self.writer.write(data.encode("latin-1") if isinstance(data, str) else data)

    async def receive(self, method: str = "GET") -> Response:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *lines = head[:-4].split("\r\n")
        fields = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        response = Response(int(status.split()[1]), fields, b"")
        if method != "HEAD" and response.status not in (204, 304):
            response.body = await self.reader.readexactly(int(response["Content-Length"]))
        return response

    async def ask(self, path: str, method: str = "GET", *fields: str) -> Response:
        lines = [f"{method} {path} HTTP/1.1", "Host: a.example:8080", *fields]
        self.send("\r\n".join(lines) + "\r\n\r\n")
        return await self.receive(method)

    async def closed(self) -> bool:
        """Whether the server has ended the connection and sent nothing more."""
        try:
            return await asyncio.wait_for(self.reader.read(1), 60) == b""
        except ConnectionResetError:
            return True


@dataclass
class Running:
    """A server that runs in the test's own loop."""

    server: Server
    port: int
    root: Path
    trusted: ssl.SSLContext | None = None
    """How clients trust its certificate, if it has one."""
    stop: Callable[[], Awaitable[None]] = field(init=False)
    """End it, as happens by itself after the test."""

    async def connect(self, host: str = "127.0.0.1", **options: Any) -> Client:
        if self.trusted is not None:
            options = {"ssl": self.trusted, "server_hostname": "localhost"} | options
        reader, writer = await asyncio.open_connection(host, self.port, **options)
        self.clients.append(writer)
        return Client(reader, writer)

    def __post_init__(self) -> None:
        self.clients: list[asyncio.StreamWriter] = []


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
def secured() -> bool:
    """Whether servers speak TLS; a module's tests run both ways if it makes a parametrized fixture of this."""
    return False


@pytest.fixture
def own_certificate(tmp_path: Path) -> CertificateSettings:
    """A certificate for localhost."""
    chain, key = certificate.make(tmp_path / "tls", ["localhost", "127.0.0.1"])
    return CertificateSettings(chain=str(chain), key=str(key))


@pytest.fixture
async def start(tmp_path: Path, secured: bool, request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Start a server over `tmp_path / "store"` with the given limits."""
    stack = contextlib.AsyncExitStack()

    async def begin(
        log: str = "",
        pacing: Pacing | None = None,
        host: str = "127.0.0.1",
        sweep_s: float = 1.0,
        ledger: Ledger | None = None,
        more: Sequence[Path] = (),
        tls: Certificates | None = None,
        gate: Gate | None = None,
        **limits: Any,
    ) -> Running:
        # A busy machine must not look like a slow client, where that is not what is tested.
        limits = {"header_s": 60.0, "idle_s": 60.0, "grace_s": 60.0} | limits
        root = tmp_path / "store"
        store = Store([root, *more])
        store.prepare()
        trusted = None
        if secured and tls is None:
            own: CertificateSettings = request.getfixturevalue("own_certificate")
            tls = Certificates(TlsSettings(certificates=[own], handshake_s=60.0))
        if tls is not None:
            trusted = ssl.create_default_context(cafile=tls.settings.certificates[0].chain)
        sock = listen(host, 0)
        server = Server(
            [sock],
            Slices(store),
            AccessLog(log),
            LimitSettings(**limits),
            ledger=ledger,
            sweep_s=sweep_s,
            pacing=pacing,
            tls=tls,
            gate=gate,
        )
        running = Running(server, sock.getsockname()[1], root, trusted)
        task = asyncio.create_task(server.run())

        async def stop() -> None:
            for writer in running.clients:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            sock.close()

        running.stop = stop
        stack.push_async_callback(stop)
        return running

    with blocking.seen() as blocked:
        async with stack:
            yield begin
    assert not blocked, "the event loop would have waited:\n" + "\n".join(blocked)


class LoopWatch(threading.Thread):
    """Samples the event loop from a thread: how long one callback has held it at most, and where it was then."""

    PATIENCE_S = 0.5

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(daemon=True)
        self._loop = loop
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self.longest = 0.0
        self.where = ""

    def run(self) -> None:
        """Ask the loop for a sign of life again and again; look at its stack while there is none."""
        while not self._ended.wait(0.01):
            asked, came = time.monotonic(), threading.Event()
            try:
                self._loop.call_soon_threadsafe(came.set)
            except RuntimeError:
                return
            while not came.wait(0.1) and not self._ended.is_set():
                if time.monotonic() - asked > self.PATIENCE_S and not self.where:
                    self.where = "".join(traceback.format_stack(sys._current_frames()[self._watched]))
            self.longest = max(self.longest, time.monotonic() - asked)

    def forgive(self) -> None:
        """Forget what was seen."""
        self.longest, self.where = 0.0, ""

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()


@pytest.fixture
async def unblocked() -> AsyncIterator[LoopWatch]:
    """Fails the test if a callback holds the event loop for longer than half a second, and says where it was."""
    watch = LoopWatch(asyncio.get_running_loop())
    watch.start()
    yield watch
    await asyncio.sleep(0)
    watch.end()
    assert watch.longest < LoopWatch.PATIENCE_S, f"the loop was blocked for {watch.longest:.2f} s at\n{watch.where}"
