"""Which appliances are alive, from the heartbeats in memory: silence is what a death looks like."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping

from oca.wire import Heartbeat


def is_alive(last_beat: float | None, started: float, now: float, dead_s: float) -> bool:
    """Whether a box counts as alive at `now` (all times from one monotonic clock).

    A box not heard since the controller started gets the benefit of the doubt until it could have been heard:
    a restart of the controller must not look like the death of every box. What another before it has heard is a
    `last_beat`, too: time in which nobody listened is not silence.
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
        self._before: dict[str, float] = {}
        self._news: set[str] = set()

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
        self._news.add(heartbeat.appliance)

    def resume(self, silences: Mapping[str, float]) -> None:
        """Go on where another ended: for how many seconds it had not heard each box that it ever heard."""
        self._before = {box: self._started - max(0.0, silence) for box, silence in silences.items()}

    def news(self) -> dict[str, float]:
        """The silence of every box that was heard since the last call, in seconds."""
        news, self._news = self._news, set()
        now = self._now()
        return {box: now - self._beats[box][0] for box in news}

    def untold(self, boxes: Iterable[str]) -> None:
        """What `news` told of these could not be passed on: it is news again."""
        self._news.update(boxes)

    def last(self, box: str) -> Heartbeat | None:
        """What the box last said, however long ago."""
        found = self._beats.get(box)
        return found[1] if found else None

    def everybody(self) -> list[Heartbeat]:
        """What every box last said that was ever heard."""
        return [beat for _, beat in self._beats.values()]

    def silence(self, box: str) -> float | None:
        """Seconds since the last heartbeat, not counting those in which nobody listened; None if there was none."""
        heard = self._heard(box)
        return None if heard is None else self._now() - heard

    def alive(self, box: str) -> bool:
        """Whether the box counts as alive now."""
        return is_alive(self._heard(box), self._started, self._now(), self._dead_s)

    def _heard(self, box: str) -> float | None:
        found = self._beats.get(box)
        return found[0] if found else self._before.get(box)
