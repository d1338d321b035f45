"""Run by Alembic for every command: `control.migrations` gives the connection, in whose transaction all is done."""

from __future__ import annotations

from alembic import context

from control.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
