"""The work of a build: its chunks encoded side by side, each piece once, also when it is killed in between.

A piece is one chunk of one rung, or an audio track, in a directory of its own that gets its name when all of it is on
disk. So whatever has its name is done, and is not done again. A task makes the pieces of one run of ffmpeg; it can be
pickled and done by any process that has the same files, and more than once.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec

from oca.errors import FormatError
from oca.store.content import write_durably
from packager.audio import sound
from packager.audio.loudness import Change
from packager.audio.renditions import Rendition
from packager.boxes.mp4 import read_track
from packager.encode import job as encode
from packager.encode.chunks import Chunk
from packager.encode.damage import damaged, refusal
from packager.encode.deal import cost, deal
from packager.encode.job import Job, check_frames
from packager.ffmpeg import Ffmpeg, side_by_side
from packager.ladder.rungs import Rung

_FILE = "media.mp4"
_DAMAGE = "damage"
_LOUDNESS = "loudness"


class Task(Protocol):
    """One run of ffmpeg, with a name that no other task of the build has."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def places(self) -> list[Path]:
        """The files that are there when it is done."""

    def do(self, binary: Ffmpeg, tell: Callable[[int], None]) -> int:
        """Make its pieces; how many. `tell` gets the number of its pictures that are done, several times a second."""


Execute = Callable[[Sequence[Task], Callable[[str, int], None]], int]
"""Does tasks, in any order; how many pieces they made. Tells the name of a task and how many pictures it has done."""


def place(folder: Path, track: str, chunk: Chunk | None = None) -> Path:
    """The file under `folder` of a chunk of a track, or of a track that is not cut into chunks."""
    return folder / track / _FILE if chunk is None else folder / track / f"{chunk.number:05d}" / _FILE


@dataclass(frozen=True, slots=True)
class Pictures:
    """The task of a chunk, or of some rungs of it: one decode, and an encoder for each of `rungs`."""

    job: Job
    folder: Path
    chunk: Chunk
    rungs: tuple[Rung, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return f"chunk {self.chunk.number} from {self.rungs[0].track} on"

    @property
    def places(self) -> list[Path]:
        """The files that are there when it is done."""
        return [place(self.folder, rung.track, self.chunk) for rung in self.rungs]

    def do(self, binary: Ffmpeg, tell: Callable[[int], None]) -> int:
        """Encode it; EncodeError if the source is damaged there, unless that is tolerated."""
        job, chunk = self.job, self.chunk
        with _room(self.folder) as room:
            if encode.encode(binary, job, self.rungs, chunk, room, tell):
                self._look(binary, room)
            for rung in self.rungs:
                track = read_track(room / f"{rung.track}.mp4")
                check_frames(job, chunk, len(track.samples.sizes), track.timescale)
            for rung, made in zip(self.rungs, self.places, strict=True):
                _settle(room / f"{rung.track}.mp4", made)
        tell(chunk.frames)
        return len(self.rungs)

    def _look(self, binary: Ffmpeg, room: Path) -> None:
        """Find out what is wrong with the source, and refuse it or keep a note."""
        times = damaged(binary, self.job, self.chunk, room)
        if times and not self.job.tolerate:
            raise refusal(self.job, times)
        notes = self.folder / _DAMAGE
        notes.mkdir(exist_ok=True)
        write_durably(notes / f"{self.chunk.number:05d}", msgspec.json.encode(times))


@dataclass(frozen=True, slots=True)
class Sound:
    """The task of an audio stream: one decode, and an encoder for each of `tracks`."""

    job: Job
    folder: Path
    tracks: tuple[Rendition, ...]

    @property
    def name(self) -> str:
        """What it is called."""
        return f"audio stream {self.tracks[0].stream + 1}"

    @property
    def places(self) -> list[Path]:
        """The files that are there when it is done."""
        return [place(self.folder, track.name) for track in self.tracks]

    def do(self, binary: Ffmpeg, tell: Callable[[int], None]) -> int:
        """Encode it, and keep what became of its loudness."""
        with _room(self.folder) as room:
            changes = sound.make(binary, self.job, self.tracks, room, tell)
            notes = self.folder / _LOUDNESS
            for name, change in changes.items():
                notes.mkdir(exist_ok=True)
                write_durably(notes / name, msgspec.json.encode(change))
            for track, made in zip(self.tracks, self.places, strict=True):
                _settle(room / f"{track.name}.mp4", made)
        return len(self.tracks)


@dataclass(slots=True)
class Work:
    """What is to be encoded, and the directory where pieces come together. `jobs` runs of ffmpeg at once."""

    job: Job
    chunks: Sequence[Chunk]
    folder: Path
    jobs: int = 1

    def audio(self, track: Rendition) -> Path:
        """The file of an audio track."""
        return place(self.folder, track.name)

    def files(self, rung: Rung) -> list[Path]:
        """The files of a rung, in order."""
        return [place(self.folder, rung.track, chunk) for chunk in self.chunks]

    def missing(self, chunk: Chunk) -> list[Rung]:
        """The rungs of which a chunk has yet to be encoded."""
        return [rung for rung in self.job.rungs if not place(self.folder, rung.track, chunk).exists()]

    def damage(self) -> list[float]:
        """When the source's damaged pictures are shown, in seconds, of what has been encoded."""
        times = list(self.job.source.lost)
        for path in sorted((self.folder / _DAMAGE).glob("[0-9]*")):
            try:
                times += msgspec.json.decode(path.read_bytes(), type=list[float])
            except msgspec.DecodeError as error:
                raise _corrupt(path, error) from None
        return sorted(times)

    def loudness(self, track: Rendition) -> Change | None:
        """What became of the loudness of an audio track that has been encoded, None if nothing was to."""
        if self.job.loudness is None:
            return None
        path = self.folder / _LOUDNESS / track.name
        try:
            return msgspec.json.decode(path.read_bytes(), type=Change)
        except msgspec.DecodeError as error:
            raise _corrupt(path, error) from None

    def tasks(self, jobs: int = 1) -> list[Task]:
        """What is yet to be done, for `jobs` at once."""
        # Whoever does a task may be in another directory, and has no use for the key frames.
        source = replace(self.job.source, path=self.job.source.path.absolute(), keys=())
        job, folder = replace(self.job, source=source), self.folder.absolute()
        wanted: dict[int, list[Rendition]] = {}
        for track in job.sounds:
            if not self.audio(track).exists():
                wanted.setdefault(track.stream, []).append(track)
        tasks: list[Task] = [Sound(job, folder, tuple(tracks)) for tracks in wanted.values()]
        missing = ((chunk, tuple(self.missing(chunk))) for chunk in self.chunks)
        dealt = deal([(chunk, rungs) for chunk, rungs in missing if rungs], jobs)
        return [*tasks, *(Pictures(job, folder, chunk, rungs) for chunk, rungs in dealt)]

    def run(
        self,
        binary: Ffmpeg,
        progress: Callable[[str, int, int], None] = lambda *_: None,
        execute: Execute | None = None,
    ) -> int:
        """Encode all that is missing, on this machine or as `execute` does it; how many pieces that were.

        `progress` gets "encode" with the pictures done so far and their total, and "encode <track>" with those of
        each rung. What fails ends the rest: no ffmpeg is left running when this returns or raises.
        """
        for left in self.folder.glob(".*"):
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
        # How many a cluster does at once is its own affair, and changes.
        tasks = self.tasks(1 if execute else self.jobs)
        shown = _Shown(self.job, tasks, progress)
        return (execute or partial(_here, binary, self.jobs))(tasks, shown.tell)


def _corrupt(path: Path, error: msgspec.DecodeError) -> FormatError:
    return FormatError(f"{path} is corrupt ({error}): remove the directory it is in, and build anew")


class _Shown:
    """The pictures done, of each rung and of all, as tasks tell of theirs; a picture of all is one of every rung, of
    which each counts as what it costs.
    """

    def __init__(self, job: Job, tasks: Sequence[Task], progress: Callable[[str, int, int], None]) -> None:
        self._progress, self._total = progress, job.frames
        self._guard = threading.Lock()
        pictures = [task for task in tasks if isinstance(task, Pictures)]
        self._tracks = {task.name: [rung.track for rung in task.rungs] for task in pictures}
        self._told = dict.fromkeys(self._tracks, 0)
        self._costs = {rung.track: cost(rung) for rung in job.rungs}
        self._by_track = dict.fromkeys(self._costs, job.frames)
        for task in pictures:
            for track in self._tracks[task.name]:
                self._by_track[track] -= task.chunk.frames
        self._show()

    def tell(self, name: str, frames: int) -> None:
        """A task has done so many pictures; what begins again counts from where it was."""
        with self._guard:
            more = frames - self._told.get(name, frames)
            if more <= 0:
                return
            self._told[name] = frames
            for track in self._tracks[name]:
                self._by_track[track] += more
            self._show()

    def _show(self) -> None:
        for track, done in self._by_track.items():
            self._progress(f"encode {track}", min(done, self._total), self._total)
        done = sum(self._costs[track] * min(done, self._total) for track, done in self._by_track.items())
        whole = sum(self._costs.values())
        self._progress("encode", done // whole if whole else self._total, self._total)


def _here(binary: Ffmpeg, jobs: int, tasks: Sequence[Task], tell: Callable[[str, int], None]) -> int:
    """Do tasks on this machine, some at once."""
    with side_by_side(binary, jobs) as (runner, pool):
        running = [pool.submit(task.do, runner, partial(tell, task.name)) for task in tasks]
        return sum(future.result() for future in as_completed(running))


class _room:  # noqa: N801
    """A directory for one run of ffmpeg, gone afterwards."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f".{uuid.uuid4().hex}"

    def __enter__(self) -> Path:
        self._path.mkdir(parents=True)
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)


def _settle(file: Path, place: Path) -> None:
    """Give a finished file its place: all of it is on disk before its directory has that name."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())
    made = file.with_suffix("")
    made.mkdir()
    file.rename(made / place.name)
    place.parent.parent.mkdir(exist_ok=True)
    try:
        made.rename(place.parent)
    except OSError:
        # Somebody else has done the same piece meanwhile, with the same bytes.
        if not place.exists():
            raise
