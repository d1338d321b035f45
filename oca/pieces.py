"""Long work on bytes, a piece at a time, so that viewers on the same box need not wait for all of it.

A kernel lets a task that is running go on for milliseconds before it gives its processor to one that has just woken
up; a request for a segment takes tens of microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

PIECE = 64 << 10
"""Bytes: what BLAKE3, and a write to the page cache, take some twenty microseconds for."""

_stepping = False


def pieces(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    """`data` in pieces of at most `PIECE`; between two of them whoever waits for the processor has it."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        if start:
            step_aside()
        yield view[start : start + PIECE]


def give_way() -> None:
    """From now on this process steps aside: others wait for what it does, or nobody does."""
    global _stepping
    _stepping = True


def step_aside() -> None:
    """Let those have the processor who wait for it (sched_yield(2)), in a process that gives way."""
    if _stepping:
        os.sched_yield()
