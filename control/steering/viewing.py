"""The viewer side: manifests made for one viewer, steering documents, redirects, the player page."""

from __future__ import annotations

import html
import math
import re
import time
from json import dumps as encode
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from control.http import CORS, NO_STORE, Handler, json, parts, viewer
from control.operators.callers import LATE
from control.state import UnknownError, Version
from control.steering.ranking import Choice, steering_document
from oca import players
from oca.http.gate import FIELD, PREFIX, find
from oca.http.token import Asked
from oca.ids import is_id
from oca.title import dash, hls
from oca.title.location import Location
from oca.title.model import TITLE_JSON

_WEB = Path(__file__).parents[1] / "web"
_ASSETS = players.SCRIPTS
# What may stand below a version: a file, or a slice of a track.
_REST = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(?:/(?:init\.mp4|[1-9][0-9]{0,5}\.m4s))?")
_MPD, _HLS = "application/dash+xml", "application/vnd.apple.mpegurl"
# By file name in a version: who writes it, its media type, and whether it is of byte ranges.
_MANIFESTS = {
    "manifest.mpd": (dash.mpd, _MPD, False),
    "ondemand.mpd": (dash.mpd, _MPD, True),
    "master.m3u8": (hls.multivariant, _HLS, False),
    "master.ranges.m3u8": (hls.multivariant, _HLS, True),
}
_NAMES = "|".join(map(re.escape, _MANIFESTS))
# What may stand in a query as it is (RFC 3986 3.4), and what is escaped already.
_QUERY = "%/?:@!$&'()*+,;=-._~"
_HEADERS = {**CORS, **NO_STORE}
# Who asks for steering too often is told to come back after so many times the usual pause, an hour at most, and gets
# an order that is at most so many seconds old; so many orders are remembered.
_LATE_TTL, _LONGEST_TTL_S, _ORDER_S, _ORDERS = 4, 3600, 1.0, 10_000
ORDERS: web.AppKey[dict[tuple[str, str, str], tuple[float, list[str]]]] = web.AppKey("orders", dict)


def routes() -> list[web.RouteDef]:
    """All routes of this module."""
    found = [web.get("/assets/{name}", asset), web.get("/healthz", health)]
    # A token may stand in front: whatever is relative to such a URL carries it on, so that players need not know.
    for token in ("", "/c/{token}"):
        found += [
            web.get(f"{token}/play/{{title}}", admitted(player)),
            web.get(f"{token}/play/{{title}}/{{manifest:{_NAMES}}}", admitted(manifest)),
            web.get(f"{token}/steer/{{title}}/{{version}}", admitted(steer)),
            web.get(f"{token}/t/{{title}}/{{version}}/{{rest:.+}}", admitted(redirect)),
        ]
    return found + [web.options(route.path, preflight) for route in found]


def admitted(handler: Handler) -> Handler:
    """The handler for those whose token allows the content that it is about; 403 for others."""

    async def checked(request: web.Request) -> web.StreamResponse:
        gate = parts(request).gate
        if gate is not None:
            token, target = _carried(request)
            names = request.match_info
            path = f"/t/{names['title']}/{names.get('version', '')}".rstrip("/") + f"/{names.get('rest', '')}"
            query = target.partition("?")[2]
            asked = Asked(path, viewer(request), request.method, request.scheme, request.host, query)
            if gate.admit(token, asked, time.time()):
                # What is wrong with it is nobody's business: `ocactl token inspect` tells its maker.
                raise web.HTTPForbidden(reason="a token is needed that allows this")
        return await handler(request)

    return checked


def _carried(request: web.Request) -> tuple[str, str]:
    """The token that a request carries, and its target without it."""
    fields = request.headers
    return find(request.raw_path, fields.getall(FIELD, []), fields.getall("Cookie", []))


def _before(request: web.Request) -> str:
    """How paths of ours begin that are to carry the viewer's token on."""
    token = _carried(request)[0] if parts(request).gate is not None else ""
    return f"{PREFIX}{token}" if token else ""


def _chosen(request: web.Request, version: Version, track: str | None = None) -> list[Choice]:
    """Who may serve this viewer, best first; 503 if nobody can."""
    fleet = parts(request).fleet
    choices = fleet.choices(version, fleet.client(viewer(request)), track)
    chosen = [choice for choice in choices if choice.rank is not None]
    if not chosen:
        raise web.HTTPServiceUnavailable(reason="no appliance holds this content")
    return chosen


def _asked(request: web.Request) -> Version:
    return parts(request).state.version(request.match_info["title"], request.match_info.get("version"))


def _locations(request: web.Request, chosen: list[Choice], version: Version) -> list[Location]:
    path = f"{_before(request)}/t/{version.title.id}/{version.version}/"
    return [Location(choice.candidate.appliance, choice.candidate.url + path) for choice in chosen]


def _steering_url(request: web.Request, version: Version) -> str:
    return f"{parts(request).settings.public_url}{_before(request)}/steer/{version.title.id}/{version.version}"


async def manifest(request: web.Request) -> web.Response:
    """A manifest of the active version, in any of its forms, with locations in this viewer's order."""
    version, name = _asked(request), request.match_info["manifest"]
    if _MANIFESTS[name][2] and name not in version.title.files:
        # Versions packaged before there was this form lack the playlists that it names.
        raise UnknownError(f"title {version.title.id} has no {name}: package it again")
    locations = _locations(request, _chosen(request, version), version)
    indexes = await parts(request).state.indexes(version)
    write, content_type, ranges = _MANIFESTS[name]
    text = write(version.title, indexes, locations, _steering_url(request, version), ranges)
    return web.Response(text=text, content_type=content_type, headers=_HEADERS)


async def steer(request: web.Request) -> web.Response:
    """The content steering document: the same for DASH and HLS."""
    version = _asked(request)
    ttl_s, late = parts(request).settings.steer_ttl_s, request.get(LATE, 0.0)
    if late:
        # A refusal would make players give up steering, so who asks too often gets a cheap answer and a longer pause.
        ttl_s = max(ttl_s, min(_LATE_TTL * ttl_s + math.ceil(late), _LONGEST_TTL_S))
        order = _lately(request, version)
    else:
        order = [choice.candidate.appliance for choice in _chosen(request, version)]
    document = steering_document(order, ttl_s, _steering_url(request, version))
    return web.Response(body=document, content_type="application/json", headers=_HEADERS)


def _lately(request: web.Request, version: Version) -> list[str]:
    """The order that somebody in the viewer's zone was given in the last second, else a new one."""
    zone = parts(request).fleet.client(viewer(request))
    key = (version.title.id, version.version, zone.zone if zone else "")
    now, known = time.monotonic(), request.app[ORDERS]
    until, order = known.get(key, (0.0, []))
    if now >= until:
        order = [choice.candidate.appliance for choice in _chosen(request, version)]
        if len(known) >= _ORDERS:
            known.clear()
        known[key] = (now + _ORDER_S, order)
    return order


async def redirect(request: web.Request) -> web.Response:
    """302 to the best holder of what the URL names; any player can start from such a URL."""
    version = _asked(request)
    rest = request.match_info["rest"]
    name, _, part = rest.partition("/")
    track = next((t.name for t in version.title.tracks if (name == t.name if part else name in t.files)), None)
    shared = not part and (name in version.title.files or name == TITLE_JSON)
    if not _REST.fullmatch(rest) or (track is None and not shared):
        raise UnknownError(f"title {version.title.id} has no {rest[:100]!r}")
    chosen = _chosen(request, version, track)
    target = f"{_locations(request, chosen[:1], version)[0].base}{rest}"
    if request.rel_url.raw_query_string:
        target += f"?{quote(request.rel_url.raw_query_string, safe=_QUERY)}"
    return web.Response(status=302, headers={**_HEADERS, "Location": target})


async def player(request: web.Request) -> web.Response:
    """A page that plays the title."""
    title = parts(request).state.title(request.match_info["title"])
    return web.Response(text=page(title.name), content_type="text/html", headers=NO_STORE)


def page(name: str, base: str = "", assets: str = "/assets", more: str = "", buffer_s: int = 30) -> str:
    """The page that plays the title called `name` in two players side by side.

    Its manifests are below the URL `base`, or below the page itself if that is empty; the players' scripts below
    `assets`. `more` is HTML that stands under the players; they read `buffer_s` seconds ahead.
    """
    words = {
        "name": html.escape(name),
        "base": script_text(base),
        "assets": html.escape(assets),
        "more": more,
        "buffer": str(buffer_s),
    }
    # In one pass, so that nothing in what is put in is a place to put something.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: words[place[1]], (_WEB / "player.html").read_text("utf-8"))


def script_text(text: str) -> str:
    """A string literal of JavaScript, in which nothing ends the script."""
    return encode(text).replace("<", "\\u003c")


async def asset(request: web.Request) -> web.StreamResponse:
    """A script that the player page uses."""
    name = request.match_info["name"]
    path = _ASSETS / name
    if not is_id(name) or not path.is_file():
        raise UnknownError(f"there is no {name[:64]!r} here: `make setup` puts the players' scripts in place")
    return web.FileResponse(path, headers={"Cache-Control": "public, max-age=3600"})


async def preflight(_: web.Request) -> web.Response:
    """CORS preflight: pages from anywhere may ask (Fetch standard)."""
    return web.Response(status=204, headers=CORS)


async def health(request: web.Request) -> web.Response:
    """Whether this process answers, and how much it knows."""
    state = parts(request).state
    return json({"ok": True, "titles": len(state.titles), "appliances": len(state.appliances), "plan": state.plan})
