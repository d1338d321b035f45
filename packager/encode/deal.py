"""The deal: which rungs of a chunk one run of ffmpeg encodes, so that no processor is idle at the end. Pure.

A run takes all rungs of its chunk, since they share its decoder and scalers. Only where fewer chunks are left than
there are jobs, a chunk goes to several runs, its rungs in groups that take about as long as one another.
"""

from __future__ import annotations

from collections.abc import Sequence

from packager.encode.chunks import Chunk
from packager.ladder.rungs import Rung

# What a picture of a size takes an encoder, beside x264 at the preset of the same name.
_EFFORT = {"h264": 1, "hevc": 3, "av1": 3}

Hand = tuple[Chunk, tuple[Rung, ...]]


def cost(rung: Rung) -> int:
    """What a picture of a rung costs to encode, in pixels of H.264."""
    return rung.width * rung.height * _EFFORT[rung.codec]


def deal(wanted: Sequence[Hand], jobs: int) -> list[Hand]:
    """The same chunks and rungs for `jobs` runs at once: the last chunks in groups, where jobs would have none."""
    last = len(wanted) % jobs
    if not last:
        return list(wanted)
    whole, odd = wanted[: len(wanted) - last], wanted[len(wanted) - last :]
    return [*whole, *((chunk, group) for chunk, rungs in odd for group in groups(rungs, jobs // last))]


def groups(rungs: Sequence[Rung], count: int) -> list[tuple[Rung, ...]]:
    """The rungs in at most `count` groups of about equal cost, in each as they were in order; none is empty."""
    made: list[list[Rung]] = [[] for _ in range(max(1, min(count, len(rungs))))]
    for rung in sorted(rungs, key=cost, reverse=True):
        min(made, key=lambda group: sum(map(cost, group))).append(rung)
    return [tuple(rung for rung in rungs if rung in group) for group in made]
