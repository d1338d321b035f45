"""The folder of pulled content on a real disk: bounded, clean after a crash, never with a file that is not whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oca.config import ApplianceSettings, storage_limit
from oca.errors import StoreError
from oca.miss.pulled import Key, Pulled
from oca.store.content import Store
from oca.title.digest import CHUNK_BYTES

V = "0" * 32
MB = 1 << 20


@pytest.fixture
def pulled(tmp_path: Path) -> Pulled:
    made = Pulled(tmp_path, 10 * MB)
    made.open()
    return made


def bring(pulled: Pulled, key: Key, data: bytes) -> None:
    """All that a pull does with the folder."""
    pulled.room(len(data), key)
    arrival = pulled.arrive(key, len(data))
    arrival.write(0, data)
    assert arrival.read() == data
    arrival.keep()
    pulled.settle(key, len(data))


def key(title: str, chunk: int = 0, name: str = "v1.mp4") -> Key:
    return Key(title, V, name, chunk * CHUNK_BYTES)


def on_disk(pulled: Pulled) -> int:
    return sum(path.stat().st_blocks * 512 for path in pulled.folder.rglob("*") if path.is_file())


def test_a_chunk_lies_where_it_does_in_the_whole_file(pulled: Pulled) -> None:
    """Before it is a hole that takes no room."""
    data = os.urandom(3 * MB)
    bring(pulled, key("a", 5), data)
    path = pulled.folder / "a" / V / "v1.mp4" / str(5 * CHUNK_BYTES)
    assert path.stat().st_size == 5 * CHUNK_BYTES + 3 * MB
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 3 * MB, 5 * CHUNK_BYTES) == data
    assert on_disk(pulled) < 4 * MB
    assert pulled.find(key("a", 5), 3 * MB)
    assert not pulled.find(key("a", 4), 3 * MB)
    assert not pulled.find(key("a", 5), 3 * MB - 1)


def test_nothing_is_there_before_it_is_kept(pulled: Pulled) -> None:
    arrival = pulled.arrive(key("a"), 1000)
    arrival.write(0, bytes(1000))
    assert not pulled.find(key("a"), 1000)
    arrival.discard()
    assert not [path for path in pulled.folder.rglob("*") if path.is_file()]
    arrival.discard()


def test_the_title_used_least_recently_goes_first(pulled: Pulled) -> None:
    for title in "abc":
        bring(pulled, key(title), bytes(3 * MB))
    assert pulled.find(key("a"), 3 * MB)
    bring(pulled, key("d"), bytes(3 * MB))
    assert [title for title in "abcd" if pulled.find(key(title), 3 * MB)] == ["a", "c", "d"]
    assert not (pulled.folder / "b").exists()


def test_a_title_makes_room_for_itself_last(pulled: Pulled) -> None:
    """Then its chunks used least recently go, and what says what they are stays."""
    bring(pulled, key("a", name="title.json"), bytes(100))
    bring(pulled, key("b"), bytes(MB))
    for chunk in range(5):
        bring(pulled, key("a", chunk), bytes(3 * MB))
    assert [chunk for chunk in range(5) if pulled.find(key("a", chunk), 3 * MB)] == [2, 3, 4]
    assert pulled.find(key("a", name="title.json"), 100)
    assert not pulled.find(key("b"), MB)


def test_what_is_removed_stays_readable_for_who_has_it_open(pulled: Pulled) -> None:
    bring(pulled, key("a"), b"x" * MB)
    with (pulled.folder / key("a").place).open("rb") as file:
        bring(pulled, key("b"), bytes(10 * MB))
        assert not pulled.find(key("a"), MB)
        assert file.read() == b"x" * MB


def test_a_restart_takes_stock(pulled: Pulled, tmp_path: Path) -> None:
    """Chunks are found again, in the order of their use; what is none, and what was on its way in, is removed."""
    for title in "abc":
        bring(pulled, key(title), bytes(3 * MB))
    for number, title in enumerate("cab"):
        os.utime(pulled.folder / title / V, (number, number))
    arrival = pulled.arrive(key("e"), 1000)
    pulled.close()
    rubbish = [
        pulled.folder / "UPPER" / V / "v1.mp4" / "0",
        pulled.folder / "a" / "no-version" / "v1.mp4" / "0",
        pulled.folder / "a" / V / "v1.mp4" / "x",
        pulled.folder / "a" / V / "stray",
        pulled.folder / ".arriving-1" / "1",
    ]
    for path in rubbish:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    (pulled.folder / "a" / V / "v1.mp4" / "1").symlink_to("/etc/passwd")
    arrival.discard()
    again = Pulled(tmp_path, 10 * MB)
    again.open()
    assert again.bytes == 9 * MB
    assert not any(path.exists() for path in rubbish)
    assert not (again.folder / "a" / V / "v1.mp4" / "1").is_symlink()
    bring(again, key("d"), bytes(3 * MB))
    assert [title for title in "abcd" if again.find(key(title), 3 * MB)] == ["a", "b", "d"]


def test_a_smaller_bound_counts_from_the_next_start(pulled: Pulled, tmp_path: Path) -> None:
    for title in "abc":
        bring(pulled, key(title), bytes(3 * MB))
    pulled.close()
    again = Pulled(tmp_path, 4 * MB)
    again.open()
    assert (again.bytes, [title for title in "abc" if again.find(key(title), 3 * MB)]) == (3 * MB, ["c"])


def test_a_puller_that_still_lives_keeps_what_it_is_writing(pulled: Pulled, tmp_path: Path) -> None:
    """During a reload two are at work. What the old one brings then, the new one finds and counts."""
    pulled.room(MB)
    arrival = pulled.arrive(key("a"), MB)
    new = Pulled(tmp_path, 10 * MB)
    new._mine += "-new"  # in a process of its own its number would differ
    new.open()
    arrival.write(0, bytes(MB))
    arrival.keep()
    pulled.settle(key("a"), MB)
    assert new.find(key("a"), MB)
    assert new.bytes == MB


def test_it_is_not_content_of_the_store(pulled: Pulled, tmp_path: Path) -> None:
    """Neither counted nor reported; where no bound is set for the store, its own bound is taken off the disk's."""
    store = Store([tmp_path])
    store.prepare()
    before = store.used_bytes()
    bring(pulled, key("a"), bytes(MB))
    assert (store.used_bytes(), list(store.versions())) == (before, [])

    def limit(on_miss: Literal["proxy", "404"]) -> int:
        settings = ApplianceSettings(appliance="me", store=[str(tmp_path)], url="http://x", on_miss=on_miss)
        return storage_limit(settings)

    assert limit("proxy") == max(0, limit("404") - (10 << 30))


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / ".pulled").write_bytes(b"a file")
    with pytest.raises(StoreError, match=r"\.pulled"):
        Pulled(tmp_path, 10 * MB).open()


Steps = list[tuple[str, int, int]]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 3000)), max_size=30),
    limit=st.integers(4000, 9000),
)
def test_the_bound_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], limit: int
) -> None:
    """Whatever is brought in whatever order, the sum is right and within the bound, on the disk as in the count."""
    pulled = Pulled(tmp_path_factory.mktemp("p"), limit)
    pulled.open()
    for title, chunk, length in steps:
        if not pulled.find(key(title, chunk), length):
            bring(pulled, key(title, chunk), bytes(length))
        files = [path for path in pulled.folder.rglob("*") if path.is_file()]
        kept = sum(path.stat().st_size - int(path.name) for path in files)
        assert kept == pulled.bytes <= limit
    pulled.close()
