"""What all that write to the database share: transactions that also append to `changes` and to the audit log."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import CursorResult, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control import schema
from control.database import writing
from control.operators import audit
from control.state import State
from oca.errors import OcaError


class ConflictError(OcaError):
    """A change that contradicts what is there."""


class Writer:
    """Writes to the database in the name of who acts now, or else of `actor`, then brings `state` up to date."""

    def __init__(self, engine: AsyncEngine, state: State, actor: str = "local") -> None:
        self._engine = engine
        self._writing = writing(engine)
        self._state = state
        self._actor = actor

    async def changed(
        self, connection: AsyncConnection, kind: str, subject: str, detail: str, owner: str = "default"
    ) -> None:
        """Tell in the same transaction what was changed: `kind` says what of `State` to load again."""
        actor = audit.actor(self._actor)[:64]
        await connection.execute(
            insert(schema.changes).values(
                at=time.time(), owner=owner, actor=actor, kind=kind, subject=subject, detail=detail
            )
        )
        await audit.record(connection, f"{kind} {subject}: {detail}".replace(" :", ":"))


def key(done: CursorResult[Any]) -> int:
    """The number that the database gave to the row just inserted."""
    if done.inserted_primary_key is None:
        raise ConflictError("the database gave no number to a new row")
    return int(done.inserted_primary_key[0])
