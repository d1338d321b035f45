"""Triggers of upstream CDNs (RFC 8007) as they are kept, and carried out by removals and by pins on appliances."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import Meta
from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control import schema
from control.fleet.view import Fleet
from control.state import State, UnknownError, Version
from control.titles.catalog import Catalog
from control.triggers import cdni
from control.triggers.cdni import ENDED, Problem, Trigger
from control.writer import ConflictError, Writer, key

_log = structlog.get_logger()
_FOLLOW_S = 5.0
_DAY_S = 86_400
Key = tuple[str, str]
"""Title and version."""


class CdniSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cdni]: triggers of upstream CDNs."""

    id: Annotated[
        str,
        Meta(
            pattern=r"^(AS[0-9]{1,10}:[0-9]{1,10})?$",
            description="this CDN's id among CDNs, such as AS64496:0; '' for no CDNI",
        ),
    ] = ""
    keep_days: Annotated[int, Meta(ge=1, le=3650, description="days that the status of a trigger is kept")] = 7
    pin_days: Annotated[
        int, Meta(ge=1, le=3650, description="days for which what was prepositioned stays, whatever plans say")
    ] = 7


@dataclass(frozen=True, slots=True)
class Room:
    """An appliance of a site, the bytes free on it, and whether it holds or will hold the version in question."""

    appliance: str
    site: str
    free_bytes: int
    has: bool


def choose(rooms: Iterable[Room], size: int, copies: int) -> tuple[list[str], list[str]]:
    """On which appliances a version of `size` bytes is to be, `copies` in each site; and sites without room. Pure.

    Who has it comes first, then who has most room. A site of fewer appliances is to have it on all of them.
    """
    sites: defaultdict[str, list[Room]] = defaultdict(list)
    for room in rooms:
        sites[room.site].append(room)
    chosen, full = [], []
    for site, of_site in sorted(sites.items()):
        fit = [room for room in of_site if room.has or room.free_bytes >= size]
        fit.sort(key=lambda room: (not room.has, -room.free_bytes, room.appliance))
        needed = min(copies, len(of_site))
        chosen += [room.appliance for room in fit[:needed]]
        full += [site] if len(fit) < needed else []
    return chosen, full


class Triggers(Writer):
    """What upstream CDNs asked for. `advance` carries on with it, and may be called at any time."""

    def __init__(
        self, engine: AsyncEngine, state: State, fleet: Fleet, catalog: Catalog, settings: CdniSettings
    ) -> None:
        super().__init__(engine, state, "cdni")
        self._fleet = fleet
        self._catalog = catalog
        self._settings = settings
        self._advancing = asyncio.Lock()

    async def create(self, trigger: Trigger, account: str) -> int:
        """Take a trigger; its number. One that cannot be carried out whole has failed, and nothing was done."""
        known = {title.id: (title.active, set(title.versions)) for title in self._state.titles.values()}
        meant = cdni.meant(trigger, known)
        problems, pins = list(meant.problems), list[tuple[str, Key]]()
        if trigger.type == "preposition" and not problems:
            pins, problems = self._pinned(meant.versions)
        now = time.time()
        values = {
            "account": account,
            "trigger": msgspec.json.encode(trigger),
            "versions": msgspec.json.encode(meant.versions),
            "status": "failed" if problems else "pending",
            "ctime": now,
            "mtime": now,
            "etime": now if problems else None,
            "errors": msgspec.json.encode(problems),
        }
        async with self._writing.begin() as connection:
            number = key(await connection.execute(insert(schema.triggers).values(**values)))
            until = now + self._settings.pin_days * _DAY_S
            for box, (title, version) in pins if not problems else ():
                row = {"trigger": number, "appliance": box, "title": title, "version": version, "until": until}
                await connection.execute(insert(schema.pins).values(**row))
                words = f"{title} {version} pinned on {box} by trigger {number}"
                await self.changed(connection, "plan", str(self._state.plan), words)
            words = f"{trigger.type} of {len(meant.versions)} versions, {values['status']}"
            await self.changed(connection, "trigger", str(number), words)
        await self._state.catch_up()
        await self.advance()
        return number

    def _pinned(self, versions: Sequence[Key]) -> tuple[list[tuple[str, Key]], list[Problem]]:
        """Where versions are to be, which the fleet then fills; and what is in the way of that."""
        pins, problems, taken = list[tuple[str, Key]](), list[Problem](), defaultdict[str, int](int)
        edges = [box for box in self._state.appliances.values() if box.role == "edge" and not box.draining]
        if not edges:
            return [], [Problem("ereject", "there is no appliance that takes viewers")]
        for title, name in versions:
            version = self._state.version(title, name)
            size = version.bytes
            rooms = []
            for box in edges:
                coming = sum(1 << number for number in self._state.wanted.get(box.id, {}))
                has = not version.mask & ~(self._state.holds(box.id) | coming)
                free = self._fleet.storage_bytes(box) - self._fleet.wanted_bytes(box.id) - taken[box.id]
                rooms.append(Room(box.id, box.site, free, has))
            chosen, full = choose(rooms, size, self._fleet.live.boxes)
            for box_id in chosen:
                taken[box_id] += 0 if any(room.appliance == box_id and room.has for room in rooms) else size
                pins.append((box_id, (title, name)))
            if full:
                words = f"{title}: no appliance of {', '.join(full)} has room for {size} bytes"
                problems.append(Problem("ereject", words))
        return pins, problems

    async def advance(self) -> None:
        """Carry on with every trigger that has not ended, as far as it goes now; forget what is old."""
        async with self._advancing:
            now = time.time()
            for row in await self._rows(schema.triggers.c.status.not_in(ENDED)):
                versions = msgspec.json.decode(row.versions, type=list[Key])
                kind = msgspec.json.decode(row.trigger, type=Trigger).type
                problem, status = None, row.status
                if kind == "preposition":
                    status, problem = await self._prepositioned(row.id)
                else:
                    versions, problem = await self._removed(kind, row.status, versions)
                    gone = not any(self._holders(version) for version in versions)
                    status = "failed" if problem else "complete" if gone else "active"
                if status != row.status:
                    await self._set(row.id, status, now, versions, [problem] if problem else [])
            await self._forget(now)

    async def follow(self) -> None:
        """Advance every now and then, until cancelled; a database that is away is asked again next time."""
        while True:
            await asyncio.sleep(_FOLLOW_S)
            try:
                await self.advance()
            except (SQLAlchemyError, OSError) as error:
                _log.error("the database is away; triggers wait", detail=str(error))

    async def _prepositioned(self, number: int) -> tuple[str, Problem | None]:
        """How far a preposition is."""
        async with self._engine.connect() as connection:
            pins = schema.pins.c
            rows = (await connection.execute(select(schema.pins).where(pins.trigger == number))).all()
        done, begun = True, False
        for row in rows:
            try:
                mask = self._state.version(row.title, row.version).mask
            except UnknownError:
                return "failed", Problem("econtent", f"{row.title} {row.version} was removed from the catalog")
            held = self._state.holds(row.appliance) & mask
            done, begun = done and held == mask, begun or bool(held)
        if not rows:
            return "failed", Problem("econtent", "what was to come has been removed from the catalog")
        return "complete" if done else "active" if begun else "pending", None

    async def _removed(self, kind: str, status: str, versions: list[Key]) -> tuple[list[Key], Problem | None]:
        """Take versions out of the catalog; those that appliances are to remove, and what is in the way of it."""
        if kind == "invalidate" and status == "pending":
            # A version never changes: what an origin still has is what it was, and what none has is withdrawn.
            versions = [version for version in versions if not self._holders(version, origins=True)]
        titles: defaultdict[str, list[str]] = defaultdict(list)
        for title, version in versions:
            if version in (of.versions if (of := self._state.titles.get(title)) else ()):
                titles[title].append(version)
        for title, names in titles.items():
            try:
                await self._catalog.remove_title(title, names)
            except ConflictError as error:
                return versions, Problem("ereject", str(error))
            except UnknownError:
                continue  # another controller was quicker
        return versions, None

    def _holders(self, version: Key, *, origins: bool = False) -> list[str]:
        """Who holds something of a version, in the catalog or not: origins, or all others."""
        title = self._state.titles.get(version[0])
        known: Version | None = title.versions.get(version[1]) if title else None
        return (self._fleet.origins.holds(version) if origins else []) + [
            box.id
            for box in self._state.appliances.values()
            if (box.role == "origin") is origins
            and (
                (known is not None and self._state.holds(box.id) & known.mask)
                or any((row.title, row.version) == version for row in self._state.held(box.id).unknown)
            )
        ]

    async def cancel(self, numbers: Collection[int], account: str | None) -> None:
        """Stop what can be stopped: fills. What is being removed goes on. UnknownError before anything is done."""
        rows = {number: await self.one(number, account) for number in numbers}
        for number, row in rows.items():
            if row["status"] not in ENDED and row["trigger"]["type"] == "preposition":
                problem = Problem("ecanceled", "cancelled by whoever asked for it")
                await self._set(number, "cancelled", time.time(), None, [problem])

    async def remove(self, number: int, account: str | None) -> None:
        """Forget a trigger, which ends it as `cancel` does (RFC 8007 4.4)."""
        await self.one(number, account)
        async with self._writing.begin() as connection:
            await self._delete(connection, [number])
        await self._state.catch_up()

    async def all(self, account: str | None) -> list[dict[str, Any]]:
        """All triggers, or those of an account, oldest first."""
        return [_shown(row) for row in await self._rows(*_of(account))]

    async def one(self, number: int, account: str | None) -> dict[str, Any]:
        """One trigger; UnknownError if there is none, or it is another's."""
        rows = await self._rows(schema.triggers.c.id == number, *_of(account))
        if not rows:
            raise UnknownError(f"there is no trigger {number}")
        return _shown(rows[0])

    async def _rows(self, *conditions: Any) -> Sequence[Row[Any]]:
        async with self._engine.connect() as connection:
            query = select(schema.triggers).where(*conditions).order_by(schema.triggers.c.id)
            return (await connection.execute(query)).all()

    async def _set(
        self, number: int, status: str, now: float, versions: list[Key] | None, problems: list[Problem]
    ) -> None:
        values: dict[str, Any] = {"status": status, "mtime": now, "errors": msgspec.json.encode(problems)}
        if status in ENDED:
            values["etime"] = now
        if versions is not None:
            values["versions"] = msgspec.json.encode(versions)
        async with self._writing.begin() as connection:
            same = schema.triggers.c.id == number
            await connection.execute(update(schema.triggers).where(same).values(**values))
            await self.changed(connection, "trigger", str(number), status)
            if status in ("failed", "cancelled"):
                await self._unpin(connection, schema.pins.c.trigger == number)
        await self._state.catch_up()

    async def _forget(self, now: float) -> None:
        """Remove triggers that ended long ago, and pins whose time is over."""
        stale = now - self._settings.keep_days * _DAY_S
        of = schema.triggers.c
        old = [row.id for row in await self._rows(of.status.in_(ENDED), of.mtime < stale)]
        async with self._engine.connect() as connection:
            over = (await connection.execute(select(schema.pins.c.trigger).where(schema.pins.c.until <= now))).first()
            held = set((await connection.execute(select(schema.pins.c.trigger))).scalars())
        # While it pins something a trigger is there to be cancelled.
        old = [number for number in old if number not in held]
        if old or over:
            async with self._writing.begin() as connection:
                await self._unpin(connection, schema.pins.c.until <= now)
                await self._delete(connection, old)
            await self._state.catch_up()

    async def _delete(self, connection: AsyncConnection, numbers: list[int]) -> None:
        for number in numbers:
            await self._unpin(connection, schema.pins.c.trigger == number)
            await connection.execute(delete(schema.triggers).where(schema.triggers.c.id == number))
            await self.changed(connection, "trigger", str(number), "removed")

    async def _unpin(self, connection: AsyncConnection, which: Any) -> None:
        done = await connection.execute(delete(schema.pins).where(which))
        if done.rowcount:
            await self.changed(connection, "plan", str(self._state.plan), f"{done.rowcount} pins removed")


def _of(account: str | None) -> tuple[Any, ...]:
    return () if account is None else (schema.triggers.c.account == account,)


def _shown(row: Row[Any]) -> dict[str, Any]:
    """A stored trigger with its JSON read."""
    found = dict(row._mapping)
    return {
        **found,
        **{name: msgspec.json.decode(found[name]) for name in ("trigger", "versions", "errors")},
    }
