"""Several disks: one that fails takes only its own content out, at run time, and comes back by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.disk import SlowDisk
from oca.errors import StoreError
from oca.store.content import Store
from oca.store.disks import IDENTITY, probe
from tests.conftest import MadeTitle, MakeTitle

OCA = str(Path(sys.executable).with_name("oca"))


class TwoDisks:
    """A store on a good disk and on one that can be told to fail, with a title on each."""

    def __init__(self, tmp_path: Path, disk: SlowDisk, make_title: MakeTitle) -> None:
        self.disk = disk
        self.roots = [tmp_path / "good", tmp_path / "bad"]
        self.store = Store(self.roots)
        assert self.store.prepare() == []
        self.good: MadeTitle = make_title(self.roots[0], name="good")
        self.bad: MadeTitle = make_title(self.roots[1], name="bad", seed=2)
        self.store.generation()

    def titles(self) -> list[str]:
        """Titles of which something is held, as an inventory tells it."""
        return [name for name, version in self.store.versions() if self.store.held(name, version)]


@pytest.fixture(autouse=True)
def own_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markers of failed reads where no other test looks."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))


@pytest.fixture
def two(tmp_path: Path, make_title: MakeTitle) -> Iterator[TwoDisks]:
    """Two disks, the second behind FUSE."""
    (tmp_path / "behind").mkdir()
    with SlowDisk(tmp_path / "behind", tmp_path / "bad", 0.0) as disk:
        yield TwoDisks(tmp_path, disk, make_title)


def test_a_disk_that_fails_takes_only_its_own_titles(two: TwoDisks) -> None:
    assert two.titles() == ["bad", "good"]
    before = two.store.generation()
    two.disk.fail("eio")
    assert two.store.generation() != before
    assert two.titles() == ["good"]
    assert two.store.disks.failed == {two.roots[1]: "Input/output error"}
    assert two.store.used_bytes() > 0
    assert two.store.staging("new", "0" * 32).is_relative_to(two.roots[0])
    two.disk.fail("ok")
    assert two.store.generation() == before
    assert two.titles() == ["bad", "good"]


def test_a_disk_whose_reads_fail_is_out_for_every_process_until_they_work(two: TwoDisks) -> None:
    """A look at names shows nothing: who was failed by a read says so, and everybody else knows."""
    other = Store(two.roots)
    two.disk.drop()
    two.disk.fail("read-eio")
    assert two.store.generation().count("failed") == 0
    two.store.blame("bad", two.bad.version)
    for store in (two.store, other):
        store.generation()
        assert store.disks.failed == {two.roots[1]: "reads from it failed"}
    two.store.disks.retry()
    two.store.generation()
    assert two.store.disks.failed != {}
    two.disk.fail("ok")
    two.store.disks.retry()
    for store in (two.store, other):
        store.generation()
        assert store.disks.failed == {}


def test_a_damaged_file_is_not_the_disks_fault(two: TwoDisks) -> None:
    two.store.blame("bad", two.bad.version)
    two.store.generation()
    assert two.store.disks.failed == {}
    assert probe(two.roots[1]) == ""


def test_a_disk_that_vanished_is_not_an_empty_one(tmp_path: Path, make_title: MakeTitle) -> None:
    """What was to be on it must not go to the file system behind its mount point."""
    (tmp_path / "behind").mkdir()
    with SlowDisk(tmp_path / "behind", tmp_path / "bad", 0.0) as disk:
        two = TwoDisks(tmp_path, disk, make_title)
    two.store.generation()
    assert two.store.usable == [two.roots[0]]
    fresh = Store(two.roots)
    (sentence,) = fresh.prepare()
    assert "was a disk of this box and is empty now" in sentence
    assert fresh.usable == [two.roots[0]]
    assert fresh.staging("new", "0" * 32).is_relative_to(two.roots[0])
    assert list(two.roots[1].iterdir()) == []
    # Unless an operator says that the disk was replaced.
    assert Store(two.roots).prepare(accept=two.roots[1]) == []
    assert (two.roots[1] / IDENTITY).is_file()
    assert Store(two.roots).prepare() == []


def test_a_box_starts_without_one_of_its_disks_but_not_without_all(two: TwoDisks) -> None:
    two.disk.fail("eio")
    (sentence,) = Store(two.roots).prepare()
    assert "bad cannot be written (Input/output error)" in sentence
    with pytest.raises(StoreError, match="bad cannot be written"):
        Store([two.roots[1]]).prepare()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"id": 5}', '{"id": "../x", "disks": {}}', '{"id": "a", "disks": 3}']
)
def test_a_damaged_identity_is_written_anew(tmp_path: Path, text: str) -> None:
    store = Store([tmp_path / "a"])
    store.prepare()
    (tmp_path / "a" / IDENTITY).write_text(text)
    assert Store([tmp_path / "a"]).prepare() == []
    assert json.loads((tmp_path / "a" / IDENTITY).read_text())["format"] == 1


def test_new_content_goes_where_there_is_room(two: TwoDisks, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {two.roots[0]: 5.0, two.roots[1]: 7.0}
    monkeypatch.setattr("oca.store.content._room", room.get)
    assert two.store.staging("new", "0" * 32).is_relative_to(two.roots[1])
    room[two.roots[0]] = 9.0
    assert two.store.staging("newer", "0" * 32).is_relative_to(two.roots[0])


def _disks(tmp_path: Path, roots: list[Path], *words: str) -> subprocess.CompletedProcess[str]:
    settings = tmp_path / "oca.toml"
    listed = ", ".join(f'"{root}"' for root in roots)
    settings.write_text(f'appliance = "a"\nstore = [{listed}]\nurl = "http://127.0.0.1:1"\n')
    return subprocess.run(
        [OCA, "disks", "--config", str(settings), *words], capture_output=True, text=True, check=False, timeout=100
    )


def test_disks_are_listed_and_accepted_by_command(two: TwoDisks, tmp_path: Path) -> None:
    done = _disks(tmp_path, two.roots, "--json")
    assert done.returncode == 0
    assert [(row["disk"], row["ok"]) for row in json.loads(done.stdout)] == [(str(root), True) for root in two.roots]
    two.disk.close()
    done = _disks(tmp_path, two.roots, "--json")
    assert done.returncode == 1
    assert "oca disks --accept" in done.stderr
    assert [row["ok"] for row in json.loads(done.stdout)] == [True, False]
    assert _disks(tmp_path, two.roots, "--accept", str(two.roots[1])).returncode == 0
    assert _disks(tmp_path, two.roots).returncode == 0
    done = _disks(tmp_path, two.roots, "--accept", "/nowhere")
    assert done.returncode == 1
    assert "/nowhere is none of the store directories" in done.stderr
