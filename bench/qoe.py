"""Quality of experience of one viewing session, from what its player saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

_FLOOR_KBPS = 235.0


@dataclass(frozen=True, slots=True)
class Session:
    """What a player saw: seconds played, mean kbit/s, rung switches, seconds until the first picture, stalls."""

    played_s: float
    kbps: float
    switches: int
    startup_s: float
    stalls: int
    stalled_s: float


def score(session: Session) -> float:
    """0.4 quality + 0.3 stability + 0.2 startup + 0.1 buffering.

    quality = ln(mean kbit/s / 235), stability = exp(-switches per minute), startup = exp(-startup seconds / 3),
    buffering = exp(-stalls per hour). A session that never played scores 0.
    """
    if session.played_s <= 0:
        return 0.0
    quality = math.log(max(session.kbps, 1.0) / _FLOOR_KBPS)
    stability = math.exp(-session.switches / (session.played_s / 60))
    startup = math.exp(-session.startup_s / 3)
    buffering = math.exp(-session.stalls / (session.played_s / 3600))
    return 0.4 * quality + 0.3 * stability + 0.2 * startup + 0.1 * buffering
