"""Damage on a disk that nobody has asked for yet: found by reading, taken out, mended chunk by chunk."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from fill import staging
from fill.scrub import Scrub
from oca.config import FillSettings
from oca.errors import StoreError
from oca.heartbeat import damaged_files
from oca.residency import Residency
from oca.store.content import QUARANTINE, Store
from oca.store.index import FILE, Index
from oca.store.verify import verify
from oca.title.digest import CHUNK_BYTES, read_chunks
from tests.conftest import MadeTitle, MakeTitle
from tests.fill.conftest import Controller, MakeAgent, StartBox

NEVER = FillSettings(scrub_mb_per_s=1e6)
CHUNKS = 3


@pytest.fixture
def clip(make_title: MakeTitle, origin_root: Path) -> MadeTitle:
    """A title whose video track has three chunks, the last a short one."""
    return make_title(origin_root, v1=[CHUNK_BYTES, CHUNK_BYTES, 5000], a1=[700, 800])


@pytest.fixture
async def filled(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> tuple[MadeTitle, list[tuple[str, int]]]:
    """The title in the store, and what its origin is asked for from now on."""
    origin = await box("origin-1")
    controller.plan((clip, ["v1", "a1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent().look()
    origin.log.clear()
    return clip, origin.log


def damage(path: Path, at: int) -> None:
    """Change one byte; sizes and times stay."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def place(store: Store, made: MadeTitle, name: str) -> Path:
    return store.roots[0] / made.id / made.version / name


def later(store: Store, days: float = 31) -> Scrub:
    """A scrub, so many days from now."""
    now = Path("/proc/self").stat().st_ctime
    return Scrub(store, NEVER, lambda: now + days * 86400)


@pytest.mark.parametrize(
    ("name", "at", "fetched"),
    [
        ("v1.mp4", CHUNK_BYTES + 5, [("v1.mp4", 1)]),
        ("v1.mp4", 0, [("v1.mp4", 0)]),
        ("a1.idx", 3, [("a1.idx", 0)]),
        ("master.m3u8", 1, [("master.m3u8", 0)]),
    ],
)
async def test_a_damaged_file_is_mended(
    filled: tuple[MadeTitle, list[tuple[str, int]]], agent: MakeAgent, store: Store, name: str, at: int,
    fetched: list[tuple[str, int]],
) -> None:  # fmt: skip
    """It is served no longer; of its chunks only the damaged one is fetched again, outside the window, too."""
    made, asked = filled
    generation = store.generation()
    damage(place(store, made, name), at)
    scrub = later(store)
    assert await scrub.round(store.roots[0]) == 1
    assert scrub.damaged.is_set()
    assert damaged_files(store) == 1, "heartbeats tell the controller"
    assert store.generation() != generation, "servers look again"
    assert not place(store, made, name).exists()
    held = store.held(made.id, made.version)
    assert held is not None
    lost = {"v1.mp4": {"v1"}, "a1.idx": {"a1"}}.get(name, {"a1", "v1"})
    assert held.tracks == {"a1", "v1"} - lost, "without its manifests nobody plays it"
    (row,) = staging.staged(store)
    assert (row.name, row.quarantined) == (name, True)

    assert await agent(is_open=lambda at: False, closes=lambda at: None).look()
    assert asked == fetched
    assert verify(place(store, made, name).parent).problems == []
    assert damaged_files(store) == 1, "that it is mended does not make the disk a better one"
    assert staging.staged(store) == []
    assert not list((store.roots[0] / QUARANTINE).iterdir())


async def test_of_short_chunks_only_the_damaged_one_comes_again(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """The length of a chunk is the title's own."""
    made = make_title(origin_root, v1=[20_000, 5000], chunk_bytes=5000)
    origin = await box("origin-1")
    origin.chunk_bytes = 5000
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent().look()
    path = place(store, made, "v1.mp4")
    damage(path, 12_000)
    assert await later(store).round(store.roots[0]) == 1
    (row,) = staging.staged(store)
    assert (row.name, row.chunks, row.of) == ("v1.mp4", 5, 6)
    origin.log.clear()
    assert await agent().look()
    assert verify(path.parent).problems == []
    assert origin.log == [("v1.mp4", 2)]


async def test_what_is_whole_is_left_alone(filled: tuple[MadeTitle, list[tuple[str, int]]], store: Store) -> None:
    """Also what was checked lately is; what was committed counts as checked then."""
    assert Index(store.roots[0]).due(0) == []
    damage(place(store, filled[0], "v1.mp4"), 9)
    assert await later(store, days=29).round(store.roots[0]) == 0
    scrub = later(store)
    assert await scrub.round(store.roots[0]) == 1
    assert await scrub.round(store.roots[0]) == 0
    assert await later(store, days=32).round(store.roots[0]) == 0, "the others were checked yesterday"


async def test_a_clock_that_was_wrong(filled: tuple[MadeTitle, list[tuple[str, int]]], store: Store) -> None:
    """What was checked or brought in by a clock that ran ahead is due at once, and once only."""
    right = later(store, days=-400)
    damage(place(store, filled[0], "v1.mp4"), 9)
    assert await right.round(store.roots[0]) == 1
    damage(place(store, filled[0], "a1.mp4"), 9)
    assert await right.round(store.roots[0]) == 0


async def test_a_file_that_has_shrunk(
    filled: tuple[MadeTitle, list[tuple[str, int]]], agent: MakeAgent, store: Store
) -> None:
    """Nothing of it can be relied on, so all of it comes again."""
    made, asked = filled
    os.truncate(place(store, made, "v1.mp4"), CHUNK_BYTES)
    assert await later(store).round(store.roots[0]) == 1
    assert await agent(is_open=lambda at: False).look()
    assert sorted(asked) == [("v1.mp4", chunk) for chunk in range(CHUNKS)]
    assert verify(place(store, made, "v1.mp4").parent).problems == []


async def test_only_what_was_damaged_comes_outside_the_window(
    filled: tuple[MadeTitle, list[tuple[str, int]]], controller: Controller, agent: MakeAgent, store: Store,
    make_title: MakeTitle, origin_root: Path,
) -> None:  # fmt: skip
    """What is new waits for its time."""
    made, asked = filled
    other = make_title(origin_root, name="other")
    controller.plan((made, ["v1", "a1"]), (other, ["v1"]))
    damage(place(store, made, "a1.mp4"), 4)
    await later(store).round(store.roots[0])
    assert not await agent(is_open=lambda at: False).look()
    assert asked == [("a1.mp4", 0)]
    assert await agent().look()
    assert ("v1.mp4", 0) in asked


async def test_nobody_wants_it_any_more(
    filled: tuple[MadeTitle, list[tuple[str, int]]], controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """What is in quarantine and not in the plan goes."""
    made, asked = filled
    damage(place(store, made, "v1.mp4"), 4)
    await later(store).round(store.roots[0])
    controller.plan((made, ["a1"]))
    assert await agent(is_open=lambda at: False).look()
    assert staging.staged(store) == []
    assert asked == []


async def test_a_scrub_finds_and_the_agent_mends(
    filled: tuple[MadeTitle, list[tuple[str, int]]], agent: MakeAgent, store: Store
) -> None:
    """Both at work, as `oca-fill run` has them: the damage is gone before the agent's next look would be due."""
    made, asked = filled
    damage(place(store, made, "v1.mp4"), 4)
    scrub = later(store)
    mending = agent(is_open=lambda at: False)
    mending._settings = msgspec.structs.replace(mending._settings, poll_s=3600)
    tasks = [asyncio.create_task(scrub.run()), asyncio.create_task(mending.run(scrub.damaged))]
    async with asyncio.timeout(60):
        while asked != [("v1.mp4", 0)] or not place(store, made, "v1.mp4").exists():
            await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_disk_that_cannot_be_read(
    filled: tuple[MadeTitle, list[tuple[str, int]]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is blamed, and no file of it goes into quarantine."""
    blamed: list[tuple[str, str]] = []
    monkeypatch.setattr(store, "blame", lambda *version: blamed.append(version))

    def fails(path: Path, file: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("oca.store.verify.chunks", fails)
    assert await later(store).round(store.roots[0]) > 0
    assert set(blamed) == {(filled[0].id, filled[0].version)}
    assert staging.staged(store) == []


@pytest.mark.parametrize("bad", [b"this is no database" * 100, b""])
async def test_a_lost_index_is_made_anew(
    filled: tuple[MadeTitle, list[tuple[str, int]]], store: Store, bad: bytes
) -> None:
    index = Index(store.roots[0])
    index.found_whole(filled[0].id, filled[0].version, "v1.mp4", 1e12)
    index.path.write_bytes(bad)
    for suffix in ("-wal", "-shm"):
        index.path.with_name(FILE + suffix).unlink(missing_ok=True)
    assert "v1.mp4" in [row.name for row in index.due(1e11)]
    with sqlite3.connect(index.path) as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    assert "v1.mp4" in [row.name for row in index.due(1e11)]


def test_an_index_belongs_to_whom_the_disk_belongs(store: Store) -> None:
    """Who looks as root leaves nothing that only root could use."""
    if os.geteuid() != 0:
        pytest.skip("only root makes files for others")
    os.chown(store.roots[0], 12_345, 12_346)
    Index(store.roots[0]).found_damaged("clip", "0" * 32, "v1.mp4", 1e9)
    assert Index(store.roots[0]).damaged(0) == 1
    found = [path.stat() for path in store.roots[0].glob(".index.db*")]
    assert [(each.st_uid, each.st_gid) for each in found] == [(12_345, 12_346)]


def test_an_index_that_cannot_be_opened(store: Store) -> None:
    (store.roots[0] / FILE).mkdir()
    with pytest.raises(StoreError, match=r"index .*\.index\.db cannot be used"):
        Index(store.roots[0]).due(0)


@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 64 << 10, 50_000, 5000])
def test_reading_leaves_memory_as_it_was(tmp_path: Path, chunk_bytes: int) -> None:
    """What was in memory stays there, what was not does not come in."""
    half = 1 << 20
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        file.write(os.urandom(3 * half))
        file.flush()
        os.fsync(file.fileno())
        for advice in (os.POSIX_FADV_DONTNEED, os.POSIX_FADV_RANDOM):
            os.posix_fadvise(file.fileno(), 0, 0, advice)
        os.pread(file.fileno(), half, half)
        for _ in read_chunks(Path(file.name), chunk_bytes, linger=False):
            pass
        residency = Residency(file.fileno(), 3 * half)
        assert [residency.resident(part * half, half) for part in range(3)] == [0, half, 0]
        del residency


OCA = Path(sys.executable).with_name("oca")


def run(settings: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([OCA, "verify", "-c", settings, *arguments], capture_output=True, text=True, timeout=100)


@pytest.mark.long
def test_on_demand(make_title: MakeTitle, tmp_path: Path) -> None:
    """`oca verify` says what is damaged, and with --quarantine takes it out of service."""
    root = tmp_path / "store"
    made = make_title(root, v1=[CHUNK_BYTES, 5000])
    make_title(root, name="other")
    settings = tmp_path / "oca.toml"
    settings.write_text(f'appliance = "a"\nstore = ["{root}"]\nurl = "http://a.example"\n')
    good = run(settings)
    assert (good.returncode, good.stderr) == (0, "")
    assert "2 versions" in good.stdout
    path = root / made.id / made.version / "v1.mp4"
    damage(path, 3)
    bad = run(settings, "--json", "--rate", "1000")
    report = msgspec.json.decode(bad.stdout)
    assert (bad.returncode, report["ok"], report["versions"], report["quarantined"]) == (1, False, 2, [])
    assert [(row["file"], row["chunk"]) for row in report["problems"]] == [("v1.mp4", 0)]
    assert path.exists()
    assert run(settings, "other").returncode == 0
    unknown = run(settings, "nothing")
    assert (unknown.returncode, "oca held" in unknown.stderr) == (1, True)
    moved = run(settings, "clip", "--quarantine")
    assert moved.returncode == 1
    assert "corrupt in chunk 0" in moved.stderr
    assert not path.exists()
    store = Store([root])
    store.generation()
    assert damaged_files(store) == 1
    (row,) = staging.staged(store)
    assert (row.quarantined, row.chunks, row.of) == (True, 1, 2), "the other chunk is whole"
    assert run(settings).returncode == 0
