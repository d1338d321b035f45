"""How sources have behaved, how long to leave them alone, and which to ask for the next chunk. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from oca.breaker import Breaker, Terms
from oca.wire import Source

# Of the newest chunk in what is known of a source's rate.
_WEIGHT = 0.3
# So many times the rate of one source another must have to be worth a chunk begun anew.
_QUICKER = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try. All times in seconds."""

    parallel: int = 4
    """Chunks in flight at once."""
    connect_s: float = 5.0
    stall_s: float = 10.0
    """A source that sends nothing for so long has failed."""
    chunk_s: float = 120.0
    """A source that needs longer for a chunk, our own rate cap not counted, has failed if another may be quicker."""
    least_bytes_per_s: float = 2000.0
    """One that needs longer than `chunk_s` and sends less than this has failed even if it is alone: it drips."""
    attempts: int = 3
    """Failures in a row after which a source is left alone."""
    backoff_s: float = 0.25
    """Pause after the first failure; doubles with each, and varies by half so that boxes do not march in step."""
    rest_s: float = 60.0
    """For how long a failed source is left alone; after that one more failure is enough again."""
    circuit: Terms = field(default_factory=Terms)
    """When a source that fails again and again, if not in a row, is left alone, and for how long."""


@dataclass(slots=True)
class Health:
    """How a source has behaved in this run. Times are of time.monotonic()."""

    failures: int = 0
    failed_at: float = -math.inf
    resume_at: float = -math.inf
    problem: str = ""
    bad: bool = False
    in_flight: int = 0
    """Chunks that are being asked of it."""
    rate: float = 0.0
    """Bytes per second of one chunk, over the last few; 0 while unknown."""
    breaker: Breaker = field(default_factory=Breaker)

    def came(self, amount: int, seconds: float) -> None:
        """A chunk of so many bytes has come, after so long."""
        now = amount / max(seconds, 1e-6)
        self.rate = now if self.rate == 0 else self.rate + _WEIGHT * (now - self.rate)


def too_slow(limits: Limits, rate: float, others: Sequence[Health], now: float) -> bool:
    """Whether to leave a source that sends a chunk at `rate` bytes/s, in more than its time, for `others`. Pure.

    What it has sent of the chunk is lost with that, so one stays where nobody is likely to be much quicker: who has
    just failed, or has been found about as slow.
    """
    working = (other.rate for other in others if not (other.failures or other.bad) and other.breaker.would_allow(now))
    return rate < limits.least_bytes_per_s or any(other == 0 or other > _QUICKER * rate for other in working)


def pause_s(limits: Limits, failures: int, chance: float) -> float:
    """For how long a source is left alone after so many failures in a row; `chance` is from 0 to 1. Pure."""
    if failures >= limits.attempts:
        return limits.rest_s
    return limits.backoff_s * 2.0 ** (failures - 1) * (0.5 + chance)


def quickest(pool: Sequence[tuple[Source, Health]], now: float) -> Source | None:
    """Who is likely to have sent one more chunk first, the earlier of equals; None of nobody. Pure.

    Chunks in flight from a source share its line. Of whom nothing is known the best is expected, and a slow one gets
    no more than it can bring while the others bring theirs. Who has just failed and rests comes last.
    """
    best = max((health.rate for _, health in pool), default=0) or 1.0

    def until(one: tuple[Source, Health]) -> tuple[bool, float]:
        return one[1].resume_at > now, (one[1].in_flight + 1) / (one[1].rate or best)

    chosen = min(pool, key=until, default=None)
    return chosen[0] if chosen is not None else None
