"""The operators' side of the API: titles, appliances, coverage, demand, plans, explanations, logs."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal

import msgspec
from aiohttp import web

from control import demand
from control.fills.orders import told
from control.http import Parts, body, json, parts, shown
from control.operators.audit import TRAIL
from control.placement import plan as placement
from control.placement.plan import Box, PlacedTitle, PlacedTrack, Plan
from control.state import Appliance, CatalogTitle, UnknownError, Version
from control.steering import coverage as zones
from control.writer import ConflictError
from oca.errors import OcaError
from oca.wire import Id, Natural, Url, VersionId

# A plan looks at this much of the past.
_PAST_S = 28 * 86_400
_planning = asyncio.Lock()


class TitleUpload(msgspec.Struct, frozen=True, kw_only=True):
    """A version to register: title.json, the .idx of every track by its name (both base64), when published, whose."""

    title_json: bytes
    indexes: dict[Id, bytes]
    published: Natural
    owner: Id = "default"


class ApplianceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An appliance to register. Capacity in bit/s, storage in bytes, 0 meaning what the box reports."""

    id: Id
    site: Id
    url: Url
    role: Literal["edge", "tier", "origin"] = "edge"
    capacity_bps: Natural = 0
    storage_bytes: Natural = 0


class Drain(msgspec.Struct, frozen=True):
    """Whether an appliance is to get no more viewers."""

    draining: bool


class Activation(msgspec.Struct, frozen=True):
    """The version that viewers are to get."""

    version: VersionId


class PlanOrder(msgspec.Struct, frozen=True):
    """Solve a placement; a dry run is neither stored nor put in force."""

    dry_run: bool = False


def routes() -> list[web.RouteDef]:
    """All routes of this module."""
    base = "/api/v1"
    return [
        web.get(f"{base}/titles", list_titles),
        web.post(f"{base}/titles", add_title),
        web.get(f"{base}/titles/{{title}}", show_title),
        web.put(f"{base}/titles/{{title}}/active", activate),
        web.delete(f"{base}/titles/{{title}}", remove_title),
        web.get(f"{base}/appliances", list_appliances),
        web.post(f"{base}/appliances", add_appliance),
        web.get(f"{base}/appliances/{{appliance}}", show_appliance),
        web.put(f"{base}/appliances/{{appliance}}/drain", drain),
        web.get(f"{base}/coverage", show_coverage),
        web.put(f"{base}/coverage", set_coverage),
        web.get(f"{base}/demand", show_demand),
        web.post(f"{base}/demand", import_demand),
        web.get(f"{base}/plans", list_plans),
        web.post(f"{base}/plans", make_plan),
        web.get(f"{base}/plans/{{plan}}", show_plan),
        web.get(f"{base}/steer/explain", explain),
        web.get(f"{base}/changes", list_changes),
        web.get(f"{base}/audit", list_audit),
    ]


def _title(of: Parts, title: CatalogTitle) -> dict[str, Any]:
    active = title.versions[title.active]
    return {
        "id": title.id,
        "owner": title.owner,
        "name": title.name,
        "active": title.active,
        "versions": sorted(title.versions),
        "seconds": round(active.title.seconds, 3),
        "bytes": sum(file.bytes for file in active.title.files.values()),
        "tracks": len(active.track_ids),
        "holders": [
            {"appliance": box, "tracks": held.bit_count(), "complete": held == active.mask}
            for box in sorted(of.state.appliances)
            if (held := of.state.holds(box) & active.mask)
        ],
    }


async def list_titles(request: web.Request) -> web.Response:
    """All titles."""
    of = parts(request)
    return json([_title(of, title) for _, title in sorted(of.state.titles.items())])


async def show_title(request: web.Request) -> web.Response:
    """One title with its tracks."""
    of = parts(request)
    title = of.state.title(request.match_info["title"])
    active = title.versions[title.active]
    tracks = [
        {
            "id": active.track_ids[track.name],
            **msgspec.to_builtins(track),
            "bytes": active.title.track_bytes(track),
            "holders": [
                b for b in sorted(of.state.appliances) if of.state.holds(b) >> active.track_ids[track.name] & 1
            ],
        }
        for track in active.title.tracks
    ]
    return json({**_title(of, title), "published": active.published, "tracks": tracks, "sites": _sites(of, active)})


def _sites(of: Parts, version: Version) -> list[dict[str, Any]]:
    """By site whether a version is live there, and what its boxes lack."""
    held = {box: (of.state.holds(box) & version.mask).bit_count() for box in of.state.appliances}
    gates = of.fleet.gates(held, version.mask.bit_count())
    edges = [box for box in of.state.appliances.values() if box.role == "edge"]
    found = []
    for site, gate in sorted(gates.items()):
        those = sorted(box.id for box in edges if box.site == site)
        holding = any(held[box] == version.mask.bit_count() for box in those)
        missing = {box: version.names_of(version.mask & ~of.state.holds(box)) for box in those}
        found.append(
            {
                "site": site,
                "live": not gate and holding,
                "gate": gate,
                "missing": {box: names for box, names in missing.items() if names},
            }
        )
    return found


async def add_title(request: web.Request) -> web.Response:
    """Register a version and make it active."""
    upload = await body(request, TitleUpload, "the upload of a title")
    of = parts(request)
    title, version = await of.catalog.add_title(upload.title_json, upload.indexes, upload.published, upload.owner)
    return json({"title": title, "version": version}, 201)


async def activate(request: web.Request) -> web.Response:
    """Make another version the active one."""
    order = await body(request, Activation, "the activation of a version")
    await parts(request).catalog.activate(request.match_info["title"], order.version)
    return json({"title": request.match_info["title"], "active": order.version})


async def remove_title(request: web.Request) -> web.Response:
    """Take a title out of the catalog, or with ?version= one version; ?dry_run=1 only tells what would go."""
    of, only = parts(request), request.query.get("version")
    title = of.state.title(request.match_info["title"])
    versions = [of.state.version(title.id, only)] if only is not None else list(title.versions.values())
    holders = sorted(
        box.id
        for box in of.state.appliances.values()
        if box.role != "origin" and any(of.state.holds(box.id) & version.mask for version in versions)
    )
    if request.query.get("dry_run", "") != "1":
        await of.catalog.remove_title(title.id, [version.version for version in versions])
    return json({"title": title.id, "versions": [version.version for version in versions], "appliances": holders})


def _appliance(of: Parts, box: Appliance) -> dict[str, Any]:
    beat, silence = of.fleet.registry.last(box.id), of.fleet.registry.silence(box.id)
    return {
        "id": box.id,
        "owner": box.owner,
        "site": box.site,
        "role": box.role,
        "url": of.fleet.url(box),
        "alive": of.fleet.registry.alive(box.id) and silence is not None,
        "draining": box.draining,
        "silent_s": None if silence is None else round(silence, 2),
        "capacity_bps": box.capacity_bps,
        "storage_bytes": of.fleet.storage_bytes(box),
        "used_bytes": beat.used_bytes if beat else 0,
        "sending_bps": beat.sending_bps if beat else 0,
        "connections": beat.connections if beat else 0,
        "tracks": of.state.holds(box.id).bit_count(),
        "damaged": beat.damaged if beat else 0,
        "planned": len(of.state.wanted.get(box.id, {})),
    }


async def list_appliances(request: web.Request) -> web.Response:
    """All appliances as they stand now."""
    of = parts(request)
    boxes = sorted(of.state.appliances.values(), key=lambda box: (box.site, box.id))
    return json([_appliance(of, box) for box in boxes])


async def show_appliance(request: web.Request) -> web.Response:
    """One appliance, with the titles it holds whole."""
    of = parts(request)
    box = of.state.appliance(request.match_info["appliance"])
    held = of.state.holds(box.id)
    titles = [t.id for t in of.state.titles.values() if any(held & v.mask == v.mask for v in t.versions.values())]
    return json({**_appliance(of, box), "titles": sorted(titles)})


async def add_appliance(request: web.Request) -> web.Response:
    """Register an appliance, or change what is registered of it."""
    spec = await body(request, ApplianceSpec, "the registration of an appliance")
    of = parts(request)
    if spec.id in of.fleet.origins:
        raise ConflictError(f"{spec.id} is the name of a bucket in [[origins]]: give the appliance another one")
    known = of.state.appliances.get(spec.id)
    box = Appliance(owner="default", draining=known.draining if known else False, **msgspec.to_builtins(spec))
    await of.catalog.put_appliance(box)
    return json(_appliance(of, of.state.appliance(spec.id)), 200 if known else 201)


async def drain(request: web.Request) -> web.Response:
    """Give an appliance no more viewers, or give it viewers again."""
    of = parts(request)
    box = of.state.appliance(request.match_info["appliance"])
    order = await body(request, Drain, "the order to drain")
    values = {name: getattr(box, name) for name in Appliance.__dataclass_fields__}
    await of.catalog.put_appliance(Appliance(**{**values, "draining": order.draining}))
    return json(_appliance(of, of.state.appliance(box.id)))


async def show_coverage(request: web.Request) -> web.Response:
    """The zones in force."""
    return json([msgspec.to_builtins(zone) for zone in parts(request).state.coverage.zones.values()])


async def set_coverage(request: web.Request) -> web.Response:
    """Put a coverage zone file in force."""
    data = await request.read()
    # A million prefixes take many seconds, in which viewers want to be steered.
    parsed = await asyncio.to_thread(zones.parse, data, request.query.get("name", "coverage file")[:200])
    await parts(request).catalog.set_coverage(data, len(parsed.zones))
    return json({"zones": len(parsed.zones)})


async def show_demand(request: web.Request) -> web.Response:
    """What the next day is expected to bring, by region and title."""
    expected = await _expected(parts(request))
    rows = sorted((region, -views, title) for (region, title), views in expected.items())
    return json([{"region": region, "title": title, "views": round(-views, 2)} for region, views, title in rows])


async def import_demand(request: web.Request) -> web.Response:
    """Take a file of observations, whole or not at all."""
    name = request.query.get("name", "demand file")[:200]
    found = await asyncio.to_thread(demand.parse, await request.read(), name, int(time.time()))
    of = parts(request)
    unknown = sorted({o.title for o in found} - of.state.titles.keys())
    await of.catalog.import_demand(found, name)
    strange = sorted({o.region for o in found} - of.state.coverage.zones.keys())
    return json(
        {
            "observations": len(found),
            "views": sum(o.views for o in found),
            "unknown_titles": unknown[:100],
            "unknown_regions": strange[:100],
        }
    )


async def _expected(of: Parts) -> dict[tuple[str, str], float]:
    now = int(time.time())
    return demand.forecast(await of.catalog.observations(now - _PAST_S), now)


def _placed(title: CatalogTitle) -> PlacedTitle:
    active = title.versions[title.active]
    read = active.title
    tracks = tuple(PlacedTrack(active.track_ids[t.name], t.name, read.track_bytes(t), t.kind) for t in read.tracks)
    return PlacedTitle(title.id, active.version, sum(read.files[name].bytes for name in read.shared_files), tracks)


async def make_plan(request: web.Request) -> web.Response:
    """Solve the placement for the next day and put it in force. One at a time; off the loop."""
    order = await body(request, PlanOrder, "the order of a plan") if request.body_exists else PlanOrder()
    of = parts(request)
    edges = [box for box in of.state.appliances.values() if box.role != "origin" and not box.draining]
    silent = [box.id for box in edges if not of.fleet.storage_bytes(box)]
    if silent:
        raise OcaError(
            f"the storage of {', '.join(sorted(silent)[:5])} is not known: start it, or register it with --storage"
        )
    free = {box: of.fleet.storage_bytes(box) - of.fleet.pinned_bytes(box.id) for box in edges}
    boxes = [Box(box.id, box.site, max(0, room)) for box, room in free.items()]
    titles = [_placed(title) for title in of.state.titles.values()]
    expected = await _expected(of)
    async with _planning:
        plan = await asyncio.to_thread(placement.make, titles, boxes, expected, of.state.coverage.distance_km)
        number = 0 if order.dry_run else await of.catalog.store_plan(plan)
    wanted: dict[str, list[int]] = {}
    for row in plan.rows:
        wanted.setdefault(row.appliance, []).append(row.track)
    outlooks = [told(each) for each in of.fleet.outlooks(wanted, time.time())]
    return json({**_solved(plan, number, boxes), "outlook": outlooks}, 200 if order.dry_run else 201)


def _solved(plan: Plan, number: int, boxes: list[Box]) -> dict[str, Any]:
    """What the solver says of a plan, with sums instead of its rows."""
    said = {name: getattr(plan, name) for name in Plan.__dataclass_fields__ if name != "rows"}
    sums = {"tracks": len(plan.rows), "bytes": sum(row.bytes for row in plan.rows)}
    return {"plan": number, "appliances": len(boxes), **sums, **said}


async def list_plans(request: web.Request) -> web.Response:
    """All plans, newest first."""
    return json(await parts(request).catalog.plans())


async def show_plan(request: web.Request) -> web.Response:
    """A plan with its rows and reasons; `latest` is the one in force."""
    of = parts(request)
    asked = request.match_info["plan"]
    number = of.state.plan if asked == "latest" else int(asked) if asked.isdecimal() and len(asked) < 10 else 0
    plan = await of.catalog.plan(number)
    if plan is None:
        which = "yet" if asked == "latest" else asked[:20]
        raise UnknownError(f"there is no plan {which}: make one with `ocactl plan make`")
    now = plan.id == of.state.plan
    outlooks = [told(each) for each in of.fleet.outlooks(of.state.wanted, time.time())] if now else []
    return json({**msgspec.structs.asdict(plan), "outlook": outlooks})


async def explain(request: web.Request) -> web.Response:
    """Why a viewer would be sent where: the prefix that matched, and the fate of every candidate."""
    of = parts(request)
    version = of.state.version(request.query.get("title", ""), request.query.get("version"))
    track = request.query.get("track")
    if track is not None and track not in version.track_ids:
        raise UnknownError(f"title {version.title.id} has no track {track[:64]!r}")
    client = request.query.get("client", "")
    match = of.fleet.client(client)
    return json(
        {
            "client": client[:64],
            "title": version.title.id,
            "version": version.version,
            "match": msgspec.to_builtins(match),
            "candidates": shown(of.fleet.choices(version, match, track)),
        }
    )


def _number(request: web.Request, name: str, otherwise: int) -> int:
    """A whole number in the query; `otherwise` if there is none."""
    said = request.query.get(name, "")
    return int(said) if said.isascii() and said.isdecimal() and len(said) < 16 else otherwise


async def list_changes(request: web.Request) -> web.Response:
    """What changed, newest first."""
    return json(await parts(request).catalog.changes(min(_number(request, "limit", 100), 10_000)))


async def list_audit(request: web.Request) -> web.Response:
    """The audit log, newest first, a page at a time: `next` of one page is `before` of the next.

    ?since= is UTC seconds, ?who= a name as it stands there, ?limit= lines of a page.
    """
    since, before = _number(request, "since", 0), _number(request, "before", 0)
    limit = max(1, min(_number(request, "limit", 100), 1000))
    return json(await request.app[TRAIL].read(since, request.query.get("who", "")[:64], before, limit))
