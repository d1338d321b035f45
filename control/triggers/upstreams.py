"""The CDNI side of the API (RFC 8007): upstream CDNs make triggers, look how they go, cancel and delete them."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from control.http import json, parts
from control.operators.audit import ACT
from control.state import UnknownError
from control.triggers import cdni
from control.triggers.cdni import COLLECTIONS, Command
from control.triggers.kept import Triggers
from oca.errors import FormatError
from oca.title.digest import digest

TRIGGERS: web.AppKey[Triggers] = web.AppKey("triggers", Triggers)
_BASE = "/api/v1/cdni/triggers"
# How old an answer may be that a cache gives (RFC 8007 4.2 wants polling to be cheap).
_AGE_S = 2
# Triggers that one upstream CDN may have at a time.
_MOST = 10_000


def routes() -> list[web.RouteDef]:
    """All routes of this module."""
    return [
        web.post(_BASE, make),
        web.get(_BASE, collection),
        web.get(f"{_BASE}/{{trigger}}", show),
        web.delete(f"{_BASE}/{{trigger}}", remove),
    ]


def own_routes() -> list[web.RouteDef]:
    """Those that operators alone use."""
    return [web.get("/api/v1/triggers", everything)]


async def everything(request: web.Request) -> web.Response:
    """For operators: what all upstream CDNs asked for, newest first."""
    return json((await request.app[TRIGGERS].all(None))[::-1])


def _own(request: web.Request) -> str | None:
    """Whose triggers a caller is shown: an upstream CDN's own, operators everybody's."""
    who = request[ACT].who
    account = parts(request).state.operators.get(who)
    return who if account is not None and account.role == "upstream" else None


def _me(request: web.Request) -> str:
    """Our id; HTTPNotFound if CDNI is off."""
    me = parts(request).settings.cdni.id
    if not me:
        raise web.HTTPNotFound(reason="CDNI is off here: set id under [cdni] in control.toml")
    return me


def _url(request: web.Request, rest: str = "") -> str:
    """A URL of ours as the caller knows us."""
    return f"{request.scheme}://{request.host}{_BASE}{rest}"


def _answer(request: web.Request, what: dict[str, Any], kind: str, status: int = 200, **more: str) -> web.Response:
    """An answer that caches may give again when they have asked (RFC 8007 4.2)."""
    data = msgspec.json.encode(what)
    tag = f'"{digest(data)[:16]}"'
    fields = {"Content-Type": kind, "ETag": tag, "Cache-Control": f"private, max-age={_AGE_S}", **more}
    if status == 200 and tag in [each.strip() for each in request.headers.get("If-None-Match", "").split(",")]:
        return web.Response(status=304, headers={"ETag": tag, "Cache-Control": fields["Cache-Control"]})
    return web.Response(body=data, status=status, headers=fields)


async def make(request: web.Request) -> web.Response:
    """Take a trigger, or cancel some (RFC 8007 4.1, 4.3)."""
    me, triggers, own = _me(request), request.app[TRIGGERS], _own(request)
    said = request.headers.get("Content-Type", "").lower().replace(" ", "").replace('"', "")
    if said != cdni.COMMAND.replace(" ", ""):
        raise web.HTTPUnsupportedMediaType(reason=f"a command is sent as Content-Type: {cdni.COMMAND}")
    try:
        command: Command = cdni.parse(await request.read(), me)
    except cdni.LoopError as error:
        raise web.HTTPForbidden(reason=str(error)) from None
    if command.trigger is None:
        await triggers.cancel([_number(request, url) for url in command.cancel or ()], own)
        return web.Response(status=200)
    if len(await triggers.all(own)) >= _MOST:
        raise web.HTTPTooManyRequests(reason=f"there are {_MOST} triggers already: delete those that have ended")
    number = await triggers.create(command.trigger, request[ACT].who)
    row = await triggers.one(number, own)
    return _answer(request, cdni.status(row), cdni.STATUS, 201, Location=_url(request, f"/{number}"))


def _number(request: web.Request, url: str) -> int:
    """The trigger at a URL of ours."""
    base, _, name = url.rpartition("/")
    if not base.endswith(_BASE) or not name.isascii() or not name.isdecimal() or len(name) > 15:
        raise FormatError(f"{url[:200]!r} is no trigger of ours: their URLs begin with {_url(request)}/")
    return int(name)


async def collection(request: web.Request) -> web.Response:
    """All triggers of the caller (RFC 8007 5.1.3)."""
    return await _collection(request, "")


async def _collection(request: web.Request, which: str) -> web.Response:
    me, settings = _me(request), parts(request).settings.cdni
    rows = [
        row
        for row in await request.app[TRIGGERS].all(_own(request))
        if not which or row["status"] in COLLECTIONS[which]
    ]
    found = {
        "triggers": [_url(request, f"/{row['id']}") for row in rows],
        "staleresourcetime": settings.keep_days * 86_400,
        "cdn-id": me,
        "coll-all": _url(request),
        **{f"coll-{name}": _url(request, f"/{name}") for name in COLLECTIONS},
    }
    return _answer(request, found, cdni.COLLECTION)


async def show(request: web.Request) -> web.Response:
    """How a trigger goes (RFC 8007 5.1.2), or one of the collections."""
    name = request.match_info["trigger"]
    if name in COLLECTIONS:
        return await _collection(request, name)
    _me(request)
    row = await request.app[TRIGGERS].one(_named(name), _own(request))
    return _answer(request, cdni.status(row), cdni.STATUS)


async def remove(request: web.Request) -> web.Response:
    """Forget a trigger, and end what it does (RFC 8007 4.4)."""
    _me(request)
    await request.app[TRIGGERS].remove(_named(request.match_info["trigger"]), _own(request))
    return web.Response(status=204)


def _named(name: str) -> int:
    if not name.isascii() or not name.isdecimal() or len(name) > 15:
        raise UnknownError(f"there is no trigger {name[:40]!r}")
    return int(name)
