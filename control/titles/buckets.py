"""The operators' side of origins that are buckets: list them, look into them, register what is there."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from control.http import Parts, body, json, parts
from control.titles.origins import Origin
from oca.wire import Id, VersionId


class FromBucket(msgspec.Struct, frozen=True, kw_only=True):
    """A version to register that lies in a bucket; without a version the only one of its title there."""

    title: Id
    version: VersionId | None = None
    owner: Id = "default"


def routes() -> list[web.RouteDef]:
    """All routes of this module."""
    base = "/api/v1/origins"
    return [
        web.get(base, list_origins),
        web.get(f"{base}/{{origin}}", show_origin),
        web.post(f"{base}/{{origin}}/titles", add_title),
    ]


def _origin(of: Parts, origin: Origin) -> dict[str, Any]:
    return {
        "name": origin.settings.name,
        "bucket": str(origin.place),
        "url": origin.place.url,
        "region": origin.place.region,
        "site": origin.settings.site,
        "versions": len(origin.held),
        "problem": origin.problem,
    }


async def list_origins(request: web.Request) -> web.Response:
    """All buckets, how many versions of the catalog each holds, and what is wrong with it."""
    of = parts(request)
    return json([_origin(of, origin) for _, origin in sorted(of.fleet.origins.by_name.items())])


async def show_origin(request: web.Request) -> web.Response:
    """One bucket and the whole versions in it, looked at now; what of them is in the catalog is known from now on."""
    of = parts(request)
    origin = of.fleet.origins.one(request.match_info["origin"])
    found = await of.fleet.origins.titles(origin)
    known = {(title.id, version) for title in of.state.titles.values() for version in title.versions}
    await of.fleet.origins.ask(origin, known)
    rows = [
        {"title": title, "version": version, "registered": (title, version) in known}
        for title, versions in sorted(found.items())
        for version in versions
    ]
    return json({**_origin(of, origin), "titles": rows})


async def add_title(request: web.Request) -> web.Response:
    """Register a version that lies in a bucket, and make it active."""
    of = parts(request)
    origin = of.fleet.origins.one(request.match_info["origin"])
    wanted = await body(request, FromBucket, "the registration of a title")
    data, indexes, published = await of.fleet.origins.read(origin, wanted.title, wanted.version or "")
    title, version = await of.catalog.add_title(data, indexes, published, wanted.owner)
    await of.fleet.origins.ask(origin, [(title, version)])
    return json({"title": title, "version": version}, 201)
