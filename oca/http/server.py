"""The segment server of one process: accepts connections, keeps the clock, sweeps, counts, drains."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD

from oca.counters import Counters
from oca.errors import ConfigError
from oca.http import census, limits, reasons
from oca.http.access import Access
from oca.http.accesslog import AccessLog
from oca.http.ahead import ReadAhead
from oca.http.answer import MAX_LINE, OK, Answer, Missed, refuse
from oca.http.census import Ledger
from oca.http.certificates import Certificates
from oca.http.conditional import http_date
from oca.http.connection import Connection
from oca.http.farewell import Farewell
from oca.http.framing import MAX_HEAD
from oca.http.gate import Gate
from oca.http.handshake import ALERT, Handshake
from oca.http.limits import LimitSettings, Prefixes
from oca.http.lookup import Lookup
from oca.http.pacing import Pacing
from oca.http.reasons import Reason
from oca.http.secure import Secure
from oca.http.slices import Slice, Slices, place_of
from oca.http.transport import Plain
from oca.http.turns import Turns
from oca.store.content import SERVED_S
from oca.trust.fleet import Entrance
from oca.trust.identity import presented
from oca.trust.peers import Peer
from oca.trust.revocations import Revocations

_log = structlog.get_logger()
# Connections taken off the listening queue before others get their turn.
_ACCEPTS = 64
# Connections whose times are checked in one go.
_CHECKS = 100


class Server:
    """Serves slices on listening sockets. Public attributes are what connections share."""

    def __init__(
        self,
        socks: Sequence[socket.socket],
        slices: Slices,
        log: AccessLog,
        settings: LimitSettings | None = None,
        *,
        ledger: Ledger | None = None,
        sweep_s: float = 1.0,
        pacing: Pacing | None = None,
        tls: Certificates | None = None,
        gate: Gate | None = None,
        disk_threads: int = 8,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.slices = slices
        self.limits = settings or LimitSettings()
        self.log = log
        self.counters = Counters()
        self.pacing = pacing
        self.access = Access(self.limits, gate, "https" if tls else "http")
        # For boxes that have proved to be of our fleet.
        self._unlimited = Access(LimitSettings())
        self.no_body = EMPTY_PAYLOAD
        self.draining = False
        self.refusing: Reason | None = None
        """Why requests get 503 for now."""
        self.usual = True
        """Whether requests are served and connections kept: neither draining nor refusing."""
        self.in_flight = 0
        """Bytes of answers that wait for their readers."""
        self._lookup = Lookup(slices)
        self.ahead = ReadAhead(disk_threads, self.counters)
        self.turns = Turns()
        self.on_miss: Callable[[Connection, Missed], Answer | None] | None = None
        """What to answer instead of 404; None: nothing yet, and `Connection.resume` will be called."""
        self.now = time.monotonic()
        self.date = b""
        self.opening = b""
        """What every whole plain answer begins with."""
        self._socks = socks
        self._tls = tls
        # Connections, and where each is counted.
        self._connections: dict[Connection | Handshake, tuple[int, ...]] = {}
        # Those of other boxes: which.
        self._boxes: dict[Connection | Handshake, Peer] = {}
        self._revoked = Revocations()
        self._ledger = ledger or census.alone()
        self._exempt = Prefixes(self.limits.exempt)
        self._farewell = Farewell(self.loop)
        # How often times are checked and the store is looked at for changes.
        self._sweep_s = sweep_s
        self._let_go_at = time.monotonic() + SERVED_S
        self._accepting = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._blaming: asyncio.Future[None] | None = None
        self._reported: dict[str, float] = {}
        self.renew_parser()
        self._tick()

    def renew_parser(self) -> None:
        """A parser that expects a request head. One serves all connections, since it is fed whole heads only."""
        self.parser = HttpRequestParser(
            BaseProtocol(self.loop), self.loop, 1 << 16, max_line_size=MAX_LINE, max_field_size=MAX_HEAD
        )
        if type(self.parser).__module__ != "aiohttp._http_parser":
            raise ConfigError("aiohttp was installed without its C parser: install a wheel, or a C compiler first")

    def _tick(self) -> None:
        self.now = time.monotonic()
        self.log.tick(time.time() - self.now)
        self.slices.second = int(time.time())
        self.date = f"Date: {http_date(self.slices.second)}\r\n".encode()
        self.opening = OK + self.date

    async def run(self) -> None:
        """Serve until cancelled; then every connection is closed."""
        self._accept_more()
        try:
            while True:
                # Aligned to full seconds, so that Date is never a second behind.
                pause = self._sweep_s - time.time() % self._sweep_s
                await asyncio.sleep(pause)
                await self._sweep()
        finally:
            self._stop_accepting()
            for connection in list(self._connections):
                connection.close(reasons.SHUTDOWN)
            self._farewell.close()
            self.ahead.close()
            self._lookup.close()
            with contextlib.suppress(OSError):
                await self.log.flush()

    async def drain(self, deadline_s: float) -> None:
        """Take no new connections; end idle ones now, each other after its answer, all at the deadline."""
        self.draining, self.usual = True, False
        self._stop_accepting()
        for connection in [c for c in self._connections if c.idle]:
            connection.close(reasons.SHUTDOWN)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), deadline_s)

    async def _sweep(self) -> None:
        self._tick()
        self._weigh()
        self._farewell.expire(self.now)
        for number, connection in enumerate(list(self._connections), 1):
            connection.expire(self.now)
            if number % _CHECKS == 0:
                await asyncio.sleep(0)
        try:
            generation = await asyncio.to_thread(self.slices.store.generation)
            self.counters.store_changes += self.slices.refresh(generation)
            if self.now >= self._let_go_at:
                self._let_go_at = self.now + SERVED_S
                self.slices.let_go()
        except OSError as error:
            self._complain("store", "cannot look at the store", str(error))
        if self._tls is not None:
            try:
                if await asyncio.to_thread(self._tls.refresh):
                    _log.info("certificates have changed and are in use")
            except ConfigError as error:
                _log.error("certificates have changed and are no good; going on with the old ones", detail=str(error))
            self._part_with_revoked(self._tls.entrance)
        if self.access.gate is not None:
            try:
                if await asyncio.to_thread(self.access.gate.refresh):
                    _log.info("token keys have changed and are in use")
            except ConfigError as error:
                self._complain("tokens", "token keys are no good; going on with the old ones", str(error))
        try:
            await self.log.flush()
        except OSError as error:
            self._complain("access-log", "cannot write the access log", str(error))

    def _part_with_revoked(self, entrance: Entrance | None) -> None:
        """A connection may outlive the trust in the box that made it."""
        if entrance is not None and entrance.revoked.known is not self._revoked:
            self._revoked = entrance.revoked.known
            for connection in [c for c, box in self._boxes.items() if self._revoked(box)]:
                connection.close(reasons.REVOKED)

    def _accept_more(self) -> None:
        if not self._accepting and not self.draining:
            self._accepting = True
            for sock in self._socks:
                self.loop.add_reader(sock.fileno(), self._accept, sock)

    def _stop_accepting(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self._socks:
                self.loop.remove_reader(sock.fileno())

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors or memory: the queue stays readable, so look again later instead of spinning.
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._complain("accept", "cannot take a connection", str(error))
                self._stop_accepting()
                self.loop.call_later(1.0, self._accept_more)
                return
            sock.setblocking(False)
            self.counters.accepted += 1
            origin = census.packed(address[0])
            client = () if self._exempt.cover(origin) else self._ledger.buckets(census.client_of(origin))
            reason = limits.refusal(
                self.limits,
                connections=self._ledger.connections,
                from_client=self._ledger.of_client(client),
                in_flight=self._ledger.in_flight,
            )
            if reason is not None:
                self._turn_away(sock, address[0], reason)
                continue
            made: Connection | Handshake
            if self._tls is None:
                made = Connection(self, sock, address[0], Plain(sock), self.access)
            else:
                made = Handshake(self, self._tls, sock, address[0])
            self.counters.open += 1
            self._empty.clear()
            self._ledger.enter(client)
            self._connections[made] = client
            if isinstance(made, Handshake):
                made.begin()

    def welcome(self, handshake: Handshake, sock: ssl.SSLSocket, transport: Secure) -> None:
        """A handshake is done: from now on it is a connection like any other."""
        self.counters.secured(sock.version() or "", transport.way, bool(sock.session_reused))
        access = self._unlimited if handshake.of_fleet else self.access
        connection = Connection(self, sock, handshake.client, transport, access)
        self._connections[connection] = self._connections.pop(handshake)
        if handshake.of_fleet and (box := presented(sock)) is not None:
            self._boxes[connection] = box

    def think_again(self, connection: Connection, given: Answer, missed: Missed) -> Answer | None:
        """What to answer instead of a 404; None: not known yet, `Connection.resume` will be called."""
        if given.unsure:
            self._lookup.want(missed.path, partial(self._looked_up, connection, given, missed))
            return None
        return self.on_miss(connection, missed) if self.on_miss is not None else given

    def _looked_up(
        self, connection: Connection, given: Answer, missed: Missed, found: Slice | None, error: Exception | None
    ) -> None:
        if connection.closed:
            return
        other: Answer | None = given
        if error is not None:
            other = missed.fail(500, "this content cannot be read here at the moment", str(error))
            place = place_of(missed.path)
            if isinstance(error, OSError) and place is not None:
                self._blame(place.title, place.version)
        elif found is not None:
            other = missed.serve(found)
        elif self.on_miss is not None:
            other = self.on_miss(connection, missed)
        if other is not None:
            connection.resume(other)

    def refusal(self) -> Answer:
        """The answer to any request while `refusing` says why."""
        reason = self.refusing or reasons.TOO_MANY_BYTES
        self.counters.refuse("request", reason.name)
        given = refuse(503, reason.words, self.date, limits.retry_after())
        given.refused = reason.name
        return given

    def _weigh(self) -> None:
        """Tell other workers what waits here; refuse requests for as long as too much waits on the box."""
        self.counters.in_flight = self.in_flight
        self._ledger.publish(self.in_flight)
        self.refusing = limits.refusal(self.limits, in_flight=self._ledger.in_flight)
        self.usual = self.refusing is None and not self.draining

    def _turn_away(self, sock: socket.socket, address: str, reason: Reason) -> None:
        """Answer a new connection 503 whatever it asks, and end it."""
        began, given = time.monotonic(), refuse(503, reason.words, self.date, limits.retry_after())
        sent = self.part(sock, given) if self._tls is None else self._farewell.say(sock, ALERT, self.now)
        self.counters.status(503)
        self.counters.ended(reason.name)
        self.counters.refuse("connection", reason.name)
        self.log.note(address, b"", 503, sent, began, time.monotonic(), cut=reason.name)

    def part(self, sock: socket.socket, given: Answer) -> int:
        """Answer on a socket in clear, whatever it asks, and end it; the bytes that were sent."""
        words = given.head + b"".join(part for part in given.parts if isinstance(part, bytes))
        sent = self._farewell.say(sock, words, self.now)
        self.counters.copied_bytes += sent
        return sent

    def forget(self, connection: Connection | Handshake, reason: Reason) -> None:
        """A connection has ended."""
        self._ledger.leave(self._connections.pop(connection))
        self._boxes.pop(connection, None)
        self.counters.open -= 1
        self.counters.ended(reason.name)
        if not self._connections:
            self._empty.set()

    def damaged(self, problem: str) -> None:
        """Something of the store could not be read for an answer."""
        self._complain("content", "content cannot be read", problem)

    def report(self, reason: Reason, found: Slice | None, words: str) -> None:
        """The store let us down in the middle of an answer."""
        where = f"{found.title}/{found.version}/{found.track}" if found else "?"
        self._complain(f"{reason.name} {where}", reason.words, words, where=where)
        if reason is reasons.READ_ERROR and found is not None:
            self._blame(found.title, found.version)

    def _blame(self, title: str, version: str) -> None:
        """Have the disk looked at that a version is on; one look at a time, for many answers fail at once."""
        if self._blaming is None or self._blaming.done():
            self._blaming = self.loop.run_in_executor(None, self.slices.store.blame, title, version)

    def _complain(self, key: str, sentence: str, detail: str, **more: str) -> None:
        """Log a fault, the same one at most once a minute: a broken disk must not fill the journal as well."""
        if self.now - self._reported.get(key, -60.0) >= 60.0:
            if len(self._reported) > 1000:
                self._reported.clear()
            self._reported[key] = self.now
            _log.error(sentence, detail=detail, **more)
