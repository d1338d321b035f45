"""An appliance as one running program: workers that serve, administration listener, reports to a controller.

Signals: SIGTERM and SIGINT drain and end. SIGHUP and SIGUSR2 replace the whole program, with the settings and the
code that are now on disk: it keeps its process id and its listening sockets, starts new workers, and drains the old
ones when the new ones serve. No connection is dropped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import structlog
from aiohttp import web

from oca import admin, handover, notify
from oca.config import ApplianceSettings, split_address
from oca.errors import ConfigError
from oca.heartbeat import Reporter
from oca.http import pacing
from oca.http.census import Census
from oca.http.certificates import Certificates
from oca.http.gate import Gate
from oca.store.content import Store
from oca.store.disks import PROBE_S
from oca.supervisor import Supervisor, retire
from oca.trust import enrolment
from oca.trust.fleet import shown
from oca.trust.identity import Identity, Proof

_log = structlog.get_logger()
_END = (signal.SIGTERM, signal.SIGINT)
_RENEW = (signal.SIGHUP, signal.SIGUSR2)
_CHECK_S = 60.0
_LOOK_S = 1.0
# Who reads metrics at the end gets so long; workers drain afterwards, and must not wait for them.
_ADMIN_S = 1.0


class Appliance:
    """The supervisor process of one box. OcaError if its store or an address cannot be used."""

    def __init__(self, path: Path, settings: ApplianceSettings) -> None:
        check_safety(settings)
        self._path = path
        self._settings = settings
        self._store = Store([Path(root) for root in settings.store])
        for sentence in self._store.prepare():
            _log.error("a disk is not used", detail=sentence)
        count = settings.workers or len(os.sched_getaffinity(0))
        content, control = split_address(settings.listen), split_address(settings.admin)
        before = handover.received()
        if before is not None:
            self._inherited = before.workers
            self._slots = [handover.adopt(fd) for fd in before.content]
            self._admin = handover.adopt(before.admin)
            self._census = Census(before.census, before.places)
        else:
            self._inherited = []
            self._slots = handover.from_systemd() or handover.slots(*content, count)
            self._admin = handover.slots(*control, 1)[0]
            self._census = Census()
        self._former = sorted(self._census.taken)
        self._grow(count)
        pacing.use_congestion(self._slots, settings.pacing.congestion)
        handover.bound_unsent(self._slots, settings.limits.unsent_bytes)
        for sock, wanted in ((self._slots[0], content), (self._admin, control)):
            if before is not None and sock.getsockname()[:2] != wanted:
                _log.warning("a changed address needs a restart", have=sock.getsockname()[:2], wanted=wanted)
        self._supervisor = Supervisor(path, self._slots, self._census, count, pulling=settings.on_miss == "proxy")

    def _grow(self, count: int) -> None:
        """Every worker needs a socket; more sockets than workers are shared out."""
        host, port = self._slots[0].getsockname()[:2]
        while len(self._slots) < count:
            self._slots.append(handover.listen(host, port))

    async def run(self) -> None:
        """Serve until a signal ends it; after a signal to renew, this call does not return."""
        told: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in _END + _RENEW:
            loop.add_signal_handler(number, told.put_nowait, number)
        reporter = Reporter(self._settings, self._store, lambda: self._supervisor.counters)
        runners = await self._listen_admin(reporter)
        tasks = [asyncio.create_task(reporter.run()), asyncio.create_task(_show_life())]
        tasks.append(asyncio.create_task(_watch_disks(self._store)))
        own = Identity.of(Path(self._settings.identity))
        tasks.append(asyncio.create_task(enrolment.keep(own, self._settings.controllers)))
        try:
            await self._supervisor.start()
            await retire(self._inherited)
            for place in self._former:
                self._census.strike(place)
            _log.info("serving", appliance=self._settings.appliance, listen=self._settings.listen)
            notify.notify("READY=1")
            while await told.get() not in _END:
                if await self._startable():
                    self._renew()
            _log.info("draining")
            notify.notify("STOPPING=1")
        finally:
            for task in tasks:
                task.cancel()
            for runner in runners:
                await runner.cleanup()
            await self._supervisor.stop()
        _log.info("stopped")

    async def _listen_admin(self, reporter: Reporter) -> list[web.AppRunner]:
        tls = self._settings.tls
        pages = admin.applications(self._settings.appliance, self._store, self._supervisor, reporter, tls)
        # A duplicate, because the runner closes what it is given and the socket itself must outlive this image.
        socks = [self._admin.dup()]
        if self._settings.metrics:
            socks += handover.slots(*split_address(self._settings.metrics), 1)
        runners = []
        for page, sock in zip(pages, socks, strict=False):
            runners.append(web.AppRunner(page, access_log=None, shutdown_timeout=_ADMIN_S))
            await runners[-1].setup()
            await web.SockSite(runners[-1], sock).start()
        return runners

    async def _startable(self) -> bool:
        """Whether the program and settings now on disk would start; what is wrong is on stderr."""
        command = [sys.executable, sys.orig_argv[1], "check", "--config", str(self._path)]
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.DEVNULL)
        try:
            good = await asyncio.wait_for(process.wait(), _CHECK_S) == 0
        except TimeoutError:
            process.kill()
            good = False
        if not good:
            _log.error("not reloaded: what is on disk would not start; going on as before")
        return good

    def _renew(self) -> None:
        """Become the program that is on disk: same process, same sockets, same children."""
        _log.info("renewing")
        notify.reloading()
        handover.leave(self._slots, self._admin, self._supervisor.workers, self._census)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def check_safety(settings: ApplianceSettings) -> None:
    """ConfigError if the content listener could not speak TLS, or hold tokens against requests, as it should.

    Also if administration could be reached from elsewhere.
    """
    if not _is_loopback(split_address(settings.admin)[0]):
        raise ConfigError(
            f"admin = {settings.admin!r} could be reached from elsewhere, and administration is for this box alone: "
            "use 127.0.0.1 or [::1]; for a monitoring system there is `metrics`"
        )
    if settings.tokens.keys:
        Gate(settings.tokens)
    identity = Identity.of(Path(settings.identity))
    if settings.sources == "enrolled":
        shown(Proof(identity, ("appliance",)), settings.url)
    if settings.tls.certificates:
        Certificates(settings.tls, identity=identity)
        if not settings.url.startswith("https://"):
            raise ConfigError(f"url is {settings.url}, but with [[tls.certificates]] viewers need one with https://")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _watch_disks(store: Store) -> None:
    """Say which disks fail and which come back, and try again those whose reads failed."""
    known = dict(store.disks.failed)
    tried = 0.0
    while True:
        await asyncio.sleep(_LOOK_S)
        await asyncio.to_thread(store.generation)
        for root, why in store.disks.failed.items():
            if root not in known:
                _log.error("a disk has failed; what it holds is not served", disk=str(root), detail=why)
        for root in known.keys() - store.disks.failed.keys():
            _log.warning("a disk works again", disk=str(root))
        known = dict(store.disks.failed)
        if known and time.monotonic() - tried >= PROBE_S:
            tried = time.monotonic()
            await asyncio.to_thread(store.disks.retry)


async def _show_life() -> None:
    """Pat systemd's watchdog for as long as this loop turns."""
    interval = notify.watchdog_interval()
    while interval:
        notify.notify("WATCHDOG=1")
        await asyncio.sleep(interval)
