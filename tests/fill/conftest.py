"""A source and a controller over real sockets, scripted by the test, and an agent between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from blake3 import blake3

from fill.agent import Agent
from fill.controllers import Controllers
from fill.run import Pace
from oca import wire
from oca.config import ApplianceSettings, FillSettings
from oca.health import Limits
from oca.store.content import Store
from oca.title.digest import CHUNK_BYTES
from oca.wire import FillItem, FillLease, FillManifest, FillReport, Source, Sources, SourcesOrder
from tests.conftest import MadeTitle

SOON = Limits(parallel=2, connect_s=60.0, stall_s=60.0, attempts=2, backoff_s=0.01)
BRISK = Pace(reask_s=0.02, patience_s=0.2, report_s=0.02)


@dataclass
class Box:
    """A source: serves whole stores, logs what is asked for, and holds an answer back while `holds` says so."""

    root: Path
    name: str
    url: str = ""
    chunk_bytes: int = CHUNK_BYTES
    log: list[tuple[str, int]] = field(default_factory=list)
    holds: Callable[[str, int], bool] = lambda name, chunk: False
    held_back: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        chunk = (request.http_range.start or 0) // self.chunk_bytes
        self.log.append((name, chunk))
        if self.holds(name, chunk):
            self.held_back.set()
            await self.release.wait()
        path = self.root / request.match_info["title"] / request.match_info["version"] / name
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    def asked(self, name: str) -> list[int]:
        return [chunk for each, chunk in self.log if each == name]

    def source(self, rank: Literal["peer", "tier", "origin"] = "origin", wait_s: float = 0.0) -> Source:
        return Source(appliance=self.name, url=self.url, rank=rank, wait_s=wait_s)


@dataclass
class Controller:
    """Speaks the wire as the controller does; `sources` says who has a track at the moment."""

    manifest: FillManifest
    sources: Callable[[str], list[Source]] = lambda track: []
    status: int = 200
    lease_bps: int | None = None
    leases: int = 0
    orders: list[int] = field(default_factory=list)
    unchanged: int = 0
    url: str = ""
    called: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[FillReport] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.Response:
        call = request.match_info["call"]
        self.called.set()
        if self.status != 200:
            return web.json_response({"error": "the controller has a headache"}, status=self.status)
        if call == "fill-report":
            self.reports.append(wire.decode(await request.read(), FillReport, "report"))
            self.news.set()
            return web.Response(status=204)
        if call == "fill-lease":
            self.leases += 1
            return web.Response(body=wire.encode(FillLease(rate_bps=self.lease_bps, seconds=0.05)))
        if call == "fill":
            body = wire.encode(self.manifest)
            etag = f'"{blake3(body).hexdigest()}"'
            if request.headers.get("If-None-Match") == etag:
                self.unchanged += 1
                return web.Response(status=304, headers={"ETag": etag})
            return web.Response(body=body, headers={"ETag": etag})
        order = wire.decode(await request.read(), SourcesOrder, "sources")
        self.orders.append(len(order.tracks))
        return web.Response(body=wire.encode(Sources(tracks=[self.sources(track.track) for track in order.tracks])))

    def plan(self, *wanted: tuple[MadeTitle, Iterable[str]], **more: Any) -> None:
        """Want these tracks of these titles."""
        items = [
            FillItem(
                title=made.id,
                version=made.version,
                published=1_700_000_000,
                tracks=list(tracks),
                bytes=sum(made.title.track_bytes(track) for track in made.title.tracks),
            )
            for made, tracks in wanted
        ]
        number = more.pop("plan", self.manifest.plan + 1)
        self.manifest = FillManifest(appliance="north-1", plan=number, items=items, **more)

    async def told(self, what: Callable[[FillReport], bool]) -> FillReport:
        """The first report of which `what` holds; waits for it."""
        while True:
            for report in self.reports:
                if what(report):
                    return report
            self.news.clear()
            await self.news.wait()


async def start(handler: Callable[[web.Request], Awaitable[web.StreamResponse]], route: str) -> tuple[Any, str]:
    """A server on an ephemeral port of 127.0.0.1; its runner and URL."""
    app = web.Application()
    app.router.add_route("*", route, handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


@pytest.fixture
def origin_root(tmp_path: Path) -> Path:
    """Where the origin's content lies."""
    return tmp_path / "origin"


StartBox = Callable[..., Awaitable[Box]]


@pytest.fixture
async def box(origin_root: Path) -> AsyncIterator[StartBox]:
    """Start a source that has what the origin has: box("north-2")."""
    started = []

    async def begin(name: str, **options: Any) -> Box:
        made = Box(origin_root, name, **options)
        runner, made.url = await start(made.answer, "/t/{title}/{version}/{name}")
        started.append((made, runner))
        return made

    yield begin
    for made, runner in started:
        made.release.set()
        await runner.cleanup()


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    made = Controller(FillManifest(appliance="north-1", plan=0, items=[]))
    runner, made.url = await start(made.answer, "/api/v1/appliances/north-1/{call}")
    yield made
    await runner.cleanup()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The store to be filled."""
    made = Store([tmp_path / "store"])
    made.prepare()
    return made


@pytest.fixture
def settings(store: Store, controller: Controller) -> ApplianceSettings:
    return ApplianceSettings(
        appliance="north-1",
        store=[str(root) for root in store.roots],
        url="http://127.0.0.1:1",
        controllers=[controller.url],
        storage_bytes=1 << 30,
        fill=FillSettings(poll_s=0.02, rate_mbps=100_000, window_hours=24),
    )


MakeAgent = Callable[..., Agent]


@pytest.fixture
async def agent(settings: ApplianceSettings, store: Store) -> AsyncIterator[MakeAgent]:
    """Make an agent; always in its window unless told otherwise: agent(is_open=...)."""
    async with aiohttp.ClientSession() as session:

        def make(settings: ApplianceSettings = settings, **options: Any) -> Agent:
            given: dict[str, Any] = {
                "is_open": lambda at: True,
                "closes": lambda at: None,
                "pace": BRISK,
                "limits": SOON,
            } | options
            return Agent(settings, store, Controllers(session, settings.appliance, settings.controllers), **given)

        yield make
