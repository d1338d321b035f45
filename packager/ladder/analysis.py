"""The analysis of a source: trial encodes of some stretches of it, and the per-title ladder that follows.

Each stretch is kept once without loss; trials are made of that, at several sizes and quantizers, and measured. Which
ones, `search` tells from those before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from oca.errors import FormatError
from oca.store.content import write_durably
from oca.title.segments import SegmentIndex
from packager.boxes.mp4 import read_track
from packager.encode.chunks import Chunk
from packager.encode.encoders import TUNINGS
from packager.encode.job import Job, encode, keep
from packager.ffmpeg import Ffmpeg, side_by_side
from packager.ladder import quality, search
from packager.ladder.hull import Aim, Choice, Point, cheapest, curves, pick
from packager.ladder.quality import MOST_LINES, Scale
from packager.ladder.rungs import RATES, SHARES, Rung, width_at
from packager.source.probe import Source

# An encoder's tunings are compared at the most lines up to so many, at the middle quantizer, on every other stretch:
# what is cheapest there is so elsewhere, or nearly.
_TUNED_LINES = 384
# Less than this is chance.
_TUNING_GAIN = 0.02
_STRETCHES, _STRETCH_S = 4, 4
# Stretches of so many bytes together are kept raw, which costs no time to read; longer ones packed.
_MOST_RAW = 512 << 20
_MOST_RUNGS = len(RATES)
# Where a single stretch stands for all, trials one after the other would leave processors idle. Not by how many there
# are: the same source gives the same ladder everywhere.
_AT_ONCE = 2
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
    """What stands for the whole: some stretches of whole segments, evenly spread; of what is not three times as long
    as these, the first third of every segment.
    """
    length = max(1, round(_STRETCH_S / (job.gop / job.source.rate))) * job.gop
    if job.frames <= 3 * _STRETCHES * length:
        # A last segment that is shorter than half of one says little.
        firsts = range(0, max(1, job.frames - job.gop // 2), job.gop)
        return [Chunk(n, first, first + -(-min(job.gop, job.frames - first) // 3)) for n, first in enumerate(firsts)]
    places = [(2 * n + 1) * (job.frames - length) // (2 * _STRETCHES) // job.gop * job.gop for n in range(_STRETCHES)]
    return [Chunk(n, first, first + length) for n, first in enumerate(sorted(set(places)))]


def stood_for(job: Job, part: Chunk) -> int:
    """For how many pictures a stretch stands: those of the segments that it lies in."""
    return min(-(-part.frames // job.gop) * job.gop, job.frames - part.first)


def _bits(sizes: Sequence[int], frames: int) -> float:
    """What so many pictures would take that begin like these, of which only the first one is a key frame."""
    return 8.0 * (sizes[0] + sum(sizes[1:]) / max(1, len(sizes) - 1) * (frames - 1))


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
        weight = stood_for(job, part)
        total += weight * quality.measure(binary, scale.metric, sample, _kept(folder, job, part), size, folder)
        frames += weight
        sample.unlink()
    return total / frames


def _kept(folder: Path, job: Job, part: Chunk) -> Path:
    """Where a stretch is kept, by its name raw or packed; with four bytes a pixel there is room for any format."""
    raw = 4 * job.source.width * job.source.height * sum(each.frames for each in stretches(job)) <= _MOST_RAW
    return folder / f"{part.number}.{'nut' if raw else 'mkv'}"


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
    done = 0
    # Each size once and then once more, if it is worth it; each tuning, and none.
    all_in_all = len(parts) * (1 + sum(2 * len(sizes(job.source)) + 1 + len(TUNINGS[codec]) for codec in codecs))

    def tell() -> None:
        nonlocal done
        done += 1
        progress(min(done, all_in_all), all_in_all)

    def kept(runner: Ffmpeg, part: Chunk) -> tuple[Chunk, Job]:
        path = _kept(folder, job, part)
        keep(runner, job, part, path)
        tell()
        # All that is kept has these colours, and raw files do not say so.
        whole = replace(job.source, path=path, audio=(), keys=(), interlaced=False, matrix="bt709")
        return part, Job(whole, (), job.preset, part.frames, 0, 0, segment=job.segment)

    def one(runner: Ffmpeg, part: Chunk, sample: Job, rung: Rung) -> tuple[float, float]:
        source = sample.source
        room = folder / f"{part.number}-{rung.track}-{rung.tuning}"
        room.mkdir(exist_ok=True)
        encode(runner, sample, [rung], Chunk(0, 0, part.frames), room)
        file = room / f"{rung.track}.mp4"
        value = quality.measure(runner, scale.metric, file, source.path, compared(source), room)
        bits = _bits(read_track(file).samples.sizes, stood_for(job, part))
        shutil.rmtree(room)
        tell()
        return bits, value

    with side_by_side(binary, jobs) as (runner, pool):
        samples = list(pool.map(partial(kept, runner), parts))
        # What is tried, or was: the comparison of tunings has made a part of what comes after it.
        tried: dict[tuple[int, Rung], Future[tuple[float, float]]] = {}

        def submitted(part: Chunk, sample: Job, rung: Rung) -> Future[tuple[float, float]]:
            key = (part.number, rung)
            if key not in tried:
                tried[key] = pool.submit(one, runner, part, sample, rung)
            return tried[key]

        def make(rungs: Sequence[Rung], every: int) -> list[Trial]:
            """The trials of these rungs, of the stretches each `every`th."""
            some = samples[::every]
            running = [[submitted(part, sample, rung) for part, sample in some] for rung in rungs]
            weights = [stood_for(job, part) for part, _ in some]
            frames = sum(weights)
            made = []
            for rung, futures in zip(rungs, running, strict=True):
                found = [future.result() for future in futures]
                kbps = sum(bits for bits, _ in found) / float(frames / job.source.rate) / 1000
                mean = sum(value * weight for (_, value), weight in zip(found, weights, strict=True)) / frames
                made.append(Trial(rung.codec, rung.height, rung.crf, kbps, mean, rung.tuning))
            return made

        at_once = max(1, _AT_ONCE // len(samples))
        found = [trial for codec in codecs for trial in _searched(job.source, codec, scale, make, at_once)]
    progress(all_in_all, all_in_all)
    return found


def _searched(
    source: Source, codec: str, scale: Scale, make: Callable[[Sequence[Rung], int], list[Trial]], at_once: int
) -> list[Trial]:
    """The trials of a codec that `make` makes, `at_once` finer ones, until `search` asks for no more."""
    every, tuning = sizes(source), ""
    middle = search.QUANTIZERS[codec][search.MIDDLE]
    if TUNINGS[codec]:
        lines = max([each for each in every if each <= _TUNED_LINES], default=every[0])
        tuning = tuning_of(
            make([_tried(source, codec, lines, middle, name) for name in ("", *TUNINGS[codec])], 2), scale
        )
    found = make([_tried(source, codec, lines, middle, tuning) for lines in every], 1)
    aim = _aim(source, codec, scale)
    while wanted := search.more(_points(found, codec), codec, scale.metric, aim, at_once):
        found += make([_tried(source, codec, lines, crf, tuning) for lines, crf in wanted], 1)
    return found


def _tried(source: Source, codec: str, lines: int, crf: float, tuning: str) -> Rung:
    return Rung(width_at(lines, source.width, source.height), lines, 0, "", codec, crf, tuning=tuning)


def _points(found: Iterable[Trial], codec: str) -> list[Point]:
    return [Point(each.lines, each.crf, each.kbps, each.quality) for each in found if each.codec == codec]


def _aim(source: Source, codec: str, scale: Scale) -> Aim:
    allowed = [kbps for kbps, lines in RATES if lines <= source.height] or [RATES[0][0]]
    share = SHARES[codec]
    return Aim(scale.top, scale.step, allowed[0] * share, allowed[-1] * share, _MOST_RUNGS)


def tuning_of(found: Sequence[Trial], scale: Scale) -> str:
    """The tuning that takes least at equal quality, of a trial of each, the first of '' (none), which it may be."""
    costs = [search.cost(point, scale.metric) for point in _points(found, found[0].codec)]
    best = min(range(len(costs)), key=lambda number: costs[number])
    return found[best].tuning if costs[best] <= costs[0] * (1 - _TUNING_GAIN) else ""


def per_title(source: Source, found: Sequence[Trial], codecs: Sequence[str], scale: Scale) -> list[Rung]:
    """The ladder that trials suggest, for each codec in turn, worst rung first."""
    rungs = []
    for codec in codecs:
        points, tuning = search.between(_points(found, codec), scale.metric), _tuning(found, codec)
        choices = pick(points, _aim(source, codec, scale))
        rungs += [_rung(source, choice, codec, tuning, scale) for choice in choices]
    return rungs


def rung_at(source: Source, found: Sequence[Trial], codec: str, scale: Scale, wanted: float) -> Rung | None:
    """The cheapest rung of this quality that trials suggest, be it in a ladder or not; None if none had it."""
    points = search.between(_points(found, codec), scale.metric)
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
