"""Quality: how near an encoded picture is to what it was made of, measured by ffmpeg's filters.

VMAF (libvmaf, its default model: 1080 lines seen from three times the picture's height), 0 to 100. Where ffmpeg was
built without it, SSIM of the luma in decibels, -10 log10(1 - SSIM), which hardly ever leaves 5 to 25.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ffmpeg as graph

from oca.errors import OcaError
from packager.ffmpeg import Ffmpeg, FfmpegError

Metric = Literal["vmaf", "ssim-db"]
Size = tuple[int, int]
MOST_LINES = 1080
"""Pictures that are higher are compared at this height, which is what the model knows."""
# Every so many pictures one is compared: the mean over a stretch hardly changes, and the time does. Every fourth
# would beat with the B pictures.
_EVERY = 5
_THREADS = 2
_SSIM = re.compile(r"SSIM .*\bY:([0-9.]+)")


class QualityError(OcaError):
    """A measurement that failed."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What is worth how much in a metric: beyond `top` nobody sees a difference, `step` is one that some see."""

    metric: Metric
    top: float
    step: float


VMAF = Scale("vmaf", 95.0, 6.0)
SSIM = Scale("ssim-db", 17.0, 1.5)


def scale_of(binary: Ffmpeg) -> Scale:
    """The best metric that this ffmpeg has."""
    return VMAF if "libvmaf" in binary.filters() else SSIM


def measure(binary: Ffmpeg, metric: Metric, encoded: Path, reference: Path, size: Size, folder: Path) -> float:
    """The mean quality of `encoded` against `reference`, picture by picture, at `size` (width, height in pixels).

    Of as many pictures as the shorter has one is compared every so often. `folder` is for what ffmpeg writes.
    QualityError.
    """
    pair = [
        graph.input(f"file:{path}", protocol_whitelist="file")["v:0"]
        # Raw files do not say what colours their numbers mean, and nothing is to be made alike by changing one side.
        .filter("setparams", range="limited", colorspace="bt709", color_primaries="bt709", color_trc="bt709")
        .filter("scale", *size, flags="bicubic")  # larger or smaller, as a player does
        .filter("format", "yuv420p")
        .filter("settb", "AVTB")
        .filter("setpts", "N")  # whatever the containers made of their times
        for path in (encoded, reference)
    ]
    log = folder / f"{encoded.stem}.json"
    if metric == "ssim-db":
        compared = graph.filter(pair, "ssim", shortest=1)
    else:
        compared = graph.filter(
            pair, "libvmaf", shortest=1, log_fmt="json", log_path=str(log), n_subsample=_EVERY, n_threads=_THREADS
        )
    told = compared.output("-", f="null").get_args()
    level = "info" if metric == "ssim-db" else "error"
    try:
        said = binary.run(["-nostdin", "-hide_banner", "-nostats", "-loglevel", level, "-y", *told])
        if metric == "vmaf":
            return float(json.loads(log.read_bytes())["pooled_metrics"]["vmaf"]["mean"])
        (found,) = (match for line in said if (match := _SSIM.search(line)))
        return -10 * math.log10(max(1e-6, 1 - float(found[1])))
    except (FfmpegError, OSError, ValueError, KeyError, TypeError) as error:
        raise QualityError(f"cannot measure the quality of {encoded}: {error}") from None
