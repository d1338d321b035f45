"""Alembic's migrations of the controller's tables: one script per revision, in `versions/`.

A script that was released is never edited: a change of `control.schema` comes with a new one.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from oca.errors import OcaError

_HERE = Path(__file__).parent
# Names the migration among PostgreSQL's advisory locks: any number that nobody else takes.
_LOCK = 0x6F6361


class NewerError(OcaError):
    """A database whose tables are of a newer program."""


def _config(connection: Connection) -> Config:
    # What scripts print goes to stderr: stdout belongs to the command that opens the database.
    config = Config(stdout=sys.stderr, attributes={"connection": connection})
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    # No other file is to be taken for a place of scripts, whatever the separators in our own path.
    config.set_main_option("path_separator", "newline")
    return config


def scripts() -> ScriptDirectory:
    """All revisions that this program knows."""
    return ScriptDirectory(_HERE)


def head() -> str:
    """The newest of them."""
    return str(scripts().get_current_head())


def upgrade(connection: Connection) -> None:
    """Bring the tables to the newest revision, in the transaction that is open; NewerError if they are beyond it."""
    if connection.dialect.name == "postgresql":
        # SQLite's writers wait for each other anyway: on PostgreSQL two programs could both find it new.
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    known = {script.revision for script in scripts().walk_revisions()}
    have = set(MigrationContext.configure(connection).get_current_heads())
    if have - known:
        raise NewerError(
            f"is of revision {', '.join(sorted(have - known))}, this program knows {head()}: upgrade oca"
        )
    if have != {head()}:
        command.upgrade(_config(connection), "head")
