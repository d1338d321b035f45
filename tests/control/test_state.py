"""The snapshot in memory: it follows the database, and viewers and appliances do not notice when that is away."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from control.state import State
from tests.conftest import MakeTitle
from tests.control.conftest import NORTH, Desk, Start


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Controllers do not look at their database by themselves: one that is moved away has no reader just then."""
    monkeypatch.setattr("control.app._FOLLOW_S", 3600.0)


async def until_equal(follower: State, leader: State) -> None:
    async with asyncio.timeout(60):
        while follower.seq < leader.seq:
            await asyncio.sleep(0.01)


async def test_a_second_state_follows_the_first(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Whatever one process writes, another on the same database sees, step by step and when it starts."""
    made, new = make_title(tmp_path / "s"), make_title(tmp_path / "s", seed=2)
    leader = desk.parts.state
    follower = State(leader.engine)
    await follower.load()
    following = asyncio.create_task(follower.follow(0.01))

    await desk.cover()
    await desk.register(made)
    await desk.box("north-1")
    await desk.box("origin", role="origin")
    await desk.tell("origin", (made, "v1 a1"))
    await desk.plan(("north", "clip", 5))
    await desk.ask("POST", "fills", {}, 201)
    await until_equal(follower, leader)
    assert follower.titles == leader.titles
    assert follower.wanted == leader.wanted != {}
    assert follower.orders == leader.orders == {"north-1": 1}
    assert follower.plan == 1
    assert follower.coverage.zones == leader.coverage.zones != {}

    await desk.register(new)
    await desk.tell("north-1", (made, "v1"), generation="7")
    await desk.ask("PUT", "appliances/north-1/drain", {"draining": True})
    await until_equal(follower, leader)
    assert follower.title("clip").active == new.version
    assert follower.held("north-1").generation == "7"
    assert follower.appliance("north-1").draining

    late = State(leader.engine)
    await late.load()
    for name in ("titles", "appliances", "inventories", "plan", "wanted", "orders", "seq"):
        assert getattr(late, name) == getattr(follower, name) == getattr(leader, name)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_a_second_controller_answers_alike(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """What one has written, another serves after it has caught up, from the same numbers."""
    first, second = await start(), await start()
    made = make_title(tmp_path / "s")
    await first.register(made)
    await first.box("north-1")
    await first.tell("north-1", (made, "v1 a1"))
    await second.parts.state.catch_up()
    for path in ("titles", "titles/clip", "appliances", "steer/explain?client=192.0.2.9&title=clip"):
        # Apart from heartbeats, of which there were none.
        assert await second.ask("GET", path) == await first.ask("GET", path)


async def _served(desk: Desk, made_url: str) -> list[object]:
    found: list[object] = []
    for path in (
        made_url.replace("/t/", "/steer/"),
        "/play/clip/manifest.mpd",
        "/play/clip/master.m3u8",
        f"{made_url}/v1/1.m4s",
        "/play/clip",
    ):
        status, body, fields = await desk.answer("GET", path, viewer=NORTH)
        assert status in (200, 302), body
        found.append((body, fields.get("Location")))
    return found


async def test_the_database_goes_away(calm: None, desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Viewers and heartbeats are answered as before; what must be stored is refused with 503; then it comes back."""
    made = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(made)
    await desk.box("north-1")
    await desk.tell("north-1", (made, "v1 a1"))
    before = await _served(desk, made.url)
    await desk.parts.state.engine.dispose()
    aside = {path: path.rename(tmp_path / f"{path.name}.aside") for path in tmp_path.glob("control.db*")}
    assert aside
    (tmp_path / "control.db").mkdir()

    assert await _served(desk, made.url) == before
    beat = await desk.beat("north-1", inventory="2")
    assert (beat["interval_s"], beat["send_inventory"]) == (30.0, True)
    assert await desk.ask("GET", "appliances/north-1/fill")
    assert len(await desk.sources("north-1", (made, "v1"))) == 1
    assert (await desk.answer("GET", "/healthz"))[0] == 200
    box = {"id": "north-2", "site": "north", "url": "http://x.example"}
    status, body, fields = await desk.answer("POST", "/api/v1/appliances", json.dumps(box).encode())
    assert (status, fields["Retry-After"]) == (503, "5")
    assert json.loads(body) == {"error": "the controller's database is away: try again"}

    (tmp_path / "control.db").rmdir()
    for path, moved in aside.items():
        moved.rename(path)
    await desk.box("north-2")


async def test_following_outlives_an_absence(
    calm: None, desk: Desk, capsys: pytest.CaptureFixture[str], make_title: MakeTitle, tmp_path: Path
) -> None:
    """While the database is away that is logged once; what was written is seen when it is back."""
    leader = desk.parts.state
    await leader.engine.dispose()
    follower = State(leader.engine)
    path = tmp_path / "control.db"
    path.rename(tmp_path / "aside")
    path.mkdir()
    following = asyncio.create_task(follower.follow(0.01))
    logged = ""
    async with asyncio.timeout(60):
        while "the database is away" not in logged:
            await asyncio.sleep(0.01)
            logged += capsys.readouterr().out
    await asyncio.sleep(0.1)
    logged += capsys.readouterr().out
    assert logged.count("the database is away") == 1
    path.rmdir()
    (tmp_path / "aside").rename(path)
    await desk.register(make_title(tmp_path / "s"))
    await until_equal(follower, leader)
    assert follower.titles.keys() == {"clip"}
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following


async def test_few_indexes_are_kept(
    desk: Desk, make_title: MakeTitle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those asked for longest ago are forgotten, and read again when wanted."""
    monkeypatch.setattr("control.state._INDEXED", 2)
    made = [make_title(tmp_path / "s", name=f"clip{number}", seed=number) for number in range(3)]
    await desk.register(*made)
    state = desk.parts.state
    first = await state.indexes(state.version("clip0"))
    await state.indexes(state.version("clip1"))
    assert await state.indexes(state.version("clip0")) is first
    await state.indexes(state.version("clip2"))
    assert await state.indexes(state.version("clip0")) is first
    assert await state.indexes(state.version("clip1")) == made[1].indexes
