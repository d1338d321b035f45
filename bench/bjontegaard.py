"""Rates at equal quality: Bjøntegaard's difference of two curves of measured renditions. Pure.

After VCEG-M33 (2001): the logarithm of the rate as a function of the quality; but with the piecewise cubic of Fritsch
and Butland (PCHIP), which never overshoots, in place of one cubic through all points.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import exp, log

Pair = tuple[float, float]
"""What a rendition takes, in any unit of rate or bytes, and its quality."""


class Curve:
    """The logarithm of the rate over the quality, through measured pairs; those that cost more and give less are left
    out. At least one pair; nothing is said beyond the least and the best quality.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        kept: list[Pair] = []
        for rate, quality in sorted(pairs):
            if not kept or (quality > kept[-1][1] and rate > kept[-1][0]):
                kept.append((rate, quality))
        self._x = [quality for _, quality in kept]
        self._y = [log(rate) for rate, _ in kept]
        self._slopes = _slopes(self._x, self._y)

    @property
    def low(self) -> float:
        """The least quality."""
        return self._x[0]

    @property
    def high(self) -> float:
        """The best quality."""
        return self._x[-1]

    def rate(self, quality: float) -> float | None:
        """The rate at a quality; None where nothing was measured."""
        return exp(self._at(quality)) if self.low <= quality <= self.high else None

    def mean(self, low: float, high: float) -> float:
        """The mean logarithm of the rate from one quality to another; both are on the curve."""
        if low == high:
            return self._at(low)
        stops = [low, *(x for x in self._x if low < x < high), high]
        # Simpson's rule, which is exact for cubics.
        area = sum((b - a) / 6 * (self._at(a) + 4 * self._at((a + b) / 2) + self._at(b)) for a, b in pairwise(stops))
        return area / (high - low)

    def _at(self, quality: float) -> float:
        x, y, slopes = self._x, self._y, self._slopes
        if len(x) == 1:
            return y[0]
        n = min(max(0, bisect_right(x, quality) - 1), len(x) - 2)
        width = x[n + 1] - x[n]
        t = (quality - x[n]) / width
        return (
            (1 + 2 * t) * (1 - t) ** 2 * y[n]
            + t * (1 - t) ** 2 * width * slopes[n]
            + t * t * (3 - 2 * t) * y[n + 1]
            + t * t * (t - 1) * width * slopes[n + 1]
        )


def bd_rate(anchor: Iterable[Pair], other: Iterable[Pair]) -> float | None:
    """How much more the other takes at equal quality, as a fraction of the anchor: -0.2 takes a fifth less.

    The mean is over the qualities that both reach; if that is one alone, such as that of an anchor with one
    rendition, it is the difference there. None if they share none.
    """
    one, two = Curve(anchor), Curve(other)
    low, high = max(one.low, two.low), min(one.high, two.high)
    if low > high:
        return None
    return exp(two.mean(low, high) - one.mean(low, high)) - 1


def _slopes(x: Sequence[float], y: Sequence[float]) -> list[float]:
    """The slope at each point: a weighted harmonic mean of those beside it, and at the ends of three points."""
    if len(x) == 1:
        return [0.0]
    h = [b - a for a, b in pairwise(x)]
    d = [(b - a) / width for (a, b), width in zip(pairwise(y), h, strict=True)]
    if len(d) == 1:
        return [d[0], d[0]]
    inner = [
        0.0 if a * b <= 0 else 3 * (g + k) / ((2 * k + g) / a + (k + 2 * g) / b)
        for (g, k), (a, b) in zip(pairwise(h), pairwise(d), strict=True)
    ]
    return [_end(h[0], h[1], d[0], d[1]), *inner, _end(h[-1], h[-2], d[-1], d[-2])]


def _end(near: float, far: float, slope: float, next_slope: float) -> float:
    """The slope at an end, such that the curve keeps the shape of the points."""
    found = ((2 * near + far) * slope - near * next_slope) / (near + far)
    if found * slope <= 0:
        return 0.0
    if slope * next_slope <= 0 and abs(found) > 3 * abs(slope):
        return 3 * slope
    return found
