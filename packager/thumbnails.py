"""Thumbnails: small pictures at even distances, as tiles on sheets of JPEG, for finding a place in a title.

They are made of a finished rung, so that loops, rates and rotation need no second thought, and little is decoded.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ffmpeg as graph

from oca.store.content import write_durably
from oca.title import hls
from oca.title.filelist import filelist, index_of
from oca.title.model import Tiles
from packager.boxes import cmaf
from packager.encode.job import MISSING, EncodeError, Job
from packager.encode.work import Work
from packager.ffmpeg import Ffmpeg, FfmpegError
from packager.ladder.rungs import Rung

# As many pixels as 160x90 has, in the shape of the source: five of these side by side are what small devices take.
_PIXELS = 160 * 90
_COLUMNS = _ROWS = 5
# Two segments from one to the next, so that only key frames have to be decoded; in a title that would not fill a
# sheet that way less, though no less than a second.
_SEGMENTS = 2
_LEAST_S = 1
# Of ffmpeg's 2 to 31, the best first; half as many bytes as 2, and no difference at this size.
_QUALITY = 4
# Without these the change of colours makes every picture darker.
_EXACT = "bicubic+full_chroma_int+full_chroma_inp+accurate_rnd+bitexact"
_FOLDER = "thumbnails"
_TEMPORARY = ".thumbnails"


@dataclass(frozen=True, slots=True)
class Plan:
    """Every `step`th picture of a rung becomes a tile of `width` x `height` pixels, both even."""

    rung: Rung
    width: int
    height: int
    step: int


@dataclass(frozen=True, slots=True)
class Made:
    """Thumbnails as title.json lists them, and their files by name."""

    tiles: Tiles
    files: dict[str, bytes]


def plan(job: Job) -> Plan:
    """Size and distance of the thumbnails, and of which rung they are made: the least with pictures twice as high."""
    width, height = job.source.width, job.source.height
    share = min(1.0, math.sqrt(_PIXELS / (width * height)))
    width, height = (max(2, 2 * round(share * side / 2)) for side in (width, height))
    rungs = [rung for rung in job.rungs if rung.codec == job.rungs[0].codec]
    enough = [rung for rung in rungs if rung.height >= 2 * height]
    lines = min(rung.height for rung in enough) if enough else max(rung.height for rung in rungs)
    best = max((rung for rung in rungs if rung.height == lines), key=lambda rung: rung.kbps)
    fitting = max(math.ceil(_LEAST_S * job.source.rate), math.ceil(job.frames / (_COLUMNS * _ROWS)))
    return Plan(best, width, height, min(_SEGMENTS * job.gop, fitting))


def command(wanted: Plan, job: Job, video: Path, folder: Path) -> list[str]:
    """Arguments for ffmpeg to write the sheets of `video`, a whole rung, to `folder` as `1.jpg` and so on."""
    keys = wanted.step % job.gop == 0
    step = wanted.step // job.gop if keys else wanted.step
    # The demuxer leaves out what is between key frames: every codec's decoder can be spared it.
    given = graph.input(f"file:{video}", **({"discard": "nokey"} if keys else {}))
    # What it had read before it was told so comes all the same.
    stream = given["v:0"].filter("select", "key") if keys else given["v:0"]
    # At its end a video may lack a picture or two.
    total = math.ceil(job.frames / job.gop) if keys else job.frames
    stream = stream.filter("tpad", stop_mode="clone", stop=MISSING).filter("trim", end_frame=total)
    stream = stream.filter("select", f"not(mod(n,{step}))")
    # JPEG is full range, with the colours of BT.601 (JFIF 1.02).
    colours = {"in_color_matrix": "bt709", "in_range": "tv", "out_color_matrix": "bt601", "out_range": "pc"}
    stream = stream.filter("scale", wanted.width, wanted.height, flags=_EXACT, **colours)
    stream = stream.filter("setsar", 1).filter("format", "yuvj420p").filter("tile", f"{_COLUMNS}x{_ROWS}")
    pattern = str(folder).replace("%", "%%") + "/%d.jpg"
    told = {"c:v": "mjpeg", "q:v": _QUALITY, "flags:v": "+bitexact", "threads:v": 1, "fps_mode": "passthrough"}
    output = graph.output(stream, f"file:{pattern}", f="image2", start_number=1, map_metadata=-1, **told)
    options = ["-nostdin", "-hide_banner", "-loglevel", "error", "-y", "-progress", "pipe:1"]
    return [*options, *output.get_args()]


def make(binary: Ffmpeg, work: Work, progress: Callable[[int, int], None] = lambda *_: None) -> Made:
    """Make the thumbnails of work that is done, or take those that are there; they stay beside its pieces.

    `progress` gets how many sheets are done, and of how many.
    """
    job, wanted = work.job, plan(work.job)
    folder = work.folder / _FOLDER
    count = -(-job.frames // wanted.step)
    sheets = -(-count // (_COLUMNS * _ROWS))
    progress(0, sheets)
    if not folder.exists():
        _make(binary, work, wanted, lambda done: progress(min(done, sheets), sheets))
    progress(sheets, sheets)
    pictures = [path.read_bytes() for path in sorted(folder.iterdir(), key=lambda path: int(path.stem))]
    if len(pictures) != sheets:
        raise EncodeError(f"ffmpeg wrote {len(pictures)} sheets of thumbnails, not {sheets}: report this")
    return _described(job, wanted, count, pictures)


def _make(binary: Ffmpeg, work: Work, wanted: Plan, progress: Callable[[int], None]) -> None:
    def line(text: str) -> None:
        name, _, value = text.partition("=")
        if name == "frame" and value.strip().isdigit():
            progress(int(value))

    room = work.folder / _TEMPORARY
    shutil.rmtree(room, ignore_errors=True)
    (room / _FOLDER).mkdir(parents=True)
    whole = room / "whole.mp4"
    cmaf.write_track(work.files(wanted.rung), whole)
    try:
        binary.run(command(wanted, work.job, whole, room / _FOLDER), line)
    except FfmpegError as error:
        raise EncodeError(f"cannot make thumbnails of {work.job.source.path}: {error}") from None
    for path in list((room / _FOLDER).iterdir()):
        write_durably(path, path.read_bytes())
    (room / _FOLDER).rename(work.folder / _FOLDER)
    shutil.rmtree(room)


def _described(job: Job, wanted: Plan, count: int, pictures: list[bytes]) -> Made:
    tick = job.source.rate.denominator
    sheet = _COLUMNS * _ROWS * wanted.step
    lengths = [min(sheet, job.frames - first) * tick for first in range(0, job.frames, sheet)]
    index = index_of([len(picture) for picture in pictures], lengths, job.source.rate.numerator)
    tiles = Tiles(
        name=f"i-{wanted.height}",
        width=wanted.width,
        height=wanted.height,
        columns=_COLUMNS,
        rows=_ROWS,
        timescale=job.source.rate.numerator,
        interval=wanted.step * tick,
        count=count,
        bandwidth=hls.peak_rate(index),
    )
    names = [tiles.sheet(number) for number in range(1, tiles.sheets + 1)]
    shape = f"RESOLUTION={tiles.width}x{tiles.height},LAYOUT={tiles.columns}x{tiles.rows}"
    each = f"#EXT-X-TILES:{shape},DURATION={tiles.interval / tiles.timescale:.6f}"
    playlist = filelist(names, index, "#EXT-X-IMAGES-ONLY", each)
    return Made(tiles, {**dict(zip(names, pictures, strict=True)), tiles.playlist: playlist.encode()})
