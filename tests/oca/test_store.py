"""The content store: what is held, how it gets in and out, and what a crash leaves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from oca.errors import FormatError, StoreError
from oca.store import content
from oca.store.content import FILLING, Store, write_durably
from oca.store.disks import GENERATION


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store([tmp_path / "d0", tmp_path / "d1"])
    store.prepare()
    return store


def stage(store: Store, made) -> Path:
    staging = store.staging(made.id, made.version)
    for path in made.directory.iterdir():
        shutil.copy(path, staging / path.name)
    return staging


def test_a_published_version_is_held_whole(store: Store, make_title) -> None:
    made = make_title(store.roots[0], published=1_600_000_000)
    assert list(store.versions()) == [(made.id, made.version)]
    held = store.held(made.id, made.version)
    assert held is not None
    assert (held.tracks, held.published, held.title) == ({"v1", "a1"}, 1_600_000_000, made.title)


def test_tracks_arrive_one_by_one(store: Store, make_title, tmp_path: Path) -> None:
    """Nothing is held before its rename; title.json alone holds no track; a track needs both of its files."""
    made = make_title(tmp_path / "origin")
    stage(store, made)
    assert list(store.versions()) == []
    store.commit(made.id, made.version, ["title.json", "manifest.mpd", "master.m3u8"], 5)
    assert store.held(made.id, made.version).tracks == set()
    store.commit(made.id, made.version, ["v1.mp4"], 5)
    assert store.held(made.id, made.version).tracks == set()
    store.commit(made.id, made.version, ["v1.idx"], 5)
    assert store.held(made.id, made.version).tracks == {"v1"}
    store.commit(made.id, made.version, ["v1.mp4", "v1.idx", "a1.mp4", "a1.idx"], 5)
    assert store.held(made.id, made.version).tracks == {"v1", "a1"}
    assert store.held(made.id, made.version).published == 5


def test_every_change_gives_another_generation(store: Store, make_title) -> None:
    seen = [store.generation()]
    made = make_title(store.roots[0])
    seen.append(store.generation())
    store.remove_track(store.held(made.id, made.version), "v1")
    seen.append(store.generation())
    assert len(set(seen)) == 3
    assert store.generation() == seen[-1]


def test_changes_within_a_tick_of_the_clock_of_files_differ(store: Store, make_title, monkeypatch) -> None:
    """As on kernels whose files get their times in steps."""
    made = make_title(store.roots[0])
    at = (store.roots[0] / GENERATION).stat().st_mtime_ns
    write = content.write_durably

    def stepwise(path: Path, data: bytes) -> None:
        write(path, data)
        os.utime(path, ns=(at, at))

    monkeypatch.setattr(content, "write_durably", stepwise)
    before = store.generation()
    store.remove_track(store.held(made.id, made.version), "v1")
    assert store.generation() != before


def test_a_version_leaves_with_its_last_track(store: Store, make_title) -> None:
    made = make_title(store.roots[0])
    store.remove_track(store.held(made.id, made.version), "v1")
    assert store.held(made.id, made.version).tracks == {"a1"}
    store.remove_track(store.held(made.id, made.version), "a1")
    assert store.held(made.id, made.version) is None
    assert list(store.versions()) == []


def test_a_file_of_the_wrong_size_is_not_held(store: Store, make_title) -> None:
    made = make_title(store.roots[0])
    with (made.directory / "v1.mp4").open("ab") as file:
        file.write(b"x")
    assert store.held(made.id, made.version).tracks == {"a1"}


def test_a_version_under_a_wrong_name_is_refused(store: Store, make_title) -> None:
    """The directory's name is a claim that title.json must prove."""
    made = make_title(store.roots[0])
    wrong = made.directory.with_name("0" * 32)
    made.directory.rename(wrong)
    with pytest.raises(FormatError, match="is corrupt"):
        store.held(made.id, wrong.name)


@pytest.mark.parametrize("title", ["..", ".filling", "a/b", "", "/etc"])
def test_no_name_leads_out_of_the_store(store: Store, title: str) -> None:
    assert store.directory(title, "0" * 32) is None
    assert store.directory("clip", title) is None


def test_publishing_again_changes_nothing(store: Store, make_title) -> None:
    first = make_title(store.roots[0])
    before = (first.directory / "title.json").stat()
    second = make_title(store.roots[0])
    assert second.directory == first.directory
    assert (first.directory / "title.json").stat() == before
    assert list((store.roots[0] / FILLING).iterdir()) == []


def test_a_version_stays_on_one_disk(store: Store, make_title, tmp_path: Path) -> None:
    made = make_title(tmp_path / "origin")
    first = store.staging(made.id, made.version)
    stage(store, made)
    store.commit(made.id, made.version, ["title.json"], 5)
    assert store.staging(made.id, made.version) == first
    assert sum((root / made.id).exists() for root in store.roots) == 1


def test_used_bytes_count_what_is_there(store: Store, make_title) -> None:
    before = store.used_bytes()
    made = make_title(store.roots[0])
    files = sum(path.stat().st_size for path in made.directory.iterdir())
    assert store.used_bytes() - before == files


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """Root may write anywhere, so the obstacle is a file where the directory should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=f"store directory {tmp_path}/file cannot be written"):
        Store([tmp_path / "file"]).prepare()


def test_a_durable_write_leaves_the_old_file_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure at the last step leaves the old content and no litter."""
    path = tmp_path / "f"
    write_durably(path, b"old")

    def refuse(fd: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
