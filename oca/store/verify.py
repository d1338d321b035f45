"""The check of versions on disk against what they say of themselves: every chunk of every file.

What is read does not stay in memory in place of what viewers watch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oca.errors import FormatError, OcaError
from oca.ids import is_version
from oca.store.content import Store
from oca.store.index import Index
from oca.title import model as title_format
from oca.title import segments
from oca.title.digest import digest, read_chunks
from oca.title.model import TITLE_JSON, File, Title, Track


class NotATitleError(OcaError):
    """A path that holds no version of a title."""


Pace = Callable[[int], None]
"""Called with the bytes of each chunk that was read; may pause."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file of the version at `path`; `chunk` counts from 0, None if it is about the whole."""

    path: Path
    file: str
    chunk: int | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Report:
    """One version: the problems found, none if it is sound, and how many files and bytes were read."""

    path: Path
    version: str
    files: int
    bytes: int
    problems: list[Problem]


def version_directories(path: Path) -> list[Path]:
    """`path` itself if it is a version's directory, else every version in it, sorted; NotATitleError if none."""
    if (path / TITLE_JSON).exists() or is_version(path.name):
        return [path]
    found = sorted(child for child in path.iterdir() if is_version(child.name)) if path.is_dir() else []
    if not found:
        raise NotATitleError(f"{path} is no version's and no title's directory: it holds no {TITLE_JSON}")
    return found


def verify(path: Path, pace: Pace = lambda _: None, *, partial: bool = False) -> Report:
    """Check the version in the directory `path`; if it may be `partial`, only the files that are there."""
    try:
        title, version = title_format.read(path)
    except FormatError as error:
        return Report(path, "", 0, 0, [Problem(path, TITLE_JSON, None, str(error))])
    problems = []
    if is_version(path.name) and path.name != version:
        sentence = f"{path / TITLE_JSON} is corrupt: it is version {version}, in a directory of another"
        problems.append(Problem(path, TITLE_JSON, None, sentence))
    for child in sorted(path.iterdir()):
        if child.name not in title.files and child.name != TITLE_JSON:
            problems.append(
                Problem(path, child.name, None, f"{child} does not belong here: {TITLE_JSON} lists no such file")
            )
    sound = set()
    files = {name: file for name, file in title.files.items() if not partial or (path / name).exists()}
    for name, file in files.items():
        found = _check_file(path, name, file, pace)
        problems += found
        if not found:
            sound.add(name)
    for track in title.tracks:
        if sound.issuperset(track.files):
            problems += _check_index(path, title, track)
    return Report(path, version, len(files), sum(file.bytes for file in files.values()), problems)


def chunks(path: Path, file: File) -> Iterator[tuple[int, int, bool]]:
    """Read the file at `path`, of the size that it should have: of each chunk its number, bytes and whether whole."""
    read = read_chunks(path, file.chunk_bytes, linger=False)
    for number, (chunk, wanted) in enumerate(zip(read, file.chunks, strict=True)):
        yield number, len(chunk), digest(chunk) == wanted


def _check_file(path: Path, name: str, file: File, pace: Pace = lambda _: None) -> list[Problem]:
    """What is wrong with the bytes of one file in the directory `path`."""
    where = path / name
    if where.is_symlink() or not where.is_file():
        return [Problem(path, name, None, f"{where} is missing, or not a file")]
    size = where.stat().st_size
    if size != file.bytes:
        return [Problem(path, name, None, f"{where} is {size} bytes long, not {file.bytes}")]
    try:
        problems = []
        for number, length, whole in chunks(where, file):
            pace(length)
            if not whole:
                offset = file.span(number)[0]
                sentence = f"{where} is corrupt in chunk {number} (bytes {offset} to {offset + length - 1})"
                problems.append(Problem(path, name, number, sentence))
    except OSError as error:
        return [Problem(path, name, None, f"{where} cannot be read: {error.strerror}")]
    return problems


def _check_index(path: Path, title: Title, track: Track) -> list[Problem]:
    """The index and the track file may each be whole and yet not be of each other."""
    media, name = track.files
    where = path / name
    try:
        index = segments.decode(where.read_bytes(), str(where))
    except FormatError as error:
        return [Problem(path, name, None, str(error))]
    size = title.files[media].bytes
    if index.track_bytes != size:
        return [Problem(path, name, None, f"{where} describes {index.track_bytes} bytes, and {media} has {size}")]
    found = (index.timescale, len(index.segments), index.duration)
    said = (track.timescale, track.segments, track.duration)
    if found != said:
        sentence = f"{where} has timescale, segments and duration {found}, and {TITLE_JSON} says {said}"
        return [Problem(path, name, None, sentence)]
    return []


def isolate(store: Store, title: str, version: str, report: Report) -> list[Path]:
    """Take the files that a report calls damaged out of service; where each is now. StoreError if that fails."""
    held = store.held(title, version) if report.version else None
    if held is None:
        return []  # its title.json is damaged: nothing of it is served, and fills bring it anew
    bad: dict[str, set[int | None]] = {}
    for problem in report.problems:
        if problem.file in held.title.files and (held.directory / problem.file).is_file():
            bad.setdefault(problem.file, set()).add(problem.chunk)
    moved = []
    for name, lost in sorted(bad.items()):
        count = len(held.title.files[name].chunks)
        # A file of another length has no chunk that can be relied on.
        Index(held.directory.parents[1]).found_damaged(title, version, name, time.time())
        moved.append(store.quarantine(held, name, [] if None in lost else sorted(set(range(count)) - lost)))
    return moved
