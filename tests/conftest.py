"""Fixtures that every part's tests share."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import uvloop

from oca.store.content import Store
from oca.title import model as title
from oca.title import segments
from oca.title.digest import CHUNK_BYTES, file_digest, version_of
from oca.title.model import File, Period, Title, Track
from oca.title.segments import Segment, SegmentIndex

MakeTitle = Callable[..., "MadeTitle"]
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers ignore it, and so would all programs that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# One profile for author and CI alike: no test fails because a machine was slow, and none sees examples that another
# run never saw. `make fuzz` is where new ones are looked for.
hypothesis.settings.register_profile(
    "certain",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("certain")
# A coroutine test that hangs fails alone, and says where it hung: pytest-timeout's signal is swallowed by uvloop, and
# its thread ends the whole run.
PATIENCE_S, BROWSER_PATIENCE_S = 110, 170


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every test runs on the event loop that the programs run on."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every coroutine test its limit."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            browser = item.get_closest_marker("browser") is not None
            item.obj = limited(item.obj, BROWSER_PATIENCE_S if browser else PATIENCE_S)


def limited(test: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(seconds):
            await test(*args, **kwargs)

    return within


class MadeTitle:
    """A title of random bytes, published in a store, with all that a test may want to compare with."""

    def __init__(self, title: Title, version: str, directory: Path, indexes: dict[str, SegmentIndex]) -> None:
        self.title = title
        self.id = title.id
        self.version = version
        self.directory = directory
        self.indexes = indexes
        self.url = f"/t/{title.id}/{version}"

    def bytes_of(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    def segment(self, track: str, number: int) -> bytes:
        span = self.indexes[track].slice(number)
        assert span is not None
        with (self.directory / f"{track}.mp4").open("rb") as file:
            file.seek(span[0])
            return file.read(span[1])


@pytest.fixture
def make_title() -> MakeTitle:
    """Publish a title whose tracks have the given segment sizes in bytes: make_title(root, v1=[...], a1=[...]).

    With small `chunk_bytes` small tracks have many chunks.
    """

    def make(
        root: Path,
        name: str = "clip",
        published: int = 1_700_000_000,
        seed: int = 1,
        ranges: bool = False,
        chunk_bytes: int = CHUNK_BYTES,
        **tracks: list[int],
    ) -> MadeTitle:
        store = Store([root])
        store.prepare()
        staged = root / ".filling" / f"made-{name}-{seed}"
        staged.mkdir()
        bits = random.Random(seed)
        indexes, listed = {}, []
        for track, sizes in (tracks or {"v1": [3000, 4000, 5000], "a1": [700, 800, 900]}).items():
            # Between init segment and segments is the sidx, or what a packager of old had there.
            offset, rows = 500 + (40 + 12 * len(sizes) if ranges else 40), []
            for number, size in enumerate(sizes):
                rows.append(Segment(offset, size, number * 100, 100, size // 2))
                offset += size
            indexes[track] = SegmentIndex(25, 500, tuple(rows))
            (staged / f"{track}.mp4").write_bytes(bits.randbytes(offset))
            (staged / f"{track}.idx").write_bytes(segments.encode(indexes[track]))
            video: dict[str, Any] = {"width": 640, "height": 360, "frame_rate": "25"} if track[0] == "v" else {}
            listed.append(
                Track(
                    name=track,
                    kind="video" if video else "audio",
                    codecs="avc1.64001e" if video else "mp4a.40.2",
                    timescale=25,
                    duration=100 * len(sizes),
                    segments=len(sizes),
                    bandwidth=max(sizes) * 2,
                    average_bandwidth=max(1, sum(sizes) * 2 // len(sizes)),
                    **video,
                )
            )
        (staged / "manifest.mpd").write_text("<MPD/>")
        (staged / "master.m3u8").write_text("#EXTM3U\n")
        if ranges:
            (staged / "ondemand.mpd").write_text("<MPD/>")
            (staged / "master.ranges.m3u8").write_text("#EXTM3U\n")
        files = {}
        for path in sorted(staged.iterdir()):
            found = file_digest(path, chunk_bytes)
            files[path.name] = File(found.bytes, found.whole, found.chunks, chunk_bytes)
        made = Title(id=name, name=name, chunk_bytes=chunk_bytes, periods=[Period("0", listed)], files=files)
        data = title.encode(made)
        (staged / "title.json").write_bytes(data)
        version = version_of(data)
        return MadeTitle(made, version, store.publish(staged, name, version, published), indexes)

    return make


@pytest.fixture
def open_files() -> Callable[[], int]:
    """How many descriptors this process has open."""
    return lambda: len(list(Path("/proc/self/fd").iterdir()))
