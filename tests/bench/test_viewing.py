"""The viewer that checks every byte: what it counts, and that it sees what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pytest_aiohttp.plugin import AiohttpServer

from bench import viewing
from tests.conftest import MadeTitle, MakeTitle

SIZES = {"v1": [3000, 4000, 5000], "a1": [700, 800, 900]}


def answer(made: MadeTitle, rest: str) -> bytes:
    """What an appliance answers for a URL below the version."""
    track, _, part = rest.partition("/")
    if not part:
        return made.bytes_of(rest)
    return made.segment(track, 0 if part == "init.mp4" else int(part.removesuffix(".m4s")))


async def serving(made: MadeTitle, aiohttp_server: AiohttpServer, wrong: str = "") -> tuple[TestServer, list[str]]:
    """A server of the title, which flips a bit of the last byte of one answer, and what it was asked for."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        rest = request.match_info["rest"]
        asked.append(rest)
        data = answer(made, rest)
        return web.Response(body=data[:-1] + bytes([data[-1] ^ (rest == wrong)]))

    app = web.Application()
    app.router.add_get(f"{made.url}/{{rest:.+}}", handle)
    return await aiohttp_server(app), asked


async def test_every_segment_of_every_track_counts_once(
    tmp_path: Path, make_title: MakeTitle, aiohttp_server: AiohttpServer
) -> None:
    """Init segments and whole files are fetched and checked as well, and do not count."""
    made = make_title(tmp_path, **SIZES)
    server, asked = await serving(made, aiohttp_server)
    told: list[int] = []
    async with viewing.session() as session:
        found = await viewing.watch(session, f"{server.make_url(made.url)}/", "north-1", told.append)
    assert found == viewing.Watched("north-1", 6, sum(map(sum, SIZES.values())))
    assert told == [*SIZES["v1"], *SIZES["a1"]] or told == [*SIZES["a1"], *SIZES["v1"]]
    assert len(asked) == len(set(asked))
    assert {"v1/init.mp4", "a1/init.mp4", "manifest.mpd", "master.m3u8", "v1.mp4", "a1.idx", "title.json"} < set(
        asked
    )


@pytest.mark.parametrize(
    "wrong", ["title.json", "manifest.mpd", "v1.mp4", "a1.idx", "v1/init.mp4", "v1/1.m4s", "a1/3.m4s"]
)
async def test_one_wrong_bit_is_seen(
    tmp_path: Path, make_title: MakeTitle, aiohttp_server: AiohttpServer, wrong: str
) -> None:
    made = make_title(tmp_path, **SIZES)
    server, _ = await serving(made, aiohttp_server, wrong)
    async with viewing.session() as session:
        with pytest.raises(viewing.OcaError, match=f"/{wrong}"):
            await viewing.watch(session, f"{server.make_url(made.url)}/", "north-1", lambda _: None)
