"""Who counts as alive, by a clock that the test turns."""

from __future__ import annotations

import pytest

from control.fleet.registry import Registry, is_alive
from oca.wire import Heartbeat


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
