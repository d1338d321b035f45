"""A controller over a real socket and a real database, and what appliances and operators say to it."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from control.app import application
from control.http import PARTS, Parts
from control.settings import ApiSettings, ControlSettings
from oca import wire
from oca.wire import Heartbeat, HeldTracks, Inventory
from tests.conftest import MadeTitle

COVERAGE = {
    "coverageZones": {
        "north": {"network": ["192.0.2.0/24"], "coordinates": {"latitude": 53.55, "longitude": 10.0}},
        "south": {"network": ["198.51.100.0/24"], "coordinates": {"latitude": 48.14, "longitude": 11.58}},
    }
}
NORTH, SOUTH = "192.0.2.9", "198.51.100.9"
PUBLIC = "http://control.example"


def upload(made: MadeTitle, published: int = 1_700_000_000) -> dict[str, Any]:
    """The body that registers a title."""
    indexes = {track: base64.b64encode(made.bytes_of(f"{track}.idx")).decode() for track in made.indexes}
    title_json = base64.b64encode(made.bytes_of("title.json")).decode()
    return {"title_json": title_json, "indexes": indexes, "published": published}


def demand_csv(*rows: tuple[str, str, float]) -> bytes:
    """A demand file of (region, title, views), all of it watched two hours ago."""
    hour = datetime.fromtimestamp(time.time() - 7200, UTC).strftime("%Y-%m-%dT%H:00:00Z")
    return "\n".join(["time,region,title,views", *(f"{hour},{r},{t},{v}" for r, t, v in rows)]).encode()


@dataclass
class Desk:
    """A running controller, and the hands of its operator and of the appliances."""

    app: web.Application
    server: TestServer
    session: aiohttp.ClientSession
    settings: ControlSettings

    @property
    def parts(self) -> Parts:
        return self.app[PARTS]

    async def answer(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        viewer: str = "",
        token: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and header fields of the answer to exactly this target; redirects are not followed.

        `viewer` is an address that a proxy is made to vouch for; `token` an operator's.
        """
        fields = dict(fields or {})
        if viewer:
            fields["X-Forwarded-For"] = viewer
        if token is not None:
            fields["Authorization"] = f"Bearer {token}"
        target = URL(f"http://{self.server.host}:{self.server.port}{path}", encoded=True)
        async with self.session.request(
            method, target, data=data and io.BytesIO(data), headers=fields, allow_redirects=False
        ) as response:
            return response.status, await response.read(), dict(response.headers)

    async def ask(self, method: str, path: str, body: object = None, status: int = 200) -> Any:
        """The JSON answer of the API; `body` is sent as it is if bytes, else as JSON. Refusals are sentences."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        got, answer, fields = await self.answer(method, f"/api/v1/{path}", data)
        assert got == status, answer
        if got == 204:
            return None
        assert fields["Content-Type"].startswith("application/json")
        found = json.loads(answer)
        if got >= 400:
            assert list(found) == ["error"]
            return found["error"]
        return found

    async def register(self, *titles: MadeTitle) -> None:
        for made in titles:
            await self.ask("POST", "titles", upload(made), 201)

    async def box(self, name: str, site: str = "north", role: str = "edge", **more: int) -> None:
        """Register an appliance that has room for everything unless told otherwise."""
        spec = {"id": name, "site": site, "role": role, "url": f"http://{name}.example", "storage_bytes": 1 << 30}
        await self.ask("POST", "appliances", spec | more, 201)

    async def beat(self, name: str, status: int = 200, **more: Any) -> Any:
        """Send a heartbeat of an appliance."""
        values: dict[str, Any] = {
            "appliance": name,
            "at": time.time(),
            "started": 0.0,
            "url": f"http://{name}.example",
            "inventory": "1",
            "storage_bytes": 1 << 30,
            "used_bytes": 0,
        }
        beat = Heartbeat(**values | more)
        return await self.ask("POST", f"appliances/{name}/heartbeat", wire.encode(beat), status)

    async def tell(self, name: str, *held: tuple[MadeTitle, str], generation: str = "1") -> None:
        """Send an inventory: titles, each with the names of the tracks held of it."""
        rows = [HeldTracks(made.id, made.version, tracks.split()) for made, tracks in held]
        body = wire.pack(Inventory(appliance=name, generation=generation, held=rows))
        await self.ask("PUT", f"appliances/{name}/inventory", body, 204)

    async def sources(self, name: str, *tracks: tuple[MadeTitle, str]) -> list[list[wire.Source]]:
        """Where an appliance may fetch tracks of titles."""
        order = wire.SourcesOrder(tracks=[wire.Track(made.id, made.version, track) for made, track in tracks])
        path = f"/api/v1/appliances/{name}/sources"
        status, answer, _ = await self.answer("POST", path, wire.encode(order))
        assert status == 200, answer
        return wire.decode(answer, wire.Sources, "sources").tracks

    async def plan(self, *rows: tuple[str, str, float]) -> Any:
        """Import demand and put a plan for it in force."""
        await self.ask("POST", "demand", demand_csv(*rows))
        return await self.ask("POST", "plans", {}, 201)

    async def cover(self) -> None:
        await self.ask("PUT", "coverage", COVERAGE)


Start = Callable[..., Awaitable[Desk]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a controller that is open to all, all on the test's database unless settings say otherwise."""
    ended: list[Callable[[], Awaitable[None]]] = []

    async def run(**settings: Any) -> Desk:
        database = f"sqlite+aiosqlite:///{tmp_path}/control.db"
        defaults = {"database": database, "public_url": PUBLIC, "api": ApiSettings(open=True)}
        made = ControlSettings(**defaults | settings)
        app = await application(made)
        server = TestServer(app)
        await server.start_server()
        session = aiohttp.ClientSession()
        ended.extend((server.close, session.close))
        return Desk(app, server, session, made)

    yield run
    for end in reversed(ended):
        await end()


@pytest.fixture
async def desk(start: Start) -> Desk:
    """A controller that knows nothing yet, whose viewers may come through a proxy on this machine."""
    return await start(trusted_proxies=["127.0.0.1"])
