"""Triggers of upstream CDNs over the API: what the fleet does for them, and what is told of it (RFC 8007)."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import text, update

from control import schema
from control.operators import accounts
from control.settings import ApiSettings
from control.triggers import cdni
from control.triggers.kept import CdniSettings, Room, choose
from control.triggers.upstreams import TRIGGERS
from oca import wire
from oca.wire import FillManifest
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import Desk, Start

ME = "AS64496:0"
COMMAND = {"Content-Type": cdni.COMMAND}


@pytest.fixture
async def desk(start: Start) -> Desk:
    return await start(cdni=CdniSettings(id=ME))


@pytest.fixture
async def clip(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> MadeTitle:
    """A title that an origin holds and no plan puts anywhere; two boxes in the north, one in the south."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    for name, site in (("north-1", "north"), ("north-2", "north"), ("south-1", "south")):
        await desk.box(name, site)
        await desk.beat(name)
    await desk.box("origin", "south", role="origin")
    await desk.tell("origin", (made, "v1 a1"))
    return made


async def send(
    desk: Desk, command: Any, token: str = "", fields: dict[str, str] | None = None
) -> tuple[int, Any, aiohttp.typedefs.LooseHeaders]:
    """Status, JSON if there is any, and header fields of the answer to a command."""
    more = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http://{desk.server.host}:{desk.server.port}/api/v1/cdni/triggers"
    data = command if isinstance(command, bytes) else json.dumps(command).encode()
    async with desk.session.post(url, data=io.BytesIO(data), headers=COMMAND | more | (fields or {})) as answer:
        body = await answer.read()
        return answer.status, json.loads(body) if body else None, dict(answer.headers)


async def trigger(desk: Desk, kind: str, *urls: str, token: str = "", **more: Any) -> str:
    """Make a trigger; its path."""
    named = {"content.urls": list(urls)} if urls else {}
    command = {"trigger": {"type": kind, **named, **more}, "cdn-path": ["AS64500:1"]}
    status, found, fields = await send(desk, command, token)
    assert (status, fields["Content-Type"]) == (201, cdni.STATUS), found
    assert found["trigger"] == command["trigger"]
    assert found["status"] in ("pending", "active", "complete", "failed")
    return "/api/v1/" + fields["Location"].partition("/api/v1/")[2]


async def look(desk: Desk, path: str, token: str | None = None) -> Any:
    """A status resource, or a collection, after everybody had time to do what they do."""
    await desk.app[TRIGGERS].advance()
    status, body, _ = await desk.answer("GET", path, token=token)
    assert status == 200, body
    return json.loads(body)


async def wanted(desk: Desk, box: str) -> list[str]:
    _, data, _ = await desk.answer("GET", f"/api/v1/appliances/{box}/fill")
    return [item.title for item in wire.decode(data, FillManifest, "manifest").items]


async def test_preposition_fills_a_box_of_every_site(desk: Desk, clip: MadeTitle) -> None:
    """Whatever the plan says, and it is complete when they hold it; the pin stays through other plans."""
    begun = int(time.time())
    path = await trigger(desk, "preposition", "https://cdn.example/play/clip/manifest.mpd")
    assert (await look(desk, path))["status"] == "pending"
    north = [box for box in ("north-1", "north-2") if await wanted(desk, box)]
    assert len(north) == 1
    assert await wanted(desk, "south-1") == ["clip"]
    await desk.tell(north[0], (clip, "v1"))
    assert (await look(desk, path))["status"] == "active"
    await desk.tell(north[0], (clip, "v1 a1"))
    await desk.tell("south-1", (clip, "v1 a1"))
    found = await look(desk, path)
    assert (found["status"], "errors" in found) == ("complete", False)
    assert begun <= found["ctime"] <= found["mtime"] <= found["etime"] <= time.time()
    await desk.plan(("elsewhere", "clip", 0.001), ("north", "clip", 1))
    assert await wanted(desk, "south-1") == ["clip"]
    assert (await desk.answer("DELETE", path))[0] == 204
    assert await wanted(desk, "south-1") == []
    assert (await desk.answer("GET", path))[0] == 404


async def test_preposition_stays_out_of_the_planner_s_way(
    desk: Desk, clip: MadeTitle, make_title: MakeTitle, tmp_path: Path
) -> None:
    """What is pinned takes room that plans no longer have; what has no room fails whole."""
    large = make_title(tmp_path / "s", "large", v1=[900_000], seed=5)
    await desk.register(large)
    for name in ("north-1", "north-2", "south-1"):
        site = name.partition("-")[0]
        spec = {"id": name, "site": site, "url": f"http://{name}.example", "storage_bytes": 1_000_000}
        await desk.ask("POST", "appliances", spec)
    await trigger(desk, "preposition", "/play/large")
    found = await look(desk, await trigger(desk, "preposition", "/play/clip", "/play/large"))
    assert found["status"] == "pending", "the north has two boxes, the south has just room for both"
    await desk.plan(("south", "clip", 10), ("north", "large", 1))
    assert await wanted(desk, "south-1") == ["clip", "large"] or await wanted(desk, "south-1") == ["large", "clip"]
    other = make_title(tmp_path / "s", "other", v1=[900_000], seed=6)
    await desk.register(other)
    found = await look(desk, await trigger(desk, "preposition", "/play/other"))
    assert (found["status"], found["errors"][0]["error"]) == ("failed", "ereject")
    assert "south has room for 9" in found["errors"][0]["description"]
    assert not any(["other" in await wanted(desk, box) for box in ("north-1", "north-2", "south-1")])


async def test_purge_removes_everywhere_but_at_the_origin(desk: Desk, clip: MadeTitle) -> None:
    await desk.tell("north-1", (clip, "v1 a1"))
    path = await trigger(desk, "purge", **{"content.patterns": [{"pattern": "https://*/play/clip*"}]})
    assert (await look(desk, path))["status"] == "active"
    assert (await desk.answer("GET", "/play/clip"))[0] == 404
    _, data, _ = await desk.answer("GET", "/api/v1/appliances/north-1/fill")
    assert [each.title for each in wire.decode(data, FillManifest, "manifest").doomed] == ["clip"]
    await desk.tell("north-1")
    assert (await look(desk, path))["status"] == "complete"


async def test_invalidate_keeps_what_an_origin_still_has(
    desk: Desk, clip: MadeTitle, make_title: MakeTitle, tmp_path: Path
) -> None:
    """A version never changes, so it is as good as ever; one that no origin has any more is removed."""
    gone = make_title(tmp_path / "s", "gone", seed=3)
    await desk.register(gone)
    await desk.tell("north-1", (clip, "v1 a1"), (gone, "v1"))
    path = await trigger(desk, "invalidate", "/play/clip", "/play/gone")
    assert (await look(desk, path))["status"] == "active"
    titles = [title["id"] for title in await desk.ask("GET", "titles")]
    assert titles == ["clip"]
    await desk.tell("north-1", (clip, "v1 a1"))
    assert (await look(desk, path))["status"] == "complete"
    done = await trigger(desk, "invalidate", "/play/clip", "/play/gone", "/play/never")
    assert (await look(desk, done))["status"] == "complete"


async def test_what_cannot_be_done_is_done_in_no_part(
    desk: Desk, clip: MadeTitle, make_title: MakeTitle, tmp_path: Path
) -> None:
    path = await trigger(desk, "preposition", "/play/clip", "/play/nothing")
    found = await look(desk, path)
    assert (found["status"], found["errors"][0]["error"]) == ("failed", "econtent")
    assert not await wanted(desk, "south-1")
    newer = make_title(tmp_path / "s", seed=9)
    await desk.register(newer)
    found = await look(desk, await trigger(desk, "purge", f"/t/clip/{newer.version}/"))
    assert found["status"] == "failed"
    assert "activate another one first" in found["errors"][0]["description"]
    assert len((await desk.ask("GET", "titles/clip"))["versions"]) == 2


async def test_removed_before_it_came(desk: Desk, clip: MadeTitle) -> None:
    path = await trigger(desk, "preposition", "/play/clip")
    await desk.ask("DELETE", "titles/clip")
    found = await look(desk, path)
    assert (found["status"], found["errors"][0]["error"]) == ("failed", "econtent")


async def test_cancelling(desk: Desk, clip: MadeTitle) -> None:
    """Fills stop, removals do not; of what has ended nothing changes; a URL that is not ours is refused."""
    base = f"http://{desk.server.host}:{desk.server.port}"
    await desk.tell("north-1", (clip, "v1 a1"))
    fill = await trigger(desk, "preposition", "/play/clip")
    assert (await send(desk, {"cancel": [base + fill], "cdn-path": ["AS1:1"]}))[:2] == (200, None)
    found = await look(desk, fill)
    assert (found["status"], found["errors"][0]["error"]) == ("cancelled", "ecanceled")
    assert not await wanted(desk, "south-1")
    purge = await trigger(desk, "purge", "/play/clip")
    for path in (fill, purge):
        assert (await send(desk, {"cancel": [base + path], "cdn-path": ["AS1:1"]}))[0] == 200
    assert (await look(desk, purge))["status"] == "active"
    assert (await look(desk, fill))["mtime"] == found["mtime"]
    for url, status in ((f"{base}/api/v1/cdni/triggers/99", 404), ("http://x/1", 400), (f"{base}{fill}x", 400)):
        assert (await send(desk, {"cancel": [url], "cdn-path": ["AS1:1"]}))[0] == status


async def test_collections(desk: Desk, clip: MadeTitle) -> None:
    """RFC 8007 5.1.3: all of them, and by state; a poll that finds nothing new is cheap."""
    waits = await trigger(desk, "preposition", "/play/clip")
    fails = await trigger(desk, "preposition", "/play/nothing")
    done = await trigger(desk, "purge", "/play/nothing")
    base = "/api/v1/cdni/triggers"
    root = f"http://{desk.server.host}:{desk.server.port}"
    everything = await look(desk, base)
    assert everything["triggers"] == [root + path for path in (waits, fails, done)]
    assert (everything["staleresourcetime"], everything["cdn-id"]) == (7 * 86_400, ME)
    for name, paths in (("pending", [waits]), ("active", []), ("complete", [done]), ("failed", [fails])):
        assert everything[f"coll-{name}"] == f"{root}{base}/{name}"
        assert (await look(desk, f"{base}/{name}"))["triggers"] == [root + path for path in paths]
    _, _, fields = await desk.answer("GET", base)
    assert (fields["Content-Type"], fields["Cache-Control"]) == (cdni.COLLECTION, "private, max-age=2")
    async with desk.session.get(root + base, headers={"If-None-Match": fields["Etag"]}) as again:
        assert (again.status, await again.read()) == (304, b"")
    rows = await desk.ask("GET", "triggers")
    assert [row["status"] for row in rows] == ["complete", "failed", "pending"]


async def test_refusals(desk: Desk, clip: MadeTitle) -> None:
    purge = {"trigger": {"type": "purge", "content.urls": ["/play/clip"]}, "cdn-path": ["AS64500:1"]}
    for command, fields, status, words in (
        (purge, {"Content-Type": "application/json"}, 415, "is sent as Content-Type"),
        (purge | {"cdn-path": ["AS64500:1", ME]}, {}, 403, "is a loop"),
        (b"{", {}, 400, "no CI/T command"),
    ):
        got, found, _ = await send(desk, command, fields=fields)
        assert (got, words in found["error"]) == (status, True)
    for name in ("0", "x", "9" * 30, "-1"):
        assert (await desk.answer("GET", f"/api/v1/cdni/triggers/{name}"))[0] == 404
    assert [title["id"] for title in await desk.ask("GET", "titles")] == ["clip"]


async def test_it_is_off_unless_the_settings_say_who_we_are(start: Start) -> None:
    desk = await start()
    status, found, _ = await send(desk, {})
    assert (status, "CDNI is off here" in found["error"]) == (404, True)


async def test_an_upstream_sees_its_own_triggers_only(start: Start) -> None:
    desk = await start(cdni=CdniSettings(id=ME), api=ApiSettings(open=False))
    tokens = {}
    for name, role in (("first", "upstream"), ("second", "upstream"), ("ann", "act")):
        _, tokens[name] = await accounts.add(desk.parts.state.engine, name, role)  # type: ignore[arg-type]
    paths = {name: await trigger(desk, "purge", "/play/x", token=tokens[name]) for name in ("first", "second")}
    everybody = {name: await look(desk, "/api/v1/cdni/triggers", tokens[name]) for name in tokens}
    assert [len(each["triggers"]) for each in everybody.values()] == [1, 1, 2]
    for method in ("GET", "DELETE"):
        assert (await desk.answer(method, paths["second"], token=tokens["first"]))[0] == 404
    root = f"http://{desk.server.host}:{desk.server.port}"
    cancel = {"cancel": [root + paths["second"]], "cdn-path": ["AS1:1"]}
    assert (await send(desk, cancel, tokens["first"]))[0] == 404
    assert (await send(desk, cancel))[0] == 401


async def test_what_ended_is_forgotten_after_its_time(desk: Desk, clip: MadeTitle) -> None:
    """And what is pinned is let go after its own, at the latest."""
    done, pinned = await trigger(desk, "purge", "/play/x"), await trigger(desk, "preposition", "/play/clip")
    engine = desk.parts.state.engine
    for box in ("north-1", "north-2", "south-1"):
        await desk.tell(box, (clip, "v1 a1"))
    assert (await look(desk, pinned))["status"] == "complete"
    async with engine.begin() as connection:
        await connection.execute(update(schema.triggers).values(mtime=time.time() - 8 * 86_400))
    await desk.app[TRIGGERS].advance()
    assert (await desk.answer("GET", done))[0] == 404
    assert (await look(desk, pinned))["status"] == "complete", "it pins"
    assert await wanted(desk, "south-1") == ["clip"]
    async with engine.begin() as connection:
        await connection.execute(update(schema.pins).values(until=time.time() - 1))
    for _ in range(2):
        await desk.app[TRIGGERS].advance()
    assert await wanted(desk, "south-1") == []
    assert (await desk.answer("GET", pinned))[0] == 404


async def test_a_controller_that_was_killed_carries_on(desk: Desk, clip: MadeTitle, start: Start) -> None:
    """What stands in the database and was not begun is done by whoever starts next."""
    row = "insert into triggers values (7, 'default', 'x', :trigger, :versions, 'pending', 1, 1, null, :errors)"
    what = {"type": "purge", "content.urls": ["/play/clip"]}
    versions = [["clip", clip.version]]
    async with desk.parts.state.engine.begin() as connection:
        values = {"trigger": json.dumps(what), "versions": json.dumps(versions), "errors": "[]"}
        await connection.execute(text(row), {name: value.encode() for name, value in values.items()})
    other = await start(cdni=CdniSettings(id=ME))
    following = asyncio.create_task(other.app[TRIGGERS].advance())
    await desk.app[TRIGGERS].advance()
    await following
    assert (await look(desk, "/api/v1/cdni/triggers/7"))["status"] == "complete"
    assert await desk.ask("GET", "titles") == []


@pytest.mark.parametrize(
    ("rooms", "copies", "chosen", "full"),
    [
        ([("a", "n", 50, False), ("b", "n", 60, False)], 1, ["b"], []),
        ([("a", "n", 0, True), ("b", "n", 60, False)], 1, ["a"], []),
        ([("a", "n", 0, True), ("b", "n", 60, False)], 2, ["a", "b"], []),
        ([("a", "n", 9, False), ("b", "n", 60, False)], 2, ["b"], ["n"]),
        ([("a", "n", 60, False), ("b", "s", 9, False)], 1, ["a"], ["s"]),
        ([("a", "n", 60, False), ("b", "n", 60, False)], 5, ["a", "b"], []),
        ([], 1, [], []),
    ],
)
def test_where_a_version_of_ten_bytes_goes(
    rooms: list[tuple[str, str, int, bool]], copies: int, chosen: list[str], full: list[str]
) -> None:
    assert choose([Room(*room) for room in rooms], 10, copies) == (chosen, full)
