"""The circuit breaker in front of one upstream: after too many failures it is left alone for a while. Pure.

The numbers are Hystrix's: failures count in a rolling window of ten buckets; at a share of failures, and not before
enough requests, the circuit opens; after a rest one request is let through (half-open), and its outcome closes the
circuit or opens it again. Times are passed in, in seconds of one monotonic clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half-open"]
Change = Literal["opened", "half-opened", "closed"]
_BUCKETS = 10


@dataclass(frozen=True, slots=True)
class Terms:
    """When a circuit opens, and for how long. Times in seconds."""

    requests: int = 20
    """Fewest requests in the window that can open it."""
    window_s: float = 10.0
    percent: float = 50.0
    """Share of failures from which on it opens."""
    rest_s: float = 5.0
    """From opening to the request that tries again."""


class Breaker:
    """The circuit of one upstream. Every `allow` that said yes is followed by one `succeed`, `fail` or `forgo`.

    The outcome of a request from before the opening counts for the one that tries, if it comes while that is out.
    """

    def __init__(self, terms: Terms | None = None) -> None:
        self._terms = terms or Terms()
        # Of each bucket: its number on the clock, requests that succeeded, requests that failed.
        self._buckets: deque[tuple[int, int, int]] = deque()
        # When the rest is over; None while closed.
        self._rested: float | None = None
        self._trying = False
        self.changes: dict[Change, int] = {"opened": 0, "half-opened": 0, "closed": 0}
        """How often the circuit has changed to each state."""

    def state(self, now: float) -> State:
        """Half-open is a circuit whose rest is over: the next request tries, or is trying."""
        if self._rested is None:
            return "closed"
        return "half-open" if self._trying or now >= self._rested else "open"

    def rested_in(self, now: float) -> float:
        """Seconds until a request may try, 0 unless the circuit is open."""
        return max(0.0, self._rested - now) if self._rested is not None else 0.0

    def would_allow(self, now: float) -> bool:
        """Whether a request would be let through now; changes nothing."""
        return self._rested is None or (not self._trying and now >= self._rested)

    def allow(self, now: float) -> bool:
        """Whether a request may be sent now; if so, its outcome must be told."""
        if not self.would_allow(now):
            return False
        if self._rested is not None:
            self._trying = True
            self.changes["half-opened"] += 1
        return True

    def succeed(self, now: float) -> None:
        """A request that was allowed has succeeded."""
        if self._rested is None:
            self._count(now, 1, 0)
        elif self._trying:
            self._rested, self._trying = None, False
            # What failed before is no reason to open again at the next failure.
            self._buckets.clear()
            self.changes["closed"] += 1

    def fail(self, now: float) -> None:
        """A request that was allowed has failed."""
        if self._rested is None:
            self._count(now, 0, 1)
            good, bad = self._sums(now)
            if good + bad >= self._terms.requests and 100 * bad >= self._terms.percent * (good + bad):
                self._open(now)
        elif self._trying:
            self._open(now)

    def forgo(self) -> None:
        """A request that was allowed was given up for reasons of ours: it says nothing of the upstream."""
        self._trying = False

    def error_percent(self, now: float) -> float:
        """Share of failures among the requests in the window, 0 if there were none."""
        good, bad = self._sums(now)
        return 100 * bad / (good + bad) if good + bad else 0.0

    def _open(self, now: float) -> None:
        self._rested, self._trying = now + self._terms.rest_s, False
        self.changes["opened"] += 1

    def _count(self, now: float, good: int, bad: int) -> None:
        number = self._number(now)
        if self._buckets and self._buckets[-1][0] >= number:
            number, was_good, was_bad = self._buckets.pop()
            good, bad = good + was_good, bad + was_bad
        self._buckets.append((number, good, bad))

    def _sums(self, now: float) -> tuple[int, int]:
        oldest = self._number(now) - _BUCKETS
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()
        return sum(bucket[1] for bucket in self._buckets), sum(bucket[2] for bucket in self._buckets)

    def _number(self, now: float) -> int:
        return int(now * _BUCKETS / self._terms.window_s)
