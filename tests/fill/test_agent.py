"""The agent between a real source and a scripted controller: what ends up in the store, and what is told of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from fill import staging
from fill.agent import fill
from fill.controllers import ControllerError, Controllers
from fill.holdings import holdings
from fill.ranking import Holder, fill_masters
from fill.staging import owned, staged
from fill.window import of
from oca import wire
from oca.bucket import BURST_S
from oca.config import ApplianceSettings, FillSettings
from oca.errors import ConfigError, StoreError
from oca.handover import listen
from oca.http.accesslog import AccessLog
from oca.http.server import Server
from oca.http.slices import Descriptor, Slices
from oca.store.content import FILLING, Store
from oca.store.landing import Landing, record_of
from oca.title.digest import CHUNK_BYTES
from oca.wire import Doomed, Source
from tests.clock import Jumping
from tests.conftest import MadeTitle, MakeTitle
from tests.fill.conftest import Controller, MakeAgent, StartBox


@pytest.fixture
def clip(make_title: MakeTitle, origin_root: Path) -> MadeTitle:
    """A small title with a video and an audio track."""
    return make_title(origin_root)


def check(store: Store, made: MadeTitle, *tracks: str) -> None:
    """Exactly these tracks are held, as published, and nothing of the version is left in staging."""
    held = store.held(made.id, made.version)
    assert held is not None
    assert held.tracks == set(tracks)
    assert held.published == 1_700_000_000
    names = made.title.shared_files + [
        name for track in made.title.tracks if track.name in tracks for name in track.files
    ]
    for name in names:
        assert (held.directory / name).read_bytes() == made.bytes_of(name)
    assert not [row for row in staged(store) if row.version == made.version]


async def test_fills_and_reports(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """What the plan wants arrives whole, most valuable first, and the last report says who gave how much."""
    origin = await box("origin-1")
    controller.plan((clip, ["a1", "v1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent().look()
    check(store, clip, "a1", "v1")
    # title.json and the files that belong to no track come first, and come once.
    assert [name for name, _ in origin.log] == [
        "title.json", "manifest.mpd", "master.m3u8", "a1.mp4", "a1.idx", "v1.mp4", "v1.idx",
    ]  # fmt: skip
    last = controller.reports[-1]
    assert (last.finished, last.outside_window, last.plan) == (True, False, 1)
    audio, video = last.progress
    assert (audio.track, audio.state, audio.bytes) == ("a1", "done", audio.total)
    assert video.fetched == {"origin-1": clip.title.track_bytes(clip.title.tracks[0])}
    assert len({report.batch for report in controller.reports}) == len(controller.reports)


async def test_fills_from_an_appliance(
    make_title: MakeTitle, origin_root: Path, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """What the segment server of an appliance sends is what the fill takes, ranges included."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, 5000])
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(Server([sock], Slices(Store([origin_root])), AccessLog("")).run())
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        controller.plan((made, ["v1"]))
        controller.sources = lambda track: [Source(appliance="origin-1", url=url, rank="origin")]
        assert await agent().look()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    check(store, made, "v1")


async def test_what_was_filled_is_not_kept_in_memory(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """Memory is for what viewers watch."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, CHUNK_BYTES, 5000])
    origin = await box("origin-1")
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent().look()
    media = Descriptor(store.roots[0] / made.id / made.version / "v1.mp4")
    assert [media.resident(n * CHUNK_BYTES, 5000) for n in range(3)] == [0, 0, 0]


def test_what_is_looked_at_again_is_not_kept_in_memory(
    make_title: MakeTitle, origin_root: Path, store: Store
) -> None:
    """After a restart all that had come is read: that is no reason either to forget what viewers watch."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, 5000])
    landing = Landing(store.staging(made.id, made.version) / "v1.mp4", made.title.files["v1.mp4"])
    landing.claims()
    for chunk in range(2):
        offset, length = landing.file.span(chunk)
        landing.settle(chunk, made.bytes_of("v1.mp4")[offset : offset + length])
    with landing.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert [landing.holds(chunk) for chunk in range(2)] == [True, True]
    media = Descriptor(landing.path)
    assert [media.resident(n * CHUNK_BYTES, 5000) for n in range(2)] == [0, 0]


async def test_idle_when_all_is_here(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent
) -> None:
    """A box that holds all that is wanted says so once, and asks no source."""
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    idle = agent()
    await idle.look()
    asked, told = len(origin.log), len(controller.reports)
    for _ in range(3):
        assert await idle.look()
    assert len(origin.log) == asked
    assert len(controller.reports) == told + 1
    assert controller.reports[-1].progress[0].state == "done"


async def test_waits_for_its_peer(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A track that another box of the site is fetching is taken from there as soon as it has it."""
    origin, peer = await box("origin-1"), await box("north-2")
    asked = 0

    def sources(track: str) -> list[Source]:
        nonlocal asked
        asked += 1
        return [origin.source(wait_s=60)] if asked < 4 else [peer.source("peer"), origin.source(wait_s=60)]

    controller.plan((clip, ["v1"]))
    controller.sources = sources
    assert await agent().look()
    check(store, clip, "v1")
    assert origin.log == []
    assert any(row.state == "waiting" for report in controller.reports for row in report.progress)


async def test_waiting_holds_nobody_up(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """While one track waits those after it are fetched; when the wait is over, it is fetched from afar."""
    origin = await box("origin-1")
    controller.plan((clip, ["v1", "a1"]))

    def sources(track: str) -> list[Source]:
        over = any(name == "a1.mp4" for name, _ in origin.log)
        return [origin.source(wait_s=0 if track == "a1" else 0.15 if over else 3600)]

    controller.sources = sources
    assert await agent().look()
    check(store, clip, "a1", "v1")
    names = [name for name, _ in origin.log]
    assert names.index("a1.mp4") < names.index("v1.mp4")


async def test_peer_at_fault_then_origin(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store, tmp_path: Path
) -> None:
    """A peer that fails does not fail the track while there is a source to wait for."""
    origin, peer = await box("origin-1"), await box("north-2")
    peer.root = tmp_path / "nothing"
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [peer.source("peer"), origin.source(wait_s=0.1)]
    assert await agent().look()
    check(store, clip, "v1")


async def test_many_that_wait_are_asked_about_together(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """And each is fetched as soon as there is somebody to give it."""
    made = make_title(origin_root, **{f"v{number}": [100] for number in range(40)})
    origin = await box("origin-1")
    controller.plan((made, sorted(made.indexes)))

    def sources(track: str) -> list[Source]:
        return [origin.source(wait_s=0 if len(controller.orders) > 10 else 3600)]

    controller.sources = sources
    assert await agent(steady=Jumping().clock).look()
    check(store, made, *made.indexes)
    assert max(controller.orders) == 40


async def test_no_source(clip: MadeTitle, controller: Controller, agent: MakeAgent, store: Store) -> None:
    """A track that nobody has fails after a while, with a sentence, and is no reason to publish anything."""
    controller.plan((clip, ["v1"]))
    assert not await agent().look()
    last = controller.reports[-1]
    assert last.finished
    assert [row.state for row in last.progress] == ["failed"]
    assert "no appliance that holds it" in last.progress[0].error
    assert store.held(clip.id, clip.version) is None


async def test_track_that_does_not_exist(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent
) -> None:
    """A plan for a track that the title has not got is a sentence."""
    origin = await box("origin-1")
    controller.plan((clip, ["v9"]))
    controller.sources = lambda track: [origin.source()]
    assert not await agent().look()
    assert "has no track v9" in controller.reports[-1].progress[0].error


async def test_closed_window_and_force(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """Outside the window nothing moves but by an order, and an order is obeyed once."""
    origin = await box("origin-1")
    controller.sources = lambda track: [origin.source()]
    closed = agent(is_open=lambda at: False, closes=lambda at: at + 60)
    controller.plan((clip, ["v1"]))
    assert not await closed.look()
    assert not await closed.look()
    assert origin.log == []
    (told,) = controller.reports
    assert (told.finished, told.outside_window) == (False, True)
    controller.plan((clip, ["v1"]), force=7)
    assert await closed.look()
    check(store, clip, "v1")
    assert (controller.reports[-1].force, controller.reports[-1].finished) == (7, True)
    controller.plan((clip, ["v1", "a1"]), force=7)
    assert not await closed.look()
    check(store, clip, "v1")


async def test_now_ignores_the_window(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent
) -> None:
    """With `now` the window does not matter, nor does it end the run."""
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent(is_open=lambda at: False, closes=lambda at: at, now=True).look()


async def test_window_closes_in_the_middle(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A fill that the window cuts short goes on where it was when it opens again."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, 5000])
    origin = await box("origin-1", holds=lambda name, chunk: chunk == 1)
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    now = 0.0
    look = asyncio.create_task(agent(closes=lambda at: 100.0, clock=lambda: now).look())
    await origin.held_back.wait()
    await controller.told(lambda report: any(row.bytes >= CHUNK_BYTES for row in report.progress))
    now = 100.0
    assert not await look
    last = controller.reports[-1]
    assert (last.finished, last.outside_window) == (False, True)
    assert [row.state for row in last.progress] == ["waiting"]
    origin.release.set()
    assert await agent().look()
    check(store, made, "v1")
    assert origin.asked("v1.mp4") == [0, 1, 1]


def at_hour(hour: float) -> float:
    """That time of a day, as the clock of a box in UTC shows it."""
    return 1_780_012_800.0 + hour * 3600


@pytest.mark.parametrize(
    ("begins", "jumps_to", "goes_on"),
    [(3, 7, False), (3, 1, False), (3, 5.9, True), (5, 2.1, True), (3, 3 - 24, True), (3, 27, False)],
)
async def test_the_clock_jumps_during_a_fill(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store,
    begins: float, jumps_to: float, goes_on: bool,
) -> None:  # fmt: skip
    """Forwards or backwards: the fill ends when the clock shows that the window is over, and goes on where it was."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, 5000])
    origin = await box("origin-1", holds=lambda name, chunk: chunk == 1)
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    night, hour = of(FillSettings(window_start="02:00", window_hours=4)), begins
    filling = agent(is_open=night.is_open, closes=night.closes, clock=lambda: at_hour(hour))
    look = asyncio.create_task(filling.look())
    await origin.held_back.wait()
    await controller.told(lambda report: any(row.bytes >= CHUNK_BYTES for row in report.progress))
    hour = jumps_to
    if goes_on:
        leases = controller.leases
        while controller.leases < leases + 5:
            assert not look.done()
            await asyncio.sleep(0.02)
    else:
        assert not await look
        assert controller.reports[-1].outside_window
        hour = 26.5
        look = asyncio.create_task(filling.look())
    origin.release.set()
    assert await look
    check(store, made, "v1")
    assert origin.asked("v1.mp4") == ([0, 1] if goes_on else [0, 1, 1])


@pytest.mark.parametrize("waits_at", [1, 7, 25 - 24 * 365])
async def test_the_clock_jumps_while_a_box_waits(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store, waits_at: float
) -> None:
    """Into the window, from whatever wrong time: the fill begins, with no restart and no time waited off."""
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    night, hour = of(FillSettings(window_start="02:00", window_hours=4)), waits_at
    waiting = agent(is_open=night.is_open, closes=night.closes, clock=lambda: at_hour(hour))
    daemon = asyncio.create_task(waiting.run())
    await controller.told(lambda report: report.outside_window)
    assert origin.log == []
    hour = 3
    await controller.told(lambda report: report.finished)
    daemon.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await daemon
    check(store, clip, "v1")


async def test_new_plan_ends_the_run(
    clip: MadeTitle,
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    agent: MakeAgent,
    store: Store,
) -> None:
    """A run for a plan that is no longer in force ends, and what it had staged is removed by the next."""
    other = make_title(origin_root, "other", seed=2)
    origin = await box("origin-1", holds=lambda name, chunk: name == "v1.mp4")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    running = agent()
    look = asyncio.create_task(running.look())
    await origin.held_back.wait()
    controller.plan((other, ["a1"]))
    assert not await look
    assert not controller.reports[-1].finished
    assert {row.title for row in staged(store)} == {"clip"}
    assert await running.look()
    check(store, other, "a1")
    assert staged(store) == []
    assert store.held(clip.id, clip.version) is None


async def test_room_is_made_by_what_is_idle_longest(
    clip: MadeTitle,
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    agent: MakeAgent,
    settings: ApplianceSettings,
    store: Store,
) -> None:
    """Surplus tracks go only when room is needed, the longest idle first, and no more than needed."""
    old = [make_title(store.roots[0], f"old-{number}", seed=number, v1=[20_000]) for number in (2, 3)]
    for made, used in zip(old, (2_000, 1_000), strict=True):
        os.utime(made.directory / "v1.mp4", (used, used))
    origin = await box("origin-1")
    controller.sources = lambda track: [origin.source()]
    controller.plan((clip, ["a1"]))
    assert await agent().look()
    assert len(holdings(store)) == 3
    limit = store.used_bytes() + 1000
    controller.plan((clip, ["a1", "v1"]))
    assert await agent(msgspec.structs.replace(settings, storage_bytes=limit)).look()
    check(store, clip, "a1", "v1")
    assert [track.title for track in holdings(store)] == ["clip", "clip", "old-2"]


async def test_what_does_not_fit(
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    agent: MakeAgent,
    settings: ApplianceSettings,
    store: Store,
) -> None:
    """A track that cannot fit fails with a sentence before any of it is fetched, and costs nobody their place."""
    old = make_title(store.roots[0], "old", seed=2)
    large = make_title(origin_root, "large", v1=[500_000])
    small = make_title(origin_root, "small", seed=3)
    origin = await box("origin-1")
    controller.plan((large, ["v1"]), (small, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    assert not await agent(msgspec.structs.replace(settings, storage_bytes=100_000)).look()
    rows = {row.title: row for row in controller.reports[-1].progress}
    assert rows["large"].state == "failed"
    assert "no room for" in rows["large"].error
    assert rows["small"].state == "done"
    assert store.held(old.id, old.version) is not None
    assert not [name for name, _ in origin.log[:1] if name != "title.json"]


async def test_no_plan_removes_nothing(
    make_title: MakeTitle, controller: Controller, agent: MakeAgent, settings: ApplianceSettings, store: Store
) -> None:
    """Without a plan, or with an empty one, even a box that is too full keeps everything."""
    make_title(store.roots[0])
    arriving = store.staging("x", "a" * 32) / "v1.mp4"
    arriving.touch()
    full = agent(msgspec.structs.replace(settings, storage_bytes=1))
    assert await full.look()
    controller.plan()
    assert await full.look()
    assert len(holdings(store)) == 2
    assert arriving.exists()


async def test_unwanted_staging_is_removed(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """What earlier runs left of things no longer wanted goes; what is not the agent's own stays."""
    stale, arriving = store.staging("x", "a" * 32), store.staging(clip.id, clip.version)
    (stale / "v1.mp4").touch()
    for name in ("a1.mp4", ".a1.mp4.chunks", ".title.json.0123"):
        (arriving / name).touch()
    foreign = store.roots[0] / FILLING / "packaging-1"
    foreign.mkdir()
    gone = staging.sweep(store, [(clip.id, clip.version, "v1")])
    assert {path.name for path in gone} == {"a" * 32, "a1.mp4", ".a1.mp4.chunks", ".title.json.0123"}
    assert foreign.exists()
    assert not stale.parent.exists()


@pytest.mark.parametrize("renamed", range(6))
async def test_crash_in_a_commit(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store, renamed: int
) -> None:
    """Killed after any of the renames of a commit, the next start finishes it and fetches nothing again."""
    arriving = store.staging(clip.id, clip.version)
    final = store.roots[0] / clip.id / clip.version
    names = ["manifest.mpd", "master.m3u8", "v1.mp4", "v1.idx"]
    (arriving / "title.json").write_bytes(clip.bytes_of("title.json"))
    for name in names:
        landing = Landing(arriving / name, clip.title.files[name])
        landing.claims()
        landing.settle(0, clip.bytes_of(name))
    if renamed:
        final.mkdir(parents=True)
    for name in ["title.json", *names][:renamed]:
        os.utime(arriving / name, (1_700_000_000, 1_700_000_000))
        (arriving / name).rename(final / name)
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent().look()
    check(store, clip, "v1")
    assert origin.log == []


async def test_damaged_title_is_mended(
    clip: MadeTitle, make_title: MakeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A title.json that has rotted is fetched again, its verified tracks are not."""
    held = make_title(store.roots[0])
    (held.directory / "title.json").write_bytes(b"{")
    (store.staging(clip.id, clip.version) / "title.json").write_bytes(b"{")
    origin = await box("origin-1")
    controller.plan((clip, ["v1", "a1"]))
    controller.sources = lambda track: [origin.source()]
    assert await agent().look()
    check(store, clip, "a1", "v1")
    assert [name for name, _ in origin.log] == ["title.json"]


async def test_paused_and_resumed(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A pause ends a fill that goes on, in the window and by order; afterwards it goes on where it was."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, CHUNK_BYTES, 5000])
    origin = await box("origin-1", holds=lambda name, chunk: (name, chunk) == ("v1.mp4", 2))
    controller.plan((made, ["v1"]), force=7)
    controller.sources = lambda track: [origin.source()]
    filling = agent()
    looking = asyncio.create_task(filling.look())
    await origin.held_back.wait()
    controller.manifest = msgspec.structs.replace(controller.manifest, paused=True)
    assert not await looking
    asked = len(origin.log)
    assert not await filling.look()
    assert len(origin.log) == asked
    origin.release.set()
    controller.manifest = msgspec.structs.replace(controller.manifest, paused=False)
    assert await filling.look()
    assert origin.asked("v1.mp4").count(0) == 1, "what had come was kept"
    check(store, made, "v1")


async def test_an_order_taken_back(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent
) -> None:
    """Outside the window the fill ends; in the window it would go on."""
    made = make_title(origin_root)
    origin = await box("origin-1", holds=lambda name, chunk: name == "v1.mp4")
    controller.plan((made, ["v1"]), force=7)
    controller.sources = lambda track: [origin.source()]
    filling = agent(is_open=lambda at: False)
    looking = asyncio.create_task(filling.look())
    await origin.held_back.wait()
    controller.manifest = msgspec.structs.replace(controller.manifest, force=0)
    assert not await looking
    asked = len(origin.log)
    assert not await filling.look()
    assert len(origin.log) == asked


async def test_what_is_being_served_stays(
    clip: MadeTitle,
    make_title: MakeTitle,
    box: StartBox,
    controller: Controller,
    agent: MakeAgent,
    settings: ApplianceSettings,
    store: Store,
) -> None:
    """Of what the plan no longer wants, what somebody is being sent goes last: in another night."""
    watched, idle = (make_title(store.roots[0], name, v1=[4000]) for name in ("watched", "idle"))
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    need = clip.title.track_bytes(clip.title.tracks[0])
    room = store.used_bytes() + 2000
    with (watched.directory / "v1.mp4").open("rb"):
        assert await agent(msgspec.structs.replace(settings, storage_bytes=room + need - 4000)).look()
        assert (watched.directory.exists(), idle.directory.exists()) == (True, False)
        other = make_title(origin.root, "other", seed=3)
        controller.plan((clip, ["v1"]), (other, ["v1"]))
        assert not await agent(msgspec.structs.replace(settings, storage_bytes=store.used_bytes() + 1000)).look()
        (why,) = {row.error for row in controller.reports[-1].progress if row.error}
        assert "more are being served now" in why
    assert await agent(msgspec.structs.replace(settings, storage_bytes=store.used_bytes() + need)).look()
    assert not watched.directory.exists()


async def test_remnant_of_a_version(
    clip: MadeTitle,
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    agent: MakeAgent,
    settings: ApplianceSettings,
    store: Store,
) -> None:
    """A version without whole tracks is surplus like any other."""
    remnant = make_title(store.roots[0], "remnant", seed=2)
    for name in ("v1.mp4", "a1.idx"):
        (remnant.directory / name).unlink()
    (row,) = holdings(store)
    assert row.track == ""
    assert row.bytes > 0
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    need = clip.title.track_bytes(clip.title.tracks[0]) + 5000
    assert await agent(msgspec.structs.replace(settings, storage_bytes=need)).look()
    assert store.directory("remnant", remnant.version) is None


@pytest.mark.long
async def test_controller_away(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A controller that fails is a sentence for one look; the daemon goes on looking."""
    origin = await box("origin-1")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    controller.status = 500
    with pytest.raises(ControllerError, match="answers 500: the controller has a headache"):
        await agent().look()
    daemon = asyncio.create_task(agent().run())
    controller.called.clear()
    await controller.called.wait()
    controller.status = 200
    await controller.told(lambda report: report.finished)
    daemon.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await daemon
    check(store, clip, "v1")


async def test_controller_goes_away_during_a_run(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """Sources that are known are used to the end; what could not be told meanwhile is told afterwards."""
    origin = await box("origin-1", holds=lambda name, chunk: name == "v1.mp4")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    running = agent()
    look = asyncio.create_task(running.look())
    await origin.held_back.wait()
    controller.status = 503
    origin.release.set()
    assert await look
    check(store, clip, "v1")
    assert not any(report.finished for report in controller.reports)
    controller.status = 200
    assert await running.look()
    assert controller.reports[-1].finished


async def test_a_manifest_is_fetched_once(clip: MadeTitle, controller: Controller) -> None:
    """The same again is said by its ETag, by whichever controller; another one comes whole."""
    controller.plan((clip, ["v1"]))
    async with aiohttp.ClientSession() as session:
        of = Controllers(session, "north-1", ["http://127.0.0.1:1", controller.url])
        for plan, unchanged in ((1, 0), (1, 1), (2, 1), (2, 2)):
            if plan != controller.manifest.plan:
                controller.plan((clip, ["v1", "a1"]))
            assert (await of.manifest()) == controller.manifest
            assert (controller.manifest.plan, controller.unchanged) == (plan, unchanged)


async def test_manifest_of_somebody_else(controller: Controller, agent: MakeAgent) -> None:
    """A manifest that is not for this box is refused, as is one that is no manifest."""
    controller.manifest = msgspec.structs.replace(controller.manifest, appliance="south-1")
    with pytest.raises(ControllerError, match="sent north-1 the manifest of south-1"):
        await agent().look()
    controller.manifest = msgspec.structs.replace(controller.manifest, format=99)
    with pytest.raises(ControllerError, match="is of format 99"):
        await agent().look()


async def test_one_agent_per_store(settings: ApplianceSettings, store: Store) -> None:
    """The second agent on a store refuses; after the first has ended it does not."""
    with owned(store), pytest.raises(StoreError, match="another oca-fill is at work"):
        await fill(settings, once=True)
    assert await fill(settings, once=True)


async def test_settings_that_cannot_be_used(settings: ApplianceSettings, tmp_path: Path) -> None:
    """An unknown time zone and a store that cannot be written are found before anything else."""
    mars = msgspec.structs.replace(settings.fill, timezone="Mars/Olympus")
    with pytest.raises(ConfigError, match="Mars/Olympus"):
        await fill(msgspec.structs.replace(settings, fill=mars))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        await fill(msgspec.structs.replace(settings, store=[str(tmp_path / "file" / "store")]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("only root may mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


async def test_full_disk(
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    settings: ApplianceSettings,
    small_disk: Path,
) -> None:
    """On a full disk a track fails with a sentence before a byte of it is fetched; what fits is filled."""
    large = make_title(origin_root, "large", v1=[2_000_000])
    small = make_title(origin_root, "small", seed=2)
    origin = await box("origin-1")
    controller.plan((large, ["v1"]), (small, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    full = Store([small_disk])
    settings = msgspec.structs.replace(settings, store=[str(small_disk)])
    assert not await fill(settings, now=True, once=True)
    rows = {row.title: row for row in controller.reports[-1].progress}
    assert (rows["large"].state, rows["small"].state) == ("failed", "done")
    assert "No space left on device; free space" in rows["large"].error
    assert origin.asked("v1.mp4") == [0]
    check(full, small, "v1")


async def test_staging_that_goes_away(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A store that breaks under the fill fails the track with a sentence, not the agent."""
    origin = await box("origin-1", holds=lambda name, chunk: name == "v1.mp4")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    look = asyncio.create_task(agent().look())
    await origin.held_back.wait()
    arriving = store.staging(clip.id, clip.version)
    record_of(arriving / "v1.mp4").unlink()
    record_of(arriving / "v1.mp4").mkdir()
    origin.release.set()
    assert not await look
    assert "cannot write" in controller.reports[-1].progress[0].error


async def test_store_that_cannot_be_read(
    clip: MadeTitle, make_title: MakeTitle, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """A disk that fails while the store is compared is a sentence that says where."""
    made = make_title(store.roots[0], "rotten")
    for name in ("v1.mp4", "a1.mp4"):
        (made.directory / name).unlink()
    (made.directory / "gone").symlink_to("nowhere")
    controller.plan((clip, ["v1"]))
    with pytest.raises(StoreError, match=r"cannot be read at .*gone: No such file"):
        await agent().look()


async def test_a_window_without_any_controller(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """The last manifest goes on, a new agent's too: its boxes are asked, peers first; its order is not obeyed."""
    boxes = [Holder(name, "here", "edge", "") for name in ("north-1", "north-2")]
    some = (make_title(origin_root, f"clip-{seed}", seed=seed) for seed in range(100))
    # Of which this box would be the fill master: nobody is waited for.
    made = next(one for one in some if fill_masters(boxes[0], boxes, f"{one.version}/v1") == ["north-1"])
    origin, peer = await box("origin-1"), await box("north-2")
    peer.root = origin_root / "nothing"
    controller.plan((made, ["v1"]), boxes=[peer.source("peer"), origin.source()], force=7, uplink_bps=10**9)
    assert not await agent(is_open=lambda at: True).look(), "nobody tells who holds it"
    controller.status = 503
    assert not await agent(is_open=lambda at: False).look(), "an order is obeyed once, and not from memory"
    assert peer.log == origin.log == []
    assert await agent().look()
    check(store, made, "v1")
    assert peer.asked("title.json")
    assert origin.asked("v1.mp4") == [0]


@pytest.mark.parametrize("damage", [b"{", b"", None])
async def test_a_kept_manifest_that_is_of_no_use(
    clip: MadeTitle, controller: Controller, agent: MakeAgent, store: Store, damage: bytes | None
) -> None:
    """Damaged, or of another box: then there is none."""
    controller.plan((clip, ["v1"]))
    await agent().look()
    kept = store.roots[0] / ".fill-manifest"
    other = msgspec.structs.replace(controller.manifest, appliance="south-9")
    kept.write_bytes(wire.encode(other) if damage is None else damage)
    controller.status = 503
    with pytest.raises(ControllerError, match="headache"):
        await agent().look()


async def test_the_site_s_line_is_kept_to(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """What is leased holds for what comes from outside; it changes while a fill goes on, and 0 stops it."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, CHUNK_BYTES, 5000])
    origin = await box("origin-1")
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    controller.lease_bps = 0
    looking = asyncio.create_task(agent().look())
    while controller.leases < 5:
        await asyncio.sleep(0.02)
    assert sum(row.bytes for report in controller.reports for row in report.progress) == 0
    controller.lease_bps = None
    assert await looking
    check(store, made, "v1")


async def test_what_comes_over_the_line_comes_at_the_leased_rate(
    make_title: MakeTitle, origin_root: Path, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """However quick the source is; what passes at once after a pause is all that comes beyond."""
    made = make_title(origin_root, v1=[1_500_000])
    origin = await box("origin-1")
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    controller.lease_bps = 80_000
    jumping = Jumping()
    assert await agent(steady=jumping.clock).look()
    check(store, made, "v1")
    # Beside the track come its index, manifests and title.json.
    assert 150 - BURST_S <= jumping.at - 1000 <= 150 * 1.01


async def test_peers_are_not_on_the_site_s_line(
    clip: MadeTitle, box: StartBox, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    peer = await box("north-2")
    controller.plan((clip, ["v1"]))
    controller.sources = lambda track: [peer.source("peer")]
    controller.lease_bps = 0
    assert await agent().look()
    check(store, clip, "v1")


async def test_what_is_doomed_goes_at_once(
    make_title: MakeTitle, origin_root: Path, controller: Controller, agent: MakeAgent, store: Store
) -> None:
    """Window or not, and though nobody needs the room; but not while it is being served."""
    gone, kept = make_title(store.roots[0], "gone", seed=2), make_title(store.roots[0], "kept", seed=3)
    controller.plan(doomed=[Doomed(gone.id, gone.version)])
    closed = agent(is_open=lambda at: False)
    with (store.roots[0] / gone.id / gone.version / "v1.mp4").open("rb"):
        await closed.look()
        assert {(t.title, t.track) for t in holdings(store)} == {("gone", "v1"), ("kept", "v1"), ("kept", "a1")}
    await closed.look()
    assert {track.title for track in holdings(store)} == {"kept"}
    assert not (store.roots[0] / gone.id / gone.version).exists()
    assert store.held(kept.id, kept.version) is not None
