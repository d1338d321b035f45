"""Content that a box does not hold, asked of the real program: passed on from other boxes, or redirected to them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest
from msgspec import inspect

from oca import channel
from oca.asking import HELD_ONLY
from oca.config import MissSettings
from oca.title.digest import CHUNK_BYTES
from tests.conftest import MadeTitle, MakeTitle
from tests.oca.boxes import (
    Asked,
    Box,
    InsideBox,
    Upstream,
    dies_half_way,
    fails,
    honest,
    lacks,
    never_begins,
    only_media,
    running,
    stalls_half_way,
    wrong_bytes,
)

MB = 1 << 20
PAGE = Path(__file__).parents[2] / "docs" / "misses.md"


@pytest.fixture(autouse=True)
def often_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A puller in the test's own process tells its counts more often than once a second."""
    monkeypatch.setattr(channel, "TELL_S", 0.05)


@pytest.fixture
def made(make_title: MakeTitle, tmp_path: Path) -> MadeTitle:
    """A title whose video is two chunks and a bit; segment 3 lies across the end of the first chunk."""
    return make_title(tmp_path / "elsewhere", v1=[3 * MB, 3 * MB, 4 * MB, 4 * MB, 4 * MB], a1=[50_000, 60_000])


def test_the_page_documents_every_setting() -> None:
    """Effect, danger and default, in the words of the settings."""
    found = inspect.type_info(MissSettings)
    assert isinstance(found, inspect.StructType)
    rows = []
    for row in found.fields:
        assert isinstance(row.type, inspect.Metadata), row.name
        about, danger = (row.type.extra_json_schema or {})["description"], (row.type.extra or {})["danger"]
        rows.append(f"| `{row.name}` | {f'{row.default:,}'.removesuffix('.0')} | {about} | {danger} |")
    table = PAGE.read_text().partition("| `[miss]` |")[2].partition("\n## ")[0]
    assert [line for line in table.splitlines() if line.startswith("| `")] == rows


async def test_a_miss_is_passed_on(made: MadeTitle, tmp_path: Path) -> None:
    """Every kind of URL gives what the holder would, byte for byte and with its validators; each chunk comes once."""
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy"), origin) as box:
        for number in range(1, 6):
            assert await box.get(f"{made.url}/v1/{number}.m4s") == (200, made.segment("v1", number))
        assert await box.get(f"{made.url}/a1/init.mp4") == (200, made.segment("a1", 0))
        for name in ("title.json", "manifest.mpd", "v1.idx", "a1.mp4", "v1.mp4"):
            assert await box.get(f"{made.url}/{name}") == (200, made.bytes_of(name))
        assert await box.get(f"{made.url}/v1/3.m4s", Range="bytes=10-3000000") == (
            206,
            made.segment("v1", 3)[10:3_000_001],
        )
        async with box.session.head(box.url(f"{made.url}/v1/4.m4s")) as response:
            assert response.status == 200
            assert int(response.headers["Content-Length"]) == 4 * MB
            assert response.headers["ETag"] == f'"{made.title.files["v1.mp4"].digest[:32]}-4"'
            assert response.headers["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
            assert response.headers["Access-Control-Allow-Origin"] == "*"
            etag = response.headers["ETag"]
        assert (await box.get(f"{made.url}/v1/4.m4s", **{"If-None-Match": etag}))[0] == 304
        got = sum(asked.end - asked.start for asked in origin.asked("v1.mp4"))
        assert got == made.title.files["v1.mp4"].bytes
        for name in ("title.json", "v1.idx", "a1.idx"):
            assert len(origin.asked(name)) == 1
        assert all(f"{HELD_ONLY}: 1".lower() in asked.fields for asked in origin.log)
        await box.until(lambda: _is(box, 'oca_pulls_total{outcome="kept"}', 8))
        assert 'oca_content_requests_total{outcome="hit"} 0' in await box.metrics()
        assert await box.metric("oca_waiting_answers") == 0


async def _is(box: Box, metric: str, value: float) -> bool:
    return await box.metric(metric) == value


async def test_a_range_of_a_track_file_brings_its_chunks_only(made: MadeTitle, tmp_path: Path) -> None:
    """A player that reads byte ranges of a whole track file does not make the box fetch all of the file."""
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy"), origin) as box:
        segment = made.indexes["v1"].segments[4]
        span = f"bytes={segment.offset}-{segment.offset + segment.bytes - 1}"
        assert await box.get(f"{made.url}/v1.mp4", Range=span) == (206, made.segment("v1", 5))
        assert {asked.start // CHUNK_BYTES for asked in origin.asked("v1.mp4")} == {1, 2}


async def test_what_is_nowhere_is_404(made: MadeTitle, tmp_path: Path) -> None:
    """A title that nobody is known to hold, a segment that there is not, a box that asks only for what is held."""
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy"), origin) as box:
        assert (await box.get(f"/t/other/{made.version}/v1/1.m4s"))[0] == 404
        assert (await box.get(f"{made.url}/v1/6.m4s"))[0] == 404
        assert (await box.get(f"{made.url}/v9/1.m4s"))[0] == 404
        assert (await box.get(f"{made.url}/nothing.vtt"))[0] == 404
        asked = len(origin.log)
        assert (await box.get(f"{made.url}/v1/1.m4s", **{HELD_ONLY: "1"}))[0] == 404
        assert len(origin.log) == asked
        origin.behaviour = lacks
        assert (await box.get(f"{made.url}/a1/1.m4s"))[0] == 404


@pytest.mark.long
async def test_a_hundred_viewers_are_one_fetch(made: MadeTitle, tmp_path: Path) -> None:
    """On two workers, all of them while the chunk is still on its way; each gets the right bytes."""
    gate = asyncio.Event()

    async def waits(asked: Asked) -> None:
        await asked.send(asked.head + asked.body[: 2 * MB])
        await gate.wait()
        await asked.send(asked.body[2 * MB :])

    origin = Upstream("origin", made, behaviour=only_media(waits))
    async with running(Box(tmp_path, "proxy", workers=2, stall_s=30), origin) as box:
        viewers = [asyncio.create_task(box.get(f"{made.url}/v1/1.m4s")) for _ in range(100)]
        await box.until(lambda: _is(box, "oca_connections_open", 100))
        gate.set()
        answers = await asyncio.gather(*viewers)
        assert all(answer == (200, made.segment("v1", 1)) for answer in answers)
        assert [(asked.start, asked.end) for asked in origin.asked("v1.mp4")] == [(0, CHUNK_BYTES)]
        assert [len(origin.asked(name)) for name in ("title.json", "v1.idx")] == [1, 1]


async def test_bytes_stream_through_but_the_last_one_waits_for_proof(made: MadeTitle, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def waits(asked: Asked) -> None:
        await asked.send(asked.head + asked.body[:-1])
        await gate.wait()
        await asked.send(asked.body[-1:])

    origin = Upstream("origin", made, behaviour=only_media(waits))
    async with running(InsideBox(tmp_path, "proxy", stall_s=30), origin) as box:
        wanted = made.segment("v1", 2)
        async with box.session.get(box.url(f"{made.url}/v1/2.m4s")) as response:
            assert await response.content.readexactly(len(wanted) - 1) == wanted[:-1]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(response.content.readexactly(1), 0.3)
            gate.set()
            assert await response.content.readexactly(1) == wanted[-1:]


@pytest.mark.parametrize("fault", [dies_half_way, stalls_half_way, never_begins, fails])
async def test_the_next_source_goes_on(made: MadeTitle, tmp_path: Path, fault: object) -> None:
    """A peer that fails in the middle of a chunk, or at once, is followed by the tier; no viewer sees it."""
    peer = Upstream("peer", made, "peer", only_media(fault))  # type: ignore[arg-type]
    tier = Upstream("tier", made, "tier")
    origin = Upstream("origin", made, "origin")
    async with running(InsideBox(tmp_path, "proxy", stall_s=0.5, first_byte_s=0.5), origin, tier, peer) as box:
        assert await box.get(f"{made.url}/v1/2.m4s") == (200, made.segment("v1", 2))
        assert peer.asked("v1.mp4")
        assert tier.asked("v1.mp4")
        assert not origin.log


async def test_wrong_bytes_never_complete_an_answer(made: MadeTitle, tmp_path: Path) -> None:
    """They break the connection; their source is not asked again, the next one gives the right ones."""
    peer = Upstream("peer", made, "peer", only_media(wrong_bytes))
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy"), peer, origin) as box:
        with pytest.raises(aiohttp.ClientPayloadError):
            await box.get(f"{made.url}/v1/1.m4s")
        asked = len(peer.log)
        assert await box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
        assert await box.get(f"{made.url}/v1/5.m4s") == (200, made.segment("v1", 5))
        assert len(peer.log) == asked
        await box.until(lambda: _is(box, 'oca_connections_closed_total{reason="upstream-failed"}', 1))
        await box.until(lambda: _is(box, 'oca_pulls_total{outcome="wrong"}', 1))


async def test_wrong_bytes_of_who_does_not_finish(made: MadeTitle, tmp_path: Path) -> None:
    """Two boxes gave the bytes of a wrong chunk: the one that finished it is asked alone next, and is right."""

    async def lies_and_dies(asked: Asked) -> None:
        await asked.send(asked.head + bytes(len(asked.body) // 2))
        asked.writer.transport.abort()

    peer = Upstream("peer", made, "peer", only_media(lies_and_dies))
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy"), peer, origin) as box:
        with pytest.raises(aiohttp.ClientPayloadError):
            await box.get(f"{made.url}/v1/1.m4s")
        assert await box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
        assert len(peer.asked("v1.mp4")) == 1


async def test_only_so_many_fallbacks_at_once(made: MadeTitle, tmp_path: Path) -> None:
    """When the first of the chain is down, its viewers do not all go on to the next one."""
    gate = asyncio.Event()

    async def waits(asked: Asked) -> None:
        await gate.wait()
        await honest(asked)

    peer = Upstream("peer", made, "peer", only_media(fails))
    origin = Upstream("origin", made, behaviour=only_media(waits))
    async with running(InsideBox(tmp_path, "proxy", fallbacks=1, first_byte_s=15), peer, origin) as box:
        viewer = asyncio.create_task(box.get(f"{made.url}/v1/1.m4s"))

        async def asked() -> bool:
            return bool(origin.asked("v1.mp4"))

        await box.until(asked)
        status, words = await box.get(f"{made.url}/v1/5.m4s")
        assert (status, b"origin: 1 fallbacks are under way already" in words) == (504, True)
        gate.set()
        assert await viewer == (200, made.segment("v1", 1))
        assert await box.get(f"{made.url}/v1/5.m4s") == (200, made.segment("v1", 5))


async def test_far_peers_are_passed_over(made: MadeTitle, tmp_path: Path) -> None:
    """With no time at all to connect every peer is far: the tier is asked, or the answer says why nobody was."""
    peer, tier = Upstream("peer", made, "peer"), Upstream("tier", made, "tier")
    async with running(InsideBox(tmp_path, "proxy", near_ms=0), peer, tier) as box:
        assert (await box.get(f"{made.url}/a1/1.m4s"))[0] == 200
        assert not peer.log
        await tier.stop()
        status, words = await box.get(f"{made.url}/v1/1.m4s")
        assert status == 504
        assert b"peer: connecting to it takes more than 0 ms" in words
        assert b"tier: " in words


@pytest.mark.long
async def test_all_down_opens_the_circuit_and_it_closes_again(made: MadeTitle, tmp_path: Path) -> None:
    """504 that says who was asked; after enough failures nobody is asked; one request tries, and all is well."""
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy", breaker_requests=5, breaker_rest_s=1.0), origin) as box:
        await origin.stop()
        for _ in range(5):
            status, words = await box.get(f"{made.url}/a1/1.m4s")
            assert status == 504
            assert b"no other box gives /t/clip/" in words
            assert b"origin: " in words
        status, words = await box.get(f"{made.url}/a1/1.m4s")
        assert (status, b"its circuit is open" in words) == (504, True)
        await box.until(lambda: _is(box, 'oca_circuit_changes_total{to="opened"}', 1))
        assert await box.metric('oca_upstream_error_percent{upstream="origin"}') == 100
        await origin.start()

        async def served() -> bool:
            return await box.get(f"{made.url}/a1/1.m4s") == (200, made.segment("a1", 1))

        await box.until(served)
        await box.until(lambda: _is(box, 'oca_circuit_changes_total{to="closed"}', 1))
        assert await box.metric('oca_circuits{state="closed"}') == 1
        assert await box.metric('oca_circuit_changes_total{to="half-opened"}') >= 1


@pytest.mark.long
async def test_what_was_pulled_outlives_everybody(made: MadeTitle, tmp_path: Path) -> None:
    """After a restart, with the upstream gone and neighbours unknown, whole slices are still answered."""
    origin = Upstream("origin", made)
    async with running(Box(tmp_path, "proxy"), origin) as box:
        assert await box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
        await box.stop()
        await origin.stop()
        (box.store / ".neighbours").write_bytes(b"rubbish")
        left = box.store / ".pulled" / ".arriving-999999"
        left.mkdir()
        (left / "1").write_bytes(b"half a chunk")
        await box.start()

        async def cleared() -> bool:
            return not left.exists()

        await box.until(cleared)
        async with box.session.get(box.url(f"{made.url}/v1/2.m4s")) as response:
            assert await response.read() == made.segment("v1", 2)
            assert response.headers["Last-Modified"] == "Tue, 14 Nov 2023 22:13:20 GMT"
        assert (await box.get(f"{made.url}/v1/5.m4s"))[0] == 404


@pytest.mark.long
@pytest.mark.parametrize("begun", [True, False])
async def test_a_killed_puller_is_replaced(made: MadeTitle, tmp_path: Path, begun: bool) -> None:
    """Who was sent something that nobody can prove any more is cut off; who only waits is served by the next one."""
    gate, reached = asyncio.Event(), asyncio.Event()

    async def waits(asked: Asked) -> None:
        await asked.send(asked.head + (asked.body[:MB] if begun else b""))
        reached.set()
        await gate.wait()
        await asked.send(asked.body[MB:] if begun else asked.body)

    origin = Upstream("origin", made, behaviour=only_media(waits))
    async with running(Box(tmp_path, "proxy", stall_s=30, first_byte_s=15), origin) as box:
        viewer = asyncio.create_task(box.get(f"{made.url}/v1/1.m4s"))
        await reached.wait()
        if begun:
            await box.until(lambda: _sent(box))
        before = box.puller()
        os.kill(before, signal.SIGKILL)
        origin.behaviour = honest
        if begun:
            with pytest.raises(aiohttp.ClientPayloadError):
                await viewer
        else:
            assert await viewer == (200, made.segment("v1", 1))
        assert await box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
        assert box.puller() not in (0, before)
        assert not list((box.store / ".pulled").glob(f".arriving-{before}"))
        gate.set()


async def _sent(box: Box) -> bool:
    return await box.metric('oca_sent_bytes_total{way="sendfile"}') > MB // 2


@pytest.mark.long
async def test_space_is_bounded(make_title: MakeTitle, tmp_path: Path) -> None:
    """Titles watched one after the other take no more than they may; what was used last is kept."""
    titles = [
        make_title(tmp_path / "elsewhere", name=f"t{number}", seed=number, v1=[9 * MB], a1=[1000])
        for number in range(5)
    ]
    origins = [Upstream(f"o{number}", made) for number, made in enumerate(titles)]
    limit = 32 << 20
    async with running(InsideBox(tmp_path, "proxy", pulled_bytes=limit), *origins) as box:
        for made in [*titles, titles[0]]:
            assert await box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
            assert box.pulled() <= limit
        asked = len(origins[0].log) + len(origins[4].log)
        for made in (titles[0], titles[4]):
            assert await box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
        assert len(origins[0].log) + len(origins[4].log) == asked
        assert await box.get(f"{titles[1].url}/v1/1.m4s") == (200, titles[1].segment("v1", 1))


@pytest.mark.long
async def test_a_file_larger_than_the_space_for_it(make_title: MakeTitle, tmp_path: Path) -> None:
    """It goes through all the same, its own first chunks making room for the last ones."""
    made = make_title(tmp_path / "elsewhere", v1=[20 * MB, 20 * MB, 20 * MB])
    async with running(InsideBox(tmp_path, "proxy", pulled_bytes=32 << 20), Upstream("origin", made)) as box:
        assert await box.get(f"{made.url}/v1.mp4") == (200, made.bytes_of("v1.mp4"))
        assert box.pulled() <= 32 << 20


@pytest.mark.long
async def test_a_reload_breaks_no_answer(made: MadeTitle, tmp_path: Path) -> None:
    """What is being passed on when the program is replaced arrives; the next puller serves what comes then."""
    gate, reached = asyncio.Event(), asyncio.Event()

    async def waits(asked: Asked) -> None:
        await asked.send(asked.head + asked.body[:MB])
        reached.set()
        await gate.wait()
        await asked.send(asked.body[MB:])

    origin = Upstream("origin", made, behaviour=only_media(waits))
    async with running(Box(tmp_path, "proxy", stall_s=30), origin) as box:
        viewer = asyncio.create_task(box.get(f"{made.url}/v1/1.m4s"))
        await reached.wait()
        before = box.puller()
        assert box.process is not None
        box.process.send_signal(signal.SIGHUP)

        async def renewed() -> bool:
            return any('"renewing"' in line for line in box.log)

        await box.until(renewed)
        gate.set()
        assert await viewer == (200, made.segment("v1", 1))
        assert await box.get(f"{made.url}/v1/4.m4s") == (200, made.segment("v1", 4))

        async def replaced() -> bool:
            return not Path(f"/proc/{before}").exists() and box.puller() not in (0, before)

        await box.until(replaced)


async def test_a_redirect_leads_to_a_holder_while_the_controller_is_dead(made: MadeTitle, tmp_path: Path) -> None:
    """The best holder that the request has not been to, with all that was asked; HEAD too; never stored."""
    near, origin = Upstream("near", made, "peer"), Upstream("origin", made)
    box = Box(tmp_path, "redirect", controllers='["http://127.0.0.1:1"]')
    async with running(box, near, origin):
        for ask, query in ((box.session.get, ""), (box.session.head, "?CMCD=bl%3D100")):
            async with ask(box.url(f"{made.url}/v1/1.m4s{query}"), allow_redirects=False) as response:
                more = f"{query}&" if query else "?"
                assert response.status == 302
                location = response.headers["Location"]
                assert location == f"http://127.0.0.1:{near.port}{made.url}/v1/1.m4s{more}oca-hops=me"
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["Access-Control-Allow-Origin"] == "*"
        for hops, place in (("near", origin.port), ("me,near", origin.port), ("me,near,origin", 0), ("a,b,c", 0)):
            async with box.session.get(
                box.url(f"{made.url}/v1/1.m4s?oca-hops={hops}"), allow_redirects=False
            ) as response:
                if place:
                    assert response.headers["Location"].startswith(f"http://127.0.0.1:{place}/")
                else:
                    assert response.status == 404
        for path in ("/", "/t/../etc", f"/t/clip/{'0' * 32}/v1/1.m4s", f"{made.url}/v1/0.m4s"):
            assert (await box.get(path))[0] == 404
        assert (await box.get(f"{made.url}/v1/1.m4s", **{HELD_ONLY: "1"}))[0] == 404
        (box.store / ".neighbours").write_bytes(b"rubbish")

        async def forgotten() -> bool:
            return (await box.get(f"{made.url}/v1/1.m4s"))[0] == 404

        await box.until(forgotten)
        box.know(near, origin)
        await box.until(lambda: _not(forgotten))
        assert await box.metric('oca_content_requests_total{outcome="miss"}') > 0


async def _not(condition: object) -> bool:
    return not await condition()  # type: ignore[operator]


async def test_a_title_with_short_chunks(make_title: MakeTitle, tmp_path: Path) -> None:
    """An index, a segment and a range that are in many chunks; each chunk comes once, whichever of them it is for."""
    made = make_title(tmp_path / "elsewhere", v1=[3000] * 200, a1=[700] * 200, chunk_bytes=5000)
    assert len(made.title.files["v1.idx"].chunks) == 2
    origin = Upstream("origin", made)
    async with running(InsideBox(tmp_path, "proxy"), origin) as box:
        for number in (0, 1, 2, 3, 200):
            assert await box.get(f"{made.url}/v1/{number}.m4s".replace("/0.m4s", "/init.mp4")) == (
                200,
                made.segment("v1", number),
            )
        assert await box.get(f"{made.url}/v1.mp4") == (200, made.bytes_of("v1.mp4"))
        asked = [asked.start for asked in origin.asked("v1.mp4")]
        assert sorted(asked) == list(range(0, made.title.files["v1.mp4"].bytes, 5000))
        assert sorted(asked.start for asked in origin.asked("v1.idx")) == [0, 5000]


async def test_a_title_whose_chunks_are_too_long_for_the_space(make_title: MakeTitle, tmp_path: Path) -> None:
    """It is not passed on; a title whose chunks fit is."""
    made = make_title(tmp_path / "elsewhere", v1=[17 * MB], a1=[700], chunk_bytes=17 * MB)
    async with running(InsideBox(tmp_path, "proxy", pulled_bytes=32 << 20), Upstream("origin", made)) as box:
        assert (await box.get(f"{made.url}/v1/1.m4s"))[0] == 504
        assert await box.get(f"{made.url}/a1/1.m4s") == (200, made.segment("a1", 1))
