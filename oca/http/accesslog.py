"""The access log: one JSON line per response, made as it ends, written off the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import deque
from pathlib import Path

import msgspec

from oca.http.slices import Slice

FORMAT = 1
# Lines are written when there are this many bytes of them: while they are still in the processor's near caches.
_FULL = 256 << 10
# Beyond this many such pieces the disk is not keeping up; the oldest go, and how many lines those had is logged.
_MOST_WAITING = 256
# Bytes that stand for themselves in a JSON string; a request line seldom has others.
_SAFE = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')
_LOST = re.compile(rb'^\{"v":[0-9]+,"lost":([0-9]+)', re.MULTILINE)


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One response. `at` UTC seconds, `took` seconds until the kernel had all of it, `sent` bytes with head."""

    v: int
    at: float
    client: str
    request: str
    status: int
    sent: int
    took: float
    title: str = ""
    track: str = ""
    segment: int = -1
    cut: str = ""  # reason's name, if the response was not sent to its end, or the client was turned away
    problem: str = ""
    lost: int = 0  # lines dropped before this one


def _took(microseconds: int) -> bytes:
    """The last field of a line, and its end."""
    return b'"took":%d.%06d}\n' % divmod(microseconds, 1_000_000)


# Most answers that fit into their socket take no longer.
_SHORT = tuple(_took(microseconds) for microseconds in range(2048))


class AccessLog:
    """Appends lines to a file; `path` "" keeps none."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._lines = bytearray()
        # What is full, or was refused by the disk, oldest first. A part of the first may have been written.
        self._waiting: deque[bytearray] = deque()
        self._lost = 0
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        # UTC less time.monotonic(), in seconds.
        self._offset = 0.0
        # Lines of one millisecond begin alike; until when that is, by time.monotonic(), and since when.
        self._since, self._until, self._beginning = 0.0, 0.0, b""

    def tick(self, offset: float) -> None:
        """What is noted from now on happens at time.monotonic() plus `offset` seconds, UTC."""
        self._offset, self._until = offset, 0.0

    def note(
        self,
        client: str,
        request: bytes,
        status: int,
        sent: int,
        started: float,
        ended: float,
        found: Slice | None = None,
        cut: str = "",
        problem: str = "",
    ) -> None:
        """Note a response to a request line: bytes sent, when it began and ended (time.monotonic()), its slice, why
        it was cut short, what is wrong with the store. Put together by hand: it has to cost little."""
        asked = b'"%b"' % request
        if request.translate(None, _SAFE):
            asked = json.dumps(request.decode("latin-1")).encode()
        more = f',"cut":{json.dumps(cut)},"problem":{json.dumps(problem)}'.encode() if cut or problem else b""
        self._lines += b'%b%b","request":%b,"status":%d,"sent":%d%b%b,%b' % (
            self._beginning if self._since <= ended < self._until else self._begin(ended),
            client.encode(),
            asked,
            status,
            sent,
            _named(found) if found is not None else b"",
            more,
            _took(max(0, int((ended - started) * 1e6))),
        )
        if len(self._lines) > _FULL:
            self._hand_over()

    def hit(self, client: bytes, asked: bytes, sent: int, started: float, ended: float, found: Slice) -> None:
        """As `note`, of a whole plain 200 to a request whose method and target stand for themselves in JSON.

        Its version is HTTP/1.1. There may be tens of thousands a second, so what a slice always says is put together
        once: `sent` among it, for the head of a plain 200 is as long each time.
        """
        took = int((ended - started) * 1e6)
        lines = self._lines
        lines += b"".join(
            (
                self._beginning if self._since <= ended < self._until else self._begin(ended),
                client,
                b'","request":"',
                asked,
                found.noted or _describe(found, sent),
                _SHORT[took] if took < len(_SHORT) else _took(took),
            )
        )
        if len(lines) > _FULL:
            self._hand_over()

    def _begin(self, ended: float) -> bytes:
        """The beginning of lines of a millisecond; of the next one alone, if lines have been lost before it."""
        at, lost = int((self._offset + ended) * 1000), b""
        self._since, self._until = ended, (at + 1) / 1000 - self._offset
        if self._lost:
            self._until, lost, self._lost = 0.0, b'"lost":%d,' % self._lost, 0
        self._beginning = b'{"v":%d,%b"at":%d.%03d,"client":"' % (FORMAT, lost, *divmod(at, 1000))
        return self._beginning

    def _set_aside(self) -> None:
        """Make room for new lines."""
        if self._path is not None and self._lines:
            if self._waiting and len(self._waiting[-1]) + len(self._lines) <= _FULL:
                self._waiting[-1] += self._lines
            else:
                self._waiting.append(self._lines)
        self._lines = bytearray()

    def _hand_over(self) -> None:
        """Have what is there written while we go on."""
        self._set_aside()
        if len(self._waiting) > _MOST_WAITING:
            for _ in range(_MOST_WAITING // 2):
                # The first stays, for the file may end within one of its lines.
                dropped = self._waiting[1]
                del self._waiting[1]
                self._lost += dropped.count(b"\n") + sum(int(lost) for lost in _LOST.findall(dropped))
            self._until = 0.0
        if self._waiting and not self._writing.locked():
            self._task = asyncio.get_running_loop().create_task(self._write_meanwhile())

    async def _write_meanwhile(self) -> None:
        with contextlib.suppress(OSError):  # the next flush meets it again, and says so
            await self._write()

    async def flush(self) -> None:
        """Write what was noted so far; raises OSError, keeping the lines, if the disk refuses.

        Whoever is cancelled meanwhile leaves a write that goes on to its end: no line is lost or cut in two, the file
        is closed. The next flush waits for it.
        """
        self._set_aside()
        await asyncio.shield(self._write())

    async def _write(self) -> None:
        async with self._writing:
            taken, self._waiting = self._waiting, deque()
            if not taken or self._path is None:
                return
            try:
                await asyncio.to_thread(_append, self._path, taken)
            finally:
                self._waiting.extendleft(reversed(taken))


def _named(found: Slice) -> bytes:
    """The fields that say what was sent; ids need no escapes."""
    return f',"title":"{found.title}","track":"{found.track}","segment":{found.number}'.encode()


def _describe(found: Slice, sent: int) -> bytes:
    """What all whole plain answers with a slice say alike."""
    found.noted = b' HTTP/1.1","status":200,"sent":%d%b,' % (sent, _named(found))
    return found.noted


def _append(path: Path, pieces: deque[bytearray]) -> None:
    """Write pieces to the end of a file; what could not be written stays in them.

    Opened every time, so that a rotated file is simply continued under its name. Not buffered: processes that share
    the file each write whole pieces.
    """
    with path.open("ab", buffering=0) as file:
        while pieces:
            written = file.write(pieces[0])
            if written == len(pieces[0]):
                pieces.popleft()
            else:
                del pieces[0][:written]
