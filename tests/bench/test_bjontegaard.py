"""Rates at equal quality, held against SciPy's piecewise cubic."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from bench.bjontegaard import Curve, Pair, bd_rate

FIXED = [(213.0, 53.23), (345.0, 66.99), (512.0, 78.35), (680.0, 82.14), (958.0, 87.62), (1591.0, 91.27)]
OTHER = [(242.0, 63.95), (300.0, 69.9), (399.0, 76.07), (582.0, 82.59), (963.0, 88.97), (1912.0, 95.06)]


@st.composite
def ladders(draw: st.DrawFn) -> list[Pair]:
    """Two to nine renditions, each better and dearer than the one before."""
    steps = draw(st.lists(st.tuples(st.floats(1.01, 3), st.floats(0.2, 20)), min_size=2, max_size=9))
    rate, quality, found = 100.0, draw(st.floats(5, 60)), []
    for more, better in steps:
        rate, quality = rate * more, quality + better
        found.append((rate, quality))
    return found


@given(ladders(), ladders())
def test_as_scipy_has_it(one: list[Pair], other: list[Pair]) -> None:
    curves = [PchipInterpolator([q for _, q in each], [log(r) for r, _ in each]) for each in (one, other)]
    low, high = max(one[0][1], other[0][1]), min(one[-1][1], other[-1][1])
    mine = Curve(one)
    for share in (0, 0.1, 0.5, 0.77, 1):
        quality = one[0][1] + share * (one[-1][1] - one[0][1])
        rate = mine.rate(min(quality, mine.high))
        assert rate == pytest.approx(exp(curves[0](quality)), rel=1e-6)
    if low + 0.01 > high:
        return
    difference = (curves[1].integrate(low, high) - curves[0].integrate(low, high)) / (high - low)
    assert bd_rate(one, other) == pytest.approx(exp(difference) - 1, rel=1e-6, abs=1e-9)


@given(ladders(), st.floats(0.3, 3))
def test_the_same_curve_dearer_by_a_factor(ladder: list[Pair], factor: float) -> None:
    """The difference is that factor, whatever the shape; the other way round its inverse."""
    other = [(rate * factor, quality) for rate, quality in ladder]
    assert bd_rate(ladder, other) == pytest.approx(factor - 1, abs=1e-9)
    assert bd_rate(other, ladder) == pytest.approx(1 / factor - 1, abs=1e-9)


@given(ladders())
def test_it_never_overshoots(ladder: list[Pair]) -> None:
    """Between two renditions the rate is between theirs."""
    curve = Curve(ladder)
    for (less, low), (more, high) in pairwise(ladder):
        rate = curve.rate((low + high) / 2)
        assert rate is not None
        assert less * (1 - 1e-9) <= rate <= more * (1 + 1e-9)


def test_one_rendition_alone() -> None:
    """It is compared where it is; where the other never is, there is nothing to say."""
    curve = [(100.0, 60.0), (400.0, 80.0)]
    assert bd_rate([(250.0, 70.0)], curve) == pytest.approx(200 / 250 - 1)
    assert bd_rate([(250.0, 81.0)], curve) is None
    assert bd_rate(curve, [(250.0, 70.0)]) == pytest.approx(250 / 200 - 1)


def test_what_costs_more_and_gives_less_is_left_out() -> None:
    assert bd_rate(FIXED, OTHER) == bd_rate([*FIXED, (800.0, 80.0)], [(1000.0, 88.0), *OTHER])
    assert bd_rate(FIXED, OTHER) == pytest.approx(-0.164, abs=0.01)
