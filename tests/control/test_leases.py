"""The line of a site, shared: what is leased never exceeds it, and everybody has their share soon."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control.fills.leases import LEASE_S, Lease, OwnLeases, lease


async def test_who_comes_new_gets_what_is_free_then_its_share() -> None:
    now = 0.0
    leases = OwnLeases(lambda: now)
    assert await leases.ask("north", "n1", 900) == 900
    assert await leases.ask("north", "n2", 900) == 0, "all is given away"
    assert await leases.ask("south", "s1", 900) == 900, "another site has a line of its own"
    now += LEASE_S
    assert await leases.ask("north", "n1", 900) == 450
    assert await leases.ask("north", "n2", 900) == 450
    now += 60
    assert await leases.ask("north", "n1", 900) == 900, "who asks no longer fills no longer"


async def test_a_line_that_was_made_narrower_is_kept_to_once_all_have_asked() -> None:
    now = 0.0
    leases = OwnLeases(lambda: now)
    for _ in range(3):
        for box in ("n1", "n2"):
            await leases.ask("north", box, 1000)
    assert [await leases.ask("north", box, 100) for box in ("n1", "n2")] == [0, 50]
    assert await leases.ask("north", "n1", 100) == 50


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 4)), max_size=60), st.integers(0, 10**9))
def test_what_is_leased_never_exceeds_the_line(asked: list[tuple[str, float]], line: int) -> None:
    now = 0.0
    given: dict[str, Lease] = {}
    for box, pause in asked:
        now += pause
        given[box] = lease(box, given, line, now)
        assert given[box].until > now + LEASE_S
        assert sum(each.rate_bps for each in given.values() if each.until > now) <= line
