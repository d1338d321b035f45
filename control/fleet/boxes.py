"""The appliances' side of the API, as `oca.wire` documents it: heartbeats, inventories, fills."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from control.http import NO_STORE, parts
from control.state import Appliance
from oca import wire
from oca.errors import FormatError
from oca.http import conditional
from oca.wire import FillReport, Heartbeat, HeartbeatReply, Inventory, M, Sources, SourcesOrder

_BASE = "/api/v1/appliances/{appliance}"
# What a box tells of its store is kept in memory: a generation is a short string, and a large box has some 100,000
# tracks.
_MOST_GENERATION, _MOST_TRACKS = 128, 1_000_000


def routes() -> list[web.RouteDef]:
    """All routes of this module."""
    return [
        web.post(f"{_BASE}/heartbeat", heartbeat),
        web.put(f"{_BASE}/inventory", inventory),
        web.get(f"{_BASE}/fill", fill_manifest),
        web.post(f"{_BASE}/fill-lease", fill_lease),
        web.post(f"{_BASE}/sources", sources),
        web.get(f"{_BASE}/neighbours", neighbours),
        web.get(f"{_BASE}/revocations", revocations),
        web.post(f"{_BASE}/fill-report", fill_report),
    ]


def _box(request: web.Request) -> Appliance:
    return parts(request).state.appliance(request.match_info["appliance"])


def _answer(message: wire.Message) -> web.Response:
    return web.Response(body=wire.encode(message), content_type="application/json", headers=NO_STORE)


async def _message(request: web.Request, kind: type[M], what: str, *, bulk: bool = False) -> M:
    """The message in the body; it must speak of the appliance that the URL names."""
    box = _box(request)
    where = f"{what} of {box.id}"
    data = await request.read()
    message = wire.unpack(data, kind, where) if bulk else wire.decode(data, kind, where)
    said = getattr(message, "appliance", box.id)
    if said != box.id:
        raise FormatError(f"{where} speaks of appliance {said}")
    return message


def _check_generation(generation: str, where: str) -> None:
    if len(generation) > _MOST_GENERATION:
        raise FormatError(f"{where} names a generation longer than the {_MOST_GENERATION} characters allowed")


async def heartbeat(request: web.Request) -> web.Response:
    """Take a heartbeat; answer with the pace, and ask for the inventory if it is another than the one we have."""
    beat = await _message(request, Heartbeat, "heartbeat")
    for generation in (beat.inventory, beat.neighbours):
        _check_generation(generation, f"heartbeat of {beat.appliance}")
    of = parts(request)
    of.fleet.registry.beat(beat)
    box = of.state.appliance(beat.appliance)
    known = of.state.held(beat.appliance).generation
    return _answer(
        HeartbeatReply(
            time=time.time(),
            fill=of.fleet.fill_generation(box),
            interval_s=of.settings.heartbeat_s,
            send_inventory=beat.inventory != known,
            neighbours=of.fleet.neighbourhood(box).generation,
            revocations=of.state.revoked.generation,
        )
    )


async def inventory(request: web.Request) -> web.Response:
    """Take an inventory, replacing the last one."""
    told = await _message(request, Inventory, "inventory", bulk=True)
    _check_generation(told.generation, f"inventory of {told.appliance}")
    # A row without tracks counts too.
    if sum(max(1, len(row.tracks)) for row in told.held) > _MOST_TRACKS:
        raise FormatError(f"inventory of {told.appliance} tells of more than the {_MOST_TRACKS} tracks allowed")
    await parts(request).catalog.put_inventory(told)
    return web.Response(status=204)


async def fill_manifest(request: web.Request) -> web.Response:
    """What the plan in force wants on this appliance; 304 to one that has it already."""
    fleet, box = parts(request).fleet, _box(request)
    fields = {"ETag": f'"{fleet.fill_generation(box)}"', "Cache-Control": "no-cache"}
    asked = request.headers.getall("If-None-Match", ())
    if conditional.evaluate(fields["ETag"], 0, if_none_match=asked) == "not modified":
        return web.Response(status=304, headers=fields)
    body = wire.encode(fleet.fill_manifest(box))
    return web.Response(body=body, content_type="application/json", headers=fields)


async def fill_lease(request: web.Request) -> web.Response:
    """What of its site's line the appliance may use for the next seconds."""
    return _answer(await parts(request).fleet.lease(_box(request)))


async def sources(request: web.Request) -> web.Response:
    """Where the appliance may fetch each of the tracks that it wants, best first."""
    order = await _message(request, SourcesOrder, "sources")
    fleet, box = parts(request).fleet, _box(request)
    return _answer(Sources(tracks=[fleet.sources(box, track) for track in order.tracks]))


async def neighbours(request: web.Request) -> web.Response:
    """The other boxes as this one sees them. A large catalog takes a second, so it is put together in a thread."""
    message = await asyncio.to_thread(parts(request).fleet.neighbourhood(_box(request)).message)
    body = await asyncio.to_thread(wire.pack, message)
    return web.Response(body=body, content_type="application/octet-stream", headers=NO_STORE)


async def revocations(request: web.Request) -> web.Response:
    """Whom boxes are to trust no longer."""
    _box(request)
    return _answer(parts(request).state.revoked.message)


async def fill_report(request: web.Request) -> web.Response:
    """Take a report on a fill; the same batch again changes nothing."""
    report = await _message(request, FillReport, "fill report")
    await parts(request).ledger.put_fill_report(report)
    parts(request).fleet.note_fill(report)
    return web.Response(status=204)
