"""Everything that is written: each function is one transaction that also appends to `changes`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import msgspec
from sqlalchemy import delete, insert, select, update

from control import schema
from control.demand import HOUR_S, Observation
from control.placement.plan import Plan
from control.state import Appliance, Held, Version
from control.writer import ConflictError, Writer, key
from oca import wire
from oca.errors import FormatError
from oca.title import model as title
from oca.title import segments
from oca.title.digest import digest, version_of
from oca.wire import HeldTracks

_ROWS_AT_ONCE = 2000
_PLAN_COLUMNS = ("rows", "objective", "bound", "gap", "seconds")


class PlanTrack(msgspec.Struct):
    """A track that a plan puts on an appliance, and why."""

    appliance: str
    title: str
    version: str
    track: str
    bytes: int
    value: float
    reason: str


class StoredPlan(msgspec.Struct):
    """A plan as it was stored; objective and bound in bytes a day."""

    id: int
    at: float
    objective: float
    bound: float
    seconds: float
    notes: msgspec.Raw
    rows: list[PlanTrack]


class Change(msgspec.Struct):
    """A line of the audit log."""

    seq: int
    at: float
    owner: str
    actor: str
    kind: str
    subject: str
    detail: str


class Catalog(Writer):
    """Titles, appliances, inventories, coverage, demand and plans."""

    async def add_title(
        self, title_json: bytes, indexes: Mapping[str, bytes], published: int, mine: str = "default"
    ) -> tuple[str, str]:
        """Register a version and make it the active one; returns title and version. Doing it twice is harmless.

        A title belongs to the owner who registered its first version, `mine`; nobody else can add one.

        FormatError if title.json or an index is corrupt or does not belong; nothing is stored then.
        """
        read, version = title.decode(title_json), version_of(title_json)
        for track in read.tracks:
            name = track.files[1]
            data = indexes.get(track.name)
            if data is None or digest(data) != read.files[name].digest:
                raise FormatError(f"{name} of title {read.id} is missing or is not the one that title.json lists")
            if segments.decode(data, name).track_bytes > read.files[track.files[0]].bytes:
                raise FormatError(f"{name} of title {read.id} describes more than {track.files[0]} has")
        async with self._writing.begin() as connection:
            owned = select(schema.titles.c.owner).where(schema.titles.c.id == read.id)
            owner = (await connection.execute(owned)).scalar()
            if owner not in (None, mine):
                raise ConflictError(f"title {read.id} belongs to owner {owner}, not to {mine}")
            versions = schema.versions.c
            same = select(versions.version).where(versions.title == read.id, versions.version == version)
            if owner is None:
                values = {"id": read.id, "owner": mine, "name": read.name, "active": version}
                await connection.execute(insert(schema.titles).values(added_at=time.time(), **values))
            if (await connection.execute(same)).first() is None:
                await connection.execute(
                    insert(schema.versions).values(
                        title=read.id, version=version, published=published, title_json=title_json
                    )
                )
                rows = [
                    {"title": read.id, "version": version, "name": track.name, "idx": indexes[track.name]}
                    for track in read.tracks
                ]
                await connection.execute(insert(schema.tracks), rows)
                doomed = schema.doomed.c
                again = (doomed.title == read.id, doomed.version == version)
                await connection.execute(delete(schema.doomed).where(*again))
            if owner is not None:
                await connection.execute(
                    update(schema.titles).where(schema.titles.c.id == read.id).values(active=version, name=read.name)
                )
            await self.changed(connection, "title", read.id, f"version {version} added and active", mine)
        await self._state.catch_up()
        await self._recognise(self._state.version(read.id, version))
        return read.id, version

    async def remove_title(self, title_id: str, versions: Sequence[str]) -> None:
        """Take versions out of the catalog and have every box but origins remove them; with the last the title goes.

        ConflictError if the active version would go while others stay.
        """
        of = self._state.title(title_id)
        if of.active in versions and set(of.versions) - set(versions):
            raise ConflictError(f"viewers get version {of.active} of {title_id}: activate another one first")
        known = [self._state.version(title_id, version) for version in versions]
        whole = len(known) == len(of.versions)
        tracks, rows = schema.tracks.c, schema.plan_rows.c
        async with self._writing.begin() as connection:
            for each in known:
                ids = list(each.track_ids.values())
                await connection.execute(delete(schema.plan_rows).where(rows.track.in_(ids)))
                await connection.execute(delete(schema.tracks).where(tracks.id.in_(ids)))
                for table in (schema.fill_tracks, schema.versions, schema.doomed, schema.pins):
                    same = (table.c.title == title_id, table.c.version == each.version)
                    await connection.execute(delete(table).where(*same))
                values = {"title": title_id, "version": each.version, "owner": of.owner, "at": time.time()}
                await connection.execute(insert(schema.doomed).values(**values))
            if whole:
                await connection.execute(delete(schema.titles).where(schema.titles.c.id == title_id))
            words = "removed" if whole else f"version {' '.join(versions)} removed"
            await self.changed(connection, "title", title_id, words, of.owner)
            await self.changed(connection, "plan", str(self._state.plan), f"without what was removed of {title_id}")
        await self._state.catch_up()
        for box, held in list(self._state.inventories.items()):
            gone = [
                HeldTracks(
                    title_id, each.version, sorted(n for n, bit in each.track_ids.items() if held.mask >> bit & 1)
                )
                for each in known
                if held.mask & each.mask
            ]
            if gone:
                mask = held.mask & ~sum(each.mask for each in known)
                await self._store_inventory(box, Held(held.generation, mask, (*held.unknown, *gone)))

    async def activate(self, title_id: str, version: str) -> None:
        """Make another version of a title the one that viewers get."""
        known = self._state.version(title_id, version)
        async with self._writing.begin() as connection:
            await connection.execute(
                update(schema.titles).where(schema.titles.c.id == title_id).values(active=known.version)
            )
            await self.changed(connection, "title", title_id, f"version {version} active")
        await self._state.catch_up()

    async def put_appliance(self, box: Appliance) -> None:
        """Register an appliance, or change what is registered of it."""
        values = {name: getattr(box, name) for name in Appliance.__dataclass_fields__ if name != "id"}
        async with self._writing.begin() as connection:
            same = select(schema.appliances.c.id).where(schema.appliances.c.id == box.id)
            known = (await connection.execute(same)).first() is not None
            if known:
                await connection.execute(
                    update(schema.appliances).where(schema.appliances.c.id == box.id).values(**values)
                )
            else:
                await connection.execute(insert(schema.appliances).values(id=box.id, added_at=time.time(), **values))
            words = "drained" if box.draining else "registered" if not known else "changed"
            await self.changed(connection, "appliance", box.id, f"{words}: site {box.site}, {box.role}, {box.url}")
        await self._state.catch_up()

    async def put_inventory(self, told: wire.Inventory) -> None:
        """Replace what an appliance holds."""
        mask, unknown = 0, []
        for row in told.held:
            version = self._registered(row)
            if version is None:
                unknown.append(row)
            else:
                mask |= version.mask_of(row.tracks)
        await self._store_inventory(told.appliance, Held(told.generation, mask, tuple(unknown)))
        if any(map(self._registered, unknown)):
            # Registered while we wrote.
            await self.put_inventory(told)

    def _registered(self, row: wire.HeldTracks) -> Version | None:
        known = self._state.titles.get(row.title)
        return known.versions.get(row.version) if known else None

    async def _recognise(self, version: Version) -> None:
        """A version was registered: appliances may have told of it before, an origin surely has."""
        for box, held in list(self._state.inventories.items()):
            mine = [r for r in held.unknown if (r.title, r.version) == (version.title.id, version.version)]
            if mine:
                rest = tuple(row for row in held.unknown if row not in mine)
                mask = held.mask | version.mask_of(mine[0].tracks)
                await self._store_inventory(box, Held(held.generation, mask, rest))

    async def _store_inventory(self, box: str, held: Held) -> None:
        if self._state.inventories.get(box) == held:
            return
        values = {
            "generation": held.generation,
            "tracks": held.mask.to_bytes((held.mask.bit_length() + 7) // 8, "little"),
            "unknown": msgspec.json.encode(held.unknown),
            "at": time.time(),
        }
        async with self._writing.begin() as connection:
            table = schema.inventory
            await connection.execute(delete(table).where(table.c.appliance == box))
            await connection.execute(insert(table).values(appliance=box, **values))
            await self.changed(connection, "inventory", box, f"{held.mask.bit_count()} tracks")
        await self._state.catch_up()

    async def set_coverage(self, body: bytes, zones: int) -> None:
        """Put another coverage in force; `body` has been parsed and is good."""
        async with self._writing.begin() as connection:
            await connection.execute(insert(schema.coverage).values(body=body, at=time.time()))
            await self.changed(connection, "coverage", "", f"{zones} zones")
        await self._state.catch_up()

    async def import_demand(self, observations: Sequence[Observation], where: str) -> None:
        """Store observations; each replaces those of its region and title in the hours that it is of."""
        table = schema.demand
        rows = [{"hour": o.hour, "region": o.region, "title": o.title, "views": o.views} for o in observations]
        async with self._writing.begin() as connection:
            first = min(o.hour - (o.hours - 1) * HOUR_S for o in observations)
            keys = {(o.hour, o.region, o.title) for o in observations}
            long = {(o.region, o.title): range(o.hour - (o.hours - 1) * HOUR_S, o.hour) for o in observations}
            query = select(table.c.hour, table.c.region, table.c.title).where(
                table.c.hour.between(first, max(o.hour for o in observations))
            )
            for hour, region, of in (await connection.execute(query)).all():
                if (hour, region, of) in keys or hour in long.get((region, of), ()):
                    await connection.execute(
                        delete(table).where(table.c.hour == hour, table.c.region == region, table.c.title == of)
                    )
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                await connection.execute(insert(table), rows[first : first + _ROWS_AT_ONCE])
            await self.changed(connection, "demand", "", f"{len(rows)} observations from {where[:200]}")
        await self._state.catch_up()

    async def observations(self, since: int) -> list[Observation]:
        """Demand observed from `since` on (UTC seconds)."""
        async with self._engine.connect() as connection:
            query = select(schema.demand).where(schema.demand.c.hour >= since)
            return [Observation(r.hour, r.region, r.title, r.views) for r in await connection.execute(query)]

    async def store_plan(self, plan: Plan) -> int:
        """Store a plan, which puts it in force; returns its number."""
        # Whatever else the solver says of its plan, such as titles passed over and regions left out.
        notes = {name: getattr(plan, name) for name in Plan.__dataclass_fields__ if name not in _PLAN_COLUMNS}
        async with self._writing.begin() as connection:
            done = await connection.execute(
                insert(schema.plans).values(
                    at=time.time(),
                    objective=plan.objective,
                    bound=plan.bound,
                    seconds=plan.seconds,
                    notes=msgspec.json.encode(notes),
                )
            )
            number = key(done)
            rows = [
                {
                    "plan": number,
                    "appliance": r.appliance,
                    "track": r.track,
                    "bytes": r.bytes,
                    "value": r.value,
                    "reason": r.reason,
                }
                for r in plan.rows
            ]
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                await connection.execute(insert(schema.plan_rows), rows[first : first + _ROWS_AT_ONCE])
            await self.changed(connection, "plan", str(number), f"{len(rows)} tracks on appliances")
        await self._state.catch_up()
        return number

    async def plan(self, number: int) -> StoredPlan | None:
        """A plan with its rows and reasons."""
        rows, tracks = schema.plan_rows.c, schema.tracks.c
        query = (
            select(rows.appliance, tracks.title, tracks.version, tracks.name, rows.bytes, rows.value, rows.reason)
            .join_from(schema.plan_rows, schema.tracks)
            .where(rows.plan == number)
            .order_by(rows.appliance, rows.value.desc(), tracks.title, tracks.id)
        )
        async with self._engine.connect() as connection:
            plan = (await connection.execute(select(schema.plans).where(schema.plans.c.id == number))).first()
            if plan is None:
                return None
            found = [PlanTrack(*row) for row in await connection.execute(query)]
        return StoredPlan(plan.id, plan.at, plan.objective, plan.bound, plan.seconds, msgspec.Raw(plan.notes), found)

    async def plans(self) -> list[StoredPlan]:
        """All plans, newest first, without their rows."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(schema.plans).order_by(schema.plans.c.id.desc()))
            return [StoredPlan(r.id, r.at, r.objective, r.bound, r.seconds, msgspec.Raw(r.notes), []) for r in rows]

    async def changes(self, limit: int) -> list[Change]:
        """The newest changes, newest first."""
        table = schema.changes
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(table).order_by(table.c.seq.desc()).limit(limit))
            return [Change(r.seq, r.at, r.owner, r.actor, r.kind, r.subject, r.detail) for r in rows]
