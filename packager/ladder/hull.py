"""The convex hull: which renditions a title needs, told from what some of them would cost and give. Pure.

After Netflix's per-title encode optimisation (2015): of each size the quality rises with the rate along a curve of
its own; at any quality one size is the cheapest, and rungs at even steps of quality along these are the ladder.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp, log


@dataclass(frozen=True, slots=True)
class Point:
    """A trial: at `lines` and quantizer `crf` it took `kbps` and had `quality`."""

    lines: int
    crf: float
    kbps: float
    quality: float


@dataclass(frozen=True, slots=True)
class Aim:
    """What a ladder is to be like: never better than `top`, nor than the best that `most_kbps` buys; its lowest rung
    at `least_kbps`; the others `step` apart in quality, or further if they would be more than `rungs`.
    """

    top: float
    step: float
    least_kbps: float
    most_kbps: float
    rungs: int


@dataclass(frozen=True, slots=True)
class Choice:
    """A rung to be: a point between trials. `rival` is the cheapest at another size, None if no other can do it."""

    point: Point
    rival: Point | None


def curves(points: Iterable[Point]) -> list[list[Point]]:
    """The trials of each size, smallest first, by rising rate, without those that cost more and give less."""
    found = []
    for _, group in groupby(
        sorted(points, key=lambda point: (point.lines, point.kbps)), key=lambda point: point.lines
    ):
        curve: list[Point] = []
        for point in group:
            if not curve or (point.quality > curve[-1].quality and point.kbps > curve[-1].kbps):
                curve.append(point)
        found.append(curve)
    return found


def at_quality(curve: Sequence[Point], quality: float) -> Point | None:
    """The cheapest point of a curve with this quality; None if it was never reached.

    Between two trials it is straight in the logarithm of the rate; below all of them it is the cheapest one.
    """
    after = bisect_left(curve, quality, key=lambda point: point.quality)
    if after == len(curve):
        return None
    if after == 0 or curve[after].quality == quality:
        return curve[after]
    high, low = curve[after], curve[after - 1]
    share = (quality - low.quality) / (high.quality - low.quality)
    kbps = exp(log(low.kbps) + share * (log(high.kbps) - log(low.kbps)))
    return Point(high.lines, low.crf + share * (high.crf - low.crf), kbps, quality)


def at_rate(curve: Sequence[Point], kbps: float) -> float | None:
    """The quality of a curve at this rate, None where it is dearer; beyond its best trial it is that one's."""
    after = bisect_left(curve, kbps, key=lambda point: point.kbps)
    if after == len(curve):
        return curve[-1].quality
    if after == 0:
        return curve[0].quality if curve[0].kbps == kbps else None
    high, low = curve[after], curve[after - 1]
    share = (log(kbps) - log(low.kbps)) / (log(high.kbps) - log(low.kbps))
    return low.quality + share * (high.quality - low.quality)


def best(sizes: Sequence[Sequence[Point]], kbps: float) -> float:
    """The best quality for this rate over all sizes; below all trials, the least quality that was tried."""
    found = [quality for curve in sizes if (quality := at_rate(curve, kbps)) is not None]
    return max(found, default=min(curve[0].quality for curve in sizes))


def cheapest(sizes: Iterable[Sequence[Point]], quality: float) -> list[Point]:
    """The point of each size with this quality, cheapest first; without the sizes that never reach it."""
    able = [point for curve in sizes if (point := at_quality(curve, quality)) is not None]
    return sorted(able, key=lambda point: (point.kbps, point.lines))


def pick(points: Iterable[Point], aim: Aim) -> list[Choice]:
    """The rungs, worst first, at even steps of quality; sizes never fall as quality rises. At least one point."""
    sizes = curves(points)
    top = min(aim.top, best(sizes, aim.most_kbps))
    low = min(top, best(sizes, aim.least_kbps))
    steps = min(aim.rungs - 1, max(0, round((top - low) / aim.step)))
    wanted = [top - number * (top - low) / max(1, steps) for number in range(steps, -1, -1)]
    chosen: list[Choice] = []
    for quality in wanted:
        able = cheapest(sizes, quality)
        least = chosen[-1].point.lines if chosen else 0
        mine = next((point for point in able if point.lines >= least), None)
        former = chosen[-1].point if chosen else None
        if mine is not None and (former is None or (mine.kbps > former.kbps and mine.quality > former.quality)):
            chosen.append(Choice(mine, next((other for other in able if other.lines != mine.lines), None)))
    return chosen
