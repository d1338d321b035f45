"""What a worker answers to a request for content that is not held here: 404, a redirect, or what another box has."""

from __future__ import annotations

import asyncio
from pathlib import Path

from oca.asking import HELD_ONLY
from oca.config import ApplianceSettings
from oca.http.answer import Answer, Missed
from oca.http.connection import Connection
from oca.http.server import Server
from oca.http.slices import describe, place_of
from oca.miss import hops
from oca.miss.arriving import ArrivingFile, PullerLine
from oca.miss.errand import Found, Lost
from oca.miss.neighbours import Known, NeighboursFile
from oca.store.content import PULLED

_LOOK_S = 1.0
# Nothing has come by then: an answer that says so is better than the end of the connection soon after.
_DEADLINE_S = 45.0
_NOT_HELD = "no such content is held here"
_MOST_WORDS = 1500


class Misses:
    """Attached to `server`, it does what the setting `on_miss` says."""

    def __init__(self, server: Server, settings: ApplianceSettings) -> None:
        root = Path(settings.store[0])
        self._server = server
        self._me = settings.appliance
        self._file = NeighboursFile(root, settings.appliance)
        self._known = Known()
        self._line = PullerLine(root / PULLED)
        self._way = settings.on_miss
        if self._way == "redirect":
            server.on_miss = self._redirect
        elif self._way == "proxy":
            server.on_miss = self._proxy

    async def run(self) -> None:
        """Keep up with what other boxes hold, or with the puller, until cancelled."""
        if self._way == "proxy":
            await self._line.run()
        while self._way == "redirect":
            await asyncio.sleep(_LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Read what other boxes hold, if that is of use here and has changed."""
        if self._way == "redirect" and self._file.changed():
            self._known = await asyncio.to_thread(self._file.read)

    def _redirect(self, _: Connection, missed: Missed) -> Answer:
        place = place_of(missed.path)
        if place is None or HELD_ONLY in missed.message.headers:
            return missed.fail(404, _NOT_HELD)
        holders = self._known.holders(place.title, place.version, place.name)
        location = hops.redirect(missed.target, self._me, holders)
        return missed.fail(404, f"{_NOT_HELD}, nor elsewhere") if location is None else missed.redirect(location)

    def _proxy(self, connection: Connection, missed: Missed) -> Answer | None:
        if HELD_ONLY in missed.message.headers:
            return missed.fail(404, _NOT_HELD)
        _Errand(self._server, self._line, connection, missed)
        return None


class _Errand:
    """One request that waits: first to know what it is about, then for its first bytes."""

    def __init__(self, server: Server, line: PullerLine, connection: Connection, missed: Missed) -> None:
        self._server = server
        self._line = line
        self._connection = connection
        self._missed = missed
        self._done = False
        server.counters.waiting += 1
        self._timer = server.loop.call_later(_DEADLINE_S, self._late)
        self._number = line.find(missed.path, self._found)

    def _found(self, message: Found | Lost) -> None:
        if isinstance(message, Lost):
            self._fail(message.status, message.sentence)
            return
        self._file = ArrivingFile(self._line, self._server, message)
        self._given = self._missed.serve(describe(self._file, message.facts, self._server.slices.second))
        self._span = next(((part[1], part[2]) for part in self._given.parts if not isinstance(part, bytes)), None)
        self._look()

    def _look(self) -> None:
        """Begin to answer if there is something to send; the status cannot be changed after that."""
        if self._done or self._connection.closed:
            self._end()
            return
        if self._span is not None:
            try:
                if not self._file.ready(*self._span):
                    self._file.when_ready(*self._span, self._look)
                    return
            except OSError as error:
                self._fail(self._file.status(), str(error))
                return
        self._resume(self._given)

    def _late(self) -> None:
        self._fail(504, f"no other box has given it within {_DEADLINE_S:.0f} s")

    def _fail(self, status: int, sentence: str) -> None:
        self._resume(self._missed.fail(status, sentence[:_MOST_WORDS]))

    def _resume(self, given: Answer) -> None:
        if not self._done:
            self._end()
            self._connection.resume(given)

    def _end(self) -> None:
        if not self._done:
            self._done = True
            self._server.counters.waiting -= 1
            self._timer.cancel()
            self._line.forget(self._number)
