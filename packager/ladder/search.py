"""Which trials are worth making, and what lies between them: few trials tell of all the others. Pure.

Along the quantizers of one size the logarithm of the rate and the logit of VMAF are nearly straight: a parabola
through three trials met others (720 to 240 lines, x264, quantizers 22 to 40) within 3 % of the rate and 0.3 points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

from packager.ladder.hull import Aim, Point, at_rate, curves
from packager.ladder.quality import Metric

QUANTIZERS: Mapping[str, tuple[float, ...]] = {
    "h264": (18.0, 22.0, 30.0, 38.0, 46.0),
    "hevc": (20.0, 24.0, 32.0, 40.0, 46.0),
    "av1": (22.0, 28.0, 38.0, 48.0, 58.0),
}
"""Where quality goes from beyond what anybody sees to beneath what anybody watches. The one in the middle is tried at
every size, the others where it is worth it."""
MIDDLE = 2
_STEP = 0.5
# What a step of the quantizer is worth where that is not known: in the logarithm of the rate.
_RATE = 0.117
# Quality rises the less the finer the quantizer becomes: this much of what it would along a straight line.
_FLATTER = 0.75


@dataclass(frozen=True, slots=True)
class _Axis:
    """What quality is measured in where it is straight, and back; what a step of the quantizer is worth there."""

    there: Callable[[float], float]
    back: Callable[[float], float]
    step: float


def _logit(quality: float) -> float:
    share = min(max(quality, 0.5), 99.9) / 100
    return log(share / (1 - share))


_AXES: Mapping[Metric, _Axis] = {
    "vmaf": _Axis(_logit, lambda value: 100 / (1 + exp(-value)), 0.155),
    # Decibels are a logarithm already.
    "ssim-db": _Axis(float, float, 0.35),
}


def more(points: Iterable[Point], codec: str, metric: Metric, aim: Aim, at_once: int = 1) -> list[tuple[int, float]]:
    """Lines and quantizers to try next, by what was tried: at most `at_once` finer and coarser; none if it is enough.

    Finer ones are of the largest sizes that want any, coarser ones of the smallest: what these give tells whether the
    others are still needed.
    """
    sizes = _by_size(points)
    quantizers = QUANTIZERS[codec]

    def worth(last: Point, each: Point) -> bool:
        """Whether it may be expected to beat all other sizes, or to do so half way there."""
        others = curves(point for lines, tried in sizes.items() if lines != each.lines for point in tried)
        half = _at((last, each), (last.crf + each.crf) / 2, metric)
        return any(all((at_rate(curve, one.kbps) or 0) < one.quality for curve in others) for one in (half, each))

    finer = [
        each
        for _, tried in sorted(sizes.items(), reverse=True)
        if tried[0].quality < aim.top and tried[0].kbps < aim.most_kbps
        for each in _finer(tried, quantizers, metric)
        if worth(tried[0], each)
    ]
    coarser = [
        each
        for _, tried in sorted(sizes.items())
        if tried[-1].kbps > aim.least_kbps
        for each in _coarser(tried, quantizers, metric)
        if worth(tried[-1], each)
    ]
    return [(each.lines, each.crf) for each in (*finer[:at_once], *coarser[:at_once])]


def cost(point: Point, metric: Metric) -> float:
    """The rate that a trial would take at a middling quality, by what a step of the quantizer is usually worth.

    Good for a comparison of trials at one quantizer, which hardly differ.
    """
    axis = _AXES[metric]
    return point.kbps * exp(-axis.there(point.quality) * _RATE / axis.step)


def between(points: Iterable[Point], metric: Metric) -> list[Point]:
    """The trials, and what others of the same sizes would have given at quantizers between them."""
    found = []
    for tried in _by_size(points).values():
        found.append(tried[0])
        for number, (fine, coarse) in enumerate(pairwise(tried)):
            around = tried[max(0, number - 1) : number + 3]
            # The three that are nearest.
            while len(around) > 3:
                around.remove(max(around, key=lambda each: abs(2 * each.crf - fine.crf - coarse.crf)))
            steps = max(1, round((coarse.crf - fine.crf) / _STEP))
            width = (coarse.crf - fine.crf) / steps
            found += [_at(around, fine.crf + step * width, metric) for step in range(1, steps)]
            found.append(coarse)
    return found


def _by_size(points: Iterable[Point]) -> dict[int, list[Point]]:
    """The trials of each size, the finest first."""
    sizes: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda point: (point.lines, point.crf)):
        sizes.setdefault(point.lines, []).append(point)
    return sizes


def _finer(tried: Sequence[Point], quantizers: Sequence[float], metric: Metric) -> list[Point]:
    """What the next finer trial of a size may be expected to give; nothing where there is none."""
    finer = [crf for crf in quantizers if crf < tried[0].crf]
    return [_further(tried[:2], crf, _FLATTER, metric) for crf in finer[-1:]]


def _coarser(tried: Sequence[Point], quantizers: Sequence[float], metric: Metric) -> list[Point]:
    """As `_finer` of the next coarser one."""
    coarser = [crf for crf in quantizers if crf > tried[-1].crf]
    return [_further(tried[:-3:-1], crf, 1.0, metric) for crf in coarser[:1]]


def _further(points: Sequence[Point], crf: float, share: float, metric: Metric) -> Point:
    """What is beyond the first of these, seen from the second, if there is one; `share` of the quality it would."""
    last, axis = points[0], _AXES[metric]
    here = axis.there(last.quality)
    if len(points) > 1:
        straight = _at(points, crf, metric)
        kbps, change = straight.kbps, axis.there(straight.quality) - here
    else:
        kbps, change = last.kbps * exp((last.crf - crf) * _RATE), (last.crf - crf) * axis.step
    return Point(last.lines, crf, kbps, axis.back(here + share * change))


def _at(points: Sequence[Point], crf: float, metric: Metric) -> Point:
    """What a trial at `crf` would give, by the polynomial through these (Lagrange)."""
    axis = _AXES[metric]
    rate = value = 0.0
    for point in points:
        weight = 1.0
        for other in points:
            if other is not point:
                weight *= (crf - other.crf) / (point.crf - other.crf)
        rate += weight * log(point.kbps)
        value += weight * axis.there(point.quality)
    return Point(points[0].lines, crf, exp(rate), axis.back(value))
