"""The API by which boxes get, renew and lose their certificates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from aiohttp import web

from control.fleet.authority import Authority, Issued
from control.fleet.listener import Listener, reached_at
from control.fleet.peers import proved
from control.fleet.roll import RefusedError, Roll
from control.http import NO_STORE, json, parts
from control.operators import callers
from control.operators.audit import ACT
from control.operators.callers import Audience
from control.settings import ControlSettings
from control.state import State
from oca import wire
from oca.errors import ConfigError, OcaError
from oca.trust.wire_enrolment import Authorities, Certified, CodeMade, Enrolment, Renewal, RevocationOrder, Revoked

_log = structlog.get_logger()
_LOOK_S = 1.0
_BASE = "/api/v1/appliances/{appliance}"


@dataclass(frozen=True, slots=True)
class Desk:
    """What the handlers work with. Without `[tls]` there is no authority and no listener."""

    roll: Roll
    authority: Authority | None
    listener: Listener | None
    urls: tuple[str, ...]


DESK: web.AppKey[Desk] = web.AppKey("enrolment", Desk)


def open_authority(settings: ControlSettings) -> tuple[Authority, Listener] | None:
    """The fleet's authority and the TLS listener, made if they are missing; None without `[tls]`. ConfigError."""
    if not settings.tls.listen:
        return None
    state = Path(settings.tls.state)
    authority = Authority(state)
    urls = reached_at(settings.tls, settings.public_url)
    return authority, Listener(state, authority, urls, time.time())


def add(
    app: web.Application, settings: ControlSettings, state: State, opened: tuple[Authority, Listener] | None
) -> None:
    """Add all routes of this module to an application."""
    authority, listener = opened or (None, None)
    urls = reached_at(settings.tls, settings.public_url) if opened else ()
    app[DESK] = Desk(Roll(state), authority, listener, urls)
    for audience, found in routes().items():
        callers.add(app, audience, found)
    if listener is not None:
        app.cleanup_ctx.append(_keep)


def routes() -> dict[Audience, list[web.RouteDef]]:
    """All routes, by whom they are for."""
    return {
        "everybody": [
            web.post("/api/v1/enrol", enrol),
            web.post("/api/v1/renew", renew),
            web.get("/api/v1/authorities", authorities),
        ],
        "operators": [web.post(f"{_BASE}/code", make_code), web.post(f"{_BASE}/revoke", revoke)],
    }


def _answer(message: wire.Message, status: int = 200) -> web.Response:
    body = wire.encode(message)
    return web.Response(body=body, status=status, content_type="application/json", headers=NO_STORE)


def _authority(request: web.Request) -> Authority:
    found = request.app[DESK].authority
    if found is None:
        raise OcaError(
            "this controller has no certificate authority: name an address for [tls] listen in control.toml"
        )
    return found


def _certified(request: web.Request, issued: Issued, authority: Authority) -> web.Response:
    urls = request.app[DESK].urls
    return _answer(
        Certified(appliance=issued.peer.id, certificate=issued.pem, authorities=authority.bundle, controllers=urls)
    )


async def enrol(request: web.Request) -> web.Response:
    """A certificate against a one-time code, over TLS only: in clear somebody between could put in another key."""
    authority = _authority(request)
    if request.transport is None or request.transport.get_extra_info("ssl_object") is None:
        raise OcaError("enrolment takes TLS: ask at the https:// address that `ocactl appliance code` shows")
    asked = wire.decode(await request.read(), Enrolment, "request to enrol")
    act = request[ACT]
    act.kind, act.who = "appliance", asked.appliance
    try:
        issued = await request.app[DESK].roll.enrol(asked.appliance, asked.code, asked.csr, authority, time.time())
    except RefusedError as error:
        raise web.HTTPForbidden(reason=str(error)) from None
    return _certified(request, issued, authority)


async def renew(request: web.Request) -> web.Response:
    """Another certificate for the box that this connection's certificate is of."""
    authority = _authority(request)
    peer = proved(request)
    if peer is None:
        raise web.HTTPUnauthorized(
            reason="renewal takes the certificate that is to be renewed: a box without one enrols with a code",
            headers={"WWW-Authenticate": "Certificate"},
        )
    act = request[ACT]
    act.kind, act.who = "appliance", peer.id
    asked = wire.decode(await request.read(), Renewal, f"request of {peer.id} to renew its certificate")
    try:
        issued = await request.app[DESK].roll.renew(peer, asked.csr, authority, time.time())
    except RefusedError as error:
        raise web.HTTPForbidden(reason=str(error)) from None
    return _certified(request, issued, authority)


async def authorities(request: web.Request) -> web.Response:
    """Whom the fleet trusts: public, and worth nothing to who does not know a fingerprint from elsewhere."""
    desk = request.app[DESK]
    if desk.authority is None:
        return _answer(Authorities())
    found = desk.authority
    return _answer(Authorities(authorities=found.bundle, fingerprint=found.fingerprint, controllers=desk.urls))


async def make_code(request: web.Request) -> web.Response:
    """A new one-time code for a registered appliance."""
    authority, box = _authority(request), parts(request).state.appliance(request.match_info["appliance"])
    desk = request.app[DESK]
    code, expires = await desk.roll.make_code(box.id, time.time())
    message = CodeMade(
        appliance=box.id, code=code, expires=expires, fingerprint=authority.fingerprint, controllers=desk.urls
    )
    return _answer(message, 201)


async def revoke(request: web.Request) -> web.Response:
    """Trust no certificate of an appliance any more; at once here, within a second on other controllers."""
    _authority(request)
    box = parts(request).state.appliance(request.match_info["appliance"])
    order = RevocationOrder()
    if request.body_exists:
        order = wire.decode(await request.read(), RevocationOrder, f"order to revoke {box.id}")
    standing = await request.app[DESK].roll.revoke(box.id, time.time(), dry_run=order.dry_run)
    return json(
        Revoked(appliance=box.id, certificates=standing.certificates, code=standing.code, dry_run=order.dry_run)
    )


async def _keep(app: web.Application) -> AsyncIterator[None]:
    """Renew the listener's certificate, and take up another authority, while the application runs."""
    listener = app[DESK].listener
    assert listener is not None
    ended = asyncio.Event()
    task = asyncio.create_task(_watch(listener, ended))
    yield
    ended.set()
    await task


async def _watch(listener: Listener, ended: asyncio.Event) -> None:
    said = ""
    while not ended.is_set():
        try:
            if await asyncio.to_thread(listener.refresh, time.time()):
                _log.info("certificates have changed and are in use")
            said = ""
        except ConfigError as error:
            if str(error) != said:
                _log.error("certificates are no good; going on with the old ones", detail=str(error))
            said = str(error)
        try:
            await asyncio.wait_for(ended.wait(), _LOOK_S)
        except TimeoutError:
            continue
