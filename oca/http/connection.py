"""One client connection: owns the socket, frames requests, answers them in order.

Segment bytes leave by sendfile from the page cache and never enter this process. While an answer is unsent later
requests wait, so answers cannot land inside each other. No task, no request object, no timer of its own per
connection.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING

from aiohttp.http_exceptions import HttpProcessingError

from oca.http import reasons, shortcut
from oca.http.answer import MAX_LINE, Answer, Part, answer, refuse
from oca.http.delivery import TURN, Delivery, StoreFailedError, in_memory
from oca.http.framing import MAX_HEAD, refuse_line, refuse_unfinished
from oca.http.reasons import Reason
from oca.http.transport import Transport
from oca.http.turns import PIECE

if TYPE_CHECKING:
    from oca.http.access import Access
    from oca.http.server import Server

_RECEIVE = 16 << 10
# Requests that a client may send ahead while an answer is on its way.
_MAX_PIPELINED = 64 << 10
# A closed connection discards what still arrives this long, so that a reset does not overtake the last answer
# (RFC 9112 9.6).
_LINGER_S = 2.0
# An answer that waits longer for a disk or for another box than this will not come.
_PARKED_S = 60.0
# Logged for a request whose client went away while it was still being decided; never sent.
_NO_STATUS = 499


class Connection:
    """State of one connection. Its times are enforced by the server's sweep, through `expire`."""

    __slots__ = (
        "_access",
        "_answer",
        "_buffer",
        "_deadline",
        "_delivery",
        "_fd",
        "_line",
        "_lingering",
        "_overdue",
        "_rate",
        "_reading",
        "_same",
        "_sent",
        "_server",
        "_socket",
        "_started",
        "_told",
        "_transport",
        "_writing",
        "client",
    )

    def __init__(
        self, server: Server, sock: socket.socket, client: str, transport: Transport, access: Access
    ) -> None:
        self._server = server
        self._access = access
        self._socket = sock
        self._fd = sock.fileno()
        self.client = client
        self._told = client.encode()
        self._buffer = b""
        self._answer: Answer | None = None
        self._transport = transport
        self._delivery = Delivery(server, transport, self._arrived)
        self._sent = 0
        self._started = 0.0
        self._line = b""
        # What followed the target of the last request, if another target can be answered without looking at it again.
        self._same = b""
        self._rate = 0
        self._writing = False
        self._lingering = False
        self._reading = True
        # A fresh connection owes us a head just as one does that has begun to send it.
        self._deadline = server.now + server.limits.header_s
        self._overdue = reasons.HEADER_TIMEOUT
        server.loop.add_reader(self._fd, self._readable)

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        return self._answer is not None

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._fd < 0

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way; the first request of a fresh connection may be, so that one is not idle."""
        return self._answer is None and self._overdue is reasons.IDLE and not self._buffer

    def _readable(self) -> None:
        try:
            data = self._transport.receive(_RECEIVE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close(reasons.CLIENT_GONE if self.busy else reasons.CLIENT_CLOSED)
            return
        if self._lingering:
            if not data:
                self.close(reasons.ASKED)
            return
        if not data:
            if self._answer is not None:
                # Half closed: the client may still be reading the answer to its last request.
                self._stop_reading()
                self._buffer = b""
                self._answer.close = True
            else:
                self.close(reasons.CLIENT_CLOSED)
            return
        if self._answer is None and not self._buffer and self._repeat(data):
            return
        self._buffer = self._buffer + data if self._buffer else data
        if self._answer is None:
            self._serve()
        elif len(self._buffer) > _MAX_PIPELINED:
            self._stop_reading()

    def _repeat(self, data: bytes) -> bool:
        """Answer a request that repeats the last one in all but its target. False: nothing was done."""
        asked = data.removesuffix(self._same)
        if asked == data:
            return False
        server, access = self._server, self._access
        found = server.slices.asked.get(asked) if access.open else None
        if found is None:
            found = shortcut.find(server, access, asked, self.client)
        if found is None or not server.usual:
            return False
        if server.pacing is not None:
            self._rate = server.pacing.pace(self._socket, data, self._rate)
        head, length = server.opening + found.head, found.length
        if not in_memory(found, server.now):
            whole: Part = (found.descriptor, found.offset, length)
            self._begin(Answer(200, head, [whole], False, found), asked + shortcut.VERSION)
            self._pump()
            return True
        started, transport = monotonic(), self._transport
        sent, body = transport.answer(head, found.descriptor, found.offset, length)
        if body == length and sent == len(head):
            server.counters.hit(sent, body, transport.direct)
            server.log.hit(self._told, asked, sent + body, started, monotonic(), found)
            self._overdue = reasons.IDLE
            self._deadline = server.now + server.limits.idle_s
            return True
        server.counters.copied_bytes += sent
        server.counters.body(body, transport.direct)
        rest: Part = (found.descriptor, found.offset + body, length - body)
        self._begin(Answer(200, head[sent:], [rest], False, found), asked + shortcut.VERSION)
        self._sent, self._started = sent + body, started
        self._delivery.trust(length - body)
        self._pump()
        return True

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._server.loop.remove_writer(self._fd)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._server.loop.remove_reader(self._fd)

    def _serve(self) -> None:
        """Answer the requests in the buffer, one after the other, until one does not fit into the socket."""
        while self._answer is None and self._buffer and not self._lingering:
            if not self._take_request():
                return
            if not self._delivery.parked:
                self._pump()
        if self._answer is None and not self._reading and not self._lingering and self._fd >= 0:
            self._reading = True
            self._server.loop.add_reader(self._fd, self._readable)

    def _take_request(self) -> bool:
        """Begin the answer to the next request in the buffer; False if its head is not complete yet."""
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            # RFC 9112 2.2: an empty line before the request line is ignored. All are, for how many of them have come
            # at once is chance.
            empty = 2
            while buffer.startswith(b"\r\n", empty):
                empty += 2
            buffer = self._buffer = buffer[empty:]
        end = buffer.find(b"\r\n\r\n") + 4
        server = self._server
        if end < 4 or end > MAX_HEAD:
            refused = refuse_unfinished(buffer, server.date)
            if refused is None:
                if self._overdue is not reasons.HEADER_TIMEOUT:
                    self._overdue = reasons.HEADER_TIMEOUT
                    self._deadline = server.now + server.limits.header_s
                return False
            self._begin(refused, buffer[:MAX_LINE].partition(b"\r\n")[0])
            return True
        head, self._buffer = buffer[:end], buffer[end:]
        line = head[: head.find(b"\r\n")]
        if server.pacing is not None:
            self._rate = server.pacing.pace(self._socket, head, self._rate)
        given = self._decide(head, line)
        if given.close and line.startswith(b"HEAD "):
            given.parts.clear()  # refusals do not look at the method (RFC 9110 9.3.2)
        self._same = head[len(line) - len(shortcut.VERSION) :] if given.plain else b""
        if given.missed is not None:
            other = server.think_again(self, given, given.missed)
            if other is None:
                self._line, self._started, self._sent = line, monotonic(), 0
                self._answer = Answer(_NO_STATUS, b"", [], given.close)
                self._delivery.parked = self._started
                return True
            given = other
        self._begin(given, line)
        return True

    def resume(self, given: Answer) -> None:
        """The answer to a request that `Server.think_again` left open. Too late is harmless."""
        if self._fd < 0 or self._answer is None:
            return
        started, given.close = self._started, given.close or self._answer.close
        self._delivery.end()
        self._begin(given, self._line)
        self._started, self._delivery.excused = started, monotonic() - started
        self._go_on()

    def _decide(self, head: bytes, line: bytes) -> Answer:
        """The answer to a whole request head whose request line is `line`."""
        server = self._server
        refused = refuse_line(line, server.date)
        if refused is not None:
            return refused
        if server.refusing is not None:
            return server.refusal()
        try:
            messages, upgraded, _ = server.parser.feed_data(head)
            message, body = messages[0]
        except (HttpProcessingError, IndexError):
            server.renew_parser()
            return refuse(400, "this is not an HTTP request", server.date)
        if message.should_close or upgraded or body is not server.no_body:
            # The parser now expects something else than a request head, or nothing at all. An upgrade itself is
            # ignored (RFC 9110 7.8), so the next bytes are a request head again.
            server.renew_parser()
        return answer(
            message, server.slices, server.date, last=server.draining, access=self._access, client=self.client
        )

    def _begin(self, given: Answer, line: bytes) -> None:
        server = self._server
        self._answer, self._line, self._started, self._sent = given, line, monotonic(), 0
        self._delivery.begin(given)
        if given.close:
            self._buffer = b""
        counters = server.counters
        counters.status(given.status)
        if given.slice is not None and not given.slice.descriptor.arriving:
            counters.hits += 1
        elif given.slice is not None or given.status in (302, 404, 504):  # elsewhere, nowhere, not to be had
            counters.misses += 1

    def _pump(self, turn: int = TURN) -> None:
        """Give the kernel as much of the answer as it takes, at most `turn`; come back when it takes more."""
        given = self._answer
        if given is None:
            return
        try:
            count, done = self._delivery.pump(turn)
        except StoreFailedError as failed:
            self._fail(failed.reason, str(failed))
            return
        except OSError:
            self.close(reasons.CLIENT_GONE)
            return
        self._sent += count
        if done:
            self._finish(given)
        elif self._delivery.parked:
            self._stop_writing()
        elif self._delivery.yielded:
            self._stop_writing()
            self._server.turns.add(self._in_turn)
        elif not self._writing:
            self._writing = True
            self._server.loop.add_writer(self._fd, self._writable)

    def _fail(self, reason: Reason, words: str) -> None:
        """The content let us down in the middle of an answer."""
        self._server.report(reason, self._answer.slice if self._answer is not None else None, words)
        self.close(reason)

    def _arrived(self, error: OSError | None) -> None:
        """What a parked answer waited for is in memory, or the disk has failed."""
        if error is not None:
            self._fail(reasons.READ_ERROR, str(error))
        else:
            self._in_turn()

    def _in_turn(self) -> None:
        self._go_on(PIECE)

    def _writable(self) -> None:
        self._delivery.doubt()  # memory may have been needed for other things while the reader took its time
        self._go_on()

    def _go_on(self, turn: int = TURN) -> None:
        self._pump(turn)
        if self._answer is None and not self._lingering and self._fd >= 0:
            self._serve()

    def _finish(self, given: Answer) -> None:
        """The whole answer is with the kernel."""
        server = self._server
        self._stop_writing()
        self._log(given.refused)
        self._answer = None
        if given.close or (server.draining and not self._buffer):
            self._linger()
        else:
            self._overdue = reasons.IDLE
            self._deadline = server.now + server.limits.idle_s

    def _linger(self) -> None:
        """Say that nothing more will come, and wait for the client to have read it."""
        try:
            self._transport.end()
        except OSError:
            self.close(reasons.CLIENT_GONE)
            return
        self._lingering = True
        self._buffer = b""
        self._overdue = reasons.ASKED
        self._deadline = self._server.now + _LINGER_S
        if not self._reading:
            # The client half-closed before: it has nothing more to say, so there is nothing to wait for.
            self.close(reasons.ASKED)

    def expire(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        if self._delivery.parked:
            if now - self._delivery.parked > _PARKED_S:
                self.close(reasons.STARVED)
        elif self.busy:
            limits = self._server.limits
            if now - self._started - self._delivery.excused > limits.grace_s + self._sent / limits.min_bytes_per_s:
                self.close(reasons.SLOW_READER)
        elif now >= self._deadline:
            if self._overdue is reasons.HEADER_TIMEOUT and self._buffer:
                self._begin(refuse(408, "the request head did not arrive in time", self._server.date), b"")
                self._pump()
            else:
                self.close(self._overdue)

    def close(self, reason: Reason) -> None:
        """End the connection now; closing a closed one does nothing."""
        if self._fd < 0:
            return
        server = self._server
        if self._answer is not None:
            self._log(reason.name)
            self._answer = None
            self._delivery.end()
        if self._reading:
            server.loop.remove_reader(self._fd)
        if self._writing:
            server.loop.remove_writer(self._fd)
        self._fd = -1
        self._reading = self._writing = False
        self._buffer = b""
        self._socket.close()
        server.forget(self, reason)

    def _log(self, cut: str) -> None:
        given, line, sent, began = self._answer, self._line, self._sent, self._started
        if given is not None:
            problem = given.problem
            self._server.log.note(
                self.client, line, given.status, sent, began, monotonic(), given.slice, cut, problem
            )
            if problem:
                self._server.damaged(problem)
