"""Demand, plans and fills over the API: what is wanted where and why, and how it gets there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from control.fleet.registry import Registry
from control.state import PINNED
from oca import wire
from oca.wire import FillProgress, FillReport
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import Desk, Start, demand_csv


@pytest.mark.parametrize(
    ("box", "title", "demand", "said"),
    [
        (False, True, True, "there are no appliances to plan for"),
        (True, False, False, "the catalog is empty"),
        (True, True, False, "no demand is known"),
        (True, True, True, "storage of north-1 is not known"),
    ],
)
async def test_nothing_to_plan_with(
    desk: Desk, make_title: MakeTitle, tmp_path: Path, box: bool, title: bool, demand: bool, said: str
) -> None:
    """One sentence says what is missing, and no plan is stored."""
    if box:
        await desk.box("north-1", storage_bytes=0 if demand else 100)
    await desk.box("origin", role="origin", storage_bytes=0)
    if title:
        await desk.register(make_title(tmp_path / "s"))
    if demand:
        await desk.ask("POST", "demand", demand_csv(("north", "clip", 5)))
    assert said in await desk.ask("POST", "plans", {}, 400)
    assert await desk.ask("GET", "plans") == []
    assert "make one with" in await desk.ask("GET", "plans/latest", status=404)
    assert "there is no plan" in await desk.ask("POST", "fills", {}, 400)


async def test_requests_of_the_last_day(desk: Desk) -> None:
    """They are expected again; told anew they replace what is known of that day; a bad line changes nothing."""
    await desk.cover()
    head = b"title,region,requests\n"

    async def told(*rows: bytes, status: int = 200) -> Any:
        return await desk.ask("POST", "demand?name=d.csv", head + b"\n".join(rows), status)

    async def expected() -> dict[str, float]:
        return {row["region"]: row["views"] for row in await desk.ask("GET", "demand")}

    done = await told(b"clip,north,1000", b"clip,nowhere,5")
    assert (done["unknown_titles"], done["unknown_regions"]) == (["clip"], ["nowhere"])
    assert await expected() == {"north": 1000, "nowhere": 5}
    await told(b"clip,north,30", b"clip,south,2")
    assert "d.csv line 3: requests 'x'" in await told(b"clip,north,7", b"clip,south,x", status=400)
    assert await expected() == {"north": 30, "nowhere": 5, "south": 2}
    # An hour earlier, of the same day: told of with its time it would add up, but for what is told anew.
    await desk.ask("POST", "demand", demand_csv(("north", "clip", 10)))
    assert await expected() == {"north": 40, "nowhere": 5, "south": 2}
    await told(b"clip,north,60")
    assert await expected() == {"north": 60, "nowhere": 5, "south": 2}


async def planned(desk: Desk, make_title: MakeTitle, root: Path) -> tuple[MadeTitle, MadeTitle]:
    """An origin that holds two titles, and a plan that puts both into the north, the second the more valuable."""
    clip, hit = make_title(root), make_title(root, name="hit", seed=2, v1=[3000], v2=[1000], a1=[500])
    await desk.cover()
    for made in (clip, hit):
        await desk.register(made)
    await desk.box("north-1")
    await desk.box("south-1", "south")
    await desk.box("origin", "south", role="origin")
    await desk.tell("origin", (clip, "v1 a1"), (hit, "v1 v2 a1"))
    await desk.plan(("north", "clip", 10), ("north", "hit", 1000), ("south", "hit", 7))
    return clip, hit


async def test_plan(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """It is stored with its rows, values and reasons; the latest is in force."""
    clip, hit = await planned(desk, make_title, tmp_path / "s")
    plan = await desk.ask("GET", "plans/latest")
    assert plan == await desk.ask("GET", "plans/1")
    rows = {(row["appliance"], row["title"], row["version"], row["track"]) for row in plan["rows"]}
    assert rows == {
        *(("north-1", "clip", clip.version, track) for track in clip.indexes),
        *(("north-1", "hit", hit.version, track) for track in hit.indexes),
        *(("south-1", "hit", hit.version, track) for track in hit.indexes),
    }
    assert all("views a day expected" in row["reason"] and row["value"] > 0 for row in plan["rows"])
    assert plan["objective"] <= plan["bound"]
    assert [(row["appliance"], row["title"]) for row in plan["notes"]["passed_over"]] == [("south-1", "clip")]
    second = await desk.ask("POST", "plans", {}, 201)
    assert second["plan"] == 2
    assert second["tracks"] == len(plan["rows"])
    assert [p["id"] for p in await desk.ask("GET", "plans")] == [2, 1]
    assert (await desk.ask("GET", "plans/latest"))["id"] == 2
    for nothing in ("3", "0", "-1", "x", "9" * 5000):
        await desk.ask("GET", f"plans/{nothing}", status=404)


async def test_plan_without_a_body(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """None is needed; a wrong one is refused."""
    await planned(desk, make_title, tmp_path / "s")
    assert (await desk.ask("POST", "plans", None, 201))["plan"] == 2
    await desk.ask("POST", "plans", {"dry_run": "maybe"}, 400)
    assert len(await desk.ask("GET", "plans")) == 2


async def test_dry_run(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """It is solved and shown, and neither stored nor put in force."""
    await planned(desk, make_title, tmp_path / "s")
    before = await desk.ask("GET", "changes")
    shown = await desk.ask("POST", "plans", {"dry_run": True})
    assert (shown["plan"], shown["tracks"], shown["appliances"]) == (0, 8, 2)
    assert await desk.ask("GET", "changes") == before
    assert [plan["id"] for plan in await desk.ask("GET", "plans")] == [1]
    assert desk.parts.state.plan == 1


async def test_nothing_fits(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A plan that can place nothing is a plan; the drained appliance takes no part in it."""
    await desk.register(make_title(tmp_path / "s"))
    await desk.box("north-1", storage_bytes=10)
    await desk.box("north-2")
    await desk.ask("PUT", "appliances/north-2/drain", {"draining": True})
    shown = await desk.plan(("north", "clip", 5))
    assert (shown["tracks"], shown["appliances"], shown["objective"], shown["gap"]) == (0, 1, 0.0, 0.0)
    manifest = await desk.ask("GET", "appliances/north-1/fill")
    assert (manifest["plan"], manifest["items"]) == (1, [])


async def test_demand(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A file is taken whole; the same hours again replace what is there; titles not in the catalog are named."""
    await desk.register(make_title(tmp_path / "s"))
    done = await desk.ask(
        "POST", "demand", demand_csv(("north", "clip", 5), ("north", "soon", 2), ("south", "clip", 1))
    )
    assert (done["observations"], done["views"], done["unknown_titles"]) == (3, 8.0, ["soon"])
    await desk.ask("POST", "demand", demand_csv(("north", "clip", 50), ("south", "soon", 9)))
    assert await desk.ask("GET", "demand") == [
        {"region": "north", "title": "clip", "views": 50.0},
        {"region": "north", "title": "soon", "views": 2.0},
        {"region": "south", "title": "soon", "views": 9.0},
        {"region": "south", "title": "clip", "views": 1.0},
    ]


async def test_bad_demand(desk: Desk) -> None:
    """File and line are named, and none of its lines is stored."""
    for bad in (b"\nyesterday,north,clip,1", b"\n2026-05-01,north,../clip,1", b"\n2026-05-01,north,clip,many"):
        data = demand_csv(("north", "clip", 5)) + bad
        assert "may.csv line 3" in await desk.ask("POST", "demand?name=may.csv", data, 400)
    assert await desk.ask("POST", "demand", b"", 400)
    assert await desk.ask("GET", "demand") == []
    assert await desk.ask("GET", "changes") == []


async def test_bad_coverage(desk: Desk) -> None:
    """It is refused with its name, and the one in force stays."""
    await desk.cover()
    for bad in (b"", b"{", b"[]", b'{"coverageZones": {"north": {"network": ["300.0.0.0/8"]}}}'):
        assert "zones.json" in await desk.ask("PUT", "coverage?name=zones.json", bad, 400)
    assert [zone["name"] for zone in await desk.ask("GET", "coverage")] == ["north", "south"]


async def test_fill_manifest(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Exactly what the plan wants there, the most valuable first, with the time at which it was published."""
    clip, hit = await planned(desk, make_title, tmp_path / "s")
    manifest = wire.decode(
        (await desk.answer("GET", "/api/v1/appliances/north-1/fill"))[1], wire.FillManifest, "manifest"
    )
    assert (manifest.appliance, manifest.plan, manifest.force) == ("north-1", 1, 0)
    assert [(item.title, item.version, item.tracks, item.published) for item in manifest.items] == [
        ("hit", hit.version, ["v1", "v2", "a1"], 1_700_000_000),
        ("clip", clip.version, ["v1", "a1"], 1_700_000_000),
    ]
    assert manifest.items[0].value > manifest.items[1].value > 0
    assert manifest.items[1].bytes == sum(
        len(clip.bytes_of(f"{track}.{kind}")) for track in clip.indexes for kind in ("mp4", "idx")
    )
    assert (await desk.ask("GET", "appliances/origin/fill"))["items"] == []


async def test_what_is_worth_most_for_its_bytes_comes_first(
    desk: Desk, make_title: MakeTitle, tmp_path: Path
) -> None:
    """A small title before a large one that fewer watch, though they get more bytes; pinned ones before all."""
    long, short = (make_title(tmp_path / "s", name=n, v1=[size]) for n, size in (("long", 90_000), ("short", 9000)))
    for made in (long, short):
        await desk.register(made)
    await desk.cover()
    await desk.box("north-1")
    await desk.plan(("north", "long", 10), ("north", "short", 12))
    box = desk.parts.state.appliance("north-1")
    items = desk.parts.fleet.fill_manifest(box).items
    assert [item.title for item in items] == ["short", "long"]
    assert items[0].value < items[1].value
    desk.parts.state.wanted["north-1"] = dict.fromkeys(
        desk.parts.state.version("long").track_ids.values(), PINNED
    ) | {desk.parts.state.version("short").track_ids["v1"]: 1e6}
    assert [item.title for item in desk.parts.fleet.fill_manifest(box).items] == ["long", "short"]


async def test_no_plan_no_fill(desk: Desk) -> None:
    """Plan 0 says that there is none."""
    await desk.box("north-1")
    manifest = await desk.ask("GET", "appliances/north-1/fill")
    assert (manifest["plan"], manifest["items"], manifest["force"]) == (0, [], 0)


def progress(made: MadeTitle, track: str, state: Any = "done", **more: Any) -> FillProgress:
    values: dict[str, Any] = {"bytes": 10, "total": 10} | more
    return FillProgress(title=made.id, version=made.version, track=track, state=state, **values)


async def report(desk: Desk, box: str, batch: str, *told: FillProgress, status: int = 204, **more: Any) -> Any:
    values: dict[str, Any] = {"plan": 1, "at": 1.0} | more
    body = wire.encode(FillReport(appliance=box, batch=batch, progress=list(told), **values))
    return await desk.ask("POST", f"appliances/{box}/fill-report", body, status)


async def fill_of(desk: Desk, box: str) -> Any:
    return next(row for row in (await desk.ask("GET", "fills"))["appliances"] if row["appliance"] == box)


async def test_orders(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """An order shows in the manifest until a finished run reports its number, or a higher one."""
    await planned(desk, make_title, tmp_path / "s")

    async def force(box: str) -> int:
        number: int = (await desk.ask("GET", f"appliances/{box}/fill"))["force"]
        assert number == (await fill_of(desk, box))["order"]
        return number

    assert await desk.ask("POST", "fills", {}, 201) == {"north-1": 1, "south-1": 2}
    assert (await force("north-1"), await force("south-1")) == (1, 2)
    await report(desk, "north-1", "a", force=1)
    await report(desk, "north-1", "b", finished=True)
    assert await force("north-1") == 1
    await report(desk, "north-1", "c", force=1, finished=True)
    assert (await force("north-1"), await force("south-1")) == (0, 2)
    assert await desk.ask("POST", "fills", {"appliances": ["south-1"]}, 201) == {"south-1": 3}
    await report(desk, "south-1", "a", force=2, finished=True)
    assert await force("south-1") == 3
    await report(desk, "south-1", "b", force=3, finished=True)
    assert await force("south-1") == 0
    await desk.ask("POST", "fills", {"appliances": ["nobody"]}, 404)
    await desk.ask("POST", "fills", {"appliances": "south-1"}, 400)


async def test_orders_taken_back(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """The manifest asks for nothing any more; what is told is whose order it was."""
    await planned(desk, make_title, tmp_path / "s")
    await desk.ask("POST", "fills", {}, 201)
    assert await desk.ask("POST", "fills/cancel", {"appliances": ["south-1"]}) == ["south-1"]
    assert [(await fill_of(desk, box))["order"] for box in ("north-1", "south-1")] == [1, 0]
    assert await desk.ask("POST", "fills/cancel", {}) == ["north-1"]
    assert await desk.ask("POST", "fills/cancel", {}) == []
    assert (await desk.ask("GET", "appliances/north-1/fill"))["force"] == 0
    await desk.ask("POST", "fills/cancel", {"appliances": ["nobody"]}, 404)


async def test_pauses(desk: Desk, start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """Told in the manifest, to other controllers, and after a restart; origins are never filled and never paused."""
    await planned(desk, make_title, tmp_path / "s")

    async def paused(of: Desk) -> list[bool]:
        told = [(await of.ask("GET", f"appliances/{box}/fill"))["paused"] for box in ("north-1", "south-1")]
        shown = [(await fill_of(of, box))["paused"] for box in ("north-1", "south-1")]
        assert told == shown
        return shown

    assert await paused(desk) == [False, False]
    assert await desk.ask("POST", "fills/pause", {"appliances": ["north-1"]}) == ["north-1"]
    assert await paused(desk) == [True, False]
    assert await desk.ask("POST", "fills/pause", {}) == ["south-1"]
    assert await paused(await start()) == [True, True]
    assert await desk.ask("POST", "fills/resume", {"appliances": ["south-1"]}) == ["south-1"]
    assert await paused(desk) == [True, False]
    assert await desk.ask("POST", "fills/resume", {}) == ["north-1"]
    assert await desk.ask("POST", "fills/resume", {}) == []
    assert "fills paused" in str(await desk.ask("GET", "changes"))


async def test_reports(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Each updates the tracks that it tells of; a batch repeated changes nothing; the next plan starts anew."""
    clip, hit = await planned(desk, make_title, tmp_path / "s")
    assert (await fill_of(desk, "north-1"))["reported_at"] is None
    first = progress(clip, "v1", "fetching", bytes=4, total=10, fetched={"origin": 4})
    await report(desk, "north-1", "a", first, progress(hit, "v2", "failed", bytes=0, error="disk full"))
    shown = await fill_of(desk, "north-1")
    assert (shown["bytes"], shown["total"], shown["fetched"], shown["errors"]) == (
        4,
        20,
        {"origin": 4},
        ["hit v2: disk full"],
    )
    assert (shown["wanted"], shown["held"], shown["finished"], shown["reported_at"]) == (5, 0, False, 1.0)

    await report(desk, "north-1", "a", progress(clip, "v1", bytes=9), at=2.0)
    assert await fill_of(desk, "north-1") == shown

    await report(desk, "north-1", "b", progress(clip, "v1", fetched={"origin": 6, "south-1": 4}), outside_window=True)
    shown = await fill_of(desk, "north-1")
    assert (shown["bytes"], shown["fetched"], shown["outside_window"]) == (10, {"origin": 6, "south-1": 4}, True)

    # A later run finds it in place: it still came from where it came.
    await report(desk, "north-1", "c", progress(clip, "v1"), progress(hit, "v2"), finished=True)
    shown = await fill_of(desk, "north-1")
    assert (shown["fetched"], shown["finished"]) == ({"origin": 6, "south-1": 4}, True)

    await desk.tell("north-1", (clip, "v1"))
    assert (await fill_of(desk, "north-1"))["held"] == 1

    await desk.ask("POST", "plans", {}, 201)
    shown = await fill_of(desk, "north-1")
    assert (shown["bytes"], shown["finished"], shown["fetched"]) == (0, False, {})
    await report(desk, "north-1", "d", progress(clip, "a1", fetched={"origin": 1}), plan=2)
    assert (await fill_of(desk, "north-1"))["fetched"] == {"origin": 1}


async def test_a_failure_mended(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A track that failed and is found in place later is no error any more."""
    clip, _ = await planned(desk, make_title, tmp_path / "s")
    await report(
        desk, "north-1", "a", progress(clip, "v1", "failed", bytes=3, error="timed out", fetched={"origin": 3})
    )
    assert (await fill_of(desk, "north-1"))["errors"] == ["clip v1: timed out"]
    await report(desk, "north-1", "b", progress(clip, "v1"), finished=True)
    shown = await fill_of(desk, "north-1")
    assert (shown["errors"], shown["bytes"], shown["fetched"]) == ([], 10, {"origin": 3})


async def test_many_reports_at_once(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """None fails because of another."""
    clip, _ = await planned(desk, make_title, tmp_path / "s")
    for number in range(2, 12):
        await desk.box(f"north-{number}")
    boxes = [f"north-{number}" for number in range(1, 12)]
    await asyncio.gather(*(report(desk, box, batch, progress(clip, "v1")) for box in boxes for batch in "abc"))
    assert [row["bytes"] for row in (await desk.ask("GET", "fills"))["appliances"] if row["site"] == "north"] == [
        10
    ] * 11


async def sources(desk: Desk, made: MadeTitle, track: str = "v1") -> list[tuple[str, str]]:
    [found] = await desk.sources("north-1", (made, track))
    return [(source.appliance, source.rank) for source in found]


async def test_sources(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Peers of the site before the origin, the asker itself and the dead left out; held tracks only."""
    clip, _ = await planned(desk, make_title, tmp_path / "s")
    assert await sources(desk, clip) == [("origin", "origin")]
    for name in ("north-2", "north-3"):
        await desk.box(name)
    await desk.tell("north-1", (clip, "v1"))
    await desk.tell("north-2", (clip, "v1"))
    await desk.tell("north-3", (clip, "a1"))
    assert [name for name, _ in await sources(desk, clip)] == ["north-2", "origin"]
    assert [name for name, _ in await sources(desk, clip, track="a1")] == ["north-3", "origin"]
    now = 0.0
    desk.parts.fleet.registry = Registry(90.0, clock=lambda: now)
    now = 100.0
    await desk.beat("origin")
    assert await sources(desk, clip) == [("origin", "origin")]
    await desk.beat("north-2", url="http://moved.example")
    [found] = await desk.sources("north-1", (clip, "v1"))
    assert found[0].url == "http://moved.example"


async def test_sources_of_many_tracks(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Each has its own, in the order asked; what the catalog does not know has none."""
    clip, _ = await planned(desk, make_title, tmp_path / "s")
    await desk.box("north-2")
    await desk.tell("north-2", (clip, "a1"))
    stranger = make_title(tmp_path / "other", name="stranger")
    asked = [(clip, "a1"), (clip, "v9"), (stranger, "v1"), (clip, "v1"), (clip, "a1")]
    found = [[source.appliance for source in each] for each in await desk.sources("north-1", *asked)]
    assert found == [["north-2", "origin"], [], [], ["origin"], ["north-2", "origin"]]


@pytest.mark.parametrize(
    "tracks",
    [
        [],
        [["clip", "0" * 32]],
        [["clip", "0", "v1"]],
        [["../clip", "0" * 32, "v1"]],
        [["clip", "0" * 32, "v1"]] * 101,
        [{"title": "clip", "version": "0" * 32}],
    ],
)
async def test_bad_orders_of_sources(desk: Desk, tracks: list[object]) -> None:
    """400 with a sentence that names the appliance."""
    await desk.box("north-1")
    body = {"format": 1, "tracks": tracks}
    assert "north-1" in await desk.ask("POST", "appliances/north-1/sources", body, 400)


async def test_a_manifest_that_one_has_is_not_sent_again(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Its ETag is another whenever it says something else, and heartbeats tell which it is now."""
    clip, _ = await planned(desk, make_title, tmp_path / "s")
    path, now = "/api/v1/appliances/north-1/fill", 0.0
    desk.parts.fleet.registry = Registry(90.0, clock=lambda: now)

    async def fetched() -> str:
        status, _, fields = await desk.answer("GET", path)
        assert status == 200
        assert (await desk.beat("north-1"))["fill"] == fields["Etag"].strip('"')
        return fields["Etag"]

    async def status(etag: str) -> int:
        got, body, _ = await desk.answer("GET", path, fields={"If-None-Match": etag})
        assert bool(body) == (got == 200)
        return got

    known = [await fetched()]
    assert not known[0].startswith("W/")
    await desk.tell("north-1", (clip, "v1"))
    await desk.beat("origin")
    assert [await status(known[0]), await status(f'"x", {known[0]}'), await status('"x"')] == [304, 304, 200]

    async def order() -> None:
        await desk.ask("POST", "fills", {"appliances": ["north-1"]}, 201)

    async def pause() -> None:
        await desk.ask("POST", "fills/pause", {})

    async def share() -> None:
        await desk.ask("PUT", "sites/north", {"fill_bps": 10**9})

    async def plan() -> None:
        await desk.ask("POST", "plans", {}, 201)

    async def die() -> None:
        nonlocal now
        now = 100.0

    async def remove() -> None:
        await desk.ask("DELETE", f"titles/{clip.id}")

    for change in (order, pause, share, plan, die, remove):
        await change()
        assert await status(known[-1]) == 200, change
        known.append(await fetched())
    assert len(set(known)) == len(known)
