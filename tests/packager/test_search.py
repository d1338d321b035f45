"""Which trials are made, and what is told of those that are not."""

from __future__ import annotations

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packager.ladder import search
from packager.ladder.hull import Aim, Point, at_quality, cheapest, curves

AIM = Aim(top=95.0, step=6.0, least_kbps=235, most_kbps=5800, rungs=10)
SIZES = (240, 288, 384, 480, 720, 1080)
MIDDLE = search.QUANTIZERS["h264"][search.MIDDLE]


def trial(lines: int, crf: float, effort: float = 1.0) -> Point:
    """A picture as pictures are: a step of the quantizer takes an eighth of the rate; high quality rises slowly.

    `effort` is what the picture takes: 1 for much of a film, less for cartoons, more for sports.
    """
    small, steps = log(max(1, 720 / lines)) / log(3), crf - 30
    logit = 1.93 + 1.95 * log(lines / 720) / log(3) - (0.155 - 0.03 * small) * steps - 0.004 * small * steps**2
    kbps = effort * 1.5 * (lines / 10) ** 1.45 * exp(-0.125 * steps + 0.0008 * steps**2)
    return Point(lines, crf, kbps, 100 / (1 + exp(-logit)))


def searched(effort: float, at_once: int) -> list[Point]:
    """The trials that are made of such a picture."""
    found = [trial(lines, MIDDLE, effort) for lines in SIZES]
    while wanted := search.more(found, "h264", "vmaf", AIM, at_once):
        made = {(each.lines, each.crf) for each in found}
        assert len(set(wanted)) == len(wanted) <= 2 * at_once
        assert made.isdisjoint(wanted), "nothing is tried twice"
        found += [trial(lines, crf, effort) for lines, crf in wanted]
    return found


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("effort", [0.1, 0.3, 1.0, 3.0, 10.0])
def test_few_trials_tell_what_all_would(effort: float, at_once: int) -> None:
    """At any quality that a ladder has, what they take for the cheapest takes hardly more than what is."""
    found = searched(effort, at_once)
    every = [trial(lines, crf / 4, effort) for lines in SIZES for crf in range(4 * 18, 4 * 46 + 1)]
    assert len(found) <= 3 * len(SIZES)
    told, true = curves(search.between(found, "vmaf")), curves(every)
    best_of_all = min(AIM.top, *(max(each.quality for each in points) for points in (found, every)))
    for quality in range(20, int(best_of_all)):
        best, *_ = cheapest(true, quality)
        if AIM.least_kbps <= best.kbps <= AIM.most_kbps:
            chosen, *_ = cheapest(told, quality)
            really = at_quality(next(curve for curve in true if curve[0].lines == chosen.lines), quality)
            assert really is not None
            assert really.kbps <= 1.08 * best.kbps
            assert chosen.kbps == pytest.approx(really.kbps, rel=0.08)


# bigbuckbunny, x264 slow: lines and quantizers, kbit/s and VMAF.
REAL = {
    (240, 30.0): (171, 47.0),
    (288, 30.0): (221, 56.2),
    (384, 22.0): (884, 84.9),
    (384, 30.0): (330, 69.4),
    (384, 38.0): (139, 40.5),
    (480, 22.0): (1227, 89.9),
    (480, 30.0): (447, 76.1),
    (480, 38.0): (190, 48.9),
    (720, 22.0): (2202, 95.9),
    (720, 30.0): (833, 85.7),
}


def test_what_is_not_worth_a_trial() -> None:
    """Small sizes are not tried finely where large ones do better, nor coarsely below the least rate of a ladder."""
    found = [Point(lines, crf, *told) for (lines, crf), told in REAL.items() if crf == MIDDLE]
    while wanted := search.more(found, "h264", "vmaf", AIM):
        found += [Point(*each, *REAL[each]) for each in wanted]
    assert {(each.lines, each.crf) for each in found} == set(REAL)


def test_the_largest_sizes_are_tried_finer_at_once() -> None:
    """And the smallest coarser: as if the first of each had told nothing."""
    found = [trial(lines, MIDDLE) for lines in SIZES]
    one, two = (search.more(found, "h264", "vmaf", AIM, at_once) for at_once in (1, 2))
    finer, coarser = ([lines for lines, crf in two if (crf < MIDDLE) is fine] for fine in (True, False))
    assert set(one) < set(two)
    assert finer == sorted(finer, reverse=True)
    assert coarser == sorted(coarser)


def test_a_size_alone_is_tried_until_it_has_all() -> None:
    """From the least rate to the most, or to the quality beyond which nobody sees a difference."""
    hard = [Point(144, 30.0, 300.0, 40.0)]
    assert search.more(hard, "h264", "vmaf", AIM) == [(144, 22.0), (144, 38.0)]
    assert search.more([Point(144, 30.0, 100.0, 96.0)], "h264", "vmaf", AIM) == []
    assert search.more([Point(144, 30.0, 100.0, 40.0)], "h264", "vmaf", AIM) == [(144, 22.0)]
    assert search.more([Point(144, 30.0, 6000.0, 40.0)], "h264", "vmaf", AIM) == [(144, 38.0)]
    ends = [Point(144, crf, 300.0 * exp((30 - crf) / 9), 70 - crf) for crf in search.QUANTIZERS["h264"]]
    assert search.more(ends, "h264", "vmaf", AIM) == []


MEASURED = {22.0: (1973, 95.9), 26.0: (1209, 92.7), 30.0: (716, 87.3), 35.0: (390, 76.1), 40.0: (231, 58.6)}


def test_between_trials_of_a_real_picture() -> None:
    """bigbuckbunny, 720 lines, x264 slow: from three of the trials, the others."""
    told = search.between([Point(720, crf, *MEASURED[crf]) for crf in (22.0, 30.0, 40.0)], "vmaf")
    assert [point.crf for point in told] == sorted(point.crf for point in told)
    for point in told:
        if point.crf in MEASURED:
            kbps, quality = MEASURED[point.crf]
            assert point.kbps == pytest.approx(kbps, rel=0.03)
            assert point.quality == pytest.approx(quality, abs=0.5)


@given(
    st.lists(
        st.builds(
            Point,
            lines=st.sampled_from(SIZES),
            crf=st.sampled_from(search.QUANTIZERS["h264"]),
            kbps=st.floats(1, 50_000),
            quality=st.floats(0, 100),
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda point: (point.lines, point.crf),
    ),
    st.sampled_from(["vmaf", "ssim-db"]),
)
def test_any_trials(points: list[Point], metric: search.Metric) -> None:
    """The trials themselves stay among what is told, and the search comes to an end, however badly it measures."""
    told = search.between(points, metric)
    assert set(points) <= set(told)
    assert all(point.kbps > 0 for point in told)
    assert {point.lines for point in told} == {point.lines for point in points}
    for lines, crf in search.more(points, "h264", metric, AIM):
        assert crf in search.QUANTIZERS["h264"]
        assert all((each.lines, each.crf) != (lines, crf) for each in points)
