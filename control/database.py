"""Opening the controller's database: the engine, what SQLite needs, and its tables at the newest revision."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from time import monotonic
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from control import migrations
from oca.errors import OcaError

# How long a writer waits for the one before it.
BUSY_S = 30.0
_WRITES = "oca_writes"


class DatabaseError(OcaError):
    """A database that cannot be opened, or is of a newer program."""


async def open_database(url: str) -> AsyncEngine:
    """An engine on the database at `url`, migrated; DatabaseError.

    Such as sqlite+aiosqlite:////var/lib/oca/control.db or postgresql+asyncpg://oca@db.example/oca.
    """
    shown = "database"
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        # A server restarts: a connection that it has closed is found before it is used.
        engine = create_async_engine(url, pool_pre_ping=make_url(url).get_backend_name() != "sqlite")
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise DatabaseError(f"database setting {shown!r} cannot be used: {error}") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "do_connect", _open_only)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
    try:
        if engine.dialect.name == "sqlite":
            await _write_ahead(engine.url.database or ":memory:")
        async with writing(engine).begin() as connection:
            await connection.run_sync(migrations.upgrade)
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        await engine.dispose()
        cause = getattr(error, "orig", None) or error
        raise DatabaseError(f"database {shown} cannot be opened: {cause}") from None
    except migrations.NewerError as error:
        await engine.dispose()
        raise DatabaseError(f"database {shown} {error}") from None
    return engine


async def _write_ahead(path: str) -> None:
    """Put the database file into WAL mode, in which it stays: readers and the writer do not block each other.

    A file that cannot be opened is found here: the driver's thread could outlive the event loop over it. Two
    programs that change the mode at once each hold what the other needs, so SQLite refuses one of them at once,
    whatever its busy_timeout says; it tries again here.
    """
    give_up = monotonic() + BUSY_S
    while True:
        connection = sqlite3.connect(path, timeout=0.1)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # The extended codes keep the plain one in their low byte.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() >= give_up:
                raise
        finally:
            connection.close()
        await asyncio.sleep(0.02)


def _open_only(_: object, __: object, args: list[Any], options: dict[str, Any]) -> None:
    """Open the file, but never make it: a database that is away must not become an empty one.

    The arguments are those of the driver's connect; the file itself was made by `_write_ahead`.
    """
    path = str(args[0])
    if path != ":memory:" and not path.startswith("file:"):
        args[0] = f"{Path(path).absolute().as_uri()}?mode=rw"
        options["uri"] = True


def _prepare_sqlite(connection: Any, _: object) -> None:
    """What is committed survives a power cut; keys are checked; a writer waits for the one before it."""
    # The driver would begin transactions by itself, but not before DDL: half a migration could survive a crash.
    connection.isolation_level = None
    cursor = connection.cursor()
    try:
        for pragma in (f"busy_timeout = {BUSY_S * 1000:.0f}", "synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
    except BaseException:
        # The pool never gets to know it, so nobody else would end it and its thread.
        connection.close()
        raise


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes fails at once if another wrote meanwhile; one that says at its
    # beginning that it will write waits for its turn (busy_timeout).
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def writing(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for transactions that write; what they read cannot change before they end."""
    return engine.execution_options(**{_WRITES: True})
