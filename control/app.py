"""The controller as one aiohttp application."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control import patience
from control.database import open_database
from control.fills import leases
from control.fills import orders as fills
from control.fills.ledger import Ledger
from control.fleet import boxes, enrolment, heard
from control.fleet.registry import Registry
from control.fleet.view import Fleet
from control.http import MAX_BODY, PARTS, Parts, errors
from control.operators import api as operators
from control.operators import audit, callers
from control.operators.accounts import Uses
from control.operators.audit import Trail
from control.settings import ControlSettings
from control.state import State
from control.steering import coverage, viewing
from control.titles import buckets
from control.titles.catalog import Catalog
from control.titles.origins import Origins
from control.triggers import upstreams
from control.triggers.kept import Triggers
from oca.errors import ConfigError
from oca.http.gate import Gate

_log = structlog.get_logger()
# How often changes that another process made are looked for.
_FOLLOW_S = 1.0
# How often the use of tokens is written down, and old lines of the audit log are removed.
_KEEP_S = 600.0
# How often the controller makes sure that it is awake, and how late it may be without a word.
_AWAKE_S, _LATE_S = 0.25, 1.0


async def application(settings: ControlSettings) -> web.Application:
    """Open the database, load the state, and set up all routes; OcaError if that cannot be."""
    body = b""
    if settings.coverage:
        try:
            body = Path(settings.coverage).read_bytes()
        except OSError as error:
            raise ConfigError(f"cannot read coverage file {settings.coverage}: {error.strerror}") from None
        coverage.parse(body, settings.coverage)
    gate = Gate(settings.tokens) if settings.tokens.keys else None
    authority = enrolment.open_authority(settings)
    origins = Origins.of(settings.origins)
    engine = await open_database(settings.database)
    state = State(engine)
    await state.load()
    try:
        origins.check(state.appliances)
    except ConfigError:
        await engine.dispose()
        raise
    catalog = Catalog(engine, state)
    if body and not state.coverage.zones:
        # Only a first start takes the file: what an operator has set since must outlive a restart.
        await catalog.set_coverage(body, len(coverage.parse(body, settings.coverage).zones))
    app = web.Application(
        middlewares=[audit.recorded, patience.patient, errors, callers.admitted, patience.bodies],
        client_max_size=MAX_BODY,
    )
    trail = app[audit.TRAIL] = Trail(engine, settings.audit)
    uses = callers.prepare(app, settings.rates)
    app[viewing.ORDERS] = {}
    app[patience.HEADS] = patience.Heads()
    registry = Registry(settings.dead_s)
    await heard.resume(engine, registry)
    fleet = Fleet(
        state, registry, settings.live, origins, escalation=settings.escalation, leases=leases.leases(engine)
    )
    app[PARTS] = Parts(settings, state, fleet, catalog, Ledger(engine, state), gate)
    callers.add(app, "operators", operators.routes() + buckets.routes() + fills.routes() + upstreams.own_routes())
    triggers = Triggers(engine, state, app[PARTS].fleet, catalog, settings.cdni)
    app[upstreams.TRIGGERS] = triggers
    callers.add(app, "upstreams", upstreams.routes())
    callers.add(app, "appliances", boxes.routes())
    callers.add(app, "viewers", viewing.routes())
    enrolment.add(app, settings, state, authority)

    async def follow(_: web.Application) -> AsyncIterator[None]:
        ended = asyncio.Event()
        keeping = [
            asyncio.create_task(_keep(ended, engine, trail, uses)),
            asyncio.create_task(heard.keep(ended, engine, registry)),
        ]
        tasks = [asyncio.create_task(state.follow(_FOLLOW_S)), asyncio.create_task(_stay_awake(registry))]
        if settings.origins:
            tasks.append(asyncio.create_task(origins.follow(state)))
        if settings.cdni.id:
            tasks.append(asyncio.create_task(triggers.follow()))
        if gate is not None:
            tasks.append(asyncio.create_task(_watch_keys(gate)))
        yield
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        ended.set()
        await asyncio.gather(*keeping)
        await engine.dispose()

    app.cleanup_ctx.append(follow)
    return app


async def _stay_awake(registry: Registry) -> None:
    """Notice when this process is held up, so that nobody is taken for dead who could not be heard."""
    while True:
        late = registry.awake(_AWAKE_S)
        if late > _LATE_S:
            _log.warning(
                "the controller was held up; boxes that were silent meanwhile are not dead", seconds=round(late, 1)
            )
        await asyncio.sleep(_AWAKE_S)


async def _watch_keys(gate: Gate) -> None:
    """Take up token keys that change on disk."""
    said = ""
    while True:
        await asyncio.sleep(_FOLLOW_S)
        try:
            if await asyncio.to_thread(gate.refresh):
                _log.info("token keys have changed and are in use")
            said = ""
        except ConfigError as error:
            if str(error) == said:
                continue
            said = str(error)
            _log.error("token keys are no good; going on with the old ones", detail=str(error))


async def _keep(ended: asyncio.Event, engine: AsyncEngine, trail: Trail, uses: Uses) -> None:
    """What is done now and then, and once more at the end; a database that is away is asked again next time.

    It is told to end, not cancelled, which could leave a connection half open.
    """
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), _KEEP_S)
        try:
            removed = await trail.forget(time.time())
            if removed:
                _log.info("old lines of the audit log removed", lines=removed)
            await uses.write(engine)
        except (SQLAlchemyError, OSError) as error:
            _log.error("the database is away; old lines of the audit log stay", detail=str(error))
