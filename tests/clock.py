"""A clock that jumps: who sleeps by it is awake at once, and it is so much later."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from oca.clock import Clock


@dataclass
class Jumping:
    """Seconds of virtual time; those who sleep at the same time sleep side by side."""

    at: float = 1000.0

    def now(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        until = self.at + seconds
        await asyncio.sleep(0)
        self.at = max(self.at, until)

    @property
    def clock(self) -> Clock:
        return Clock(self.now, self.sleep)
