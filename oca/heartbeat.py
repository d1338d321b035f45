"""Tells a controller that this box is alive, how loaded it is, and what it holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import structlog

from oca import wire
from oca.config import ApplianceSettings, storage_limit
from oca.counters import Counters
from oca.errors import FormatError, OcaError, StoreError
from oca.miss.neighbours import NeighboursFile
from oca.store.content import Store
from oca.store.index import Index
from oca.trust.identity import Identity, Proof
from oca.trust.revocations import RevocationsFile
from oca.wire import FillTerms, Heartbeat, HeartbeatReply, HeldTracks, Inventory

_log = structlog.get_logger()
_FIRST_INTERVAL_S = 30.0
_RETRY_S = 5.0
# How often the store is looked at between two heartbeats; a look is one stat per disk.
_LOOK_S = 1.0
# Clocks further apart than this are told of.
_CLOCK_OFF_S = 30.0
# For so long a damaged file is told of.
_DAMAGED_S = 30 * 86_400.0
_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
_MAX_REPLY = 1 << 20


class ReportError(OcaError):
    """No controller took a report."""


def inventory(store: Store, appliance: str, generation: str) -> tuple[Inventory, list[str]]:
    """Everything held, and a sentence for each version that is damaged and therefore left out. Reads the disk."""
    held, damaged = [], []
    for title, version in store.versions():
        try:
            found = store.held(title, version)
        except FormatError as error:
            damaged.append(str(error))
            continue
        if found is not None and found.tracks:
            held.append(HeldTracks(title, version, sorted(found.tracks)))
    return Inventory(appliance=appliance, generation=generation, held=held), damaged


def damaged_files(store: Store) -> int:
    """How many files of the store were found damaged lately. Reads the disk."""
    found = 0
    for root in store.usable:
        try:
            found += Index(root).damaged(time.time() - _DAMAGED_S)
        except (StoreError, OSError) as error:
            _log.warning("a disk does not tell what was damaged on it", disk=str(root), detail=str(error))
    return found


class Reporter:
    """Sends heartbeats, and the inventory whenever the controller has another generation of it.

    In return it learns of other boxes, if this one has a use for them.
    """

    def __init__(self, settings: ApplianceSettings, store: Store, counters: Callable[[], Counters]) -> None:
        self._settings = settings
        self._store = store
        self._proof = Proof(Identity.of(Path(settings.identity)))
        self._counters = counters
        self._terms = FillTerms(
            windows=settings.fill.stretches,
            timezone=settings.fill.timezone,
            rate_bps=int(settings.fill.rate_mbps * 1e6),
        )
        self._started = time.time()
        self._interval_s = _FIRST_INTERVAL_S
        self._sent_bytes = 0
        self._sent_at = time.monotonic()
        self._reached = True
        self._clock_off = False
        self._used: tuple[str, int] = ("", 0)
        self._neighbours = None
        if settings.on_miss != "404":
            self._neighbours = NeighboursFile(Path(settings.store[0]), settings.appliance)
        self._neighbours_known = ""
        self._revocations = RevocationsFile(Identity.of(Path(settings.identity)).revoked)
        self.storage_bytes = storage_limit(settings)
        """Bytes of content that the disks may hold which work now."""
        self.damaged = 0
        """Files found damaged in the last 30 days, as of the store's last change."""

    async def used_bytes(self) -> int:
        """Bytes of content in the store, counted anew only after the store has changed."""
        generation = self._store.generation()
        if self._used[0] != generation:
            self.storage_bytes = await asyncio.to_thread(storage_limit, self._settings, self._store.disks.failed)
            self.damaged = await asyncio.to_thread(damaged_files, self._store)
            self._used = (generation, await asyncio.to_thread(self._store.used_bytes))
        return self._used[1]

    async def run(self) -> None:
        """Report until cancelled. An unreachable controller is logged once and tried again."""
        if not self._settings.controllers:
            return
        if self._neighbours is not None:
            self._neighbours_known = (await asyncio.to_thread(self._neighbours.read)).generation
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                pause = min(self._interval_s, _RETRY_S)
                try:
                    reply = await self._beat(session)
                    pause = self._interval_s = max(0.1, reply.interval_s)
                    self.compare_clocks(reply.time - time.time())
                    if reply.send_inventory:
                        await self._send_inventory(session)
                    if self._neighbours is not None and reply.neighbours not in ("", self._neighbours_known):
                        await self._fetch_neighbours(session, self._neighbours)
                    await self._learn_revocations(session, reply.revocations)
                    if not self._reached:
                        _log.info("controller reached again")
                    self._reached = True
                except ReportError as error:
                    if self._reached:
                        _log.warning("no controller takes our reports", detail=str(error))
                    self._reached = False
                await self._wait(pause)

    def compare_clocks(self, off: float) -> None:
        """Say once when the controller's clock is `off` seconds ahead of ours: windows and tokens go by clocks."""
        if abs(off) > _CLOCK_OFF_S and not self._clock_off:
            _log.warning(
                "the clocks of this box and of the controller differ: set both by NTP", seconds=round(off, 1)
            )
        self._clock_off = abs(off) > _CLOCK_OFF_S

    async def _wait(self, seconds: float) -> None:
        """Sleep, but not beyond a change of the store: what a box newly holds should be known at once."""
        generation, left = self._store.generation(), seconds
        while left > 0 and self._store.generation() == generation:
            step = min(left, _LOOK_S)
            await asyncio.sleep(step)
            left -= step

    async def _beat(self, session: aiohttp.ClientSession) -> HeartbeatReply:
        counters, now = self._counters(), time.monotonic()
        rate = 8 * (counters.sent_bytes - self._sent_bytes) / max(now - self._sent_at, 1e-3)
        self._sent_bytes, self._sent_at = counters.sent_bytes, now
        message = Heartbeat(
            appliance=self._settings.appliance,
            at=time.time(),
            started=self._started,
            url=self._settings.url,
            inventory=self._store.generation(),
            storage_bytes=self.storage_bytes,
            used_bytes=await self.used_bytes(),
            connections=counters.open,
            sending_bps=int(rate),
            requests=counters.hits + counters.misses,
            hits=counters.hits,
            neighbours=self._neighbours_known,
            sent_bytes=counters.sent_bytes,
            fill=self._terms,
            damaged=self.damaged,
        )
        data = await _send(session, self._proof, "POST", self._urls("heartbeat"), wire.encode(message))
        try:
            return wire.decode(data, HeartbeatReply, "reply to a heartbeat")
        except FormatError as error:
            raise ReportError(str(error)) from None

    async def _send_inventory(self, session: aiohttp.ClientSession) -> None:
        # The generation is taken before the look: a change during it makes the next heartbeat ask again.
        generation = self._store.generation()
        message, damaged = await asyncio.to_thread(inventory, self._store, self._settings.appliance, generation)
        for sentence in damaged:
            _log.error("a version in the store is damaged", detail=sentence)
        await _send(session, self._proof, "PUT", self._urls("inventory"), wire.pack(message))

    async def _fetch_neighbours(self, session: aiohttp.ClientSession, file: NeighboursFile) -> None:
        """Learn of other boxes, so that they are known when no controller can be reached."""
        data = await _send(session, self._proof, "GET", self._urls("neighbours"), b"", wire.MAX_BODY)
        try:
            self._neighbours_known = (await asyncio.to_thread(file.write, data)).generation
        except (FormatError, OSError) as error:
            raise ReportError(str(error)) from None

    async def _learn_revocations(self, session: aiohttp.ClientSession, told: str) -> None:
        """Learn which boxes to trust no longer, if the controller has proved who it is and has news."""
        proving = [url for url in self._urls("revocations") if url.startswith("https:")]
        if not told or not proving or self._proof.context() is True:
            return
        await asyncio.to_thread(self._revocations.read)
        if told != self._revocations.generation:
            data = await _send(session, self._proof, "GET", proving, b"", wire.MAX_BODY)
            try:
                await asyncio.to_thread(self._revocations.write, data)
            except (FormatError, OSError) as error:
                raise ReportError(str(error)) from None

    def _urls(self, call: str) -> list[str]:
        box = self._settings.appliance
        return [f"{controller}/api/v1/appliances/{box}/{call}" for controller in self._settings.controllers]


async def _send(
    session: aiohttp.ClientSession,
    proof: Proof,
    method: str,
    urls: Sequence[str],
    body: bytes,
    most: int = _MAX_REPLY,
) -> bytes:
    """The body of the first good answer, at most `most` bytes; ReportError with every failure if there is none."""
    failures = []
    for url in urls:
        try:
            ssl = proof.context() if url.startswith("https:") else True
            async with session.request(method, url, data=body, allow_redirects=False, ssl=ssl) as response:
                data = await _body(response, most)
                if response.status < 300:
                    return data
                failures.append(f"{url} answered {response.status}: {data[:300].decode('utf-8', 'replace')}")
        except (aiohttp.ClientError, TimeoutError, OSError, OcaError) as error:
            failures.append(f"{url}: {error or type(error).__name__}")
    raise ReportError("; ".join(failures))


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """All of the body; FormatError if it is longer than `most` bytes."""
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > most:
            raise FormatError(f"its answer is longer than the {most} bytes allowed")
    return bytes(data)
