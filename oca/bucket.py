"""The token bucket: how long to pause so that a rate is kept, whoever shares it."""

from __future__ import annotations

import math

from oca.clock import Clock

# What may pass at once after a pause; as long as the cap is judged over seconds, nobody notices.
BURST_S = 0.25
# A pause is looked at again so often: meanwhile the rate may have become another.
_STEP_S = 0.5


class Bucket:
    """A cap of `rate` bytes per second (may be infinite) over everything that takes from it."""

    def __init__(self, rate: float, clock: Clock | None = None) -> None:
        self._rate = rate
        self._clock = clock or Clock()
        self._paid_until = self._clock.now()

    def limit(self, rate: float) -> None:
        """From now on `rate` bytes per second, for what is owed too; 0 lets next to nothing pass."""
        rate, now = max(rate, 1.0), self._clock.now()
        if self._paid_until > now:
            owed = (self._paid_until - now) * self._rate
            self._paid_until = now + (0.0 if math.isinf(rate) else owed / rate)
        self._rate = rate

    @property
    def _pause(self) -> float:
        return max(0.0, self._paid_until - self._clock.now())

    def reserve(self, amount: int) -> float:
        """Take `amount` bytes now, and say how many seconds to pause before the next take."""
        self._paid_until = max(self._paid_until, self._clock.now() - BURST_S) + amount / self._rate
        return self._pause

    async def take(self, amount: int) -> None:
        """Take `amount` bytes and pause for as long as that costs."""
        pause = self.reserve(amount)
        while pause > 0:
            await self._clock.sleep(min(pause, _STEP_S))
            pause = self._pause if pause > _STEP_S else 0.0
