"""Everything that an answer to a viewer needs, in memory: no answer may depend on the database being up.

Loaded once, then kept current by reading the table `changes` on: each change names what to load again. One
process or twenty do this alike.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control import schema
from control.fleet import revocation
from control.operators import accounts
from control.operators.accounts import Account
from control.steering import coverage as zones
from control.steering.coverage import Coverage
from oca.errors import OcaError
from oca.title import model as title
from oca.title import segments
from oca.title.model import Title
from oca.title.segments import SegmentIndex
from oca.trust.revocations import Revocations
from oca.wire import HeldTracks

_log = structlog.get_logger()
# Titles whose segment indexes are kept decoded; a two-hour title has some 20,000 rows.
_INDEXED = 500
# What can change, in an order in which it can be loaded.
_KINDS = ("title", "appliance", "inventory", "coverage", "plan", "order", "site", "operator", "certificate")


PINNED = 1e15
"""Value of a pinned track, bytes a day: before all that plans put anywhere."""


class UnknownError(OcaError):
    """Something that was asked for by an id which the catalog does not have."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a title: what its title.json says, when it was published, and the bits of its tracks."""

    title: Title
    version: str
    published: int
    track_ids: Mapping[str, int]
    mask: int

    def mask_of(self, names: Iterable[str]) -> int:
        """A bit for each of the named tracks that this version has."""
        return sum(1 << self.track_ids[name] for name in self.track_ids.keys() & set(names))

    @property
    def bytes(self) -> int:
        """All that a box stores of it."""
        return sum(file.bytes for file in self.title.files.values())

    def bytes_of(self, tracks: Container[int]) -> int:
        """What a box stores that holds those of its tracks which are in `tracks`; 0 if none is."""
        media = [t for t in self.title.tracks if self.track_ids[t.name] in tracks]
        shared = sum(self.title.files[name].bytes for name in self.title.shared_files)
        return shared + sum(self.title.track_bytes(track) for track in media) if media else 0

    def names_of(self, mask: int) -> list[str]:
        """Names of those of its tracks whose bits are in `mask`, sorted."""
        return sorted(name for name, bit in self.track_ids.items() if mask >> bit & 1)


@dataclass(slots=True)
class CatalogTitle:
    """A title in the catalog, its versions by id, and the one that viewers get."""

    id: str
    owner: str
    name: str
    active: str
    versions: dict[str, Version]


@dataclass(frozen=True, slots=True)
class Appliance:
    """A registered box. Capacity in bit/s and storage in bytes, 0 meaning what the box itself reports."""

    id: str
    owner: str
    site: str
    role: str
    url: str
    capacity_bps: int
    storage_bytes: int
    draining: bool


@dataclass(frozen=True, slots=True)
class Held:
    """An inventory: generation of the store, a bit per track id, and what is of versions not in the catalog."""

    generation: str
    mask: int
    unknown: tuple[HeldTracks, ...] = ()


_NOTHING = Held("", 0)


@dataclass(slots=True)
class State:
    """The snapshot. Everything but `indexes` is complete at any time."""

    engine: AsyncEngine
    titles: dict[str, CatalogTitle] = field(default_factory=dict)
    appliances: dict[str, Appliance] = field(default_factory=dict)
    inventories: dict[str, Held] = field(default_factory=dict)
    """By appliance: what it holds."""
    coverage: Coverage = field(default_factory=Coverage.empty)
    plan: int = 0
    wanted: dict[str, dict[int, float]] = field(default_factory=dict)
    """By appliance: the value of every track id that the plan in force puts there."""
    pins: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    """By appliance: title and version of what it is to hold whatever the plan says. It is in `wanted`, too."""
    orders: dict[str, int] = field(default_factory=dict)
    """By appliance: number of the newest order to fill now that it has not obeyed yet."""
    paused: frozenset[str] = frozenset()
    """Appliances that are to fetch nothing for now."""
    lines: dict[str, int] = field(default_factory=dict)
    """By site: what its boxes may fetch together from outside, bit/s."""
    doomed: frozenset[tuple[str, str]] = frozenset()
    """Title and version of what was removed from the catalog."""
    operators: dict[str, Account] = field(default_factory=dict)
    """By name: who may act, and the digest of their token."""
    revoked: Revocations = field(default_factory=Revocations)
    """Certificates and boxes that are trusted no longer."""
    seq: int = 0
    placements: int = 0
    """Counts how often `titles`, `wanted` and `pins` were loaded: as long as it stays, so do they."""
    _indexes: OrderedDict[tuple[str, str], dict[str, SegmentIndex]] = field(default_factory=OrderedDict)
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(self) -> None:
        """Read everything."""
        async with self.engine.connect() as connection:
            self.seq = (await connection.execute(select(func.max(schema.changes.c.seq)))).scalar() or 0
            for kind in _KINDS:
                await self._reload(connection, kind, None)

    async def catch_up(self) -> None:
        """Apply the changes that were made since the last call, by us or by another process."""
        async with self._busy, self.engine.connect() as connection:
            columns = (schema.changes.c.seq, schema.changes.c.kind, schema.changes.c.subject)
            query = select(*columns).where(schema.changes.c.seq > self.seq).order_by(schema.changes.c.seq)
            rows = (await connection.execute(query)).all()
            for kind, subject in dict.fromkeys((row.kind, row.subject) for row in rows):
                await self._reload(connection, kind, subject)
            if rows:
                self.seq = rows[-1].seq

    async def follow(self, seconds: float) -> None:
        """Catch up every `seconds` until cancelled; a database that is away is logged, and memory goes on."""
        reached = True
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.catch_up()
                reached = True
            except (SQLAlchemyError, OSError) as error:
                if reached:
                    _log.error("the database is away; steering goes on from memory", detail=str(error))
                reached = False

    async def _reload(self, connection: AsyncConnection, kind: str, subject: str | None) -> None:
        match kind:
            case "title":
                await self._load_titles(connection, subject)
            case "appliance":
                rows = await connection.execute(select(schema.appliances))
                names = Appliance.__dataclass_fields__
                self.appliances = {row.id: Appliance(**{n: getattr(row, n) for n in names}) for row in rows}
            case "inventory":
                query = select(schema.inventory)
                if subject is not None:
                    query = query.where(schema.inventory.c.appliance == subject)
                for row in await connection.execute(query):
                    unknown = msgspec.json.decode(row.unknown, type=list[HeldTracks])
                    mask = int.from_bytes(row.tracks, "little")
                    self.inventories[row.appliance] = Held(row.generation, mask, tuple(unknown))
            case "coverage":
                query = select(schema.coverage.c.body).order_by(schema.coverage.c.id.desc()).limit(1)
                body = (await connection.execute(query)).scalar()
                if body is not None:
                    self.coverage = await asyncio.to_thread(zones.parse, body, "coverage in the database")
            case "plan":
                await self._load_plan(connection)
            case "order":
                query = select(schema.orders.c.appliance, func.max(schema.orders.c.id))
                query = query.where(~schema.orders.c.done).group_by(schema.orders.c.appliance)
                self.orders = {row[0]: row[1] for row in await connection.execute(query)}
                paused = await connection.execute(select(schema.paused.c.appliance))
                self.paused = frozenset(paused.scalars())
            case "site":
                lines = await connection.execute(select(schema.sites.c.id, schema.sites.c.fill_bps))
                self.lines = {row[0]: row[1] for row in lines}
            case "operator":
                self.operators = await accounts.load(connection)
            case "certificate":
                self.revoked = await revocation.load(connection)
        if kind in ("title", "plan"):
            self.placements += 1

    async def _load_titles(self, connection: AsyncConnection, only: str | None) -> None:
        query, version_query = select(schema.titles), select(schema.versions)
        track_query = select(schema.tracks.c.id, schema.tracks.c.title, schema.tracks.c.version, schema.tracks.c.name)
        if only is not None:
            query = query.where(schema.titles.c.id == only)
            version_query = version_query.where(schema.versions.c.title == only)
            track_query = track_query.where(schema.tracks.c.title == only)
        ids: dict[tuple[str, str], dict[str, int]] = {}
        for row in await connection.execute(track_query):
            ids.setdefault((row.title, row.version), {})[row.name] = row.id
        versions: dict[str, dict[str, Version]] = {}
        for row in await connection.execute(version_query):
            of = ids[row.title, row.version]
            mask = sum(1 << number for number in of.values())
            read = title.decode(row.title_json, f"title {row.title} in the database")
            versions.setdefault(row.title, {})[row.version] = Version(read, row.version, row.published, of, mask)
        if only is not None:
            self.titles.pop(only, None)
        for row in await connection.execute(query):
            self.titles[row.id] = CatalogTitle(row.id, row.owner, row.name, row.active, versions[row.id])
        doomed = await connection.execute(select(schema.doomed.c.title, schema.doomed.c.version))
        self.doomed = frozenset((row[0], row[1]) for row in doomed)

    async def _load_plan(self, connection: AsyncConnection) -> None:
        self.plan = (await connection.execute(select(func.max(schema.plans.c.id)))).scalar() or 0
        rows = schema.plan_rows.c
        wanted: dict[str, dict[int, float]] = {}
        query = select(rows.appliance, rows.track, rows.value).where(rows.plan == self.plan)
        for box, track, value in await connection.execute(query):
            wanted.setdefault(box, {})[track] = value
        pins: dict[str, set[tuple[str, str]]] = {}
        pinned = schema.pins.c
        query = select(pinned.appliance, pinned.title, pinned.version).where(pinned.until > time.time())
        for box, title_id, name in await connection.execute(query):
            known = self.titles.get(title_id)
            version = known.versions.get(name) if known else None
            if version is not None:
                pins.setdefault(box, set()).add((title_id, name))
                for track in version.track_ids.values():
                    wanted.setdefault(box, {})[track] = PINNED
        self.wanted, self.pins = wanted, pins

    def title(self, title_id: str) -> CatalogTitle:
        """The title of this id; UnknownError if the catalog has none."""
        found = self.titles.get(title_id)
        if found is None:
            raise UnknownError(f"there is no title {title_id[:64]!r}: `ocactl title list` shows those there are")
        return found

    def version(self, title_id: str, version: str | None = None) -> Version:
        """A version of a title, the active one if not said; UnknownError if there is none."""
        of = self.title(title_id)
        found = of.versions.get(version or of.active)
        if found is None:
            raise UnknownError(f"title {title_id} has no version {(version or '')[:64]!r}")
        return found

    def appliance(self, box: str) -> Appliance:
        """The appliance of this id; UnknownError if none is registered."""
        found = self.appliances.get(box)
        if found is None:
            raise UnknownError(f"there is no appliance {box[:64]!r}: register it with `ocactl appliance add`")
        return found

    def holds(self, box: str) -> int:
        """A bit per track that the appliance holds."""
        return self.held(box).mask

    def held(self, box: str) -> Held:
        """What the appliance told us that it holds."""
        return self.inventories.get(box, _NOTHING)

    async def indexes(self, version: Version) -> dict[str, SegmentIndex]:
        """The segment indexes of a version, from memory if it was asked for lately."""
        key = (version.title.id, version.version)
        found = self._indexes.get(key)
        if found is None:
            rows = schema.tracks.c
            query = select(rows.name, rows.idx).where(rows.title == key[0], rows.version == key[1])
            async with self.engine.connect() as connection:
                found = {
                    name: segments.decode(idx, f"{name}.idx of {key[0]}")
                    for name, idx in await connection.execute(query)
                }
            self._indexes[key] = found
            if len(self._indexes) > _INDEXED:
                self._indexes.popitem(last=False)
        else:
            self._indexes.move_to_end(key)
        return found
