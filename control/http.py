"""What all of the controller's HTTP handlers share: their parts, errors as JSON sentences, bodies within limits."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import structlog
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from sqlalchemy.exc import SQLAlchemyError

from control.fills.ledger import Ledger
from control.fleet.view import Fleet
from control.operators.audit import SENTENCE
from control.settings import ControlSettings
from control.state import State, UnknownError
from control.titles.catalog import Catalog
from control.writer import ConflictError
from oca.errors import FormatError, OcaError
from oca.http.gate import FIELD, Gate

_log = structlog.get_logger()
MAX_BODY = 64 << 20
T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NO_STORE = {"Cache-Control": "no-store"}
# Header fields of a refusal that its answer keeps.
_KEPT = ("Allow", "Retry-After", "WWW-Authenticate")
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": f"Range, CMCD-Object, CMCD-Request, CMCD-Session, CMCD-Status, {FIELD}",
    "Access-Control-Max-Age": "86400",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What handlers work with."""

    settings: ControlSettings
    state: State
    fleet: Fleet
    catalog: Catalog
    ledger: Ledger
    gate: Gate | None = None
    """Who may play; None: everybody."""


PARTS = web.AppKey("parts", Parts)


def parts(request: web.Request) -> Parts:
    """The controller's parts."""
    return request.app[PARTS]


def json(what: object, status: int = 200) -> web.Response:
    """A JSON answer that no cache keeps."""
    return web.Response(
        body=msgspec.json.encode(what), status=status, content_type="application/json", headers=NO_STORE
    )


async def body(request: web.Request, kind: type[T], what: str) -> T:
    """The JSON body of a request, checked strictly; FormatError naming `what`."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{what} is not what is expected: {error}") from None


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure is one JSON sentence with the right status, and carries no path of ours."""
    more: dict[str, str] = {}
    try:
        if (request.content_length or 0) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY)
        return await handler(request)
    except UnknownError as error:
        status, sentence = 404, str(error)
    except ConflictError as error:
        status, sentence = 409, str(error)
    except OcaError as error:
        status, sentence = 400, str(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        status, sentence = error.status, f"{request.method} {request.path[:200]}: {error.reason}"
        if isinstance(error, web.HTTPRequestEntityTooLarge):
            sentence = f"the body is longer than the {MAX_BODY} bytes allowed"
        more = {name: error.headers[name] for name in _KEPT if name in error.headers}
    except (web.RequestPayloadError, PayloadEncodingError):
        status, sentence = 400, f"{request.method} {request.path[:200]}: the body is not coded as its head says"
    except (SQLAlchemyError, OSError) as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            # Who asked went away amid the body: that tells nothing of the database, and nobody reads the answer.
            status, sentence = 400, "the connection ended before the body did"
        else:
            _log.error("the database failed a request", path=request.path, detail=str(error))
            status, sentence = 503, "the controller's database is away: try again"
    if status == 503:
        more["Retry-After"] = "5"
    request[SENTENCE] = sentence
    return web.Response(
        body=msgspec.json.encode({"error": sentence}),
        status=status,
        content_type="application/json",
        headers={**NO_STORE, **CORS, **more},
    )


def client_address(peer: str, forwarded: Sequence[str], trusted: Sequence[str]) -> str:
    """The viewer's address: the peer, or what trusted proxies say stands behind them (RFC 7239 in the old spelling).

    `forwarded` are the values of X-Forwarded-For; read from the right, the first address that is not a trusted
    proxy is the viewer. From a peer that is not trusted the header means nothing.
    """
    if peer not in trusted:
        return peer
    for hop in reversed([part.strip() for value in forwarded for part in value.split(",")]):
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            return peer
        if hop not in trusted:
            return hop
    return peer


def viewer(request: web.Request) -> str:
    """Address of the viewer who asks."""
    return client_address(
        request.remote or "",
        request.headers.getall("X-Forwarded-For", []),
        parts(request).settings.trusted_proxies,
    )


def shown(choices: Sequence[Any]) -> list[dict[str, Any]]:
    """Choices of steering as an API answer shows them."""
    return [
        {
            "appliance": choice.candidate.appliance,
            "site": choice.candidate.site,
            "role": choice.candidate.role,
            "url": choice.candidate.url,
            "rank": choice.rank,
            "proximity": choice.proximity,
            "distance_km": None if choice.distance_km is None else round(choice.distance_km, 1),
            "held": choice.candidate.held,
            "wanted": choice.candidate.wanted,
            "alive": choice.candidate.alive,
            "draining": choice.candidate.draining,
            "load": round(choice.candidate.load, 4),
            "reason": choice.reason,
        }
        for choice in choices
    ]
