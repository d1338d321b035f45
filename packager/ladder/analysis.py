"""The analysis of a source: trial encodes of some stretches of it, and the per-title ladder that follows.

Each stretch is kept once without loss; trials are made of that, at several sizes and quantizers, and measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from oca.errors import FormatError
from oca.store.content import write_durably
from oca.title.segments import SegmentIndex
from packager.encode.chunks import Chunk
from packager.encode.encoders import TUNINGS
from packager.encode.job import Job, encode, keep
from packager.ffmpeg import Ffmpeg, side_by_side
from packager.ladder import quality
from packager.ladder.bjontegaard import Pair, bd_rate
from packager.ladder.hull import Aim, Choice, Point, cheapest, curves, pick
from packager.ladder.quality import MOST_LINES, Scale
from packager.ladder.rungs import RATES, SHARES, Rung, width_at
from packager.source.probe import Source

# Where quality goes from beyond what anybody sees to beneath what anybody watches.
_QUANTIZERS = {
    "h264": (18.0, 22.0, 26.0, 30.0, 35.0, 40.0, 45.0),
    "hevc": (20.0, 24.0, 28.0, 32.0, 36.0, 40.0, 45.0),
    "av1": (22.0, 28.0, 34.0, 40.0, 46.0, 52.0, 58.0),
}
# Those at which an encoder's tunings are compared, at the most lines up to so many: what is cheapest there is so at
# other sizes as well, or nearly.
_TUNED_AT, _TUNED_LINES = slice(1, 4), 480
# Less than this is chance.
_TUNING_GAIN = 0.02
_STRETCHES, _STRETCH_S = 4, 4
_MOST_RUNGS = len(RATES)
_TRIALS = "trials.json"


class Trial(msgspec.Struct, frozen=True):
    """What a trial gave, over all stretches: kbit/s and quality, at so many lines with that quantizer and tuning."""

    codec: str
    lines: int
    crf: float
    kbps: float
    quality: float
    tuning: str = ""


def stretches(job: Job) -> list[Chunk]:
    """What stands for the whole: all of a short source, else some stretches of whole segments, evenly spread."""
    length = max(1, round(_STRETCH_S / (job.gop / job.source.rate))) * job.gop
    if job.frames <= _STRETCHES * length:
        return [Chunk(0, 0, job.frames)]
    places = [(2 * n + 1) * (job.frames - length) // (2 * _STRETCHES) // job.gop * job.gop for n in range(_STRETCHES)]
    return [Chunk(n, first, first + length) for n, first in enumerate(sorted(set(places)))]


def sizes(source: Source) -> list[int]:
    """The lines that rungs may have: those of the fixed ladder that the source has, or its own if it has fewer."""
    found = sorted({lines for _, lines in RATES if lines <= source.height})
    return found or [source.height // 2 * 2]


def trials(
    binary: Ffmpeg,
    job: Job,
    codecs: Iterable[str],
    scale: Scale,
    folder: Path,
    jobs: int,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Trial]:
    """Make the trials in `folder`, `jobs` at once, or take those that are there; the stretches stay there.

    `progress` gets how many steps are done, and of how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / _TRIALS
    if made.exists():
        try:
            return msgspec.json.decode(made.read_bytes(), type=list[Trial])
        except msgspec.DecodeError as error:
            raise FormatError(f"{made} is corrupt ({error}): remove it, and what it says is found out anew") from None
    found = _trials(binary, job, codecs, scale, folder, jobs, progress)
    write_durably(made, msgspec.json.encode(found))
    return found


def seen(binary: Ffmpeg, job: Job, scale: Scale, folder: Path, track: Path, index: SegmentIndex) -> float:
    """The quality of a finished track file, over the stretches that `trials` has left in `folder`."""
    total = frames = 0.0
    for part in stretches(job):
        sample = folder / f"{track.stem}.mp4"
        first, end = part.first // job.gop, -(-part.end // job.gop)
        with track.open("rb") as whole, sample.open("wb") as cut:
            cut.write(whole.read(index.init_bytes))
            for segment in index.segments[first:end]:
                whole.seek(segment.offset)
                cut.write(whole.read(segment.bytes))
        size = compared(job.source)
        total += part.frames * quality.measure(binary, scale.metric, sample, _kept(folder, part), size, folder)
        frames += part.frames
        sample.unlink()
    return total / frames


def _kept(folder: Path, part: Chunk) -> Path:
    return folder / f"{part.number}.mkv"


def compared(source: Source) -> quality.Size:
    """The size at which pictures are compared."""
    lines = min(MOST_LINES, source.height // 2 * 2)
    return width_at(lines, source.width, source.height), lines


def _trials(
    binary: Ffmpeg,
    job: Job,
    codecs: Iterable[str],
    scale: Scale,
    folder: Path,
    jobs: int,
    progress: Callable[[int, int], None],
) -> list[Trial]:
    parts = stretches(job)
    tried = [(codec, lines) for codec in codecs for lines in sizes(job.source)]
    tunings = {codec: ("", *TUNINGS[codec]) for codec in codecs if TUNINGS[codec]}
    frames = sum(part.frames for part in parts)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, len(parts) * (1 + len(tried) + sum(map(len, tunings.values()))))

    def kept(runner: Ffmpeg, part: Chunk) -> tuple[Chunk, Job]:
        path = _kept(folder, part)
        keep(runner, job, part, path)
        tell()
        whole = replace(job.source, path=path, audio=(), keys=(), interlaced=False, matrix="auto")
        return part, Job(whole, (), job.preset, part.frames, 0, 0, segment=job.segment)

    def one(runner: Ffmpeg, part: Chunk, sample: Job, rungs: Sequence[Rung]) -> list[tuple[float, float]]:
        source, first = sample.source, rungs[0]
        room = folder / f"{part.number}-{first.codec}-{first.height}-{first.tuning}"
        room.mkdir(exist_ok=True)
        encode(runner, sample, rungs, Chunk(0, 0, part.frames), room)
        found = []
        for rung in rungs:
            file = room / f"{rung.track}.mp4"
            value = quality.measure(runner, scale.metric, file, source.path, compared(source), room)
            found.append((file.stat().st_size * 8.0, value))
        shutil.rmtree(room)
        tell()
        return found

    with side_by_side(binary, jobs) as (runner, pool):
        samples = list(pool.map(partial(kept, runner), parts))

        def all_of(groups: Sequence[Sequence[Rung]]) -> list[list[Trial]]:
            """The trials of these rungs, those of one size and tuning together."""
            running = [
                [pool.submit(one, runner, part, sample, rungs) for part, sample in samples] for rungs in groups
            ]
            made: list[list[Trial]] = []
            for rungs, futures in zip(groups, running, strict=True):
                made.append([])
                for number, rung in enumerate(rungs):
                    found = [future.result()[number] for future in futures]
                    kbps = sum(bits for bits, _ in found) / float(frames / job.source.rate) / 1000
                    mean = sum(value * part.frames for (_, value), part in zip(found, parts, strict=True)) / frames
                    made[-1].append(Trial(rung.codec, rung.height, rung.crf, kbps, mean, rung.tuning))
            return made

        best: dict[str, str] = {}
        for codec, names in tunings.items():
            lines = max([each for each in sizes(job.source) if each <= _TUNED_LINES], default=job.source.height)
            groups = [_tried(job.source, codec, lines, name)[_TUNED_AT] for name in names]
            best[codec] = tuning_of(all_of(groups))
        groups = [_tried(job.source, codec, lines, best.get(codec, "")) for codec, lines in tried]
        return [trial for made in all_of(groups) for trial in made]


def _tried(source: Source, codec: str, lines: int, tuning: str) -> list[Rung]:
    """The rungs to try of a size, best first."""
    width = width_at(lines, source.width, source.height)
    return [Rung(width, lines, 0, "", codec, crf, tuning=tuning) for crf in _QUANTIZERS[codec]]


def tuning_of(groups: Sequence[Sequence[Trial]]) -> str:
    """The tuning that takes least at equal quality, of trials of each, the first of '' (none), which it may be."""
    pairs: list[list[Pair]] = [[(trial.kbps, trial.quality) for trial in group] for group in groups]
    gains = [(bd_rate(pairs[0], each) or 0.0, group[0].tuning) for each, group in zip(pairs, groups, strict=True)]
    gain, name = min(gains)
    return name if gain <= -_TUNING_GAIN else ""


def per_title(source: Source, found: Sequence[Trial], codecs: Sequence[str], scale: Scale) -> list[Rung]:
    """The ladder that trials suggest, for each codec in turn, worst rung first."""
    rungs = []
    allowed = [kbps for kbps, lines in RATES if lines <= source.height] or [RATES[0][0]]
    for codec in codecs:
        points = [Point(each.lines, each.crf, each.kbps, each.quality) for each in found if each.codec == codec]
        share = SHARES[codec]
        aim = Aim(scale.top, scale.step, allowed[0] * share, allowed[-1] * share, _MOST_RUNGS)
        tuning = _tuning(found, codec)
        rungs += [_rung(source, choice, codec, tuning, scale) for choice in pick(points, aim)]
    return rungs


def rung_at(source: Source, found: Sequence[Trial], codec: str, scale: Scale, wanted: float) -> Rung | None:
    """The cheapest rung of this quality that trials suggest, be it in a ladder or not; None if none had it."""
    points = [Point(each.lines, each.crf, each.kbps, each.quality) for each in found if each.codec == codec]
    point, *others = cheapest(curves(points), wanted) or (None,)
    if point is None:
        return None
    return _rung(source, Choice(point, others[0] if others else None), codec, _tuning(found, codec), scale)


def _tuning(found: Sequence[Trial], codec: str) -> str:
    return next((each.tuning for each in found if each.codec == codec), "")


def _rung(source: Source, choice: Choice, codec: str, tuning: str, scale: Scale) -> Rung:
    point = choice.point
    width = width_at(point.lines, source.width, source.height)
    kbps, seen = max(1, round(point.kbps)), round(point.quality, 2)
    reason = _reason(choice, scale) + (f"; encoder tuned for {tuning}" if tuning else "")
    return Rung(width, point.lines, kbps, reason, codec, round(point.crf, 2), seen, tuning)


def _reason(choice: Choice, scale: Scale) -> str:
    point, rival = choice.point, choice.rival
    said = f"per-title: {scale.metric} {point.quality:.1f} at quantizer {point.crf:.1f}"
    if rival is None:
        return f"{said}; no other size reaches that"
    more = rival.kbps / point.kbps - 1
    return f"{said}; {rival.lines} lines would take {abs(more):.0%} {'more' if more >= 0 else 'less'}"
