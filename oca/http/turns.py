"""What has waited for a disk is sent a piece at a time, between the rounds of the event loop.

Those whose content is in memory would wait behind it otherwise, and a disk that answers many at once makes that a
matter of milliseconds: sending 512 KiB takes as long as seven segments of 64 KiB.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

PIECE = 128 << 10
"""Bytes sent in one turn."""
# Of the loop's time everybody else had since the last turns, these may take one part in so many, and never less than
# one turn a round: a fifth of all, so that a busy server does not starve those who want what is not in memory.
_PARTS = 4


class Turns:
    """Steps that are taken in their order, a few in each round of the event loop it belongs to."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._steps: deque[Callable[[], None]] = deque()
        # Whether the loop has been asked for a turn.
        self._due = False
        # When the last turns ended, or there was again something to do.
        self._ended = 0.0

    def add(self, step: Callable[[], None]) -> None:
        """Have `step` called when its turn comes, in a later round."""
        self._steps.append(step)
        if not self._due:
            self._ask()

    def _ask(self) -> None:
        self._due, self._ended = True, monotonic()
        self._loop.call_soon(self._take)

    def _take(self) -> None:
        began = monotonic()
        until = began + (began - self._ended) / _PARTS
        try:
            self._steps.popleft()()
            while self._steps and monotonic() < until:
                self._steps.popleft()()
        finally:
            self._due = False
            if self._steps:
                self._ask()
