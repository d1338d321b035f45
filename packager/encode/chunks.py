"""Chunks: stretches of whole segments that are encoded apart from one another. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# How far a cut may lie from where it would be with even chunks, as a share of a chunk.
_SLACK = 0.25


CHUNK_S = 12.0
"""Length of a chunk unless it is said otherwise: three segments."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pictures [first, end) of the presentation; `number` counts from 0."""

    number: int
    first: int
    end: int

    @property
    def frames(self) -> int:
        """How many pictures it has."""
        return self.end - self.first


def cut(frames: int, gop: int, wanted: int, keys: Sequence[float] = ()) -> list[Chunk]:
    """Cut `frames` pictures into chunks of about `wanted` pictures each, at the starts of segments of `gop` pictures.

    `keys` are the source's own key frames, rising, in pictures: it can be read from there at once. So the cut is made
    at the start that is nearest one of them, among those nearby, if there is one less than a segment away; those at
    which a scene begins come before others.
    """
    bounds, begun = [0], scenes(keys)
    while frames - bounds[-1] > (1 + 2 * _SLACK) * wanted:
        ideal = bounds[-1] + wanted
        least, most = ideal - _SLACK * wanted, ideal + _SLACK * wanted
        starts = [n * gop for n in range(int(least // gop), int(most // gop) + 1) if least <= n * gop <= most]
        # Segments so long that none starts nearby: the next one that does.
        starts = starts or [max(bounds[-1] + gop, -(-ideal // gop) * gop)]
        ranks = {start: tuple(min(gop, _distance(start, each)) for each in (begun, keys)) for start in starts}
        best = min(starts, key=lambda start: (*ranks[start], abs(start - ideal), start))
        if best >= frames:
            break
        bounds.append(best)
    return [Chunk(n, first, end) for n, (first, end) in enumerate(zip(bounds, [*bounds[1:], frames], strict=True))]


def scenes(keys: Sequence[float]) -> list[float]:
    """The key frames that come sooner than they would have to: an encoder puts them where a scene begins."""
    most = max((other - one for one, other in pairwise(keys)), default=0.0)
    # Half a picture: times of key frames may be rounded.
    return [other for one, other in pairwise(keys) if other - one < most - 0.5]


def _distance(start: int, keys: Sequence[float]) -> int:
    """Pictures from `start` to the nearest key frame, some large number if there is none."""
    after = bisect_left(keys, start)
    return round(min((abs(start - key) for key in keys[max(0, after - 1) : after + 1]), default=start))
