"""The audit log: who did what, from where, and how it ended.

A change and its row are one transaction: `record` is called inside it. What changed nothing, or was refused, gets its
row when the answer is decided. What is refused is recorded at a bounded rate, so that a flood does not fill the disk.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import structlog
from aiohttp import web
from msgspec import Meta
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control import schema
from control.database import writing
from control.operators.rates import client_key
from oca.http.rates import Buckets

_log = structlog.get_logger()
_WHAT_CHARS = 500
_PATH_CHARS = 256
# Refusals recorded: of one client ten at once, then one in five minutes; of all a hundred, then two a minute.
_CLIENT_RATE, _CLIENT_BURST, _CLIENTS = 1 / 300, 10, 10_000
_ALL_RATE, _ALL_BURST = 1 / 30, 100
REQUEST_ID = "OCA-Request"


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[audit]: the log of what operators and appliances did."""

    days: Annotated[int, Meta(ge=1, le=36_500, description="days that a line of the audit log is kept")] = 400


class Row(msgspec.Struct):
    """A line of the audit log. `status` is that of the answer, 0 for what was done on the controller's machine."""

    id: int
    at: float
    owner: str
    kind: str
    who: str
    address: str
    method: str
    path: str
    what: str
    status: int
    request: str


class Page(msgspec.Struct):
    """Lines, newest first; `next` is what to ask for as `before` to get older ones, None at the end."""

    rows: list[Row]
    next: int | None


@dataclass(slots=True)
class Act:
    """One request as the log tells of it. It is known who asks once that is checked."""

    kind: str = "anybody"
    who: str = ""
    address: str = ""
    method: str = ""
    path: str = ""
    request: str = field(default_factory=lambda: secrets.token_hex(8))
    refusals: bool = False
    """Whether it gets a line if it is refused: what viewers ask for gets none."""
    always: bool = False
    """Whether it gets a line even if it changes nothing: an operator's act does."""
    row: int = 0
    changes: list[str] = field(default_factory=list)
    more: int = 0

    def what(self, otherwise: str = "nothing changed") -> str:
        """What it changed, in a sentence."""
        said = "; ".join(self.changes) or otherwise
        tail = f" … and {self.more} more" if self.more else ""
        return said[: _WHAT_CHARS - len(tail)] + tail

    def changed(self, sentence: str) -> None:
        """Note one more change; a great many are only counted."""
        if sum(map(len, self.changes)) < _WHAT_CHARS:
            self.changes.append(sentence)
        else:
            self.more += 1


_current: ContextVar[Act | None] = ContextVar("act", default=None)


def actor(otherwise: str) -> str:
    """Who acts now."""
    act = _current.get()
    return act.who if act is not None and act.who else otherwise


def _plain(text: str, length: int) -> str:
    """Text that does nothing but show in a terminal, cut to a length: paths and ids come from anybody."""
    return "".join(char if char.isprintable() else "?" for char in text[:length])


def _values(act: Act, what: str, status: int) -> dict[str, Any]:
    return {
        "at": time.time(),
        "kind": act.kind,
        "who": _plain(act.who, 64),
        "address": _plain(act.address, 64),
        "method": _plain(act.method, 16),
        "path": _plain(act.path, _PATH_CHARS),
        "what": _plain(what, _WHAT_CHARS),
        "status": status,
        "request": act.request,
    }


async def record(connection: AsyncConnection, sentence: str) -> None:
    """Log a change in the transaction that makes it. What no request asked for was done on this machine."""
    act = _current.get() or Act(kind="local", who="local")
    act.changed(sentence)
    if not act.row:
        # All that appliances change is answered so; other lines are corrected when the answer is decided.
        status = 204 if act.kind == "appliance" else 200 if act.method else 0
        done = await connection.execute(insert(schema.audit).values(**_values(act, act.what(), status)))
        act.row = int(done.inserted_primary_key[0]) if done.inserted_primary_key else 0


class Trail:
    """Reads the log, and writes what is not a part of a change."""

    def __init__(self, engine: AsyncEngine, settings: AuditSettings) -> None:
        self._engine = engine
        self._writing = writing(engine)
        self._keep_s = settings.days * 86_400.0
        self._clients = Buckets(_CLIENT_RATE, _CLIENT_BURST, _CLIENTS)
        self._all = Buckets(_ALL_RATE, _ALL_BURST, 1)
        self._silent = 0

    async def finish(self, act: Act, status: int, sentence: str) -> None:
        """The answer is decided: log what has no line yet, and correct a line that turned out otherwise.

        A database that is away is told in the journal, with all that the line would have said.
        """
        refused = act.refusals and status in (401, 403, 429)
        if not (act.row or refused or act.always):
            return
        silent = 0
        if refused and not act.row:
            now = time.monotonic()
            if self._clients.take(client_key(act.address), now) or self._all.take("", now):
                self._silent += 1
                return
            silent, self._silent = self._silent, 0
            if silent:
                sentence = f"{sentence} ({silent} refusals before it are not listed)"
        if act.row and act.kind == "appliance" and status == 204 and len(act.changes) + act.more == 1:
            return
        values = _values(act, sentence if status >= 400 else act.what(sentence or "nothing changed"), status)
        try:
            async with self._writing.begin() as connection:
                fixed = False
                if act.row:
                    # If its transaction was taken back it is not there, and its number may be that of another line.
                    mine = (schema.audit.c.id == act.row, schema.audit.c.request == act.request)
                    kept = values
                    if status >= 400:
                        kept = _values(act, f"{act.what()}; then: {sentence}", status)
                    done = await connection.execute(update(schema.audit).where(*mine).values(**kept))
                    fixed = done.rowcount > 0
                if not fixed:
                    await connection.execute(insert(schema.audit).values(**values))
        except (SQLAlchemyError, OSError) as error:
            self._silent += silent
            _log.error("a line of the audit log could not be written", detail=str(error), **values)

    async def read(self, since: float, who: str, before: int, limit: int) -> Page:
        """At most `limit` lines since then (UTC seconds), of `who` unless empty, before a number unless 0."""
        rows = schema.audit.c
        query = select(schema.audit).where(rows.at >= since).order_by(rows.id.desc()).limit(limit + 1)
        if who:
            query = query.where(rows.who == who)
        if before:
            query = query.where(rows.id < before)
        async with self._engine.connect() as connection:
            found = [Row(**row) for row in (await connection.execute(query)).mappings()]
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def forget(self, now: float) -> int:
        """Remove the lines that are too old at `now` (UTC seconds); how many they were."""
        async with self._writing.begin() as connection:
            done = await connection.execute(delete(schema.audit).where(schema.audit.c.at < now - self._keep_s))
            return int(done.rowcount)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ACT: web.RequestKey[Act] = web.RequestKey("act", Act)
SENTENCE: web.RequestKey[str] = web.RequestKey("sentence", str)
TRAIL: web.AppKey[Trail] = web.AppKey("trail", Trail)


@web.middleware
async def recorded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give what is asked of the API its number, and what it did its line before the answer leaves."""
    act = Act(method=request.method, path=request.rel_url.raw_path)
    request[ACT] = act
    mark = _current.set(act)
    status = 500
    try:
        response = await handler(request)
        status = response.status
        if act.refusals:
            response.headers[REQUEST_ID] = act.request
        return response
    except web.HTTPException as error:
        status = error.status
        raise
    finally:
        _current.reset(mark)
        await request.app[TRAIL].finish(act, status, request.get(SENTENCE, ""))
