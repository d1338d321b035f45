"""The power fails at any step: of what was done to the disk only that is left which was synchronised.

A model of a disk follows a deed step by step: the bytes of a file last from its fsync on, a name from the fsync of
its directory on. Before each step it is told what a power cut would leave, in the two ways that file systems may: no
name that was not synchronised is there, or all names are, and files without their bytes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from pathlib import Path

import pytest

from oca.store.content import Store
from tests.conftest import MakeTitle
from tests.oca.deeds import DEEDS, PUBLISHED, Scene, check_sound, finish, in_child, new_scene, tree_of, watched


class Disk:
    """What of the directory `root` would outlive a power cut. What is in it at the beginning would."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # By inode: bytes and modification time of files, names and inodes in directories.
        self._files: dict[int, tuple[bytes, int]] = {}
        self._names: dict[int, dict[str, int]] = {}
        # Open, so that no number is given to another file meanwhile.
        self._open: dict[int, int] = {}
        for path in (root, *root.rglob("*")):
            self.synchronised(path)
        self.look()

    def look(self) -> None:
        """Take notice of all that is there now."""
        for path in (self._root, *self._root.rglob("*")):
            number = path.lstat().st_ino
            if number not in self._open:
                self._open[number] = os.open(path, os.O_RDONLY)

    def synchronised(self, path: Path) -> None:
        """`path` was given to fsync."""
        found = path.lstat()
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = {child.name: child.lstat().st_ino for child in path.iterdir()}
        else:
            self._files[found.st_ino] = path.read_bytes(), found.st_mtime_ns

    def least(self, place: Path) -> None:
        """Make at `place` what is left if nothing is that was not synchronised."""
        self._make(self._root.lstat().st_ino, place)

    def _make(self, number: int, place: Path) -> None:
        place.mkdir()
        for name, child in self._names.get(number, {}).items():
            if stat.S_ISDIR(os.fstat(self._open[child]).st_mode):
                self._make(child, place / name)
            else:
                self._write(child, place / name)

    def names(self, place: Path) -> None:
        """Make at `place` what is left if all names are, but of files only the bytes that were synchronised."""
        for path in (self._root, *sorted(self._root.rglob("*"))):
            target = place / path.relative_to(self._root)
            if path.is_dir():
                target.mkdir()
            else:
                self._write(path.lstat().st_ino, target)

    def _write(self, number: int, target: Path) -> None:
        data, at = self._files.get(number, (b"", 0))
        target.write_bytes(data)
        os.utime(target, ns=(at, at))


def cuts(scene: Scene, deed: str, images: Path) -> None:
    """Do the deed, and put what a power cut before each step of it and after the last would leave into `images`."""
    disk, number, synchronise = Disk(scene.root), itertools.count(), os.fsync

    def step(what: str) -> None:
        disk.look()
        place = images / f"{next(number):03}"
        place.mkdir()
        disk.least(place / "least")
        disk.names(place / "names")
        (place / "before").write_text(what)

    def fsync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if path.is_relative_to(scene.root):
            step(f"fsync {path.relative_to(scene.root)}")
            disk.synchronised(path)
        synchronise(fd)

    os.fsync = fsync
    watched(scene, step)
    DEEDS[deed][1](scene)
    step("the end")


def left_of(make_title: MakeTitle, place: Path, deed: str) -> tuple[Scene, list[Path]]:
    """A scene in which the deed has been done, and what each power cut on the way would have left, in order."""
    scene = new_scene(make_title(place / "origin", published=PUBLISHED), place / "store", deed)
    images = place / "images"
    images.mkdir()
    assert in_child(lambda: cuts(scene, deed, images)) == 0
    return scene, sorted(images.iterdir())


@pytest.mark.parametrize("deed", DEEDS)
def test_the_power_fails_at_any_step(make_title: MakeTitle, tmp_path: Path, deed: str) -> None:
    """What is held is whole whatever is left; doing it again gives what it would have given, and leaves nothing."""
    scene, images = left_of(make_title, tmp_path, deed)
    finish(scene, deed)
    wanted = tree_of(scene)
    seen = set()
    for left in (left for image in images for left in (image / "least", image / "names")):
        # Many steps leave the same: what is not synchronised changes nothing.
        files = [
            (str(path.relative_to(left)), path.read_bytes() if path.is_file() else b"") for path in left.rglob("*")
        ]
        if (what := frozenset(files)) in seen:
            continue
        seen.add(what)
        shutil.rmtree(scene.root)
        shutil.copytree(left, scene.root)
        again = Scene(Store([scene.root]), scene.made)
        again.store.prepare()
        check_sound(again)
        finish(again, deed)
        check_sound(again)
        assert tree_of(again) == wanted, f"{left.name} is left before: {(left.parent / 'before').read_text()}"


@pytest.mark.parametrize("deed", ["commit", "publish"])
def test_what_has_been_committed_is_there(make_title: MakeTitle, tmp_path: Path, deed: str) -> None:
    """Once it has returned nothing but what it promises is needed of the disk."""
    scene, images = left_of(make_title, tmp_path, deed)
    for left in ("least", "names"):
        held = Store([images[-1] / left]).held(scene.made.id, scene.made.version)
        assert held is not None
        assert (held.tracks, held.published) == ({"v1", "a1"}, PUBLISHED)


def test_the_model_finds_what_was_not_synchronised(make_title: MakeTitle, tmp_path: Path) -> None:
    """So that the tests above say something."""
    made = make_title(tmp_path / "origin", published=PUBLISHED)
    scene = new_scene(made, tmp_path / "store", "commit")
    disk = Disk(scene.root)
    DEEDS["commit"][1](scene)
    disk.look()
    disk.least(tmp_path / "least")
    disk.names(tmp_path / "names")
    assert Store([tmp_path / "least"]).held(made.id, made.version) is None
    assert Store([tmp_path / "names"]).held(made.id, made.version) is not None, "staged files had their bytes"
