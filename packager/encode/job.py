"""The encode of a chunk: one decode of the source feeding every rung, as ffmpeg's command line.

All rungs get the same pictures and the same cuts, so that a player may change between them at any segment, and each
chunk gets the very pictures that it would get if the source were read from its start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import ffmpeg as graph

from oca.errors import OcaError
from packager.audio.renditions import Rendition
from packager.encode.chunks import Chunk
from packager.encode.encoders import video_options
from packager.ffmpeg import Ffmpeg, FfmpegError
from packager.ladder.rungs import Rung
from packager.source.probe import FORMATS, MAX_PIXELS, PROTOCOLS, Source

SEGMENT_S = 4.0
"""Length of a segment unless it is said otherwise."""
# Audio that goes on for longer than this after the last picture keeps that picture standing.
_HOLD_S = 0.1
# Pictures that may be missing at the end: rates and lengths do not always come out even.
MISSING = 2
# SVT-AV1 says what it is about to do, whatever it is told.
_CHATTER = "Svt["
# How ffmpeg's filter `metadata` tells when a picture is shown.
_SHOWN = re.compile(r"pts_time:([-0-9.e+]+)")


class EncodeError(OcaError):
    """An encode that did not give what was asked."""


class SeekError(OcaError):
    """ffmpeg began to read behind the place that it was sent to."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to encode of `source`: `frames` pictures, the source played from its start again until they are there.

    `hold` is for how many seconds the last picture stands for audio that is longer. With `tolerate`, the decoder's
    guesses and repeated pictures stand for what of the source is damaged. `sounds` are the audio tracks, which are
    brought to `loudness`, in LUFS, unless that is None. Segments are of about `segment` seconds.
    """

    source: Source
    rungs: Sequence[Rung]
    preset: str
    frames: int
    loops: int
    hold: float
    tolerate: bool = False
    sounds: tuple[Rendition, ...] = ()
    loudness: float | None = None
    segment: float = SEGMENT_S

    @property
    def seconds(self) -> Fraction:
        """Length of the presentation."""
        return self.frames / self.source.rate

    @property
    def gop(self) -> int:
        """Pictures per segment, the nearest number to its length in seconds times the frame rate."""
        return max(1, round(Fraction(self.segment) * self.source.rate))


def plan(source: Source, rungs: Sequence[Rung], preset: str, loop_to: float = 0, segment: float = SEGMENT_S) -> Job:
    """The job that encodes `source`, looped to `loop_to` seconds if it is shorter than that."""
    length = max([source.end, *(each.end for each in source.audio)])
    if loop_to > length:
        # The demuxer repeats the file as a whole; a short track leaves a gap, which the filters close.
        return Job(source, rungs, preset, ceil(loop_to * source.rate), ceil(loop_to / length) - 1, 0, segment=segment)
    hold = length - source.end if length - source.end > _HOLD_S else 0
    return Job(source, rungs, preset, max(1, round((source.end + hold) * source.rate)), 0, hold, segment=segment)


def notes(job: Job) -> list[str]:
    """Sentences on what the encode changes."""
    said = list(job.source.notes)
    if job.hold:
        said.append(f"its audio is longer than its pictures: the last one stands for {job.hold:.2f} s")
    if job.loops:
        said.append(f"it is played {job.loops + 1} times, to {float(job.seconds):g} s")
    return said


def command(job: Job, rungs: Sequence[Rung], chunk: Chunk, folder: Path, skip: int = 0) -> list[str]:
    """Arguments for ffmpeg to write `chunk` of each of `rungs` to `folder`, as `<track>.mp4`.

    The first `skip` seconds of the source are not read; the last key frame before them is where reading begins.
    """
    given = opened(job, reading(skip))
    outputs = [
        graph.output(
            stream,
            f"file:{folder / rung.track}.mp4",
            **video_options(rung, job.preset, job.gop, job.source.rate.numerator),
        )
        for rung, stream in zip(rungs, _pictures(given, job, rungs, chunk, skip), strict=True)
    ]
    merged = graph.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]
    return [*global_options(), *merged.get_args()]


def encode(
    binary: Ffmpeg,
    job: Job,
    rungs: Sequence[Rung],
    chunk: Chunk,
    folder: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> bool:
    """Encode `chunk` for `rungs` into `folder`; `progress` gets the number of its pictures that are done.

    Returns whether the decoder complained of anything, which is for `damage` to look into.
    """
    return _seeking(binary, job, chunk, lambda skip: command(job, rungs, chunk, folder, skip), progress)


def _seeking(
    binary: Ffmpeg, job: Job, chunk: Chunk, arguments: Callable[[int], list[str]], progress: Callable[[int], None]
) -> bool:
    """Run ffmpeg with `arguments` for the seconds to skip before a chunk."""
    skip = 0 if job.loops else int(chunk.first / job.source.rate)
    if job.source.interlaced:
        skip = max(0, skip - 1)  # the first picture is made of the one before, too
    try:
        return bool(run(binary, job, arguments(skip), progress, skip, chunk))
    except SeekError:
        # Containers without an index: from the start it is right, if slow.
        return bool(run(binary, job, arguments(0), progress))


def keep(binary: Ffmpeg, job: Job, chunk: Chunk, path: Path) -> None:
    """Write the pictures of `chunk` to `path` without loss, at the source's size, for trials; raw if it is `.nut`."""
    source = job.source
    rung = Rung(source.width // 2 * 2, source.height // 2 * 2, 0, "")

    def arguments(skip: int) -> list[str]:
        (stream,) = _pictures(opened(job, reading(skip)), job, [rung], chunk, skip)
        # It is read some dozen times, and then thrown away.
        raw = path.suffix == ".nut"
        lossless = {"c:v": "rawvideo"} if raw else {"c:v": "libx264", "qp": 0, "preset": "ultrafast", "g": job.gop}
        return [
            *global_options(),
            *graph.output(stream, f"file:{path}", fps_mode="passthrough", **lossless).get_args(),
        ]

    _seeking(binary, job, chunk, arguments, lambda _: None)


def run(
    binary: Ffmpeg,
    job: Job,
    arguments: Sequence[str],
    progress: Callable[[int], None],
    skip: int = 0,
    chunk: Chunk | None = None,
) -> list[str]:
    """Run ffmpeg to the end, and return what it said; `progress` gets the number of pictures that are done.

    EncodeError if it fails, SeekError if the first picture read is behind the first of `chunk`.
    """

    def line(text: str) -> None:
        name, _, value = text.partition("=")
        if name == "frame":
            progress(int(value) if value.strip().isdigit() else 0)
        elif chunk is not None and (shown := _SHOWN.search(text)) and float(shown[1]) > chunk.first / job.source.rate:
            raise SeekError(f"reading {job.source.path} from {skip} s on begins at {shown[1]} s")

    try:
        log = binary.run(arguments, line)
    except FfmpegError as error:
        raise EncodeError(f"cannot encode {job.source.path}: {error}") from None
    return [text for text in log if not text.startswith(_CHATTER)]


def check_frames(job: Job, chunk: Chunk, frames: int, timescale: int) -> None:
    """Raise EncodeError unless a chunk has as many pictures as planned, in the timescale planned."""
    missing = MISSING if chunk.end == job.frames else 0
    if not chunk.frames - missing <= frames <= chunk.frames:
        raise EncodeError(
            f"{job.source.path} is damaged: {chunk.first + frames} of its {job.frames} pictures could be decoded; "
            "make it anew, or cut it before the damage"
        )
    if timescale != job.source.rate.numerator:
        raise EncodeError(f"ffmpeg wrote timescale {timescale}, not {job.source.rate.numerator}: use another build")


def global_options(level: str = "error") -> list[str]:
    """Options that every run has, one that says things of this level."""
    return [
        "-nostdin",  # never eat the terminal's keys
        "-hide_banner",
        *("-nostats", "-loglevel", level),  # what is left on stderr is a reason
        "-y",  # the folder is ours alone
        *("-progress", "pipe:1"),  # machine-readable, for the progress bar
        *("-max_error_rate", "1"),  # what the decoder cannot read is looked into afterwards
        *("-filter_complex_threads", "1"),  # there is a run for each processor
    ]


def reading(skip: int) -> dict[str, Any]:
    """Options of an input that is read from the last key frame before `skip` seconds on."""
    return {"ss": skip, "noaccurate_seek": None} if skip else {}


def opened(job: Job, more: dict[str, Any]) -> Any:
    """The source as an input of ffmpeg, with `more` options of it."""
    # loop: the demuxer starts again at the end. Whitelists: a file must not make us read other files or hosts.
    loop = {"stream_loop": job.loops} if job.loops else {}
    # One thread, for there is a run for each processor; and what a decoder makes up for damage may depend on which of
    # its threads runs first.
    more = {**more, "threads:v": 1, "max_pixels:v": MAX_PIXELS}
    name = f"file:{job.source.path.absolute()}"
    return graph.input(name, protocol_whitelist=PROTOCOLS, format_whitelist=FORMATS, **loop, **more)


def _pictures(given: Any, job: Job, rungs: Sequence[Rung], chunk: Chunk, skip: int) -> list[Any]:
    """The decoded pictures of a chunk, once per rung, scaled once per size."""
    rate = job.source.rate
    stream = given["V:0"]
    if skip:
        # Times as they are when nothing is skipped, in whole ticks as ffmpeg has shifted them. And say, as a line of
        # output, when the first picture is shown.
        stream = stream.filter("setpts", f"PTS+round({skip}/TB)")
        stream = stream.filter("metadata", "add", key="first", value=1, enable="eq(n,0)")
        stream = stream.filter("metadata", "print", key="first", file="-", direct=1)
    if job.source.interlaced:
        stream = stream.filter("bwdif", mode="send_frame", deint="interlaced")
    # Constant rate from time 0 for all rungs and chunks alike: up to the first picture read it is repeated, which
    # costs nothing, for the pictures before the chunk are cut away. Rotation has been applied on decoding.
    stream = stream.filter("fps", fps=f"{rate.numerator}/{rate.denominator}", start_time=0)
    if job.tolerate:
        stream = stream.filter("tpad", stop_mode="clone", stop=-1)
    elif job.hold:
        stream = stream.filter("tpad", stop_mode="clone", stop_duration=f"{job.hold:.6f}")
    stream = stream.filter("trim", start_frame=chunk.first, end_frame=chunk.end).filter("setpts", "PTS-STARTPTS")
    sizes = list(dict.fromkeys((rung.width, rung.height) for rung in rungs))
    split = _split(stream, len(sizes))
    scaled = {}
    for (width, height), branch in zip(sizes, split, strict=True):
        # Video range and the colours of BT.709 in every rung, and said so: else players guess, by the size of each.
        colours = {"in_color_matrix": job.source.matrix, "out_color_matrix": "bt709", "out_range": "tv"}
        branch = branch.filter("scale", width, height, flags="bicubic", **colours)
        told = {"range": "tv", "color_primaries": "bt709", "color_trc": "bt709", "colorspace": "bt709"}
        branch = branch.filter("setparams", **told)
        # Square pixels, 4:2:0, 8 bit: what every decoder takes.
        branch = branch.filter("setsar", 1).filter("format", "yuv420p")
        users = sum((rung.width, rung.height) == (width, height) for rung in rungs)
        scaled[width, height] = iter(_split(branch, users))
    return [next(scaled[rung.width, rung.height]) for rung in rungs]


def _split(stream: Any, users: int) -> list[Any]:
    """The stream, `users` times; a filter's output can be used only once."""
    if users == 1:
        return [stream]
    outputs = stream.filter_multi_output("split", users)
    return [outputs[n] for n in range(users)]
