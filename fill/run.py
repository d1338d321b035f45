"""One run of filling: brings missing tracks into the store, the most valuable first, making room where it must."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from fill.controllers import ControllerError, Controllers
from fill.difference import Difference, HeldTrack, WantedTrack, make_room
from fill.holdings import evict, is_served
from fill.progress import Progress
from fill.ranking import guess
from oca.clock import Clock
from oca.errors import FormatError, OcaError, StoreError
from oca.fetch import Fetch, FetchError
from oca.signed import Signed
from oca.store.content import Store, write_durably
from oca.store.landing import Landing, WriteError, write_error
from oca.title import model as title_format
from oca.title.model import TITLE_JSON, Title
from oca.wire import Source

_log = structlog.get_logger()
# Tracks whose sources are asked for at once, where many wait.
_MOST_ASKED = 100
Answer = tuple[Sequence[Source], str]
"""Where a track may be fetched, and why perhaps nowhere."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How patient a run is, in seconds."""

    reask_s: float = 2.0
    """Pause until a track that waits for a source is asked about again."""
    patience_s: float = 30.0
    """How long a track may be without any source before it has failed."""
    report_s: float = 1.0
    """Pause between two reports."""


@dataclass(slots=True)
class _Turn:
    """A track still to be brought. Times are of the run's clock; `asked` is when its sources were first asked."""

    wanted: WantedTrack
    asked: float | None = None
    not_before: float = 0.0
    avoid: set[Path] = field(default_factory=set)
    """Disks that could not take it."""


class Run:
    """Works through the missing tracks of `difference`; `limit` is the bytes that the store may hold."""

    def __init__(
        self,
        store: Store,
        limit: int,
        controllers: Controllers,
        fetch: Fetch,
        difference: Difference,
        progress: Progress,
        pace: Pace,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or Clock()
        self._store = store
        self._limit = limit
        self._controllers = controllers
        self._fetch = fetch
        self._turns = [_Turn(track) for track in difference.missing]
        self._surplus = list(difference.surplus)
        self._progress = progress
        self._pace = pace

    async def fill(self) -> None:
        """Go on until every track is held or has failed. May be cancelled at any time."""
        most = 1
        while self._turns:
            now = self._clock.now()
            # A track that waits for a peer to have it must not hold up those behind it.
            due = [turn for turn in self._turns if turn.not_before <= now][:most]
            if not due:
                await self._clock.sleep(min(turn.not_before for turn in self._turns) - now)
                continue
            # Where one has to wait many do, and none of them is worth a question of its own.
            most = min(2 * most, _MOST_ASKED)
            for turn, answer in zip(due, await self._ask(due), strict=True):
                pause, tried = await self._attempt(turn, answer)
                if pause is None:
                    self._turns.remove(turn)
                else:
                    turn.not_before = self._clock.now() + pause
                if tried:
                    # That took its time: of the others somebody nearer may have what they want by now.
                    most = 1
                    break

    async def _ask(self, turns: Sequence[_Turn]) -> list[Answer]:
        """What sources tracks have now, or may have while no controller tells."""
        try:
            found = await self._controllers.sources([turn.wanted.key for turn in turns])
        except ControllerError as error:
            return [(guess(self._progress.manifest, turn.wanted), str(error)) for turn in turns]
        return [
            (each, "the controller knows no appliance that holds it: has an origin reported it?") for each in found
        ]

    async def _attempt(self, turn: _Turn, answer: Answer) -> tuple[float | None, bool]:
        """Bring a track from what sources it has now; and whether there were any.

        None if that is settled, else seconds until the next try.
        """
        now = self._clock.now()
        turn.asked = now if turn.asked is None else turn.asked
        waited, reask_s = now - turn.asked, self._pace.reask_s
        sources, problem = answer
        usable = [source for source in sources if source.wait_s <= waited]
        later = [source.wait_s - waited for source in sources if source.wait_s > waited]
        patient = later or (not sources and waited < self._pace.patience_s)
        if usable:
            try:
                await self._bring(turn, usable)
                self._progress.set(turn.wanted, "done")
                return None, True
            except FetchError as error:
                problem = str(error)  # a source for which we have not waited long enough may yet have it
            except WriteError as error:
                if await asyncio.to_thread(self._elsewhere, turn, error.path):
                    _log.warning("another disk is tried", **_names(turn.wanted), detail=str(error))
                    return 0.0, True
                patient, problem = False, str(error)
            except OcaError as error:
                patient, problem = False, str(error)
        if patient:
            self._progress.set(turn.wanted, "waiting")
            return min([reask_s, *later]), bool(usable)
        _log.error("track not filled", **_names(turn.wanted), detail=problem)
        self._progress.set(turn.wanted, "failed", problem)
        return None, bool(usable)

    def _elsewhere(self, turn: _Turn, path: Path) -> bool:
        """A write of a track has failed: note which disk is at fault, or too small; whether there is another."""
        root = self._store.root_of(path)
        if root is None or root in turn.avoid:
            return False
        self._store.disks.suspect(root)
        turn.avoid.add(root)
        try:
            self._store.staging(turn.wanted.title, turn.wanted.version, turn.avoid)
        except (StoreError, OSError):
            return False
        return True

    async def _bring(self, turn: _Turn, sources: Sequence[Source]) -> None:
        """Fetch what is lacking of one track and of its version's shared files, then commit it all."""
        title, version, _ = turn.wanted.key
        staging = self._store.roots[0]
        try:
            staging = await asyncio.to_thread(self._store.staging, title, version, turn.avoid)
            await self._bring_to(staging, turn, sources)
        except OSError as error:
            raise write_error(Path(error.filename or staging), error) from None

    async def _bring_to(self, staging: Path, turn: _Turn, sources: Sequence[Source]) -> None:
        wanted, store = turn.wanted, self._store
        key = (wanted.title, wanted.version)
        signed = Signed(sources, lambda: self._again(wanted))
        title = await self._title(wanted, sources, signed, staging)
        track = next((track for track in title.tracks if track.name == wanted.track), None)
        if track is None:
            raise FormatError(f"{wanted.title} {wanted.version} has no track {wanted.track}: the plan is wrong")
        names = [*title.shared_files, *track.files]
        lacking = await asyncio.to_thread(self._lacking, title, wanted.version, names)
        for name in lacking:
            await asyncio.to_thread(store.recover, *key, name, staging)
        if await asyncio.to_thread(self._make_room, title, staging, lacking):
            # Room may have come from this very version: look again at what of it is there.
            return await self._bring(turn, sources)
        self._progress.begin(wanted, sum(title.files[name].bytes for name in lacking))
        for name in lacking:
            await self._fetch.file(
                sources,
                title,
                wanted.version,
                name,
                Landing(staging / name, title.files[name]),
                lambda source, amount: self._progress.add(wanted, source, amount),
                signed,
            )
        await asyncio.to_thread(store.commit, *key, [TITLE_JSON, *lacking], wanted.published, staging)
        _log.info("track filled", **_names(wanted), bytes=title.track_bytes(track))
        return None

    async def _again(self, wanted: WantedTrack) -> Sequence[Source]:
        (found,) = await self._controllers.sources([wanted.key])
        return found

    async def _title(self, wanted: WantedTrack, sources: Sequence[Source], signed: Signed, staging: Path) -> Title:
        """The version's title.json: as held, as staged by an earlier attempt, or fetched and then staged."""
        directory = self._store.directory(wanted.title, wanted.version)
        for place in (directory, staging):
            if place is not None and (place / TITLE_JSON).exists():
                try:
                    title, version = await asyncio.to_thread(title_format.read, place)
                    if (title.id, version) == (wanted.title, wanted.version):
                        return title
                except FormatError as error:
                    _log.warning("fetching title.json again", detail=str(error))
                    root = place.parents[2 if place == staging else 1]
                    if await asyncio.to_thread(self._store.disks.blame, root):
                        raise WriteError(place, f"{error}; check the disk") from None
        data, title = await self._fetch.title(sources, wanted.title, wanted.version, signed)
        await asyncio.to_thread(write_durably, staging / TITLE_JSON, data)
        return title

    def _lacking(self, title: Title, version: str, names: Sequence[str]) -> list[str]:
        """Which of `names` are not in the store at their full size."""
        directory = self._store.directory(title.id, version)
        return [
            name
            for name in names
            if directory is None
            or not (directory / name).is_file()
            or (directory / name).stat().st_size != title.files[name].bytes
        ]

    def _make_room(self, title: Title, staging: Path, lacking: Sequence[str]) -> bool:
        """Remove what must go so that the files `lacking` fit; whether anything went.

        WriteError if their disk cannot take them, and another one might; StoreError if the box cannot.
        """
        root = staging.parents[2]
        here = sum((staging / name).stat().st_size for name in lacking if (staging / name).is_file())
        need = sum(title.files[name].bytes for name in lacking) - here
        free = self._limit - self._store.used_bytes()
        if need <= min(free, self._store.room(root)):
            return False  # and nobody has to look at what is being served
        served = [track for track in self._surplus if is_served(self._store, track)]
        idle = [track for track in self._surplus if track not in served and self._disk(track) in self._store.writable]
        leaving = make_room([track for track in idle if self._disk(track) == root], need, int(self._store.room(root)))
        if leaving is None:
            raise write_error(staging / lacking[0], OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        others = [track for track in idle if track not in leaving]
        more = make_room(others, need, free + sum(track.bytes for track in leaving))
        if more is None:
            rest = f"{sum(track.bytes for track in idle)} could be freed"
            rest += f" ({sum(track.bytes for track in served)} more are being served now)" if served else ""
            raise StoreError(
                f"no room for {need} bytes: {max(0, free)} of {self._limit} are free and {rest}; "
                "raise storage_bytes or let the plan place less here"
            )
        leaving += more
        for track in leaving:
            evict(self._store, track)
            self._surplus.remove(track)
            _log.info("track removed", title=track.title, version=track.version, track=track.track)
        return bool(leaving)

    def _disk(self, track: HeldTrack) -> Path | None:
        directory = self._store.directory(track.title, track.version)
        return directory.parents[1] if directory is not None else None


def _names(wanted: WantedTrack) -> dict[str, str]:
    return {"title": wanted.title, "version": wanted.version, "track": wanted.track}
