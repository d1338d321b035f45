"""A worker process: serves on the sockets it is given, tells the supervisor its counts, drains on SIGTERM.

Started by `oca.supervisor` as `python -m oca.worker SETTINGS CENSUS PLACE CHANNEL SOCKET...`, all but SETTINGS and
PLACE descriptors. Standard input is a secret that all workers of the box share.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import sys
from pathlib import Path

import uvloop

from oca import channel, config, handover, journal
from oca.config import ApplianceSettings
from oca.errors import guarded
from oca.http.accesslog import AccessLog
from oca.http.census import Ledger
from oca.http.certificates import Certificates
from oca.http.gate import Gate
from oca.http.pacing import Pacing
from oca.http.server import Server
from oca.http.slices import Slices
from oca.miss.answers import Misses
from oca.store.content import Store
from oca.trust.identity import Identity

# Young objects are looked through after so many more of them; the generations above once in so many passes.
_COLLECT = (20_000, 50, 1000)


async def work(
    settings: ApplianceSettings,
    ledger: Ledger,
    supervisor: socket.socket,
    socks: list[socket.socket],
    secret: bytes,
) -> None:
    """Serve until SIGTERM, or until the supervisor is gone."""
    pacing, own = Pacing(settings.pacing), Identity.of(Path(settings.identity))
    server = Server(
        socks,
        Slices(Store([Path(root) for root in settings.store])),
        AccessLog(settings.access_log),
        settings.limits,
        ledger=ledger,
        pacing=pacing if pacing.wanted else None,
        tls=Certificates(settings.tls, secret, own) if settings.tls.certificates else None,
        gate=Gate(settings.tokens) if settings.tokens.keys else None,
        disk_threads=settings.disk_threads,
    )
    misses = Misses(server, settings)
    await misses.look()
    stop = channel.ending(supervisor)
    # Hardly anything here lives in a cycle, but every pass over all objects takes longer the more connections there
    # are, and everybody waits for it: with 10,000 idle ones it tripled the slowest hundredth of all answers.
    gc.freeze()
    gc.set_threshold(*_COLLECT)
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.run())
        beside = [
            tasks.create_task(channel.tell(supervisor, lambda: server.counters)),
            tasks.create_task(misses.run()),
        ]
        await stop.wait()
        await server.drain(channel.DRAIN_S)
        for task in (*beside, serving):
            task.cancel()
    channel.send(supervisor, server.counters)


def main() -> None:
    """Entry point of the process."""
    settings = config.load(Path(sys.argv[1]), ApplianceSettings)
    # The soft limit protects programs that use select(2), whose sets end at 1024; this one may have all it can.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    census, place, told, *listening = map(int, sys.argv[2:])
    ledger = Ledger(census, place)
    os.close(census)
    supervisor = socket.socket(fileno=told)
    supervisor.setblocking(False)
    socks = [handover.adopt(fd) for fd in listening]
    journal.start("oca-worker")
    secret = sys.stdin.buffer.read()
    uvloop.run(work(settings, ledger, supervisor, socks, secret))


if __name__ == "__main__":
    guarded(main)
