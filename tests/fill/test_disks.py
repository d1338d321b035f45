"""Disks that fail, fill up or are only read any more while a fill goes on; and disks of different sizes."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from bench.disk import Fault, SlowDisk
from fill.agent import Agent, fill
from fill.staging import staged, sweep
from oca.config import ApplianceSettings
from oca.errors import StoreError
from oca.store.content import Store
from oca.title.digest import CHUNK_BYTES
from oca.wire import Doomed
from tests.conftest import MadeTitle, MakeTitle
from tests.fill.conftest import Controller, MakeAgent, StartBox

Mount = Callable[[str, int], Path]


@pytest.fixture(autouse=True)
def own_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Markers of failed reads where no other test looks."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a disk of so many MiB: mount("small", 4)."""
    with ExitStack() as stack:

        def make(name: str, megabytes: int) -> Path:
            place = tmp_path / name
            place.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("only root may mount a tmpfs")
            stack.callback(subprocess.run, ["umount", "--lazy", str(place)], check=True)
            return place

        yield make


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Not prepared yet: each test has disks of its own."""
    return Store([tmp_path / "bad", tmp_path / "good"])


async def filled_though(
    fails: Callable[[], None],
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    agent: MakeAgent,
    store: Store,
) -> tuple[Agent, MadeTitle, MadeTitle]:
    """Fill two titles on two disks; the first fails while a chunk of the first title is on its way to it."""
    assert store.prepare() == []
    made = make_title(origin_root, v1=[CHUNK_BYTES, 5000])
    other = make_title(origin_root, "other", seed=2)
    origin = await box("origin-1", holds=lambda name, chunk: chunk == 1)
    controller.plan((made, ["v1"]), (other, ["v1", "a1"]))
    controller.sources = lambda track: [origin.source()]
    filling = agent()
    look = asyncio.create_task(filling.look())
    await origin.held_back.wait()
    (directory,) = {path.parent for path in store.roots[0].glob(".filling/clip/*/v1.mp4")}
    assert directory.is_dir(), "the first disk was to be filled"
    fails()
    origin.release.set()
    assert await look
    store.generation()
    for title, tracks in ((made, {"v1"}), (other, {"v1", "a1"})):
        held = store.held(title.id, title.version)
        assert held is not None
        assert held.tracks == tracks
        assert held.directory.is_relative_to(store.roots[1])
        assert (held.directory / "v1.mp4").read_bytes() == title.bytes_of("v1.mp4")
    return filling, made, other


@pytest.mark.parametrize("fault", ["eio", "enospc"])
async def test_a_disk_fails_or_fills_in_the_middle_of_a_chunk(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store,
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What was on its way there, and all that comes after it, goes to the other disk."""
    # Both are on one file system, whose room others change between two looks at it.
    monkeypatch.setattr("oca.store.content._room", {store.roots[0]: 2e9, store.roots[1]: 1e9}.__getitem__)
    (tmp_path / "behind").mkdir()
    with SlowDisk(tmp_path / "behind", tmp_path / "bad", 0.0) as disk:
        await filled_though(lambda: disk.fail(fault), make_title, origin_root, box, controller, agent, store)


async def test_a_disk_is_only_read_any_more(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store,
    mount: Mount, settings: ApplianceSettings,
) -> None:  # fmt: skip
    """It is filled no longer, what it holds is still held, and what should be removed from it stops no look."""
    bad = mount("bad", 96)
    mount("good", 64)
    old = make_title(bad, "old", seed=3)
    filling, made, other = await filled_though(
        lambda: remount(bad, "ro"), make_title, origin_root, box, controller, agent, store
    )
    assert store.disks.refusing == {bad: "Read-only file system"}
    assert store.held(old.id, old.version) is not None
    assert {row.title for row in staged(store)} == {"clip"}, "what had come there cannot be removed"
    wants = ((made, ["v1"]), (other, ["v1", "a1"]))
    controller.plan(*wants, doomed=[Doomed(old.id, old.version)])
    assert await filling.look()
    assert store.held(old.id, old.version) is not None
    # Another start finds it as it is.
    assert await fill(msgspec.structs.replace(settings, store=[str(root) for root in store.roots]), once=True)
    remount(bad, "rw")
    assert await filling.look()
    assert store.disks.refusing == {}
    assert store.held(old.id, old.version) is None
    assert staged(store) == []


async def test_a_disk_that_is_only_read_is_found_by_what_should_be_removed_from_it(
    make_title: MakeTitle, controller: Controller, agent: MakeAgent, store: Store, mount: Mount, tmp_path: Path
) -> None:
    """One look fails with a sentence; the next does without it."""
    bad = mount("bad", 16)
    assert store.prepare() == []
    old = make_title(bad, "old", seed=3)
    kept = make_title(tmp_path / "good", "kept")
    remount(bad, "ro")
    controller.plan((kept, ["v1", "a1"]), doomed=[Doomed(old.id, old.version)])
    filling = agent()
    with pytest.raises(StoreError, match="cannot be changed: Read-only file system; the disk is only read from now"):
        await filling.look()
    assert await filling.look()


async def test_disks_of_different_sizes(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store,
    mount: Mount,
) -> None:  # fmt: skip
    """Each title goes where it fits; room is made on the disk that needs it, and not on another."""
    small, large = mount("bad", 2), mount("good", 5)
    assert store.prepare() == []
    sizes = {"big": 4_000_000, "huge": 4_500_000, "little": 1_500_000}
    big, huge, little = (
        make_title(origin_root, name, seed=seed, v1=[size]) for seed, (name, size) in enumerate(sizes.items())
    )
    origin = await box("origin-1")
    controller.sources = lambda track: [origin.source()]
    controller.plan((big, ["v1"]))
    assert await agent().look()
    assert store.directory("big", big.version) == large / "big" / big.version
    # Now the small one has more room, but not enough.
    controller.plan((huge, ["v1"]))
    assert await agent().look()
    assert store.directory("huge", huge.version) == large / "huge" / huge.version
    assert store.directory("big", big.version) is None
    controller.plan((huge, ["v1"]), (little, ["v1"]))
    assert await agent().look()
    assert store.directory("little", little.version) == small / "little" / little.version
    # What no disk can take is one sentence, and costs nobody their place.
    giant = make_title(origin_root, "giant", seed=9, v1=[6_000_000])
    controller.plan((giant, ["v1"]))
    assert not await agent().look()
    assert "No space left on device; free space on that disk" in controller.reports[-1].progress[0].error
    assert store.directory("huge", huge.version) is not None
    assert store.directory("little", little.version) is not None


async def test_a_disk_comes_back_whose_content_was_brought_anew(
    make_title: MakeTitle, store: Store, tmp_path: Path
) -> None:
    """The better copy stays, the other goes, unless it is being served; then it goes at one of the next looks."""
    assert store.prepare() == []
    worse, better = (make_title(root) for root in store.roots)
    (worse.directory / "a1.mp4").unlink()
    wanted = [(better.id, better.version, track) for track in ("v1", "a1")]
    with (worse.directory / "v1.mp4").open("rb"):
        sweep(store, wanted)
        assert worse.directory.exists()
    sweep(store, wanted)
    assert not worse.directory.exists()
    held = store.held(better.id, better.version)
    assert held is not None
    assert held.tracks == {"v1", "a1"}


@pytest.mark.parametrize("fault", ["eio", "read-eio"])
async def test_a_disk_that_can_no_longer_be_read_stops_no_fill(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store,
    tmp_path: Path, fault: Fault,
) -> None:  # fmt: skip
    """Something of a title was on its way there, and another is held there: both come anew, to the other disk."""
    (tmp_path / "behind").mkdir()
    made, other = make_title(origin_root), make_title(origin_root, "other", seed=2)
    with SlowDisk(tmp_path / "behind", tmp_path / "bad", 0.0) as disk:
        assert store.prepare() == []
        make_title(store.roots[0], "other", seed=2)
        arriving = store.roots[0] / ".filling" / made.id / made.version
        arriving.mkdir(parents=True)
        (arriving / "title.json").write_bytes(made.bytes_of("title.json"))
        origin = await box("origin-1")
        controller.plan((made, ["v1"]), (other, ["v1", "a1"]))
        controller.sources = lambda track: [origin.source()]
        disk.drop()
        disk.fail(fault)
        daemon = asyncio.create_task(agent().run())
        await controller.told(lambda report: report.finished and all(row.state == "done" for row in report.progress))
        daemon.cancel()
        await asyncio.gather(daemon, return_exceptions=True)
        for title, tracks in ((made, {"v1"}), (other, {"v1", "a1"})):
            held = store.held(title.id, title.version)
            assert held is not None
            assert held.tracks == tracks
            assert held.directory.is_relative_to(store.roots[1])


async def test_the_last_manifest_is_on_every_disk(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """With the first disk gone and no controller a box still fills; of two that differ the newest counts."""
    assert store.prepare() == []
    made, other = make_title(origin_root), make_title(origin_root, "other", seed=2)
    origin = await box("origin-1")
    controller.plan((other, ["v1"]))
    await agent(is_open=lambda at: False).look()
    old = (store.roots[0] / ".fill-manifest").read_bytes()
    controller.plan((made, ["v1"]), boxes=[origin.source()])
    await agent(is_open=lambda at: False).look()
    (store.roots[0] / ".fill-manifest").write_bytes(old)
    os.utime(store.roots[0] / ".fill-manifest", (1e9, 1e9))
    controller.status = 503
    assert await agent().look()
    held = store.held(made.id, made.version)
    assert held is not None
    assert held.tracks == {"v1"}
    store.roots[0].rename(store.roots[0].with_name("away"))
    assert await agent().look()
