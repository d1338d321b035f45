"""How long the controller waits for what a client has to say.

aiohttp waits for ever for the head of a connection's first request, and for every body. Each costs a descriptor and
memory, and costs the client next to nothing.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from control.http import Handler

HEAD_S = 20.0
"""A connection that has said nothing whole for so long is ended."""
# A body has to bring so many bytes in so many seconds; at a hundredth of a megabit per second it may go on for ever.
LOOK_S, LEAST = 10.0, 12_500


class Heads:
    """Ends connections whose first request does not come."""

    def __init__(self) -> None:
        self._heard: set[RequestHandler] = set()
        self._since: dict[RequestHandler, float] = {}

    def heard(self, request: web.Request) -> None:
        """A head has come. The next ones are a matter of aiohttp's keep-alive time."""
        self._heard.add(request.protocol)

    def sweep(self, server: web.Server, now: float) -> None:
        """End what has been silent for too long; `now` of the loop's clock."""
        here = set(server.connections)
        self._heard &= here
        self._since = {connection: self._since.get(connection, now) for connection in here - self._heard}
        for connection, since in self._since.items():
            if now - since >= HEAD_S:
                connection.force_close()

    async def watch(self, server: web.Server) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(HEAD_S / 10)
            self.sweep(server, asyncio.get_running_loop().time())


HEADS: web.AppKey[Heads] = web.AppKey("heads", Heads)


@web.middleware
async def patient(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Note that a head has come."""
    request.app[HEADS].heard(request)
    return await handler(request)


@web.middleware
async def bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Read the body before the handler wants it, which then has it at once; 408 if it comes too slowly."""
    if request.can_read_body:
        reading = asyncio.ensure_future(request.read())
        before = 0
        try:
            while not (await asyncio.wait({reading}, timeout=LOOK_S))[0]:
                if request.content.total_bytes - before < LEAST:
                    raise web.HTTPRequestTimeout(reason="the body does not come")
                before = request.content.total_bytes
        finally:
            if not reading.done():
                reading.cancel()
        await reading
    return await handler(request)
