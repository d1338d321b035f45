"""Loudness by EBU R 128: what is measured, and which gain brings it where it is wanted. Pure.

A gain changes nothing but how loud it is. Only where it would raise peaks beyond what survives lossy coding, these
are held down, as little as possible; loudness is then measured again, for that took something from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from oca.errors import OcaError

CEILING = -2.0
"""dBTP, the highest true peak: R 128 allows -1 (recommendation k), and lossy coding adds something."""
OVERSAMPLED = 192_000
SILENCE = -70.0
"""LUFS, the absolute gate of BS.1770: what is not above it is silence."""
# A gain is corrected this often, until it is as near as this (LU).
_ROUNDS, _NEAR = 3, 0.2
_VALUE = re.compile(r"(I|Peak):\s+(-?(?:[0-9.]+|inf|nan)) (?:LUFS|dBFS)")


class LoudnessError(OcaError):
    """A measurement that failed."""


@dataclass(frozen=True, slots=True)
class Heard:
    """Integrated loudness in LUFS, and true peak in dBTP."""

    loudness: float
    peak: float


@dataclass(frozen=True, slots=True)
class Change:
    """A gain in dB, whether peaks are held down after it, and the loudness in LUFS before and after."""

    gain: float
    limited: bool
    before: float
    after: float

    @property
    def said(self) -> str:
        """In words, to follow on what was changed."""
        if self.before <= SILENCE:
            return "is silent, and left so"
        held = f", its peaks held below {CEILING:g} dBTP" if self.limited else ""
        return f"was brought from {self.before:.1f} to {self.after:.1f} LUFS{held}"


def heard(log: Sequence[str]) -> Heard:
    """What ffmpeg's filter ebur128 says at its end; LoudnessError if it does not."""
    begin = max((n for n, line in enumerate(log) if line.endswith("Summary:")), default=len(log))
    found = {match[1]: match[2] for line in log[begin:] if (match := _VALUE.fullmatch(line))}
    try:
        loudness, peak = float(found["I"]), float(found["Peak"])
    except (KeyError, ValueError):
        raise LoudnessError("ffmpeg's filter ebur128 told no loudness: use another build, or no --loudness") from None
    # What has no sample has none above the gate, either.
    return Heard(max(SILENCE, loudness) if loudness == loudness else SILENCE, peak)


def bring(target: float, measure: Callable[[Change | None], Heard]) -> Change:
    """The change that brings what `measure` hears, without or with a change, to `target` LUFS."""
    first = measure(None)
    if first.loudness <= SILENCE:
        return Change(0, False, SILENCE, SILENCE)
    gain = round(target - first.loudness, 2)
    if first.peak + gain <= CEILING:
        return Change(gain, False, first.loudness, target)
    for attempt in range(1, _ROUNDS + 1):
        after = measure(Change(gain, True, first.loudness, target)).loudness
        if abs(target - after) <= _NEAR or attempt == _ROUNDS:
            break
        gain = round(gain + target - after, 2)
    return Change(gain, True, first.loudness, after)
