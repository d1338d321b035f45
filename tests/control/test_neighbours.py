"""What the controller tells a box of others, and that the box keeps it when the controller has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from control.fleet.registry import Registry
from oca import wire
from oca.config import ApplianceSettings
from oca.counters import Counters
from oca.heartbeat import Reporter
from oca.miss.neighbours import FILE, NeighboursFile
from oca.store.content import Store
from oca.wire import Neighbours
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import Desk


async def told(desk: Desk, name: str = "north-1") -> Neighbours:
    status, body, _ = await desk.answer("GET", f"/api/v1/appliances/{name}/neighbours")
    assert status == 200
    return wire.unpack(body, Neighbours, "neighbours")


def held(message: Neighbours) -> dict[str, list[str]]:
    """Who holds each track of the one title, best first."""
    return {
        track: [message.boxes[number].appliance for number in numbers]
        for row in message.held
        for track, numbers in row.tracks.items()
    }


async def fleet(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> MadeTitle:
    """A title on boxes of every kind."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    for name, site, role, tracks in (
        ("north-1", "north", "edge", "v1"),
        ("north-2", "north", "edge", "v1 a1"),
        ("south-1", "south", "edge", "v1 a1"),
        ("tier-1", "middle", "tier", "a1"),
        ("origin-1", "home", "origin", "v1 a1"),
        ("empty-1", "north", "edge", ""),
    ):
        await desk.box(name, site, role=role)
        if tracks:
            await desk.tell(name, (made, tracks))
        await desk.beat(name)
    return made


async def test_neighbours(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Peers of the site, then tiers, then origins; neither the box itself nor edges of other sites."""
    made = await fleet(desk, make_title, tmp_path)
    message = await told(desk)
    assert [(box.appliance, box.rank) for box in message.boxes][-2:] == [("tier-1", "tier"), ("origin-1", "origin")]
    assert {box.appliance for box in message.boxes[:-2]} == {"north-2", "empty-1"}
    assert held(message) == {"v1": ["north-2", "origin-1"], "a1": ["north-2", "tier-1", "origin-1"]}
    row = message.held[0]
    assert (message.appliance, row.title, row.version, row.published) == (
        "north-1",
        "clip",
        made.version,
        1_700_000_000,
    )
    assert "ocactl appliance add" in await desk.ask("GET", "appliances/nobody/neighbours", None, 404)


async def test_a_handful_of_holders_and_every_origin(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.box("north-1")
    for number in range(8):
        for name, role in ((f"peer-{number}", "edge"), (f"origin-{number}", "origin")):
            await desk.box(name, role=role)
            await desk.tell(name, (made, "v1"))
    names = held(await told(desk))["v1"]
    assert len([name for name in names if name.startswith("peer")]) == 4
    assert len([name for name in names if name.startswith("origin")]) == 8


async def test_a_change_is_announced_and_nothing_else(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """The reply to a heartbeat has the generation of what would be told: the same until something of it changes."""
    made = await fleet(desk, make_title, tmp_path)
    now = 0.0
    desk.parts.fleet.registry = Registry(desk.settings.dead_s, clock=lambda: now)
    seen = []

    async def generation() -> str:
        reply = await desk.beat("north-1")
        assert reply["neighbours"] == (await told(desk)).generation
        seen.append(reply["neighbours"])
        return str(seen[-1])

    first = await generation()
    await desk.tell("south-1", (made, "v1"), generation="2")
    await desk.beat("north-2", sending_bps=7)
    assert await generation() == first
    seen.clear()
    await desk.tell("north-2", (made, "v1"), generation="2")
    await generation()
    await desk.beat("tier-1", url="http://moved.example")
    await generation()
    await desk.ask("PUT", "appliances/north-2/drain", {"draining": True})
    await generation()
    assert held(await told(desk))["v1"] == ["origin-1"]
    await desk.register(make_title(tmp_path / "s", name="other", seed=2))
    await generation()
    now = desk.settings.dead_s + 1
    await generation()
    assert (await told(desk)).boxes == []
    assert first not in seen
    assert len(set(seen)) == len(seen)


async def test_a_box_learns_and_remembers(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """It asks only when there is news; what it knows survives the controller and a restart; a damaged file heals."""
    made = await fleet(desk, make_title, tmp_path)
    root = tmp_path / "box"
    Store([root]).prepare()
    url = f"http://{desk.server.host}:{desk.server.port}"

    def reporter(on_miss: Literal["redirect", "404"]) -> asyncio.Task[None]:
        settings = ApplianceSettings(
            appliance="north-1", store=[str(root)], url="http://north-1.example", controllers=[url], on_miss=on_miss
        )
        return asyncio.create_task(Reporter(settings, Store([root]), Counters).run())

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)

    async def end(task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    task = reporter("404")
    await until(lambda: desk.parts.state.held("north-1").generation == Store([root]).generation())
    await end(task)
    assert not (root / FILE).exists()
    task = reporter("redirect")
    await until((root / FILE).exists)
    await end(task)
    known = NeighboursFile(root, "north-1").read()
    assert known.generation == (await told(desk)).generation
    assert [box.appliance for box in known.holders("clip", made.version, "v1")] == ["north-2", "origin-1"]
    (root / FILE).write_bytes(b"rubbish")
    task = reporter("redirect")
    await until(lambda: (root / FILE).stat().st_size > 10)
    await end(task)
    assert NeighboursFile(root, "north-1").read().generation == known.generation
