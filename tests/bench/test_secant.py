"""The search for an encode of the same quality, on curves that are made up: found, and in few encodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.secant import LEAST, MOST, Tried, step

NEAR = 0.25


def search(curve: Callable[[float], float], first: float, wanted: float) -> list[Tried]:
    """All that is encoded, one after the other, until there is nothing to try."""
    tried: list[Tried] = []
    crf: float | None = first
    while crf is not None:
        assert LEAST <= crf <= MOST
        tried.append((crf, curve(crf)))
        assert len(tried) < 100
        crf = step(tried, wanted, NEAR)
    return tried


def is_found(tried: list[Tried], wanted: float) -> bool:
    return any(abs(quality - wanted) <= NEAR for _, quality in tried)


@given(
    top=st.floats(90, 101),
    middle=st.floats(25, 48),
    width=st.floats(4, 9),
    first=st.floats(10, 45),
    away=st.floats(-2, 2),
)
def test_curves_as_encoders_have_them(top: float, middle: float, width: float, first: float, away: float) -> None:
    """Flat at the top, steep below; where trials were two steps off, six encodes do, but for some at the bend."""

    def curve(crf: float) -> float:
        return top / (1 + math.exp((crf - middle) / width))

    tried = search(curve, round(first, 2), curve(first + away))
    assert is_found(tried, curve(first + away))
    assert len(tried) <= 8


@given(slope=st.floats(0.3, 10), first=st.integers(5, 46), away=st.floats(-4, 4))
def test_a_line_takes_three_encodes(slope: float, first: int, away: float) -> None:
    """One by the usual slope, and the secant hits."""
    tried = search(lambda crf: 100 - slope * crf, first, 100 - slope * (first + away))
    assert is_found(tried, 100 - slope * (first + away))
    assert len(tried) <= 3


@given(
    places=st.lists(st.floats(LEAST, MOST), max_size=6, unique=True),
    qualities=st.lists(st.floats(0, 100), min_size=8, max_size=8),
    first=st.floats(LEAST, MOST),
    share=st.floats(0, 1),
)
def test_any_curve_that_falls(places: list[float], qualities: list[float], first: float, share: float) -> None:
    """However it is bent: found, or it has a jump there; the bracket sees to it that the search ends."""
    xs = [LEAST, *sorted(places), MOST]
    ys = sorted(qualities, reverse=True)[: len(xs)]

    def curve(crf: float) -> float:
        for (left, right), (high, low) in zip(pairwise(xs), pairwise(ys), strict=True):
            if crf <= right:
                return high + (low - high) * (crf - left) / (right - left) if right > left else low
        raise AssertionError

    wanted = ys[0] + share * (ys[-1] - ys[0])
    tried = search(curve, round(first, 2), wanted)
    assert len(tried) <= 30
    if not is_found(tried, wanted):
        low = max((crf for crf, quality in tried if quality > wanted), default=LEAST)
        high = min((crf for crf, quality in tried if quality < wanted), default=MOST)
        assert high - low < 0.03


@pytest.mark.parametrize(("wanted", "last"), [(120, LEAST), (-20, MOST)])
def test_what_no_quantizer_gives(wanted: float, last: float) -> None:
    """It is tried at the best and at the worst, and given up."""
    tried = search(lambda crf: 100 - crf, 30, wanted)
    assert tried[-1][0] == last
    assert not is_found(tried, wanted)
    assert len(tried) <= 4


def test_quality_that_does_not_fall() -> None:
    """An encoder may be out of line: where more bits look worse nothing can be told, and the search ends."""
    assert step([(20, 80), (24, 90)], 85, NEAR) is None
    assert step([(20, 90.1), (24, 90.1)], 85, NEAR) is not None
