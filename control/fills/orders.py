"""The operators' side of fills: order, pause, resume and cancel them; see how far they are, whence, and what for."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from control.fills.ledger import DAY_S, FillRun
from control.http import Parts, body, json, parts
from control.state import Appliance, UnknownError
from fill.outlook import Outlook
from oca.errors import FormatError, OcaError
from oca.ids import is_id
from oca.wire import Id, Natural


class FillOrder(msgspec.Struct, frozen=True):
    """Which appliances are meant; none named: all."""

    appliances: Annotated[list[Id], Meta(max_length=100_000)] = []


def routes() -> list[web.RouteDef]:
    """All routes of this module."""
    base = "/api/v1/fills"
    return [
        web.get(base, show_fills),
        web.post(base, order_fills),
        web.post(f"{base}/cancel", cancel_fills),
        web.post(f"{base}/pause", pause_fills),
        web.post(f"{base}/resume", resume_fills),
        web.get(f"{base}/sources", show_sources),
        web.get("/api/v1/reports/fill", report_fills),
        web.get("/api/v1/sites", show_sites),
        web.put("/api/v1/sites/{site}", set_line),
    ]


async def order_fills(request: web.Request) -> web.Response:
    """Order appliances to fill now, inside their window or not."""
    order = await body(request, FillOrder, "the order to fill")
    of = parts(request)
    if not of.state.wanted:
        raise OcaError("there is no plan to fill from: make one with `ocactl plan make`")
    boxes = [of.state.appliance(box).id for box in order.appliances] or sorted(of.state.wanted)
    return json(await of.ledger.order_fill(boxes), 201)


async def cancel_fills(request: web.Request) -> web.Response:
    """Take orders back that have not been obeyed; a fill that goes on because of one ends."""
    boxes = await _boxes(request, "the fills to cancel")
    return json(await parts(request).ledger.cancel_fill(boxes))


async def pause_fills(request: web.Request) -> web.Response:
    """Have appliances fetch nothing, window or order, until they may again."""
    return json(await parts(request).ledger.pause_fill(await _boxes(request, "the fills to pause"), paused=True))


async def resume_fills(request: web.Request) -> web.Response:
    """Let appliances fill again that were told not to."""
    return json(await parts(request).ledger.pause_fill(await _boxes(request, "the fills to resume"), paused=False))


async def _boxes(request: web.Request, what: str) -> list[str]:
    """The appliances that a request names, or all that are filled."""
    named = await body(request, FillOrder, what)
    of = parts(request).state
    everybody = sorted(box.id for box in of.appliances.values() if box.role != "origin")
    return [of.appliance(box).id for box in named.appliances] or everybody


async def show_fills(request: web.Request) -> web.Response:
    """How far every appliance is with the plan in force, from its inventory and its last report.

    With ?tracks=1 also each of its tracks that is not there yet.
    """
    of = parts(request)
    runs = await of.ledger.fill_runs()
    outlooks = {each.appliance: told(each) for each in of.fleet.outlooks(of.state.wanted, time.time())}
    detailed = request.query.get("tracks", "") == "1"
    rows = []
    for box in of.state.appliances.values():
        if box.role != "origin":
            run = runs.get(box.id)
            row = _fill(of, box, run) | {"outlook": outlooks.get(box.id)}
            if detailed:
                row["tracks"] = _tracks(of, run)
            rows.append(row)
    return json({"plan": of.state.plan, "appliances": rows})


def told(outlook: Outlook) -> dict[str, Any]:
    """An outlook as the API tells it."""
    return {**dataclasses.asdict(outlook), "fits": outlook.fits}


def _tracks(of: Parts, run: FillRun | None) -> list[dict[str, Any]]:
    """What is on its way or has failed, of the run that an appliance reported last."""
    tracks = run.tracks if run is not None and run.plan == of.state.plan else []
    order = {"fetching": 0, "failed": 1, "waiting": 2}
    rows = sorted((t for t in tracks if t.state in order), key=lambda t: (order[t.state], t.title, t.track))
    return [msgspec.to_builtins(row) for row in rows]


def _classes(of: Parts, box: Appliance, fetched: dict[str, int]) -> dict[str, int]:
    """Bytes by the class of source: peers of the site, tiers, origins; others, if they are registered no longer."""
    found: dict[str, int] = {}
    for source, count in fetched.items():
        other = of.state.appliances.get(source)
        kind = "other" if other is None else "peer" if other.role == "edge" else other.role
        if source in of.fleet.origins:
            kind = "origin"
        found[kind] = found.get(kind, 0) + count
    return found


async def show_sources(request: web.Request) -> web.Response:
    """Where an appliance would fetch each track of a title from now, and why from nowhere else.

    ?appliance=, ?title=, and ?track= for one track only.
    """
    of, query = parts(request), request.query
    box, version = of.state.appliance(query.get("appliance", "")), of.state.version(query.get("title", ""))
    track = query.get("track")
    if track is not None and track not in version.track_ids:
        raise UnknownError(f"title {version.title.id} has no track {track[:64]!r}")
    names = [track] if track is not None else [each.name for each in version.title.tracks]
    rows = [
        {"track": name, "sources": [dataclasses.asdict(v) for v in of.fleet.why(box, version, name)]}
        for name in names
    ]
    return json({"appliance": box.id, "title": version.title.id, "version": version.version, "tracks": rows})


async def report_fills(request: web.Request) -> web.Response:
    """What every appliance sent and what was filled on it in the last ?days= (30), this day counting as one."""
    of, asked = parts(request), request.query.get("days", "30")
    if not asked.isascii() or not asked.isdecimal() or not 0 < int(asked[:6]) <= 3650:
        raise FormatError(f"{asked[:20]!r} is no number of days between 1 and 3650")
    await of.ledger.note_sent(of.fleet.registry.everybody())
    rows = await of.ledger.traffic(time.time() - (int(asked) - 1) * DAY_S)
    boxes = of.state.appliances
    return json(
        [
            # What a box sent just now may not have been counted when another told that it had come.
            {
                **msgspec.to_builtins(row),
                "site": boxes[row.appliance].site,
                "viewers": max(0, row.sent - row.given),
            }
            for row in rows
            if row.appliance in boxes and boxes[row.appliance].role != "origin"
        ]
    )


class Line(msgspec.Struct, frozen=True):
    """What the boxes of a site may fetch together from outside, bit/s; 0: no limit but each box's own."""

    fill_bps: Natural


async def show_sites(request: web.Request) -> web.Response:
    """All sites that there are boxes in, or a limit for."""
    state = parts(request).state
    boxes = [box for box in state.appliances.values() if box.role != "origin"]
    names = sorted({box.site for box in boxes} | set(state.lines))
    return json(
        [
            {
                "site": site,
                "appliances": sorted(box.id for box in boxes if box.site == site),
                "fill_bps": state.lines.get(site, 0),
            }
            for site in names
        ]
    )


async def set_line(request: web.Request) -> web.Response:
    """Say what the boxes of a site may fetch together from outside."""
    line, site = await body(request, Line, "the line of a site"), request.match_info["site"]
    if not is_id(site):
        raise FormatError(f"{site[:64]!r} is not the name of a site: lower-case letters, digits, '.', '_' and '-'")
    await parts(request).ledger.set_line(site, line.fill_bps)
    return json({"site": site, "fill_bps": line.fill_bps})


def _fill(of: Parts, box: Appliance, run: FillRun | None) -> dict[str, Any]:
    wanted = of.state.wanted.get(box.id, {})
    held = of.state.holds(box.id)
    tracks = run.tracks if run is not None and run.plan == of.state.plan else []
    fetched: dict[str, int] = {}
    for track in tracks:
        for source, count in track.fetched.items():
            fetched[source] = fetched.get(source, 0) + count
    return {
        "appliance": box.id,
        "site": box.site,
        "wanted": len(wanted),
        "held": sum(held >> number & 1 for number in wanted),
        "order": of.state.orders.get(box.id, 0),
        "paused": box.id in of.state.paused,
        "reported_at": run.at if run is not None else None,
        "finished": run.finished if run is not None and run.plan == of.state.plan else False,
        "outside_window": run.outside_window if run is not None else False,
        "bytes": sum(track.bytes for track in tracks),
        "total": sum(track.total for track in tracks),
        "fetched": fetched,
        "classes": _classes(of, box, fetched),
        "errors": [f"{track.title} {track.track}: {track.error}" for track in tracks if track.error],
    }
