"""How often somebody may ask. Pure but for what is remembered.

A token bucket is kept as one number, the moment at which it will be full again (the generic cell rate algorithm of
ITU-T I.371, which is the same rule). A bucket that is full is worth nothing, so forgetting the one that was asked for
longest ago keeps memory bounded and is hardly ever noticed.
"""

from __future__ import annotations

import math
from collections import OrderedDict


def take(full_at: float, now: float, rate: float, burst: int) -> tuple[float, float]:
    """One request to a bucket of `burst` tokens that gains `rate` a second and is full again at `full_at`.

    Returns the new `full_at`, and the seconds after which a token will be there: 0 if this request had one. A request
    that had none takes nothing.
    """
    full_at = max(full_at, now)
    late = full_at - now - (burst - 1) / rate
    return (full_at, late) if late > 0 else (full_at + 1 / rate, 0.0)


def retry_after(late: float) -> str:
    """Retry-After (RFC 9110 10.2.3) for somebody who is `late` seconds early: whole seconds, never 0."""
    return str(max(1, math.ceil(late)))


class Buckets:
    """A bucket for each of at most `size` keys; the one not asked for longest is forgotten first."""

    def __init__(self, rate: float, burst: int, size: int) -> None:
        self._rate = rate
        self._burst = burst
        self._size = size
        self._full_at: OrderedDict[bytes | str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: bytes | str, now: float) -> float:
        """Seconds that the request is too early, 0 if it may pass; `now` of a clock that never goes back."""
        if not self._rate:
            return 0.0
        found, late = take(self._full_at.get(key, now), now, self._rate, self._burst)
        self._full_at[key] = found
        self._full_at.move_to_end(key)
        if len(self._full_at) > self._size:
            self._full_at.popitem(last=False)
        return late
