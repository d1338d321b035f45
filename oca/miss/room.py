"""Room for what is on its way at once: so many things, and so many bytes in all; who came first goes first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """For at most `count` things of `limit` bytes in all; one alone may be longer. Belongs to one event loop."""

    def __init__(self, count: int, limit: int) -> None:
        self.count = count
        self.limit = limit
        self._taken: list[int] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, length: int) -> AsyncIterator[None]:
        """Wait for room of `length` bytes, and have it until the block ends."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((length, waiter))
        self._admit()
        try:
            await waiter
            yield
        finally:
            if waiter.cancelled():
                # Whoever is next may have waited for this one alone.
                self._waiting.remove((length, waiter))
            else:
                self._taken.remove(length)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            length, waiter = self._waiting[0]
            if waiter.cancelled():
                return  # it is about to go, and looks again then
            self._waiting.popleft()
            self._taken.append(length)
            waiter.set_result(None)

    def _fits(self, length: int) -> bool:
        return not self._taken or (len(self._taken) < self.count and sum(self._taken) + length <= self.limit)
