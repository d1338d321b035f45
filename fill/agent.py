"""The fill agent: asks what the plan wants on this box, and in the window, or when told to, starts a run."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import structlog

from fill import staging
from fill.controllers import ControllerError, Controllers
from fill.difference import Difference, difference
from fill.holdings import evict, holdings, is_served
from fill.manifest import ManifestFile
from fill.progress import Progress
from fill.run import Pace, Run
from fill.scrub import Scrub
from fill.window import of
from oca.bucket import Bucket
from oca.clock import Clock
from oca.config import ApplianceSettings, storage_limit
from oca.errors import StoreError
from oca.fetch import Fetch
from oca.health import Limits
from oca.store.content import Store
from oca.trust import fleet
from oca.trust.identity import Identity, Proof
from oca.wire import FillManifest, FillReport

_log = structlog.get_logger()
_MAX_BACKOFF_S = 60.0
_LEASE_S = 2.0
_LAST_REPORT_TRIES = 3
# At the latest after so long it is seen that the clock was set.
_CLOCK_S = 10.0


async def fill(settings: ApplianceSettings, *, now: bool = False, once: bool = False) -> bool:
    """Run the agent: for ever, or `once` for one look; `now` ignores the window. Whether nothing is missing.

    OcaError if the settings, the store or (when `once`) the controllers cannot be used.
    """
    store = Store([Path(root) for root in settings.store])
    window = of(settings.fill)
    for sentence in store.prepare():
        _log.error("a disk is not used", detail=sentence)
    with staging.owned(store):
        async with aiohttp.ClientSession() as session:
            proof = Proof(Identity.of(Path(settings.identity)))
            controllers = Controllers(session, settings.appliance, settings.controllers, proof)
            agent = Agent(settings, store, controllers, is_open=window.is_open, closes=window.closes, now=now)
            if once:
                return await agent.look()
            scrub = Scrub(store, settings.fill)
            scrubbing = asyncio.create_task(scrub.run())
            try:
                return await agent.run(scrub.damaged)
            finally:
                scrubbing.cancel()
                await asyncio.gather(scrubbing, return_exceptions=True)


class Agent:
    """Keeps one store as the plan wants it. `is_open` and `closes` are the window's, `clock` tells UTC seconds.

    `steady` is what rates, waits and pauses of a fill go by.
    """

    def __init__(
        self,
        settings: ApplianceSettings,
        store: Store,
        controllers: Controllers,
        *,
        is_open: Callable[[float], bool],
        closes: Callable[[float], float | None],
        now: bool = False,
        pace: Pace | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        steady: Clock | None = None,
    ) -> None:
        self._settings = settings.fill
        self._store = store
        self._limit = storage_limit(settings)
        self._controllers = controllers
        self._is_open = is_open
        self._closes = closes
        self._now = now
        self._pace = pace or Pace()
        self._limits = limits or Limits(parallel=settings.fill.parallel)
        self._clock = clock
        self._steady = steady or Clock()
        self._bucket = Bucket(settings.fill.rate_mbps * 1e6 / 8, self._steady)
        self._uplink = Bucket(math.inf, self._steady)
        self._last = ManifestFile(store, settings.appliance)
        self._proof = fleet.proof(Identity.of(Path(settings.identity)), settings.sources)
        self._object_stores = settings.object_stores
        self._alone = False
        self._obeyed = 0
        self._told: object = None

    async def run(self, damaged: asyncio.Event | None = None) -> bool:
        """Look again and again until cancelled; after failures ever more rarely, at once when `damaged` is set."""
        failures = 0
        damaged = damaged or asyncio.Event()
        while True:
            try:
                await self.look()
                failures = 0
                pause = self._settings.poll_s
            except (ControllerError, StoreError) as error:
                if not failures:
                    _log.warning("cannot fill at the moment", detail=str(error))
                failures += 1
                pause = min(_MAX_BACKOFF_S, 2.0 ** min(failures, 10) * random.uniform(0.5, 1.5))
            with suppress(TimeoutError):
                await asyncio.wait_for(damaged.wait(), pause)
            damaged.clear()

    async def look(self) -> bool:
        """Ask for the manifest and fill what is missing, if it is time to. Whether nothing is missing afterwards.

        While no controller can be reached, the last manifest goes on, without its order. Raises ControllerError when
        there is no manifest to be had, StoreError when the disk fails.
        """
        manifest = await self._manifest()
        try:
            await asyncio.to_thread(self._store.disks.forgive)
            await asyncio.to_thread(self._store.generation)
            await asyncio.to_thread(self._remove_doomed, manifest)
            found = difference(manifest, await asyncio.to_thread(holdings, self._store))
            if manifest.plan and manifest.items:
                keys = [track.key for track in found.missing]
                for path in await asyncio.to_thread(staging.sweep, self._store, keys):
                    _log.info("removed from staging", path=str(path))
            mending = await asyncio.to_thread(self._damaged, found)
        except OSError as error:
            raise await asyncio.to_thread(self._disk_error, error) from None
        forced = manifest.force not in (0, self._obeyed)
        unbound, at = self._now or forced, self._clock()
        may_fill = not manifest.paused and (unbound or self._is_open(at))
        progress = Progress(manifest, found)
        if mending.missing and not may_fill and not manifest.paused:
            # What was here and paid for is missed by viewers now; of a damaged file only chunks are fetched.
            await self._fill(manifest, mending, progress, None)
            found = replace(found, missing=tuple(t for t in found.missing if progress.tracks[t.key].state != "done"))
        if found.missing and may_fill:
            await self._fill(manifest, found, progress, None if unbound else self._closes(at))
        else:
            if not found.missing:
                self._obeyed = manifest.force
            state = (manifest.plan, manifest.force, manifest.paused, may_fill, found.missing)
            if state != self._told and await self._report(
                progress, finished=not found.missing, outside_window=not may_fill
            ):
                self._told = state
        return progress.missing == 0

    def _disk_error(self, error: OSError) -> StoreError:
        """The sentence for it. If the disk takes no writes, or gives nothing, the next look does without it."""
        root = self._store.root_of(Path(error.filename or ""))
        if root is not None and self._store.disks.blame(root):
            return StoreError(f"{error.filename} cannot be read: {error.strerror}; the disk is left out for now")
        if root is not None and self._store.disks.suspect(root):
            return StoreError(
                f"{error.filename} cannot be changed: {error.strerror}; the disk is only read from now on"
            )
        return StoreError(f"the store cannot be read at {error.filename}: {error.strerror}; check the disk")

    async def _manifest(self) -> FillManifest:
        """What the controller says, or else what it said last."""
        try:
            manifest = await self._controllers.manifest()
        except ControllerError as error:
            last = await asyncio.to_thread(self._last.read)
            if last is None:
                raise
            if not self._alone:
                _log.warning("no controller can be reached: the last manifest goes on", detail=str(error))
            self._alone = True
            rate = math.inf if last.uplink_bps is None else last.uplink_bps / 8
            self._uplink.limit(rate)
            return last
        self._alone = False
        await asyncio.to_thread(self._last.write, manifest)
        return manifest

    def _remove_doomed(self, manifest: FillManifest) -> None:
        """What no box is to hold goes, unless viewers are at it; then it goes at one of the next looks."""
        doomed = {(each.title, each.version) for each in manifest.doomed}
        for track in holdings(self._store) if doomed else []:
            held = self._store.directory(track.title, track.version)
            if held is None or held.parents[1] not in self._store.writable:
                continue
            if (track.title, track.version) in doomed and not is_served(self._store, track):
                evict(self._store, track)
                _log.info("doomed track removed", title=track.title, version=track.version, track=track.track)

    def _damaged(self, found: Difference) -> Difference:
        """What is missing because it is in quarantine."""
        files = [row for row in staging.staged(self._store) if row.quarantined]
        tracks, versions = {row.key for row in files}, {row.key[:2] for row in files if not row.of_track}
        lost = [track for track in found.missing if track.key in tracks or track.key[:2] in versions]
        return replace(found, missing=tuple(lost))

    async def _fill(self, manifest: FillManifest, found: Difference, progress: Progress, until: float | None) -> None:
        """One run, `until` the window closes; ended early when the controller has another plan or a new order."""
        _log.info("fill begins", plan=manifest.plan, force=manifest.force, missing=len(found.missing))
        fetching = Fetch(
            self._bucket,
            self._limits,
            self._proof,
            self._uplink,
            object_stores=self._object_stores,
            clock=self._steady,
        )
        async with fetching as fetch:
            run = Run(self._store, self._limit, self._controllers, fetch, found, progress, self._pace, self._steady)
            lease = await self._lease()
            filling = asyncio.create_task(run.fill())
            closing = asyncio.create_task(self._closed(until)) if until is not None else None
            tasks = {
                filling,
                *filter(None, [closing]),
                asyncio.create_task(self._share(lease)),
                asyncio.create_task(self._superseded(manifest)),
                asyncio.create_task(self._tell(progress)),
            }
            try:
                ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                task.result()
        finished = filling in ended
        if finished:
            self._obeyed = manifest.force
            left = [key for key, row in progress.tracks.items() if row.state != "done"]
            try:
                await asyncio.to_thread(staging.sweep, self._store, left)
            except OSError as error:
                raise await asyncio.to_thread(self._disk_error, error) from None
        for track in found.missing:
            if progress.tracks[track.key].state == "fetching":
                progress.set(track, "waiting")
        _log.info("fill ends", plan=manifest.plan, finished=finished, missing=progress.missing)
        await self._report(progress, finished=finished, outside_window=closing in ended and not finished)
        self._told = None

    async def _lease(self) -> float:
        """Learn what of the site's line is ours now; in how many seconds to ask again."""
        try:
            lease = await self._controllers.lease()
        except ControllerError as error:
            # Nobody else gets more meanwhile either, so what we had is still ours.
            _log.info("no word of the site's line", detail=str(error))
            return _LEASE_S
        self._uplink.limit(math.inf if lease.rate_bps is None else lease.rate_bps / 8)
        return lease.seconds

    async def _share(self, seconds: float) -> None:
        """Keep to our share of the site's line, which changes as others begin to fill and end."""
        while True:
            await asyncio.sleep(seconds)
            seconds = await self._lease()

    async def _closed(self, until: float) -> None:
        """Return once the window has closed that was to close at `until`, though the clock is set meanwhile."""
        while True:
            now = self._clock()
            if now >= until or not self._is_open(now):
                return
            await asyncio.sleep(min(until - now, self._settings.poll_s, _CLOCK_S))

    async def _superseded(self, manifest: FillManifest) -> None:
        """Return once the controller wants something else than what is being filled, or nothing for now."""
        while True:
            await asyncio.sleep(self._settings.poll_s)
            try:
                newest = await self._controllers.manifest()
            except ControllerError:
                continue  # whoever is away, the sources may be there: go on
            same = (newest.plan, newest.force, newest.items) == (manifest.plan, manifest.force, manifest.items)
            if newest.paused or not same:
                return

    async def _tell(self, progress: Progress) -> None:
        """Report what has changed, again and again."""
        while True:
            if progress.changed:
                report = progress.report(self._clock())
                await self._send(progress, report)
            await asyncio.sleep(self._pace.report_s)

    async def _report(self, progress: Progress, *, finished: bool, outside_window: bool) -> bool:
        """Send a report that matters, more than once if need be; whether it arrived."""
        report = progress.report(self._clock(), finished=finished, outside_window=outside_window)
        for attempt in range(_LAST_REPORT_TRIES):
            if await self._send(progress, report):
                return True
            await asyncio.sleep(self._pace.report_s * 2.0**attempt)
        return False

    async def _send(self, progress: Progress, report: FillReport) -> bool:
        try:
            await self._controllers.report(report)
        except asyncio.CancelledError:
            progress.untold(report)
            raise
        except ControllerError as error:
            progress.untold(report)
            _log.warning("no controller takes our fill report", detail=str(error))
            return False
        return True
