"""The lines of sites, shared by the boxes that fill at the same time. In memory: leases last seconds.

What is leased never exceeds the line: who comes new gets what is free, and its full share once the others have asked
again and got less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LEASE_S = 2.0
"""For how long a lease is good without a word; boxes ask again that often."""
# A box that asks late keeps its share for so much longer, so that the others do not take it meanwhile.
_GRACE_S = 3.0


class Leases:
    """Who may take how much of each site's line, in bit/s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[str, dict[str, tuple[float, int]]] = {}

    def ask(self, site: str, box: str, line_bps: int) -> int:
        """The share of `box` for the next LEASE_S seconds; 0 if nothing is free yet."""
        now = self._clock()
        given = {
            other: lease for other, lease in self._given.get(site, {}).items() if other != box and lease[0] > now
        }
        free = max(0, line_bps - sum(rate for _, rate in given.values()))
        share = min(line_bps // (len(given) + 1), free)
        self._given[site] = {**given, box: (now + LEASE_S + _GRACE_S, share)}
        return share
