"""Which rungs are encoded together, and in which order."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from packager.encode.chunks import Chunk
from packager.encode.deal import cost, deal, groups
from packager.ladder.rungs import Rung, ladder

HD = ladder(1920, 1080)


@given(lines=st.lists(st.integers(1, 540), min_size=1, max_size=12), count=st.integers(1, 20))
def test_groups_have_every_rung_once(lines: list[int], count: int) -> None:
    """No group is empty, and the dearest costs no more than the cheapest and one rung."""
    rungs = [Rung(16 * n, 2 * n, number + 1, "") for number, n in enumerate(lines)]
    made = groups(rungs, count)
    assert len(made) == min(count, len(rungs))
    assert Counter(rung for group in made for rung in group) == Counter(rungs)
    costs = [sum(map(cost, group)) for group in made]
    assert max(costs) <= min(costs) + max(map(cost, rungs))


def test_two_groups_of_the_fixed_ladder() -> None:
    """Half of the pixels each, both from the least rung up."""
    one, other = groups(HD, 2)
    assert [rung.height for rung in one] == [288, 384, 480, 720, 1080]
    assert [rung.height for rung in other] == [240, 384, 480, 720, 1080]


def test_only_what_would_leave_a_job_idle_is_split() -> None:
    """Of five chunks for two jobs the last; of four none; alone it goes to all jobs that there are rungs for."""
    rungs = tuple(HD)
    hands = [(Chunk(n, 100 * n, 100 * n + 100), rungs) for n in range(5)]
    dealt = deal(hands, 2)
    assert [chunk.number for chunk, _ in dealt] == [0, 1, 2, 3, 4, 4]
    assert [len(held) for _, held in dealt] == [10, 10, 10, 10, 5, 5]
    assert deal(hands[:4], 2) == hands[:4]
    assert deal(hands, 1) == hands
    assert [len(held) for _, held in deal(hands[:1], 16)] == [1] * 10
    assert [chunk.number for chunk, _ in deal(hands[:3], 8)] == [0, 0, 1, 1, 2, 2]
    assert deal([], 2) == []
