"""Content that is still on its way from another box, as one worker sees it: chunks, and files made of them.

A chunk that is not verified yet may be sent, all but the last byte of it that an answer needs: so no answer is ever
complete before each chunk that it is made of has been verified, and a wrong one breaks the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import structlog

from oca.errors import FormatError
from oca.http.ahead import WINDOW
from oca.http.slices import Descriptor
from oca.miss import errand
from oca.miss.errand import Arrived, Find, Found, FromPuller, FromWorker, Lost, Want
from oca.miss.pulled import SOCKET, Key

if TYPE_CHECKING:
    from oca.http.server import Server

_log = structlog.get_logger()
# How often a chunk that did not come is asked for again by an answer that has sent nothing of it.
_TRIES = 2
_RECONNECT_S = 0.1


class Chunk:
    """What is known of one chunk that was asked for. A new request for it is a new one of these."""

    def __init__(self, folder: Path, want: Want) -> None:
        self.want = want
        self.whole = False
        """Whether all of it is there and verified."""
        self.problem: Lost | None = None
        """Why it will not come."""
        self._folder = folder
        self._place = ""
        self._first = self._count = 0
        self._file: Descriptor | None = None
        self._waiting: list[Callable[[], None]] = []

    def hear(self, message: Arrived | Lost) -> None:
        """Take news of it, and tell those who wait."""
        if isinstance(message, Lost):
            self.problem = message
        else:
            self._place, self._first, self._count = message.place, message.first, message.count
            self.whole = message.whole
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            done()

    def when_news(self, done: Callable[[], None]) -> None:
        """Call `done` once, when there is news."""
        self._waiting.append(done)

    def file(self) -> Descriptor | None:
        """Where its bytes are; None before there are any, while its name changes, or after it was removed."""
        if self._file is None and self._place:
            try:
                self._file = Descriptor(self._folder / self._place)
            except FileNotFoundError:
                return None
        return self._file

    def available(self, offset: int, size: int) -> int:
        """Bytes from `offset` of the content file on that have arrived, if the chunk ends at `size`."""
        at, length = offset - self.want.offset, size - self.want.offset
        if self.whole:
            return length - at
        if at >= self._first:
            return min(self._first + self._count, length) - at
        return self._count - (length - self._first) - at


class PullerLine:
    """The line to the puller of this box. While there is none, what is asked for waits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: asyncio.StreamWriter | None = None
        self._number = 0
        self._finds: dict[int, tuple[Find, Callable[[Found | Lost], None]]] = {}
        self._chunks: dict[int, Chunk] = {}
        self._by_key: dict[Key, Chunk] = {}

    def find(self, path: str, done: Callable[[Found | Lost], None]) -> int:
        """Ask what is at a URL path; `done` is called once, later, unless this is forgotten by its number."""
        self._number += 1
        find = Find(self._number, path)
        self._finds[self._number] = (find, done)
        self._send(find)
        return self._number

    def forget(self, number: int) -> None:
        """What was to be found need not be any more."""
        self._finds.pop(number, None)

    def chunk(self, key: Key, at: int) -> Chunk:
        """A chunk, asked for now, its byte `at` first, unless it has been asked for and is on its way."""
        found = self._by_key.get(key)
        if found is None:
            self._number += 1
            want = Want(self._number, key.title, key.version, key.name, key.offset, at)
            found = self._chunks[self._number] = self._by_key[key] = Chunk(self._folder, want)
            self._send(want)
        return found

    async def run(self) -> None:
        """Keep the line up until cancelled."""
        up = True
        while True:
            try:
                sock = errand.connect(self._folder, SOCKET)
                reader, writer = await asyncio.open_unix_connection(sock=sock)
            except OSError as error:
                if up:
                    _log.warning("the puller cannot be reached", detail=error.strerror)
                up = False
                await asyncio.sleep(_RECONNECT_S)
                continue
            up, self._writer = True, writer
            for find, _ in self._finds.values():
                self._send(find)
            for chunk in self._chunks.values():
                self._send(chunk.want)
            try:
                async for message in errand.messages(reader, FromPuller):
                    self._hear(cast(FromPuller, message))
            except FormatError as error:
                _log.error("the puller is not understood", detail=str(error))
            finally:
                self._writer = None
                writer.close()
            chunks, self._chunks = self._chunks, {}
            self._by_key.clear()
            for number, chunk in chunks.items():
                chunk.hear(Lost(number, 504, "the process of this box that asks other boxes has ended"))

    def _send(self, message: FromWorker) -> None:
        if self._writer is not None and not self._writer.transport.is_closing():
            self._writer.write(errand.pack(message))

    def _hear(self, message: FromPuller) -> None:
        chunk = self._chunks.get(message.number)
        if chunk is not None and not isinstance(message, Found):
            if isinstance(message, Lost) or message.whole:
                want = chunk.want
                del self._chunks[message.number]
                self._by_key.pop(Key(want.title, want.version, want.name, want.offset), None)
            chunk.hear(message)
        elif message.number in self._finds and not isinstance(message, Arrived):
            self._finds.pop(message.number)[1](message)


class ArrivingFile(Descriptor):
    """The file that a slice is part of, for one answer: its bytes are in chunks, one of which is open at a time.

    A chunk has its bytes at their offset in the whole file, so whoever sends need not know of chunks.
    """

    __slots__ = ("_broken", "_chunk", "_line", "_name", "_read", "_server", "_staked", "_tries", "_unit")

    arriving = True

    def __init__(self, line: PullerLine, server: Server, found: Found) -> None:
        self.fd, self.size, self.device = -1, 0, 0
        self._line = line
        self._server = server
        self._name = (found.facts.title, found.facts.version, found.name)
        self._unit = found.unit
        self._chunk: Chunk | None = None
        # A chunk of which unverified bytes have been sent: if it proves wrong there is no way back.
        self._staked: Chunk | None = None
        self._tries = 0
        # What a cold disk has just given, offset and length: not looked at again, or it might never end.
        self._read = (-1, 0)
        self._broken: OSError | None = None

    def __del__(self) -> None:
        """The descriptor belongs to the chunk."""

    def ready(self, offset: int, length: int) -> int:
        """As in Descriptor."""
        if self._broken is not None:
            raise self._broken
        start = offset - offset % self._unit
        chunk = self._chunk
        if chunk is None or chunk.want.offset != start:
            chunk = self._ask(start, offset)
        if chunk.problem is not None:
            if chunk is self._staked or self._tries >= _TRIES:
                raise OSError(chunk.problem.sentence)
            self._tries += 1
            chunk = self._ask(start, offset)
        file = chunk.file()
        if file is None and chunk.whole:
            # Room was made at its cost between the message and now.
            if self._tries >= _TRIES:
                raise OSError("what was pulled is removed before it can be sent; raise pulled_bytes")
            self._tries += 1
            chunk = self._ask(start, offset)
            file = chunk.file()
        if file is None:
            return 0
        self.fd = file.fd
        left = min(offset + length, file.size) - offset
        if chunk.whole:
            at, come = self._read
            return min(come, left) if at == offset else file.resident(offset, min(left, WINDOW))
        ready = min(chunk.available(offset, file.size), left - 1)
        if ready <= 0:
            return 0
        self._staked = chunk
        return ready

    def when_ready(self, offset: int, length: int, done: Callable[[], None]) -> None:
        """As in Descriptor."""
        chunk = self._chunk
        assert chunk is not None  # `ready` has been asked
        file = chunk.file() if chunk.whole else None
        if file is None:
            chunk.when_news(done)
            return

        ahead = self._server.ahead
        window = ahead.window(file, offset, min(offset + length, file.size) - offset)

        def came(error: OSError | None) -> None:
            self._read, self._broken = (offset, window), error
            done()

        ahead.want(file, offset, window, came)

    def status(self) -> int:
        """The status that says why nothing came."""
        problem = self._chunk.problem if self._chunk is not None else None
        return problem.status if problem is not None else 504

    def _ask(self, start: int, offset: int) -> Chunk:
        self._chunk = self._line.chunk(Key(*self._name, start), offset - start)
        return self._chunk
