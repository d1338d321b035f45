"""The administration listener: health and metrics, on loopback; metrics alone elsewhere, too, if that is wanted."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from oca import __version__
from oca.counters import render
from oca.heartbeat import Reporter
from oca.http.certificates import TlsSettings, valid_until
from oca.store.content import Store
from oca.supervisor import Supervisor


def applications(
    appliance: str, store: Store, supervisor: Supervisor, reporter: Reporter, tls: TlsSettings
) -> tuple[web.Application, web.Application]:
    """`GET /healthz` as JSON, 503 while no worker serves, and `GET /metrics` as Prometheus text; the latter alone."""
    started = time.time()

    async def health(_: web.Request) -> web.Response:
        serving = supervisor.serving
        state = {
            "ok": serving > 0,
            "appliance": appliance,
            "version": __version__,
            "started": started,
            "workers": serving,
            "connections": supervisor.counters.open,
        }
        return web.json_response(state, status=200 if serving else 503)

    async def metrics(_: web.Request) -> web.Response:
        used = await reporter.used_bytes()
        disks = {str(root): root in store.usable for root in store.roots}
        certificates = await asyncio.to_thread(valid_until, tls)
        counters, limit = supervisor.counters, reporter.storage_bytes
        damaged = reporter.damaged
        text = render(counters, used, limit, supervisor.serving, supervisor.deaths, disks, certificates, damaged)
        return web.Response(text=text, content_type="text/plain", headers={"X-Content-Type-Options": "nosniff"})

    both, alone = web.Application(), web.Application()
    both.router.add_get("/healthz", health)
    for app in (both, alone):
        app.router.add_get("/metrics", metrics)
    return both, alone
