"""Packaging without encoding: all pieces of a build are there, and what is left to do is timed.

That is what a build does that was killed at its end: join the pieces, write track files, digest, publish.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.ladders import CLIP
from oca.store.content import FILLING, Store
from oca.title.digest import version_of
from packager import ffmpeg, version
from packager.encode import job as encode
from packager.encode.chunks import Chunk
from packager.encode.work import Work, place
from packager.ladder.rungs import ladder
from packager.source.probe import probe
from packager.version import Beside, Named

_PIECE_S = 60
_COPY_BYTES = 8 << 20


def run(megabytes: int, rounds: int, step: Callable[[str], None]) -> dict[str, Any]:
    """Package a fixed ladder of so many megabytes, `rounds` times; medians, beside a plain copy of the same bytes."""
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
        home = Path(folder)
        step("repackaging: making pieces")
        work = _pieces(home, megabytes)
        files = [file for rung in work.job.rungs for file in work.files(rung)]
        size = sum(file.stat().st_size for file in files)
        took: dict[str, list[float]] = {"write": [], "copy": []}
        for number in range(rounds):
            step(f"repackaging, round {number + 1} of {rounds}")
            took["write"].append(_package(work, home / "out"))
            took["copy"].append(_copy(files, home / "copy"))
        rates = {name: [size / seconds / 1e6 for seconds in times] for name, times in took.items()}
    return {
        "repackage_mb": round(size / 1e6),
        "repackage_mb_per_s": round(statistics.median(rates["write"]), 1),
        "repackage_spread": [round(min(rates["write"]), 1), round(max(rates["write"]), 1)],
        "copy_mb_per_s": round(statistics.median(rates["copy"]), 1),
    }


def _pieces(home: Path, megabytes: int) -> Work:
    """The work of a build, done: a segment of the clip in each rung, and files of a minute that repeat it."""
    binary = ffmpeg.find()
    source = replace(probe(binary, CLIP), audio=())
    rungs = ladder(source.width, source.height)
    job = replace(encode.plan(source, rungs, "ultrafast"), hold=0)
    first = Work(replace(job, frames=job.gop), [Chunk(0, 0, job.gop)], home / "segment")
    first.run(binary)
    again = round(_PIECE_S / job.segment) - 1
    frames = job.gop * (again + 1)
    folder = home / "encoded"
    for rung in rungs:
        piece = place(folder, rung.track, Chunk(0, 0, frames))
        piece.parent.mkdir(parents=True)
        (segment,) = first.files(rung)
        given = ["-stream_loop", str(again), "-i", str(segment), "-c", "copy"]
        timescale = str(source.rate.numerator)
        binary.run(["-nostdin", "-loglevel", "error", *given, "-video_track_timescale", timescale, str(piece)])
    bytes_of_all = sum(file.stat().st_size for file in folder.rglob("*.mp4"))
    count = max(1, round(megabytes * 1e6 / bytes_of_all))
    chunks = [Chunk(n, n * frames, (n + 1) * frames) for n in range(count)]
    for rung in rungs:
        piece = place(folder, rung.track, chunks[0])
        for chunk in chunks[1:]:
            other = place(folder, rung.track, chunk)
            other.parent.mkdir()
            shutil.copyfile(piece, other)
    return Work(replace(job, frames=count * frames), chunks, folder)


def _package(work: Work, out: Path) -> float:
    """Seconds from pieces to a published version."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # what was written before is not ours to wait for
    store = Store([out])
    store.prepare()
    staged = out / FILLING / "staged"
    staged.mkdir()
    began = time.monotonic()
    named = Named("repackaged", "Repackaged")
    _, data = version.write(named, work, staged, lambda *_: None, lambda *_: {}, Beside())
    store.publish(staged, named.id, version_of(data), int(time.time()))
    return time.monotonic() - began


def _copy(files: list[Path], out: Path) -> float:
    """Seconds to read the same files and write what is in them to one, and to disk."""
    out.unlink(missing_ok=True)
    os.sync()
    began = time.monotonic()
    with out.open("wb") as writer:
        for file in files:
            with file.open("rb") as reader:
                shutil.copyfileobj(reader, writer, _COPY_BYTES)
        writer.flush()
        os.fsync(writer.fileno())
    return time.monotonic() - began
