"""The lines of sites, shared by the boxes that fill at the same time. Leases last seconds.

What is leased never exceeds the line: who comes new gets what is free, and its full share once the others have asked
again and got less. One controller keeps leases in memory; several on one PostgreSQL keep them there, so that boxes
of a site may ask different ones.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from sqlalchemy import delete, func, insert, or_, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control import schema
from oca.errors import OcaError

LEASE_S = 2.0
"""For how long a lease is good without a word; boxes ask again that often."""
# A box that asks late keeps its share for so much longer, so that the others do not take it meanwhile.
_GRACE_S = 3.0
# How long the database may take: a box that waits longer has a stale share.
_PATIENCE_S = LEASE_S
# Names leases among PostgreSQL's advisory locks of two numbers; the other one is that of the site.
_LOCK = 0x6F6361


class AwayError(OcaError):
    """The database that leases are kept in does not answer."""


class Lease(NamedTuple):
    """A share of a line that is kept for a box until `until`."""

    until: float
    rate_bps: int


def lease(box: str, given: Mapping[str, Lease], line_bps: int, now: float) -> Lease:
    """What a box gets of its site's line (bit/s) that asks while `given` is leased; the times are of one clock."""
    others = [each.rate_bps for name, each in given.items() if name != box and each.until > now]
    free = max(0, line_bps - sum(others))
    return Lease(now + LEASE_S + _GRACE_S, min(line_bps // (len(others) + 1), free))


class Leases(Protocol):
    """Who may take how much of each site's line."""

    async def ask(self, site: str, box: str, line_bps: int) -> int:
        """The share of `box` for the next LEASE_S seconds, bit/s; 0 if nothing is free yet. Raises AwayError."""


def leases(engine: AsyncEngine) -> Leases:
    """The leases of a controller, where all that serve from its database know of them."""
    # A SQLite file has one controller (control.lock), and would be synchronised to disk for every lease.
    return OwnLeases() if engine.dialect.name == "sqlite" else SharedLeases(engine)


class OwnLeases:
    """Leases that one controller gives, in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[str, dict[str, Lease]] = {}

    async def ask(self, site: str, box: str, line_bps: int) -> int:
        """See Leases."""
        now = self._clock()
        given = {name: each for name, each in self._given.get(site, {}).items() if each.until > now}
        given[box] = lease(box, given, line_bps, now)
        self._given[site] = given
        return given[box].rate_bps


class SharedLeases:
    """Leases that several controllers give, in PostgreSQL and by its clock: theirs may differ."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def ask(self, site: str, box: str, line_bps: int) -> int:
        """See Leases. One site's boxes are answered one after the other, whichever controllers they ask."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await self._ask(site, box, line_bps)
        except (SQLAlchemyError, OSError) as error:
            raise AwayError(f"no word of what others take of the line of {site}: {error}") from None

    async def _ask(self, site: str, box: str, line_bps: int) -> int:
        of = schema.leases.c
        async with self._engine.begin() as connection:
            # A lease that a crash of the database loses is asked for again: no need to wait for the disk.
            await connection.execute(text("SET LOCAL synchronous_commit = off"))
            await connection.execute(select(func.pg_advisory_xact_lock(_LOCK, func.hashtext(site))))
            now = (await connection.execute(select(func.extract("epoch", func.clock_timestamp())))).scalar_one()
            rows = await connection.execute(select(of.appliance, of.until, of.rate_bps).where(of.site == site))
            given = {row.appliance: Lease(row.until, row.rate_bps) for row in rows}
            until, rate = lease(box, given, line_bps, float(now))
            gone = or_(of.appliance == box, of.until <= float(now))
            await connection.execute(delete(schema.leases).where(of.site == site, gone))
            row = {"site": site, "appliance": box, "until": until, "rate_bps": rate}
            await connection.execute(insert(schema.leases).values(row))
        return rate
