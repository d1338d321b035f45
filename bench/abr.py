"""How a simulated player chooses its rung: from measured bandwidth and the length of its buffer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

BUFFER_S = 30.0
SAMPLES = 20
HEADROOM = 1.2


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ascending numbers lie, interpolated linearly."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def estimate(samples: Sequence[float], buffer_s: float) -> float:
    """Bandwidth to count on, in the unit of the samples: pessimistic percentiles, less while the buffer is short.

    (0.5 p10 + 0.3 p25 + 0.2 median) x min(buffer / 30 s, 1); 0 without samples.
    """
    if not samples:
        return 0.0
    ordered = sorted(samples)
    weighted = 0.5 * percentile(ordered, 0.10) + 0.3 * percentile(ordered, 0.25) + 0.2 * percentile(ordered, 0.5)
    return weighted * min(buffer_s / BUFFER_S, 1.0)


class Chooser:
    """Remembers the last bandwidth samples of one session, in bit/s, and picks among its rungs."""

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = sorted(rungs)
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def measured(self, bits: float, seconds: float) -> None:
        """Take the time that a segment took."""
        self._samples.append(bits / max(seconds, 1e-6))

    def choose(self, buffer_s: float) -> int:
        """Index of the highest rung that the estimate exceeds by the headroom, 0 if none."""
        worth = estimate(self._samples, buffer_s)
        return max((i for i, rate in enumerate(self.rungs) if worth > HEADROOM * rate), default=0)
