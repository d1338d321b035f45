"""Keeps the worker processes of an appliance running: starts, replaces, reloads, upgrades and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec
import structlog

from oca.channel import DRAIN_S
from oca.counters import Counters, total
from oca.errors import OcaError
from oca.http.census import Census

_log = structlog.get_logger()
_READY_S = 60.0
_MAX_PACKET = 1 << 16
# Stands for the puller where workers have the number of their first socket.
_PULLER = -1
# A worker that dies at once is started again ever more slowly, so that a broken box does not burn its processor.
_FIRST_PAUSE_S, _LAST_PAUSE_S, _HEALTHY_S = 0.1, 5.0, 10.0


class StartError(OcaError):
    """Workers did not come up."""


class Worker:
    """One worker process and what it last told us."""

    def __init__(self, process: asyncio.subprocess.Process, channel: socket.socket, place: int | None) -> None:
        self.process = process
        self.place = place
        """Where it counts its connections in the census; None for the puller, which has none."""
        self.channel = channel
        self.counters = Counters()
        self.ready = asyncio.Event()
        self.unwanted = False
        self.started = time.monotonic()

    @property
    def serves(self) -> bool:
        """Whether it takes connections."""
        return self.place is not None

    def heard(self) -> None:
        """Take the packets that have arrived; the first one means that it is serving."""
        with contextlib.suppress(BlockingIOError, ConnectionError, msgspec.DecodeError):
            while data := self.channel.recv(_MAX_PACKET):
                self.counters = msgspec.msgpack.decode(data, type=Counters)
                self.ready.set()

    def drain(self) -> None:
        """Ask it to finish what it is sending and to end."""
        self.unwanted = True
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)


class Supervisor:
    """`count` workers over the sockets `slots`; with fewer workers than sockets, each serves several.

    If `pulling`, a puller (`oca.miss.puller`) works for them; it is kept running, drained and replaced as they are.
    """

    def __init__(
        self, settings: Path, slots: list[socket.socket], census: Census, count: int, *, pulling: bool = False
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._census = census
        self._count = count
        self._pulling = pulling
        self._workers: list[Worker] = []
        self._past = Counters()
        self._watchers: set[asyncio.Task[None]] = set()
        self._pauses: dict[int, float] = {}
        self._stopping = False
        # From it workers derive what seals session tickets, so that each resumes the sessions of the others.
        self._secret = secrets.token_bytes(32)
        self.deaths = 0

    @property
    def counters(self) -> Counters:
        """What all workers counted, those that have ended included."""
        return total([self._past, *(worker.counters for worker in self._workers)])

    @property
    def serving(self) -> int:
        """Workers that take connections now."""
        return sum(worker.ready.is_set() and not worker.unwanted and worker.serves for worker in self._workers)

    @property
    def workers(self) -> list[tuple[int, int]]:
        """Process id and descriptor of the channel of every worker, the puller among them, for a handover."""
        return [(worker.process.pid, worker.channel.fileno()) for worker in self._workers]

    async def start(self) -> None:
        """Start one generation of workers and wait until all of them serve; StartError if they do not."""
        fresh = [await self._spawn(_PULLER)] if self._pulling else []
        fresh += [await self._spawn(number) for number in range(self._count)]
        try:
            async with asyncio.timeout(_READY_S):
                await asyncio.gather(*(self._come_up(worker) for worker in fresh))
        except TimeoutError:
            for worker in fresh:
                worker.drain()
            raise StartError(f"workers did not start within {_READY_S:.0f} s: see the lines above") from None

    async def _come_up(self, worker: Worker) -> None:
        ended = asyncio.ensure_future(worker.process.wait())
        ready = asyncio.ensure_future(worker.ready.wait())
        await asyncio.wait((ended, ready), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        ready.cancel()
        if not worker.ready.is_set():
            worker.unwanted = True
            raise StartError("a worker ended while starting: its reason is in the lines above")

    async def stop(self) -> None:
        """Drain all workers; whoever is not done in time is killed."""
        self._stopping = True
        for worker in self._workers:
            worker.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S + 2):
                while self._watchers:
                    await asyncio.wait(self._watchers)
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
        while self._watchers:
            await asyncio.wait(self._watchers)

    async def _spawn(self, number: int) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        mine = self._slots[number :: self._count] if number != _PULLER else []
        fds = [theirs.fileno(), *(sock.fileno() for sock in mine)]
        program, place, arguments = "oca.miss.puller", None, fds[:]
        if number != _PULLER:
            program, place = "oca.worker", self._census.admit()
            fds.append(self._census.fd)
            arguments = [self._census.fd, place, *arguments]
        reading, writing = os.pipe()
        os.write(writing, self._secret)
        os.close(writing)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # nothing is imported from the directory that we happen to be started in
                "-m",
                program,
                str(self._settings),
                *map(str, arguments),
                stdin=reading,
                pass_fds=fds,
            )
        finally:
            os.close(reading)
            theirs.close()
        worker = Worker(process, ours, place)
        self._workers.append(worker)
        asyncio.get_running_loop().add_reader(ours.fileno(), worker.heard)
        watcher = asyncio.create_task(self._watch(worker, number))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return worker

    async def _watch(self, worker: Worker, number: int) -> None:
        """Wait for the end of a worker; replace it if nobody asked for that end."""
        status = await worker.process.wait()
        worker.heard()
        asyncio.get_running_loop().remove_reader(worker.channel.fileno())
        worker.channel.close()
        self._workers.remove(worker)
        worker.counters.end()
        if worker.place is not None:
            self._census.strike(worker.place)
        self._past = total([self._past, worker.counters])
        if worker.unwanted or self._stopping:
            return
        self.deaths += 1
        lived = time.monotonic() - worker.started
        _log.error("a worker ended unasked and is replaced", status=status, lived_s=round(lived, 1))
        pause = min(2 * self._pauses.get(number, _FIRST_PAUSE_S), _LAST_PAUSE_S) if lived < _HEALTHY_S else 0.0
        self._pauses[number] = pause or _FIRST_PAUSE_S
        await asyncio.sleep(pause)
        if not self._stopping and number < self._count:
            await self._spawn(number)


async def retire(workers: list[tuple[int, int]]) -> None:
    """Drain the workers of the program image before us; they are our children, since the process is the same."""
    for pid, channel in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        os.close(channel)
    for pid, _ in workers:
        with contextlib.suppress(ChildProcessError):
            await asyncio.to_thread(os.waitpid, pid, 0)
