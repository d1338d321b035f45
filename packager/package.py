"""The build: from a source video to a published version of a title."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from oca.errors import ConfigError, FormatError, StoreError
from oca.ids import check_id
from oca.store.content import FILLING, Store
from oca.title.digest import CHUNK_BYTES, LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES, digest, version_of
from oca.title.model import MAX_TITLE_JSON, Title, chunk_rule
from oca.title.segments import SegmentIndex
from packager import thumbnails
from packager.audio import renditions
from packager.audio.renditions import LAYOUTS
from packager.captions import texts
from packager.captions.cues import Captions
from packager.encode import cluster
from packager.encode.chunks import CHUNK_S, Chunk, cut
from packager.encode.damage import note, refusal
from packager.encode.encoders import NAMES, check_sides
from packager.encode.job import SEGMENT_S, Job, notes, plan
from packager.encode.work import Work
from packager.encryption.encrypt import Encryption, Sealer
from packager.encryption.keys import About
from packager.ffmpeg import Ffmpeg
from packager.ladder import analysis
from packager.ladder.quality import Metric, scale_of
from packager.ladder.rungs import Rung, ladder
from packager.ladder.rungs import read as read_ladder
from packager.source.probe import Source, probe
from packager.staging import KEEP_S, check_space, staging
from packager.version import Beside, Judge, Named, Progress, write

# The encoder's files and the track files made of them are there at once, and rates are means.
_SPACE_FACTOR = 2.5
# While a track is encrypted it is there in clear, and twice encrypted.
_SEALING_FACTOR = 2.0
# To be raised when the same source and options give other bytes than before.
_RECIPE = 3
_LOOK_BYTES = 1 << 20
# What a chunk takes in title.json, and some for what else is listed there.
_LISTED_BYTES = 80

_CLEAR = "thumbnails and captions are not encrypted: whoever has a URL of theirs can read them"
_NO_VMAF = "this ffmpeg was built without libvmaf: quality was measured as SSIM"


@dataclass(frozen=True, slots=True)
class Order:
    """What to build: `loop_to` in seconds, 0 to play the source once; `chunk` is what is encoded apart, in seconds.

    `jobs` is for how many runs of ffmpeg at once, 0 for what suits the processors. `ladder` is "fixed", "per-title",
    or the path of a file (`ladder.read`), which says the codecs, too. `captions` are "source", which asks for those
    in the video, or what `captions.asked` reads. Without `thumbnails` there are none. `dask` is the address of a
    cluster that does the encoding, '' for this machine. `audio`, `audio_codecs` and `channels` are as `renditions`
    has them, `loudness` is in LUFS, None to leave it as it is. With `tolerate` a source that is damaged, or whose
    tail is missing, is packaged all the same. `segment` is the length of a segment in seconds, `chunk_bytes` that of
    what is verified at once.
    """

    video: Path
    out: Path
    title: str
    name: str
    preset: str = "medium"
    loop_to: float = 0
    chunk: float = CHUNK_S
    jobs: int = 0
    ladder: str = "fixed"
    codecs: tuple[str, ...] = ("h264",)
    captions: tuple[str, ...] = ()
    thumbnails: bool = True
    dask: str = ""
    tolerate: bool = False
    encryption: Encryption | None = None
    audio: str = renditions.ALL
    audio_codecs: tuple[str, ...] = ("aac",)
    channels: str = renditions.SOURCE
    loudness: float | None = None
    segment: float = SEGMENT_S
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Built:
    """A published version: its directory, its title.json, and sentences on what was changed.

    Of its `pieces`, each a chunk of a rung or an audio track, `encoded` were not there from a build that was killed.
    """

    path: Path
    version: str
    title: Title
    notes: list[str]
    pieces: int
    encoded: int


def id_of(name: str) -> str:
    """The title id that a file name suggests; FormatError if nothing of it can be in one."""
    text = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).lstrip("._-")[:64].rstrip("._-")
    if not text:
        raise FormatError(f"no title id can be made of the file name {name!r}: give one with --title")
    return text


def build(ffmpeg: Ffmpeg, order: Order, progress: Progress = lambda *_: None) -> Built:
    """Probe, encode, write and publish. Readers of `out` see all of the version or nothing of it."""
    check_id(order.title, "title id")
    if not LEAST_CHUNK_BYTES <= order.chunk_bytes <= MOST_CHUNK_BYTES:
        raise ConfigError(chunk_rule(order.chunk_bytes))
    given_texts = texts.given(order.captions)
    found = probe(ffmpeg, order.video, order.tolerate)
    audio, said_of_audio = renditions.chosen(found.audio, order.audio, order.video)
    source, sounds = replace(found, audio=audio), renditions.renditions(audio, order.audio_codecs, order.channels)
    rungs = given(order.ladder, order.codecs, source)
    codecs = order.codecs if rungs is None else dict.fromkeys(rung.codec for rung in rungs)
    needed = [NAMES[codec] for codec in codecs] + [renditions.ENCODERS[each.codec] for each in sounds]
    ffmpeg.require(dict.fromkeys(needed))
    shape = plan(source, rungs or (), order.preset, order.loop_to, order.segment)
    shape = replace(shape, tolerate=order.tolerate, sounds=sounds, loudness=order.loudness)
    if source.lost and not order.tolerate:
        raise refusal(shape, source.lost)
    if order.encryption:
        # Sooner than after hours of work; sizes of what is analysed are among these.
        looked = _tracks(shape, rungs or ladder(source.width, source.height, order.codecs))
        order.encryption.protection(looked)
    captions, said_of_captions = _captions(ffmpeg, order, shape, given_texts, progress)
    store = Store([order.out])
    store.prepare()
    chunks = chunks_of(shape, order.chunk)
    jobs = jobs_of(order.jobs)
    try:
        with (
            staging(order.out / FILLING, _key(ffmpeg, order, shape, chunks)) as folder,
            cluster.executing(order.dask, ffmpeg, source.path, folder) as execute,
        ):
            there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            guess = rungs or ladder(source.width, source.height, order.codecs)
            bps = sum(rung.kbps * 1000 for rung in guess) + sum(each.bps for each in sounds)
            factor = _SPACE_FACTOR + (_SEALING_FACTOR if order.encryption else 0)
            check_space(order.out, int(factor * bps / 8 * float(shape.seconds)) - there)
            _check_chunks(order.chunk_bytes, bps / 8 * float(shape.seconds))
            scale = None
            if rungs is None:
                scale = scale_of(ffmpeg)
                trials = analysis.trials(
                    *(ffmpeg, shape, order.codecs, scale, folder / "analysis", jobs),
                    lambda done, total: progress("analyse", done, total),
                )
                rungs = analysis.per_title(source, trials, order.codecs, scale)
            work = Work(replace(shape, rungs=rungs), chunks, folder / "encoded", jobs)
            encoded = work.run(ffmpeg, progress, execute)

            def judge(track: Path, index: SegmentIndex) -> dict[Metric, float]:
                if scale is None:
                    return {}
                seen = analysis.seen(ffmpeg, shape, scale, folder / "analysis", track, index)
                return {scale.metric: round(seen, 1)}

            beside = _beside(ffmpeg, order, work, captions, progress)
            damage = note(shape, work.damage())
            louder = _loudness(work)
            title, version, path = _produce(work, order, store, folder / "version", progress, judge, beside)
    except OSError as error:
        raise StoreError(
            f"cannot write to {order.out}: {error.strerror}; nothing was published, what is encoded is kept for "
            f"{KEEP_S / 86400:.0f} days, and the same command goes on from there"
        ) from None
    pieces = len(chunks) * len(rungs) + len(sounds)
    said_of_audio += [*renditions.notes(audio, order.channels), *louder]
    said = [*notes(shape), *said_of_audio, *damage, *said_of_captions]
    if order.encryption:
        said += [*order.encryption.keys.notes, *([_CLEAR] if order.thumbnails or captions else [])]
    said += [_NO_VMAF] if scale is not None and scale.metric != "vmaf" else []
    return Built(path, version, title, said, pieces, encoded)


def _loudness(work: Work) -> list[str]:
    """Sentences on the loudness of what was encoded, one for all codecs of a stream."""
    found = [(each, work.loudness(each)) for each in work.job.sounds]
    said = [
        f"its audio (stream {each.stream + 1}, {each.language}) in {LAYOUTS[each.channels]} {change.said}"
        for each, change in found
        if change
    ]
    return list(dict.fromkeys(said))


def _tracks(job: Job, rungs: Sequence[Rung]) -> list[About]:
    """What keys are chosen by."""
    rate = float(job.source.rate)
    found = [About(r.track, "video", r.width * r.height, rate, bps=r.kbps * 1000) for r in rungs]
    found += [About(each.name, "audio", channels=each.channels, bps=each.bps) for each in job.sounds]
    return found


def jobs_of(wanted: int) -> int:
    """How many runs of ffmpeg at once: as many as processors that are ours, so that none waits for another's."""
    return wanted or len(os.sched_getaffinity(0))


def given(wanted: str, codecs: Sequence[str], source: Source) -> list[Rung] | None:
    """The rungs of a ladder that needs no analysis, `wanted` as in `Order`; None of "per-title".

    ConfigError if one is too small for its encoder; what is analysed has the sizes of the fixed ladder.
    """
    known = wanted in ("per-title", "fixed")
    rungs = (
        ladder(source.width, source.height, codecs)
        if known
        else read_ladder(Path(wanted), source.width, source.height)
    )
    check_sides(rungs)
    return None if wanted == "per-title" else rungs


def chunks_of(job: Job, seconds: float = CHUNK_S) -> list[Chunk]:
    """The chunks of a job, of about so many seconds each."""
    if job.loops:
        # There is no way to begin reading in the third round.
        return [Chunk(0, 0, job.frames)]
    rate = job.source.rate
    keys = [float(time * rate) for time in job.source.keys]
    return cut(job.frames, job.gop, max(1, round(seconds * rate)), keys)


def _check_chunks(chunk_bytes: int, size: float) -> None:
    """Raise ConfigError if title.json could not list the digests of a title of about `size` bytes."""
    least = size * _LISTED_BYTES / MAX_TITLE_JSON
    if chunk_bytes < least:
        raise ConfigError(
            f"chunks of {chunk_bytes} bytes are too short for a title of about {size / 1e9:.1f} GB: title.json would "
            f"be longer than the {MAX_TITLE_JSON} bytes allowed; say --chunk-bytes {ceil(least / 1000)}K or more"
        )


def _key(ffmpeg: Ffmpeg, order: Order, shape: Job, chunks: Sequence[Chunk]) -> str:
    """Names the work of a build: what was encoded under this name is what would be encoded now."""
    asked = (order.ladder == "per-title", order.codecs, shape.rungs, shape.preset, shape.tolerate)
    cut_in = (shape.gop, shape.segment, order.chunk_bytes)
    made_of = (_fingerprint(shape.source), shape.source.rate, shape.frames, shape.loops, shape.hold, list(chunks))
    heard = (shape.sounds, shape.loudness)
    return digest(repr((_RECIPE, ffmpeg.version, asked, cut_in, made_of, heard)).encode())[:32]


def _fingerprint(source: Source) -> tuple[object, ...]:
    """Tells a source from another and from itself after a change, without reading all of it."""
    with source.path.open("rb") as file:
        stat = os.fstat(file.fileno())
        first = digest(file.read(_LOOK_BYTES))
        file.seek(max(0, stat.st_size - _LOOK_BYTES))
        return stat.st_size, stat.st_mtime_ns, first, digest(file.read(_LOOK_BYTES))


def _captions(
    ffmpeg: Ffmpeg, order: Order, shape: Job, found: list[Captions], progress: Progress
) -> tuple[list[texts.Made], list[str]]:
    """All captions that are wanted, of which those in files are `found`, and notes on them."""
    notes: list[str] = []
    if texts.SOURCE in order.captions:
        progress("captions", 0, 1)
        more, notes = texts.inside(ffmpeg, shape.source.path, [each.label for each in found])
        found = [*found, *more]
        progress("captions", 1, 1)
    made, said = texts.made(found, shape)
    return made, notes + said


def _beside(ffmpeg: Ffmpeg, order: Order, work: Work, captions: list[texts.Made], progress: Progress) -> Beside:
    """The captions, and the thumbnails if they are wanted, for which the work must be done."""
    beside = Beside([made.text for made in captions])
    for made in captions:
        beside.files.update(made.files)
        beside.cues[made.text.name] = made.cues
    if order.thumbnails:
        pictures = thumbnails.make(ffmpeg, work, lambda done, total: progress("thumbnails", done, total))
        beside.thumbnails.append(pictures.tiles)
        beside.files.update(pictures.files)
    return beside


def _produce(
    work: Work, order: Order, store: Store, staged: Path, progress: Progress, judge: Judge, beside: Beside
) -> tuple[Title, str, Path]:
    """Write and publish by way of `staged`; returns the title, its version and where it is."""
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    sealer = None
    if order.encryption:
        scratch = staged.with_name("sealing")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        protection = order.encryption.protection(_tracks(work.job, work.job.rungs))
        sealer = Sealer(order.encryption, protection, scratch, work.job.segment)
    named = Named(order.title, order.name, order.chunk_bytes)
    title, data = write(named, work, staged, progress, judge, beside, sealer)
    version = version_of(data)
    return title, version, store.publish(staged, title.id, version, int(time.time()))
