"""The puller process of a box: brings, for all its workers, what viewers ask for and the box does not hold.

Started by `oca.supervisor` as `python -m oca.miss.puller SETTINGS CHANNEL`, the latter a descriptor. There is one per
box, so that one request to another box serves any number of viewers here. On SIGTERM it takes no new workers, and
ends when what is under way has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import cast

import structlog
import uvloop

from oca import channel, config, journal
from oca.config import ApplianceSettings
from oca.counters import Counters
from oca.errors import FormatError, StoreError, guarded
from oca.miss import errand
from oca.miss.errand import Arrived, Find, Found, FromPuller, FromWorker, Lost, Want
from oca.miss.pull import PullError
from oca.miss.pulled import SOCKET, Key
from oca.miss.pulls import Pulls

_log = structlog.get_logger()
_LOOK_S = 1.0
# A worker that leaves so many bytes unread is stuck.
_MOST_UNREAD = 16 << 20


class Desk:
    """One worker's connection."""

    def __init__(self, pulls: Pulls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pulls = pulls
        self._reader = reader
        self._writer = writer
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False

    async def serve(self) -> None:
        """Do what the worker asks until it is gone."""
        try:
            async for message in errand.messages(self._reader, FromWorker):
                asked = cast(FromWorker, message)
                self._begin(asked.number, self._find(asked) if isinstance(asked, Find) else self._want(asked))
        except FormatError as error:
            _log.error("a worker is not understood", detail=str(error))
        finally:
            for task in self._tasks:
                task.cancel()
            self._writer.close()

    def leave(self) -> None:
        """End as soon as nothing is under way; the worker then turns to the next puller, if there is one."""
        self._leaving = True
        if not self._tasks:
            self._writer.close()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._leaving and not self._tasks:
            self._writer.close()

    def _begin(self, number: int, work: Coroutine[None, None, None]) -> None:
        async def run() -> None:
            try:
                await work
            except PullError as error:
                self._send(Lost(number, 404 if error.absent else 504, str(error)))

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._end)

    async def _find(self, asked: Find) -> None:
        part = await self._pulls.find(asked.path)
        self._send(Found(asked.number, part.name, part.unit, part.facts))

    async def _want(self, asked: Want) -> None:
        key = Key(asked.title, asked.version, asked.name, asked.offset)
        running = await self._pulls.begin(key, asked.at)
        if running is not None:
            pull, task = running

            def tell() -> None:
                self._send(Arrived(asked.number, pull.place, pull.first, pull.count, False))

            pull.watchers.append(tell)
            if pull.count:
                tell()
            try:
                await asyncio.shield(task)
            finally:
                pull.watchers.remove(tell)
        self._send(Arrived(asked.number, key.place, 0, 0, True))

    def _send(self, message: FromPuller) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > _MOST_UNREAD:
            _log.error("a worker does not read what it asked for")
            transport.abort()
            return
        self._writer.write(errand.pack(message))


async def pull(settings: ApplianceSettings, supervisor: socket.socket) -> None:
    """Serve workers until SIGTERM or until the supervisor is gone, and then those that are still connected."""
    stop = channel.ending(supervisor)
    pulls = Pulls(settings)
    pulls.pulled.open()
    desks: dict[asyncio.Task[None], Desk] = {}

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        desks[task] = Desk(pulls, reader, writer)
        try:
            await desks[task].serve()
        finally:
            del desks[task]

    def counters() -> Counters:
        pulls.upstreams.observe()
        pulls.counters.pulled_held = pulls.pulled.bytes
        return pulls.counters

    try:
        await pulls.look()
        try:
            sock = errand.listen(pulls.pulled.folder, SOCKET)
        except OSError as error:
            raise StoreError(f"cannot listen in {pulls.pulled.folder}: {error.strerror}") from None
        server = await asyncio.start_unix_server(meet, sock=sock)
        beside = [
            asyncio.create_task(channel.tell(supervisor, counters)),
            asyncio.create_task(_follow(pulls)),
        ]
        await stop.wait()
        server.close()
        # Workers that end as well have clients to finish with, and need us for that.
        for desk in desks.values():
            desk.leave()
        if desks:
            await asyncio.wait(desks, timeout=channel.DRAIN_S)
        for task in (*beside, *desks):
            task.cancel()
        channel.send(supervisor, counters())
    finally:
        await pulls.close()


async def _follow(pulls: Pulls) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        with contextlib.suppress(OSError):
            await pulls.look()


def main() -> None:
    """Entry point of the process."""
    settings = config.load(Path(sys.argv[1]), ApplianceSettings)
    supervisor = socket.socket(fileno=int(sys.argv[2]))
    supervisor.setblocking(False)
    journal.start("oca-puller")
    uvloop.run(pull(settings, supervisor))


if __name__ == "__main__":
    guarded(main)
