"""Which appliances are alive: heartbeats live in memory only, and silence is what a death looks like."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from oca.wire import Heartbeat


def is_alive(last_beat: float | None, started: float, now: float, dead_s: float) -> bool:
    """Whether a box counts as alive at `now` (all times from one monotonic clock).

    A box not heard since the controller started gets the benefit of the doubt until it could have been heard:
    a restart of the controller must not look like the death of every box.
    """
    return now - (started if last_beat is None else last_beat) <= dead_s


class Registry:
    """The last heartbeat of every appliance.

    While the controller itself is held up, by a busy machine or a slow disk, it hears nobody: time of which `awake`
    comes late is not silence, else a pause of its own would look like the death of the fleet (Lifeguard, 2017).
    """

    def __init__(self, dead_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._dead_s = dead_s
        self._clock = clock
        self._deaf_s = 0.0
        self._expected = math.inf
        self._started = self._now()
        self._beats: dict[str, tuple[float, Heartbeat]] = {}

    def _now(self) -> float:
        """Seconds on a clock that stands still while we are deaf."""
        return self._clock() - self._deaf_s

    def awake(self, again_s: float) -> float:
        """To be called again in `again_s` seconds; returns how many it came too late."""
        now = self._clock()
        late = max(0.0, now - self._expected)
        self._deaf_s += late
        self._expected = now + again_s
        return late

    def beat(self, heartbeat: Heartbeat) -> None:
        """Take a heartbeat."""
        self._beats[heartbeat.appliance] = (self._now(), heartbeat)

    def last(self, box: str) -> Heartbeat | None:
        """What the box last said, however long ago."""
        found = self._beats.get(box)
        return found[1] if found else None

    def everybody(self) -> list[Heartbeat]:
        """What every box last said that was ever heard."""
        return [beat for _, beat in self._beats.values()]

    def silence(self, box: str) -> float | None:
        """Seconds since the last heartbeat, None if there was none since the controller started."""
        found = self._beats.get(box)
        return self._now() - found[0] if found else None

    def alive(self, box: str) -> bool:
        """Whether the box counts as alive now."""
        found = self._beats.get(box)
        return is_alive(found[0] if found else None, self._started, self._now(), self._dead_s)
