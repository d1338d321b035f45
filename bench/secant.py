"""The quantizer at which an encode has a wanted quality, found in few encodes. Pure.

Quality over the quantizer, which stands for the logarithm of the rate (six steps halve it), is nearly a line where
the two are near, so a secant finds it. What has been seen above and below bounds where it may be.
"""

from __future__ import annotations

from collections.abc import Sequence

LEAST, MOST = 1.0, 51.0
"""Quantizers that x264 knows."""
# How many points of quality a step of the quantizer costs, where two encodes have not told it.
_SLOPE = 1.8
# Secants of two encodes that differ by little say little: a slope is this many times that at most, or at least.
_STEEP = 8.0
# Of the bounds, in parts: a secant that ends nearer to one than this would hardly bring them together.
_EDGE = 0.05
# Where so many encodes did not do, each second one is in the middle: on a curve with a sharp bend secants creep.
_PATIENCE = 6
Tried = tuple[float, float]
"""The quantizer of an encode, and its quality."""


def step(tried: Sequence[Tried], wanted: float, near: float) -> float | None:
    """The quantizer to try next, to a hundredth; None if one of those `tried`, at least one, is as `near` as that to
    the `wanted` quality, or no other can be.
    """
    if any(abs(quality - wanted) <= near for _, quality in tried):
        return None
    low = max((crf for crf, quality in tried if quality > wanted), default=None)
    high = min((crf for crf, quality in tried if quality < wanted), default=None)
    found = _secant(tried, wanted)
    if low is not None and high is not None:
        if low > high:
            return None  # quality does not fall everywhere: nothing is to be said of what lies between
        margin = _EDGE * (high - low)
        creeps = len(tried) >= _PATIENCE and len(tried) % 2 == 0
        if creeps or not low + margin <= found <= high - margin:
            found = (low + high) / 2
    found = round(min(max(found, LEAST), MOST), 2)
    return None if found in (crf for crf, _ in tried) else found


def _secant(tried: Sequence[Tried], wanted: float) -> float:
    """Where the line through the two nearest in quality, or one and the usual slope, has the wanted quality.

    Of those that are as near the last ones count: on a flat curve it must go on.
    """
    nearest = sorted(range(len(tried)), key=lambda number: (abs(tried[number][1] - wanted), -number))
    crf, quality = tried[nearest[0]]
    slope = _SLOPE
    if len(tried) > 1:
        other, seen = tried[nearest[1]]
        run, fall = other - crf, quality - seen
        slope = min(max(fall / run, _SLOPE / _STEEP), _SLOPE * _STEEP)
    return crf + (quality - wanted) / slope
