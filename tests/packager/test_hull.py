"""Which rungs follow from trials."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.ladder.hull import Aim, Point, at_quality, at_rate, best, curves, pick

AIM = Aim(top=95.0, step=6.0, least_kbps=235, most_kbps=5800, rungs=10)
SIZES = (240, 480, 720, 1080)


def trials(effort: float) -> list[Point]:
    """A picture as pictures are: small sizes are cheap and end early, large ones begin late and end high.

    `effort` is what the picture takes: 1 for much of a film, less for cartoons, more for sports.
    """
    found = []
    for lines in SIZES:
        for crf in range(18, 48, 3):
            kbps = effort * lines**1.5 / 4 * 2 ** ((24 - crf) / 5)
            most = 100 - 30 * (240 / lines) ** 1.2
            found.append(Point(lines, crf, kbps, most * (1 - 2 ** ((crf - 52) / 7))))
    return found


@pytest.mark.parametrize("effort", [0.1, 1.0, 10.0])
def test_rungs_at_even_steps(effort: float) -> None:
    """Evenly spaced in quality, each at the size that is cheapest there, from the least rate to the best quality."""
    points = trials(effort)
    chosen = [choice.point for choice in pick(points, AIM)]
    steps = [b.quality - a.quality for a, b in pairwise(chosen)]
    assert max(steps) - min(steps) < 1e-6
    assert 4 < steps[0] < 10
    top = min(AIM.top, best(curves(points), AIM.most_kbps))
    assert chosen[-1].quality == pytest.approx(top)
    assert chosen[0].kbps == pytest.approx(max(AIM.least_kbps, chosen[0].kbps), rel=0.1)
    for choice in pick(points, AIM):
        others = [at_quality(curve, choice.point.quality - 1e-9) for curve in curves(points)]
        cheapest = min(point.kbps for point in others if point is not None)
        assert choice.point.kbps == pytest.approx(cheapest)
        assert choice.rival is None or choice.rival.kbps >= choice.point.kbps


def test_easy_pictures_get_fewer_and_cheaper_rungs() -> None:
    easy, hard = pick(trials(0.1), AIM), pick(trials(3.0), AIM)
    assert len(easy) < len(hard) <= AIM.rungs
    assert easy[-1].point.kbps < hard[-1].point.kbps / 2
    assert len({choice.point.lines for choice in hard}) > 2, "small sizes where large ones would fall apart"


def test_interpolation() -> None:
    """Half way in the logarithm of the rate is half way in quality, and back; nothing is made up beyond trials."""
    curve = [Point(240, 40, 100, 50.0), Point(240, 30, 400, 70.0)]
    middle = at_quality(curve, 60.0)
    assert middle == Point(240, 35, pytest.approx(200), 60.0)
    assert at_rate(curve, 200) == pytest.approx(60)
    assert (at_quality(curve, 49.9), at_quality(curve, 70.1), at_rate(curve, 99)) == (curve[0], None, None)
    assert (at_quality(curve, 50.0), at_rate(curve, 100), at_rate(curve, 9000)) == (curve[0], 50, 70)


def test_what_costs_more_and_gives_less_is_left_out() -> None:
    worse = Point(240, 20, 500, 69.0)
    (curve,) = curves([Point(240, 30, 400, 70.0), worse, Point(240, 40, 100, 50.0)])
    assert worse not in curve


@given(
    st.lists(
        st.builds(
            Point,
            lines=st.sampled_from(SIZES),
            crf=st.floats(10, 60),
            kbps=st.floats(1, 50_000),
            quality=st.floats(0, 100),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_any_trials_make_a_ladder(points: list[Point]) -> None:
    """Rates, qualities and sizes rise together, however badly the measurements went."""
    chosen = [choice.point for choice in pick(points, AIM)]
    assert 1 <= len(chosen) <= AIM.rungs
    for one, other in pairwise(chosen):
        assert one.kbps < other.kbps
        assert one.quality < other.quality
        assert one.lines <= other.lines
