"""Who counts as alive, by a clock that the test turns."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from control.database import open_database
from control.fleet import heard
from control.fleet.registry import Registry, is_alive
from oca.wire import Heartbeat
from tests.conftest import MakeTitle
from tests.control.conftest import Start


def beat(url: str = "http://north-1.example") -> Heartbeat:
    return Heartbeat(
        appliance="north-1", at=0.0, started=0.0, url=url, inventory="1", storage_bytes=100, used_bytes=10
    )


@pytest.mark.parametrize(
    ("last_beat", "started", "now", "alive"),
    [
        (100.0, 0.0, 100.0, True),
        (100.0, 0.0, 190.0, True),
        (100.0, 0.0, 190.1, False),
        (None, 100.0, 190.0, True),
        (None, 100.0, 190.1, False),
        # What was heard counts, not how long the controller has been up.
        (10.0, 9.0, 99.0, True),
        (9.0, 90.0, 100.0, False),
    ],
)
def test_is_alive(last_beat: float | None, started: float, now: float, alive: bool) -> None:
    """Silence longer than dead_s is death; the unheard have as long from the controller's start."""
    assert is_alive(last_beat, started, now, 90.0) is alive


def test_a_controller_that_was_held_up_takes_nobody_for_dead() -> None:
    """What it could not hear is not silence; what it could is, from then on as before."""
    now = [0.0]
    registry = Registry(3.0, clock=lambda: now[0])
    assert registry.awake(0.25) == 0
    registry.beat(beat())
    for step in range(8):
        now[0] += 0.25
        assert registry.awake(0.25) == 0, step
    now[0] += 60.25  # swapped out, say
    assert registry.awake(0.25) == 60
    assert registry.alive("north-1")
    assert registry.silence("north-1") == 2.25
    assert registry.alive("never-heard"), "it could not be heard either"
    now[0] += 0.25
    registry.awake(0.25)
    registry.beat(beat())
    for _ in range(13):
        now[0] += 0.25
        registry.awake(0.25)
    assert not registry.alive("north-1")


def test_registry() -> None:
    """The last heartbeat is kept however old, and a new one brings the dead back."""
    now = [0.0]
    registry = Registry(90.0, clock=lambda: now[0])
    assert registry.alive("north-1")
    assert registry.last("north-1") is None
    assert registry.silence("north-1") is None
    now[0] = 50.0
    registry.beat(beat())
    now[0] = 140.0
    assert registry.alive("north-1")
    assert not registry.alive("north-2")
    now[0] = 141.0
    assert not registry.alive("north-1")
    assert registry.silence("north-1") == 91.0
    assert registry.last("north-1") == beat()
    registry.beat(beat("http://moved.example"))
    assert registry.alive("north-1")
    assert registry.last("north-1") == beat("http://moved.example")


def test_going_on_where_another_ended() -> None:
    """Who was silent for long is dead at once; who was not has the rest of its time; who is heard is alive."""
    now = [1000.0]
    registry = Registry(90.0, clock=lambda: now[0])
    registry.resume({"north-1": 5.0, "north-2": 80.0, "dead": 91.0, "ahead": -3.0})
    told = {box: registry.alive(box) for box in ("north-1", "north-2", "dead", "ahead", "new")}
    assert told == {"north-1": True, "north-2": True, "dead": False, "ahead": True, "new": True}
    assert registry.silence("north-2") == 80.0
    assert registry.news() == {}
    now[0] += 11.0
    assert [registry.alive(box) for box in ("north-1", "north-2")] == [True, False]
    registry.beat(beat())
    now[0] += 2.0
    assert registry.news() == {"north-1": 2.0}
    assert registry.news() == {}
    registry.untold(["north-1"])
    assert registry.news() == {"north-1": 2.0}
    now[0] += 88.0
    assert registry.alive("north-1")


async def test_a_restarted_controller_knows_who_was_alive(
    start: Start, make_title: MakeTitle, tmp_path: Path
) -> None:
    """It steers to those at once, and not to those who were dead; what could not be written is written later."""
    desk = await start(trusted_proxies=["127.0.0.1"])
    made = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(made)
    engine, now = desk.parts.state.engine, [0.0]
    registry = desk.parts.fleet.registry = Registry(90.0, clock=lambda: now[0])
    for name in ("north-1", "north-2"):
        await desk.box(name)
        await desk.beat(name)
        await desk.tell(name, (made, "v1 a1"))
    await heard.write(engine, registry, 1000.0)
    now[0] = 100.0
    await desk.beat("north-2")
    aside = tmp_path / "aside"
    await engine.dispose()
    (tmp_path / "control.db").rename(aside)
    with pytest.raises(SQLAlchemyError):
        await heard.write(engine, registry, 1090.0)
    aside.rename(tmp_path / "control.db")
    await heard.write(engine, registry, 1100.0)

    again = await start(trusted_proxies=["127.0.0.1"])
    shown = {box["id"]: box["alive"] for box in await again.ask("GET", "appliances")}
    assert shown == {"north-1": False, "north-2": True}
    rows = (await again.ask("GET", "steer/explain?client=192.0.2.9&title=clip"))["candidates"]
    assert {row["appliance"]: row["rank"] for row in rows} == {"north-2": 0, "north-1": None}
    await again.beat("north-1")
    assert (await again.ask("GET", "appliances/north-1"))["alive"]


async def test_it_is_written_at_the_end(start: Start, tmp_path: Path) -> None:
    """A controller that is ended has told all that it heard."""
    desk = await start()
    await desk.box("north-1")
    await desk.beat("north-1")
    await desk.server.close()
    registry = Registry(90.0)
    engine = await open_database(desk.settings.database)
    await heard.resume(engine, registry)
    await engine.dispose()
    assert registry.silence("north-1") is not None
