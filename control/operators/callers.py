"""Callers: who a request comes from, and whether they may do what it asks.

Every route belongs to one audience. One that nobody thought of belongs to operators, so forgetting is safe.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from typing import Literal, NoReturn

from aiohttp import web
from aiohttp.web_urldispatcher import AbstractRoute, SystemRoute
from sqlalchemy.exc import SQLAlchemyError

from control.fleet.peers import caller_of
from control.http import parts, viewer
from control.operators import accounts, credential
from control.operators.accounts import Account, Uses
from control.operators.audit import ACT, Handler
from control.operators.rates import Kind, Rates, RateSettings
from oca.http.rates import Buckets, retry_after

Audience = Literal["viewers", "appliances", "operators", "upstreams", "everybody"]
"""viewers: anybody, at the rate of viewers. everybody: anybody, at the rate of the API (enrolment). upstreams: other
CDNs, and operators. All but the first two prove who they are."""
AUDIENCES: web.AppKey[dict[AbstractRoute, Audience]] = web.AppKey("audiences", dict)
"""Whom every route was added for."""
RATES: web.AppKey[Rates] = web.AppKey("rates", Rates)
USES: web.AppKey[Uses] = web.AppKey("uses", Uses)
LOOKS: web.AppKey[Buckets] = web.AppKey("looks", Buckets)
"""How often an unknown token may make the database be looked at."""
LATE: web.RequestKey[float] = web.RequestKey("late", float)
"""Seconds that a request for steering is too early; it is answered all the same."""
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_KINDS: dict[Audience, Kind] = {"viewers": "viewer", "appliances": "appliance"}
_STEERING = "/steer/{"
_UNLIMITED = "/healthz"
_LOOKS_PER_S, _LOOKS_AT_ONCE = 2.0, 5


def prepare(app: web.Application, rates: RateSettings) -> Uses:
    """Give an application what callers are told apart with, before the first route is added."""
    app[AUDIENCES] = {}
    app[RATES] = Rates(rates)
    app[LOOKS] = Buckets(_LOOKS_PER_S, _LOOKS_AT_ONCE, 1)
    uses = app[USES] = Uses()
    return uses


def add(app: web.Application, audience: Audience, routes: Iterable[web.RouteDef]) -> None:
    """Add routes to an application, for an audience."""
    before = set(app.router.routes())
    app.add_routes(routes)
    # A route for GET brings one for HEAD along, which `add_routes` does not tell of.
    app[AUDIENCES].update(dict.fromkeys(set(app.router.routes()) - before, audience))


def appliance(request: web.Request) -> str:
    """Id of the appliance that asks; HTTPForbidden or HTTPUnauthorized if it may not ask for what it asks.

    Its certificate proves who it is. Without one it is believed, unless the settings require one.
    """
    said = request.match_info.get("appliance", "")
    proved = caller_of(request)
    if proved is None and parts(request).settings.tls.required:
        raise web.HTTPUnauthorized(
            reason="appliances prove who they are with a certificate here: enrol this one with `oca enrol`, and have "
            "it talk to the address for TLS",
            headers={"WWW-Authenticate": "Certificate"},
        )
    if proved is not None and proved != said:
        raise web.HTTPForbidden(reason=f"appliance {proved} may not speak for appliance {said[:64]}")
    return said


def presented(request: web.Request) -> str | None:
    """The bearer token (RFC 6750 2.1) of a request, None if it has none, "" if what it has is none."""
    fields = request.headers.getall("Authorization", [])
    if not fields:
        return None
    scheme, _, token = fields[0].partition(" ")
    return token.strip() if len(fields) == 1 and scheme.lower() == "bearer" else ""


def _unauthorized(sentence: str, challenge: str = "Bearer") -> NoReturn:
    raise web.HTTPUnauthorized(reason=sentence, headers={"WWW-Authenticate": challenge})


async def _account(request: web.Request, now: float) -> Account | None:
    """Whose token the request carries, None if it carries none; HTTPUnauthorized if it is not good."""
    token = presented(request)
    if token is None:
        return None
    state = parts(request).state
    found = accounts.find(state.operators.values(), token)
    if found is None and credential.is_token(token) and not request.app[LOOKS].take("", time.monotonic()):
        # It may have been made a moment ago.
        with contextlib.suppress(SQLAlchemyError, OSError):
            await state.catch_up()
        found = accounts.find(state.operators.values(), token)
    if found is None:
        _unauthorized(
            "this token is not known: `oca-control operator list` on the controller's machine shows who has one",
            'Bearer error="invalid_token"',
        )
    if found.expired(now):
        _unauthorized(
            f"the token of {found.name} has expired: remove the operator and add it again for a new one",
            'Bearer error="invalid_token"',
        )
    return found


def too_often(late: float, sentence: str) -> NoReturn:
    """429 with the time to wait."""
    raise web.HTTPTooManyRequests(reason=sentence, headers={"Retry-After": retry_after(late)})


async def _admit(request: web.Request, whose: Audience) -> None:
    """Let an operator or an appliance pass, and note who it is; HTTPException with a sentence if they may not."""
    act, settings, now = request[ACT], parts(request).settings, time.time()
    try:
        account = await _account(request, now)
    except web.HTTPUnauthorized:
        # A controller that is open asks for no token, so a wrong one is worth as much as none.
        if not settings.api.open:
            raise
        account = None
    if account is not None:
        act.kind, act.who, act.always = "operator", account.name, request.method not in _READING
        late = request.app[RATES].token(account.name, time.monotonic())
        if late:
            too_often(late, f"operator {account.name} asks too often")
        request.app[USES].note(account, now)
        if account.role == "upstream" and whose != "upstreams":
            raise web.HTTPForbidden(
                reason=f"{account.name} is an upstream CDN, which may only use /api/v1/cdni",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
            )
        if account.role == "read" and (whose == "appliances" or request.method not in _READING):
            raise web.HTTPForbidden(
                reason=f"operator {account.name} may only read: this takes a token with the role act",
                headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
            )
    elif whose == "appliances":
        act.kind = "appliance"
        act.who = appliance(request)
    elif settings.api.open:
        act.who, act.always = "anybody", request.method not in _READING
    else:
        _unauthorized(
            "this takes a token: `oca-control operator add` on the controller's machine makes one, "
            "OCACTL_TOKEN or ~/.config/oca/token tells it to ocactl"
        )


@web.middleware
async def admitted(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Nobody gets further who asks too often or may not ask."""
    route = request.match_info.route
    if isinstance(route, SystemRoute):
        return await handler(request)
    whose = request.app[AUDIENCES].get(route, "operators")
    act = request[ACT]
    act.address, act.refusals = viewer(request), whose != "viewers"
    where = route.resource.canonical if route.resource else ""
    if request.method != "OPTIONS" and where != _UNLIMITED:
        late = request.app[RATES].client(_KINDS.get(whose, "api"), act.address, time.monotonic())
        if late and _STEERING in where:
            # hls.js stops asking for good after 429, though it reads Retry-After; dash.js after a first refusal.
            request[LATE] = late
        elif late:
            too_often(late, "too many requests from this address")
    if whose in ("appliances", "operators", "upstreams"):
        await _admit(request, whose)
    return await handler(request)
