"""Damage on disk, and what is said of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from oca.store.verify import NotATitleError, verify, version_directories
from oca.title import model as title_format
from oca.title import segments
from oca.title.digest import file_digest, version_of
from oca.title.model import File, Title
from packager.package import Built


@pytest.fixture
def copy(packaged: Built, tmp_path: Path) -> Path:
    """A copy of the packaged clip that may be damaged."""
    return shutil.copytree(packaged.path, tmp_path / packaged.version)


def flip(path: Path, at: int = 20) -> None:
    """Change one byte."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "file", "chunk", "sentence"),
    [
        (lambda d: flip(d / "v-480-1750.mp4", 130_000), "v-480-1750.mp4", 2, "chunk 2 (bytes 128000 to 191999)"),
        (lambda d: flip(d / "a-und-128.idx"), "a-und-128.idx", 0, "corrupt in chunk 0"),
        (lambda d: (d / "v-240-235.mp4").unlink(), "v-240-235.mp4", None, "missing"),
        (lambda d: (d / "master.m3u8").write_text("x"), "master.m3u8", None, "is 1 bytes long, not"),
        (lambda d: (d / "extra").touch(), "extra", None, "does not belong here"),
        (lambda d: flip(d / "title.json"), "title.json", None, "corrupt"),
        (lambda d: (d / "title.json").write_text("{}"), "title.json", None, "corrupt"),
        (lambda d: (d / "title.json").unlink(), "title.json", None, "cannot read"),
        (lambda d: link(d / "manifest.mpd"), "manifest.mpd", None, "not a file"),
    ],
)
def test_damage(copy: Path, damage: Callable[[Path], object], file: str, chunk: int | None, sentence: str) -> None:
    """Each kind of damage is found once, and named by file and chunk."""
    damage(copy)
    (problem,) = verify(copy).problems
    assert (problem.file, problem.chunk) == (file, chunk)
    assert file in problem.sentence
    assert sentence in problem.sentence


def link(path: Path) -> None:
    """Put a symbolic link to the same bytes in the file's place."""
    elsewhere = path.parent.parent / path.name
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def test_later_chunk(copy: Path) -> None:
    """In a file of several chunks the one that is corrupt is named, with its bytes."""
    big = copy / "zz.bin"
    title, _ = title_format.read(copy)
    big.write_bytes(bytes(title.chunk_bytes + 10))
    directory = rewrite(copy, title, "zz.bin")
    assert verify(directory).problems == []
    flip_last = bytearray((directory / "zz.bin").read_bytes())
    flip_last[-1] ^= 1
    (directory / "zz.bin").write_bytes(flip_last)
    (problem,) = verify(directory).problems
    assert problem.chunk == 1
    assert f"bytes {title.chunk_bytes} to {title.chunk_bytes + 9}" in problem.sentence


def rewrite(directory: Path, title: Title, name: str) -> Path:
    """Take the file `name` as it now is into title.json; the directory gets the new version's name."""
    digest = file_digest(directory / name, title.chunk_bytes)
    files = {**title.files, name: File(digest.bytes, digest.whole, digest.chunks, title.chunk_bytes)}
    data = title_format.encode(structs.replace(title, files=files))
    (directory / "title.json").write_bytes(data)
    return directory.rename(directory.with_name(version_of(data)))


@pytest.mark.parametrize(
    ("drop", "timescale", "sentence"), [(1, 25, "describes"), (0, 50, "timescale"), (2, 25, "cannot hold 0 segments")]
)
def test_index_of_another_file(copy: Path, drop: int, timescale: int, sentence: str) -> None:
    """An index that is whole, yet is not of its track file, is found."""
    title, _ = title_format.read(copy)
    path = copy / "v-240-235.idx"
    index = segments.decode(path.read_bytes())
    kept = index.segments[: len(index.segments) - drop]
    path.write_bytes(segments.encode(segments.SegmentIndex(timescale, index.init_bytes, kept)))
    (problem,) = verify(rewrite(copy, title, "v-240-235.idx")).problems
    assert problem.file == "v-240-235.idx"
    assert sentence in problem.sentence


def test_which_directories(packaged: Built, tmp_path: Path) -> None:
    """A version is itself, a title is all its versions, and anything else is refused."""
    assert version_directories(packaged.path) == [packaged.path]
    assert version_directories(packaged.path.parent) == [packaged.path]
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotATitleError, match=r"holds no title\.json"):
            version_directories(path)
