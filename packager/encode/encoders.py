"""What the encoders are told, each with its reason. Pure.

Every encoder runs in one thread: with more, the rate caps depend on which of them runs first, and no two runs give
the same bytes (measured with x264). The rungs are encoded side by side, which keeps the processors busy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from oca.errors import ConfigError
from packager.audio import renditions
from packager.audio.renditions import Rendition
from packager.ladder.rungs import Rung

Codec = Literal["h264", "hevc", "av1"]
NAMES: Mapping[str, str] = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
"""The encoder of each codec, as ffmpeg calls it."""
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
"""From fast to good, as x264 and x265 call them."""
# SVT-AV1 has numbers: 13 is the fastest. Each takes about as long as x264's of that name takes x265.
_SVT_PRESETS = dict(zip(PRESETS, (12, 11, 10, 9, 8, 7, 5, 4, 3), strict=True))
# Capped VBR: a scene may take half as much again as the mean, over a buffer of two seconds at the mean rate.
_MAX_RATE, _BUFFER = 1.5, 2.0
# At a constant quantizer scenes take what they need, which was measured on samples: up to this many times the mean.
_MOST_OF_CRF = 2
Cap = tuple[int, int]
# x264's B-pictures by preset; the tuning for animation adds two.
_B_FRAMES = {"ultrafast": 0, "veryslow": 8}
_MORE_B_FRAMES = 2
TUNINGS: Mapping[str, tuple[str, ...]] = {"h264": ("animation",), "hevc": (), "av1": ()}
"""What an encoder may be told of the content, as x264 calls it; '' tells it nothing."""

# Pixels a side that an encoder takes at least, found by trial: x265, and SVT-AV1 at a given rate.
_LEAST: Mapping[str, int] = {"hevc": 16, "av1": 64}


def check_sides(rungs: Iterable[Rung]) -> None:
    """Raise ConfigError if a rung is too small for its encoder."""
    for rung in rungs:
        least = _LEAST.get(rung.codec, 0)
        if min(rung.width, rung.height) < least:
            raise ConfigError(
                f"{NAMES[rung.codec]} takes pictures of {least} pixels a side or more, and {rung.track} would have "
                f"{rung.width}x{rung.height}: choose --codec h264"
            )


def video_options(rung: Rung, preset: str, gop: int, timescale: int) -> dict[str, Any]:
    """Options of ffmpeg for the video of a rung; `gop` in pictures, `timescale` in ticks per second."""
    return {
        "c:v": NAMES[rung.codec],
        **({"crf": rung.crf} if rung.crf else {"b:v": rung.kbps * 1000}),
        # A key frame every gop pictures and nowhere else: the same cuts in every rung.
        "g": gop,
        "fps_mode": "passthrough",  # the fps filter has decided already
        "video_track_timescale": timescale,
        "map_metadata": -1,  # nothing of the camera's, such as its place
        "map_chapters": -1,
        "f": "mp4",
        **_OPTIONS[rung.codec](_cap(rung), preset, gop),
        **_tuning(rung.tuning, preset),
    }


def audio_options(rendition: Rendition) -> dict[str, Any]:
    """Options of ffmpeg for an audio track."""
    return {
        "c:a": renditions.ENCODERS[rendition.codec],
        "b:a": rendition.bps,
        "flags:a": "+bitexact",
        "map_metadata": -1,
        "map_chapters": -1,
        "f": "mp4",
    }


def _cap(rung: Rung) -> Cap | None:
    """Greatest rate and buffer in bit/s and bits; None for a trial, which shows what a picture costs."""
    rate = rung.kbps * 1000
    if not rate:
        return None
    return (rate * _MOST_OF_CRF, rate * _MOST_OF_CRF) if rung.crf else (int(rate * _MAX_RATE), int(rate * _BUFFER))


def _tuning(name: str, preset: str) -> dict[str, Any]:
    """x264's own tuning, but for the doubled references of animation, for which older players have no memory.

    aq: how much goes to flat places at the cost of others. psy: how much to keep sharp or grainy what was so, at the
    cost of being true. deblock: how soft the edges of blocks become. Its tunings for film and grain took least at
    equal VMAF of none of nine clips (docs/packaging.md), noisy ones among them.
    """
    if name == "animation":
        frames = _B_FRAMES.get(preset, 3) + _MORE_B_FRAMES
        return {"deblock": "1:1", "psy-rd": "0.4:0.0", "aq-strength": 0.6, "bf": frames}
    return {}


def _h264(cap: Cap | None, preset: str, gop: int) -> dict[str, Any]:
    return {
        "preset": preset,
        "threads:v": 1,
        **({"maxrate:v": cap[0], "bufsize:v": cap[1]} if cap else {}),
        "profile:v": "high",
        "keyint_min": gop,
        "sc_threshold": 0,
        # cgop: no picture refers across a cut. bitexact: no version of the encoder where it can be helped.
        "flags:v": "+cgop+bitexact",
    }


def _hevc(cap: Cap | None, preset: str, gop: int) -> dict[str, Any]:
    told = {
        "min-keyint": gop,
        "scenecut": 0,
        "open-gop": 0,  # no picture refers across a cut
        **({"vbv-maxrate": cap[0] // 1000, "vbv-bufsize": cap[1] // 1000} if cap else {}),
        "pools": "none",
        "frame-threads": 1,
        "info": 0,  # no name of the encoder in the stream
        "log-level": "error",
    }
    return {
        "preset": preset,
        "tag:v": "hvc1",  # parameter sets in the sample entry alone, which is what Apple's players take
        "profile:v": "main",
        "x265-params": ":".join(f"{name}={value}" for name, value in told.items()),
    }


def _av1(cap: Cap | None, preset: str, gop: int) -> dict[str, Any]:
    # lp: one thread. scd: no key frames of its own at new scenes.
    return {
        "preset": _SVT_PRESETS[preset],
        **({"bufsize:v": cap[1]} if cap else {}),
        "svtav1-params": f"lp=1:scd=0:keyint={gop}",
    }


_OPTIONS = {"h264": _h264, "hevc": _hevc, "av1": _av1}
