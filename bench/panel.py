"""The panel of the demo: a page with the players, and buttons that kill and start appliances.

It is served by the demo itself, since no controller should be able to do such a thing. Whoever wants to press a
button shows the token that is in the page; other web pages can neither read it nor send it, and only the panel's own
host is answered, so that no other name can be made to lead here.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from bench.fleet import Fleet, FleetError
from control.steering.viewing import page, script_text
from oca import players

_HTML = Path(__file__).with_suffix(".html")
# Read ahead so little that a death is felt at once.
_BUFFER_S = 8
_LOOK_S = 0.5
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Panel:
    """Page and API over a fleet whose `boxes` may be killed, for one title."""

    def __init__(self, fleet: Fleet, boxes: tuple[str, ...], title: str, name: str, host: str) -> None:
        """`host` is the address that it is served on, at the port of the controller."""
        self._fleet = fleet
        self._boxes = boxes
        self._host, self._port = host, fleet.port
        self.url = f"http://{host}:{fleet.port}/"
        self._token = secrets.token_urlsafe(24)
        words = {"token": script_text(self._token)}
        more = re.sub(r"\{\{(\w+)\}\}", lambda place: words[place[1]], _HTML.read_text("utf-8"))
        self._page = page(name, f"{fleet.controller}/play/{title}", "assets", more, _BUFFER_S)

    def application(self) -> web.Application:
        """Its routes: the page, the players' scripts, the state of the boxes, and what may be done to one."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/", self._show),
                web.get("/boxes", self._look),
                web.post("/boxes/{box}/{deed:kill|start}", self._act),
                *(web.get(f"/assets/{name}", self._script) for name in (players.DASH_JS, players.HLS_JS)),
            ]
        )
        return app

    async def serve(self) -> None:
        """Serve until cancelled; FleetError if a program of the fleet ends by itself, or if the address is taken."""
        runner = web.AppRunner(self.application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port, shutdown_timeout=1).start()
            while True:
                self._fleet.check()
                await asyncio.sleep(_LOOK_S)
        except OSError as error:
            raise FleetError(f"cannot listen on {self._host}:{self._port}: {error.strerror}") from None
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors are JSON, too."""
        try:
            if request.host != f"{self._host}:{self._port}":
                raise web.HTTPMisdirectedRequest(reason=f"this is {self.url}")
            return await handler(request)
        except web.HTTPException as error:
            return web.json_response({"error": error.reason}, status=error.status, headers=_HEADERS)

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html", headers=_HEADERS)

    async def _script(self, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(players.SCRIPTS / request.path.rpartition("/")[2])

    async def _look(self, _: web.Request) -> web.Response:
        boxes = [
            {"id": box, "site": self._fleet.boxes[box].site, "running": self._fleet.is_running(box)}
            for box in self._boxes
        ]
        return web.json_response({"boxes": boxes}, headers=_HEADERS)

    async def _act(self, request: web.Request) -> web.Response:
        if not hmac.compare_digest(request.headers.get("X-Token", "").encode(), self._token.encode()):
            raise web.HTTPForbidden(reason="the token of the page is needed")
        box, deed = request.match_info["box"], request.match_info["deed"]
        if box not in self._boxes:
            raise web.HTTPNotFound(reason="there is no such appliance")
        # Here and not in another thread: a program ends with the thread that started it.
        if deed == "kill":
            self._fleet.kill(box)
        elif not self._fleet.is_running(box):
            self._fleet.revive(box)
        return await self._look(request)
