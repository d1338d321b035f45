"""When boxes were last heard, written down in batches: a restarted controller knows at once who was alive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from sqlalchemy import bindparam, delete, func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control import schema
from control.database import writing
from control.fleet.registry import Registry

_log = structlog.get_logger()
WRITE_S = 10.0
"""How often it is written: at most so much of what was heard is lost by a crash, and of the time that we listened."""
# Names this among PostgreSQL's advisory locks.
_LOCK = 0x6F6362


async def resume(engine: AsyncEngine, registry: Registry) -> None:
    """Tell a new registry what the one before it had heard."""
    async with engine.connect() as connection:
        until = (await connection.execute(select(schema.listening.c.until))).scalar()
        rows = (await connection.execute(select(schema.heartbeats))).all()
    if until is not None:
        registry.resume({row.appliance: until - row.at for row in rows})


async def write(engine: AsyncEngine, registry: Registry, now: float) -> None:
    """Write who was heard since the last time, and that we have listened until `now` (UTC seconds)."""
    heard = registry.news()
    rows = [{"appliance": box, "at": now - silence} for box, silence in heard.items()]
    try:
        async with writing(engine).begin() as connection:
            if connection.dialect.name == "postgresql":
                # SQLite's writers wait for each other anyway: here two controllers could both put the same row.
                await connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
            await connection.execute(delete(schema.listening))
            await connection.execute(insert(schema.listening).values(id=1, until=now))
            if rows:
                of = schema.heartbeats
                gone = delete(of).where(of.c.appliance == bindparam("box"))
                await connection.execute(gone, [{"box": row["appliance"]} for row in rows])
                await connection.execute(insert(of), rows)
    except BaseException:
        registry.untold(heard)
        raise


async def keep(
    ended: asyncio.Event, engine: AsyncEngine, registry: Registry, clock: Callable[[], float] = time.time
) -> None:
    """Write again and again, and once more at the end; a database that is away is asked again next time."""
    reached = True
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), WRITE_S)
        try:
            await write(engine, registry, clock())
            reached = True
        except (SQLAlchemyError, OSError) as error:
            if reached:
                _log.error("the database is away; who was heard is written later", detail=str(error))
            reached = False
