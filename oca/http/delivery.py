"""One answer on its way out through a connection's transport.

Only file bytes that are in memory are sent: for others the delivery is parked until they have been read ahead, or
have arrived from another box, so that the event loop never waits for a disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from oca.http import reasons
from oca.http.ahead import WINDOW
from oca.http.answer import Answer
from oca.http.reasons import Reason
from oca.http.slices import Descriptor, Slice
from oca.http.transport import FileFaultError, Transport

if TYPE_CHECKING:
    from oca.http.server import Server

# Bytes given to the kernel before another connection gets its turn.
TURN = 2 << 20
# A slice found in memory is not looked for again this long: looking costs as much as sending a small one.
_WARM_S = 2.0
# An answer counts for no more than this among those that wait: a few unread requests for whole tracks, terabytes in
# all that nobody has to keep for them, would else use up the limit for everybody.
_MOST_OWED = 8 << 20
_FileSpan = tuple[Descriptor, int, int]  # file, offset, bytes still to send


def in_memory(found: Slice, now: float) -> bool:
    """Whether all of a slice can be sent without waiting; longer ones are looked at window by window."""
    if found.warm >= now:
        return True
    if found.length > WINDOW or found.descriptor.resident(found.offset, found.length) < found.length:
        return False
    found.warm = now + _WARM_S
    return True


class StoreFailedError(Exception):
    """The content of an answer cannot be had; the connection has to end with `reason`."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class _NotYetError(Exception):
    """The next bytes are not in memory."""


class Delivery:
    """What is left to send of the current answer of one connection; `resume` is called when parking ends."""

    __slots__ = (
        "_bulk",
        "_clear",
        "_owed",
        "_parts",
        "_place",
        "_resume",
        "_server",
        "_slice",
        "_transport",
        "excused",
        "parked",
        "yielded",
    )

    def __init__(self, server: Server, transport: Transport, resume: Callable[[OSError | None], None]) -> None:
        self._server = server
        self._transport = transport
        self._resume = resume
        self._parts: list[memoryview | _FileSpan] = []
        self._place = 0
        self._slice: Slice | None = None
        # Bytes of all parts together.
        self._bulk = 0
        # Bytes of the current span that are known to be in memory.
        self._clear = 0
        # Bytes that are counted as waiting for their reader.
        self._owed = 0
        self.parked = 0.0
        """Since when (time.monotonic()) the answer waits for a disk or another box, 0 if it does not."""
        self.excused = 0.0
        """Seconds that the answer has waited so: not the reader's fault."""
        self.yielded = False
        """Whether more could be sent at once: it stopped so that others get their turn."""

    def begin(self, given: Answer) -> None:
        """Take an answer to send; `pump` sends it."""
        parts: list[memoryview | _FileSpan] = [memoryview(given.head)] if given.head else []
        for part in given.parts:
            parts.append(memoryview(part) if isinstance(part, bytes) else part)
        self._parts, self._place, self._slice = parts, 0, given.slice
        self._clear, self.excused = 0, 0.0
        self._bulk = sum(len(part) if isinstance(part, bytes) else part[2] for part in given.parts)

    def pump(self, turn: int) -> tuple[int, bool]:
        """Give the kernel as much as it takes, at most `turn`; the bytes it took, and whether that was all.

        If it was not all, either `parked` is set, or `yielded`, or there is more to send when the socket is writable
        again. Raises StoreFailedError, or OSError if the client is gone.
        """
        parts, last, total, self.yielded = self._parts, len(self._parts) - 1, 0, False
        counters = self._server.counters
        try:
            while self._place <= last and turn > 0:
                part = parts[self._place]
                if isinstance(part, memoryview):
                    count = self._transport.send(part, self._bulk if self._place < last else 0)
                    counters.copied_bytes += count
                    done = count == len(part)
                    parts[self._place] = part[count:]
                else:
                    count = self._send_file(part, turn)
                    counters.body(count, self._transport.direct)
                    done = count == part[2]
                    parts[self._place] = (part[0], part[1] + count, part[2] - count)
                    turn -= count
                total += count
                self._place += done
            self.yielded = self._place <= last
        except (BlockingIOError, InterruptedError, _NotYetError):
            pass
        if self._place > last:
            self._transport.flush()
            self.end()
            return total, True
        left = min(_MOST_OWED, sum(len(p) if isinstance(p, memoryview) else p[2] for p in parts[self._place :]))
        self._server.in_flight += left - self._owed
        self._owed = left
        return total, False

    def doubt(self) -> None:
        """Some time has passed: look again what is in memory before sending on."""
        self._clear = 0

    def trust(self, length: int) -> None:
        """The next `length` bytes of the file are known to be in memory."""
        self._clear = length

    def end(self) -> None:
        """Nothing of this answer is to be sent any more."""
        self._parts, self._place, self._slice = [], 0, None
        self._server.in_flight -= self._owed
        self._owed = 0
        self.parked = 0.0

    def _send_file(self, span: _FileSpan, turn: int) -> int:
        """One step; bytes sent. BlockingIOError: socket full; _NotYetError: parked; StoreFailedError: a fault."""
        descriptor, offset, length = span
        if self._clear <= 0:
            self._clear = self._look(descriptor, offset, length)
        try:
            count = self._transport.send_file(descriptor, offset, min(length, turn, self._clear))
        except FileFaultError as error:
            raise StoreFailedError(reasons.READ_ERROR, str(error)) from error
        if count == 0:
            # The file is shorter than it was published: whatever followed now would be wrong bytes.
            raise StoreFailedError(reasons.TRUNCATED, f"it ends at byte {offset}")
        self._clear -= count
        return count

    def _look(self, descriptor: Descriptor, offset: int, length: int) -> int:
        """How many bytes can be sent from `offset` on without waiting; if none, park and raise _NotYetError."""
        server, found = self._server, self._slice
        if descriptor.arriving:
            try:
                ready = descriptor.ready(offset, length)
            except OSError as error:
                raise StoreFailedError(reasons.UPSTREAM_FAILED, str(error)) from error
            if not ready:
                self.parked = monotonic()
                descriptor.when_ready(offset, length, partial(self._arrived, 0, None))
                raise _NotYetError
            return ready
        if found is not None and found.warm >= server.now:
            return length
        ready = descriptor.resident(offset, min(length, WINDOW))
        if not ready:
            self.parked = monotonic()
            window = server.ahead.window(descriptor, offset, length)
            server.ahead.want(descriptor, offset, window, partial(self._read, descriptor, offset, window))
            raise _NotYetError
        if found is not None and offset == found.offset and ready == found.length:
            found.warm = server.now + _WARM_S
        return ready

    def _read(self, descriptor: Descriptor, offset: int, length: int, error: OSError | None) -> None:
        """A window has been read ahead."""
        self._server.turns.add(partial(self._come, descriptor, offset, length, error))

    def _come(self, descriptor: Descriptor, offset: int, length: int, error: OSError | None) -> None:
        """It is its turn to be sent, even if it has left memory again, which is worth knowing."""
        if (
            self.parked
            and error is None
            and descriptor.resident(offset, length) < min(length, descriptor.size - offset)
        ):
            self._server.counters.cold_sends += 1
        self._arrived(length, error)

    def _arrived(self, length: int, error: OSError | None) -> None:
        """What was waited for is there, or will never be; the answer may have been given up meanwhile."""
        if self.parked:
            self.excused += monotonic() - self.parked
            self.parked = 0.0
            # Sent without another look: if memory is so short that they are gone again, waiting would never end.
            self._clear = length
            self._resume(error)
