"""The line of a site, shared: what is leased never exceeds it, and everybody has their share soon."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control.fills.leases import LEASE_S, Leases


def test_who_comes_new_gets_what_is_free_then_its_share() -> None:
    now = 0.0
    leases = Leases(lambda: now)
    assert leases.ask("north", "n1", 900) == 900
    assert leases.ask("north", "n2", 900) == 0, "all is given away"
    assert leases.ask("south", "s1", 900) == 900, "another site has a line of its own"
    now += LEASE_S
    assert leases.ask("north", "n1", 900) == 450
    assert leases.ask("north", "n2", 900) == 450
    now += 60
    assert leases.ask("north", "n1", 900) == 900, "who asks no longer fills no longer"


def test_a_line_that_was_made_narrower_is_kept_to_once_all_have_asked() -> None:
    now = 0.0
    leases = Leases(lambda: now)
    for _ in range(3):
        for box in ("n1", "n2"):
            leases.ask("north", box, 1000)
    assert [leases.ask("north", box, 100) for box in ("n1", "n2")] == [0, 50]
    assert leases.ask("north", "n1", 100) == 50


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 4)), max_size=60), st.integers(0, 10**9))
def test_what_is_leased_never_exceeds_the_line(asked: list[tuple[str, float]], line: int) -> None:
    now, held = 0.0, {}
    leases = Leases(lambda: now)
    for box, pause in asked:
        now += pause
        held[box] = (now + LEASE_S, leases.ask("north", box, line))
        assert sum(rate for until, rate in held.values() if until > now) <= line
