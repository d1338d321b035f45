"""The states of what a store has, and which of them viewers are served from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from fill.holdings import holdings
from oca.handover import listen
from oca.http.accesslog import AccessLog
from oca.http.server import Server
from oca.http.slices import Slices
from oca.store.content import FILLING, Store, is_open
from oca.store.landing import Landing
from oca.wire import Doomed
from tests.conftest import MadeTitle, MakeTitle
from tests.fill.conftest import Controller, MakeAgent


@pytest.fixture
async def viewer(store: Store) -> AsyncIterator[aiohttp.ClientSession]:
    """Somebody who watches what the store's server gives."""
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(Server([sock], Slices(store), AccessLog("")).run())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{sock.getsockname()[1]}") as session:
            yield session
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def asked(viewer: aiohttp.ClientSession, made: MadeTitle) -> int:
    """The status that a viewer gets of a segment."""
    async with viewer.get(f"{made.url}/v1/1.m4s") as answer:
        assert answer.status == 404 or len(await answer.read()) == 3000
        return answer.status


async def test_what_is_on_its_way_in_is_not_served(
    make_title: MakeTitle, origin_root: Path, store: Store, viewer: aiohttp.ClientSession
) -> None:
    """Not while it fills, though all of its bytes are there; and at once when it is verified."""
    made = make_title(origin_root)
    arriving = store.staging(made.id, made.version)
    names = ["title.json", *made.title.shared_files, "v1.mp4", "v1.idx"]
    for name in names:
        if name == "title.json":
            (arriving / name).write_bytes(made.bytes_of(name))
        else:
            landing = Landing(arriving / name, made.title.files[name])
            landing.claims()
            landing.settle(0, made.bytes_of(name))
    assert await asked(viewer, made) == 404
    async with viewer.get(f"/{FILLING}/{made.id}/{made.version}/v1.mp4") as answer:
        assert answer.status == 404
    store.commit(made.id, made.version, names, 1_700_000_000)
    async with asyncio.timeout(60):
        while await asked(viewer, made) != 200:
            await asyncio.sleep(0.05)


async def test_what_is_in_quarantine_is_not_served(
    make_title: MakeTitle, store: Store, viewer: aiohttp.ClientSession
) -> None:
    """Whoever was watching included."""
    made = make_title(store.roots[0])
    assert await asked(viewer, made) == 200
    held = store.held(made.id, made.version)
    assert held is not None
    store.quarantine(held, "v1.mp4", [])
    async with asyncio.timeout(60):
        while await asked(viewer, made) != 404:
            await asyncio.sleep(0.05)


def test_whoever_is_between_two_segments_is_being_served(make_title: MakeTitle, store: Store) -> None:
    """Though the store changes meanwhile, as it does all the time while it is filled, and files are let go of."""
    made = make_title(store.roots[0])
    media = made.directory / "v1.mp4"
    slices = Slices(store)
    assert slices.find(f"{made.url}/v1/1.m4s") is not None
    for generation in ("1", "2"):
        slices.refresh(generation)
        assert is_open(media)
    slices.let_go()
    slices.refresh("3")
    assert is_open(media), "it may have been sent just before"
    slices.let_go()
    assert not is_open(media)
    assert slices.find(f"{made.url}/v1/1.m4s") is not None
    slices.let_go()
    assert is_open(media)


async def test_what_is_doomed_is_served_as_long_as_it_is_here(
    make_title: MakeTitle, controller: Controller, agent: MakeAgent, store: Store, viewer: aiohttp.ClientSession
) -> None:
    """It goes at a look at which nobody watches it."""
    made = make_title(store.roots[0])
    assert await asked(viewer, made) == 200
    controller.plan(doomed=[Doomed(made.id, made.version)])
    await agent().look()
    assert await asked(viewer, made) == 200
    assert [track.track for track in holdings(store)] == ["v1"], "of the other track nobody was sent anything"
