"""Playing a version from disk: a page with players, and the segment server of an appliance beside it, on loopback."""

from __future__ import annotations

import asyncio
import html
import json
import re
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvloop
from aiohttp import web

from oca import handover, players
from oca.errors import ConfigError, StoreError
from oca.http.accesslog import AccessLog
from oca.http.server import Server
from oca.http.slices import Slices
from oca.ids import is_id
from oca.store import verify
from oca.store.content import HeldVersion, Store
from oca.title.model import TITLE_JSON, Title

_HOST = "127.0.0.1"
_PAGE = Path(__file__).parent / "player.html"
_SCRIPTS = (players.DASH_JS, players.HLS_JS)


def find(path: Path) -> tuple[Store, HeldVersion]:
    """The version at `path`, or the newest one of the title there, and the store that it is in.

    Segments have URLs by title and version, so the directories must have their names: StoreError if they have not.
    """
    versions = [each.resolve() for each in verify.version_directories(path)]
    directory = max(versions, key=lambda each: _published(each / TITLE_JSON))
    title, version = directory.parent.name, directory.name
    store = Store([directory.parents[1]])
    held = store.held(title, version) if is_id(title) else None
    if held is None:
        raise StoreError(f"{directory} is not named TITLE/VERSION as it was published: copy it with both directories")
    if len(held.tracks) < len(held.title.tracks):
        raise StoreError(f"{directory} lacks files that it lists: `oca-pack verify {directory}` names them")
    return store, held


def _published(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def page_of(title: Title, base: str) -> str:
    """The page that plays the title, whose manifests and segments are below the URL `base`."""
    told = {"base": base, "licences": title.protection.clearkey_url if title.protection else ""}
    words = {
        "told": json.dumps(told).replace("<", "\\u003c"),  # nothing in it ends the script
        "name": html.escape(title.name),
    }
    # In one pass, so that nothing in what is put in is a place to put something.
    return re.sub(r"\{\{(\w+)\}\}", lambda place: words[place[1]], _PAGE.read_text("utf-8"))


def play(path: Path, port: int, ready: Callable[[str, HeldVersion], None]) -> None:
    """Serve the page at `port` of loopback, 0 for a free one, until Ctrl-C; `ready` gets its URL when it answers."""
    missing = [name for name in _SCRIPTS if not (players.SCRIPTS / name).is_file()]
    if missing:
        raise ConfigError(
            f"the players' scripts are not in {players.SCRIPTS}: run `make setup`, or install the wheel"
        )
    store, held = find(path)
    uvloop.run(_serve(store, held, handover.slots(_HOST, port, 1)[0], handover.listen(_HOST, 0), ready))


async def _serve(
    store: Store,
    held: HeldVersion,
    front: socket.socket,
    content: socket.socket,
    ready: Callable[[str, HeldVersion], None],
) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    base = f"http://{_HOST}:{content.getsockname()[1]}/t/{held.title.id}/{held.version}/"
    page = page_of(held.title, base)

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers={"Cache-Control": "no-store"})

    async def script(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(players.SCRIPTS / request.path.removeprefix("/"))

    pages = web.Application()
    pages.add_routes([web.get("/", show), *(web.get(f"/{name}", script) for name in _SCRIPTS)])
    runner = web.AppRunner(pages, access_log=None)
    await runner.setup()
    serving = asyncio.create_task(Server([content], Slices(store), AccessLog("")).run())
    try:
        await web.SockSite(runner, front, shutdown_timeout=1).start()
        ready(f"http://{_HOST}:{front.getsockname()[1]}/", held)
        end = asyncio.create_task(ended.wait())
        await asyncio.wait({serving, end}, return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
    finally:
        await runner.cleanup()
        serving.cancel()
        with suppress(asyncio.CancelledError):
            await serving
        content.close()
