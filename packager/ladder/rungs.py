"""The ladder: which renditions a source gets, and why. Pure; the sizes and rates of the fixed public ladder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from oca.errors import ConfigError

# kbit/s @ lines
RATES = (
    (235, 240),
    (375, 288),
    (560, 384),
    (750, 384),
    (1050, 480),
    (1750, 480),
    (2350, 720),
    (3000, 720),
    (4300, 1080),
    (5800, 1080),
)
SHARES = {"h264": 1.0, "hevc": 0.7, "av1": 0.6}
"""What a codec takes of H.264's rate for about the same picture."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One video rendition: size in pixels (both even), mean rate in kbit/s, why it is there, and its codec.

    With `crf` the encoder keeps that quantizer; `kbps`, if not 0, and `quality` are what is expected of it. `tuning`
    is what the encoder is told of the content (`encoders.TUNINGS`).
    """

    width: int
    height: int
    kbps: int
    reason: str
    codec: str = "h264"
    crf: float = 0
    quality: float = 0
    tuning: str = ""

    @property
    def track(self) -> str:
        """Name of its track, lines and rate: `v-720-3000`, and the codec unless it is H.264: `v-720-1800-av1`."""
        rate = str(self.kbps) if self.kbps else f"crf{self.crf:g}".replace(".", "-")
        return f"v-{self.height}-{rate}" + (f"-{self.codec}" if self.codec != "h264" else "")


def ladder(width: int, height: int, codecs: Sequence[str] = ("h264",)) -> list[Rung]:
    """Rungs for a source shown at `width` x `height` square pixels, lowest first, never above its height.

    Of each of `codecs`, in that order, all of them.
    """
    return [
        replace(rung, kbps=round(rung.kbps * SHARES[codec]), codec=codec, reason=rung.reason + _said(codec))
        for codec in codecs
        for rung in _fixed(width, height)
    ]


def _fixed(width: int, height: int) -> list[Rung]:
    rungs = [
        Rung(width_at(lines, width, height), lines, kbps, f"fixed ladder: {lines} of the source's {height} lines")
        for kbps, lines in RATES
        if lines <= height
    ]
    if rungs:
        return rungs
    kbps, lines = RATES[0]
    reason = f"lowest rate at the source's size: its {height} lines are fewer than {lines}"
    return [Rung(_even(width), _even(height), kbps, reason)]


def _said(codec: str) -> str:
    return "" if SHARES[codec] == 1 else f"; {SHARES[codec]:.0%} of H.264's rate"


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    lines: Annotated[int, Meta(ge=2, le=16_384, multiple_of=2)]
    kbps: Annotated[int, Meta(ge=1, le=1_000_000)]
    codec: Literal["h264", "hevc", "av1"] = "h264"


class _Ladder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rungs: Annotated[list[_Written], Meta(min_length=1, max_length=64)]


def read(path: Path, width: int, height: int) -> list[Rung]:
    """Rungs out of a TOML file: [[rungs]] with lines, kbps and codec. Those above the source's height are left out.

    ConfigError names the file and what is wrong with it.
    """
    try:
        written = msgspec.toml.decode(path.read_bytes(), type=_Ladder).rungs
    except OSError as error:
        raise ConfigError(
            f"cannot read the ladder {path}: {error.strerror}; it is per-title, fixed, or a file"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the ladder {path} is wrong: {error}") from None
    rungs = [
        Rung(width_at(each.lines, width, height), each.lines, each.kbps, f"as {path.name} says", each.codec)
        for each in written
        if each.lines <= height
    ]
    if not rungs:
        raise ConfigError(f"the ladder {path} has no rung of {height} lines or fewer, which is what the source has")
    if len({rung.track for rung in rungs}) < len(rungs):
        raise ConfigError(f"the ladder {path} has two rungs with the same lines, rate and codec: remove one")
    return rungs


def width_at(lines: int, width: int, height: int) -> int:
    """The even width of a picture of `width` x `height` when it is shown with so many lines."""
    return _even(width * lines / height)


def _even(pixels: float) -> int:
    """The nearest even number from 2: 4:2:0 colour has one sample for two pixels."""
    return max(2, 2 * round(pixels / 2))
