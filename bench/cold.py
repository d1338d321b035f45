"""How long hot requests take while others read content that is not in memory, from a slow disk: us and nginx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import uvloop

from bench import load, rivals
from bench.disk import SlowDisk
from bench.download import Client, DownloadError
from bench.fleet import FleetError, free_ports
from bench.plot import Bar, Panel
from bench.rivals import Content, Served
from bench.throttle import ThrottledDisk
from oca import blocks

HOT_BYTES, COLD_BYTES = 64 << 10, 512 << 10
# More than can be read within a run at the disk's speed, so that nothing is met in memory a second time.
_COLD_COUNT = 3000
COLD_CLIENTS = 64
_HOT_CONNECTIONS = 8
DELAY_S = 0.010
"""What every read from a simulated disk takes."""
SPEED = 60e6
"""Bytes a second of a throttled disk: a hard disk whose readers are all elsewhere."""

DiskKind = Literal["throttled", "simulated"]
"""The disk below the directory for temporary files, its reads limited by the kernel; or one of FUSE, each of whose
reads takes DELAY_S, several at once, and which costs processor time."""
AnyDisk = SlowDisk | ThrottledDisk


@dataclass(frozen=True)
class Rival:
    """A server with the paths of its hot and of its cold segments."""

    server: Served
    hot: Sequence[str]
    cold: Sequence[str]


async def read_cold(port: int, paths: Sequence[str]) -> None:
    """Let 64 connections ask for `paths`, one after the other, until standard input ends.

    Prints a line when the first segment has come, and at the end how many came, and in how many seconds since then.
    """
    order = cycle(paths)
    done, began = 0, 0.0
    failed: list[str] = []

    def begin() -> None:
        nonlocal began
        if not began:
            began = time.monotonic()
            sys.stdout.write("reading\n")
            sys.stdout.flush()

    async def play() -> None:
        nonlocal done
        with Client(stall_s=60) as client:
            while True:
                try:
                    await client.get(f"http://127.0.0.1:{port}{next(order)}")
                except DownloadError as error:
                    failed.append(str(error))
                    begin()
                    return
                done += 1
                begin()

    async with asyncio.TaskGroup() as tasks:
        clients = [tasks.create_task(play()) for _ in range(COLD_CLIENTS)]
        await asyncio.to_thread(sys.stdin.read)
        for client in clients:
            client.cancel()
    found = {"done": done, "seconds": time.monotonic() - began, "failed": failed[:3]}
    sys.stdout.write(json.dumps(found) + "\n")


def run(
    rounds: int, seconds: float, step: Callable[[str], None], pause_s: float = 0.0, kind: DiskKind | None = None
) -> dict[str, Any]:
    """All servers in turn, `rounds` times: hot alone, then hot while 64 clients read cold content.

    Hot clients rest for `pause_s` after each answer; those who never do keep their processor full. Without a `kind`
    the disk is throttled if the kernel can do that.
    """
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oca-bench-")))
        step("writing content")
        hot = rivals.make_content(home / "hot", {HOT_BYTES: 256})
        slow = home / "slow"
        rivals.make_content(slow, {COLD_BYTES: _COLD_COUNT})
        os.sync()  # or the disk would still be busy with writing while hot requests are measured
        disk, place = _disk(slow, home, kind, stack)
        cold = Content(place / "store", place / "files", _cold_url(slow), {COLD_BYTES: _COLD_COUNT})
        found: dict[str, list[dict[str, float]]] = {}
        servers = _start(hot, cold, home, stack)
        kind = "throttled" if isinstance(disk, ThrottledDisk) else "simulated"
        if isinstance(disk, ThrottledDisk):
            for rival in servers.values():
                disk.admit(rival.server.pid)
        memory = blocks.reading(place.stat().st_dev).reach.memory
        for number in range(rounds):
            for name, rival in servers.items():
                step(f"{name} {number + 1}/{rounds}")
                found.setdefault(name, []).append(_round(rival, disk, seconds, home, number, pause_s))
    return {"disk": kind, "memory": memory, **_summary(found)}


def _disk(slow: Path, home: Path, kind: DiskKind | None, stack: contextlib.ExitStack) -> tuple[AnyDisk, Path]:
    """The disk that cold content is on, and where it is seen."""
    if kind != "simulated":
        try:
            return stack.enter_context(contextlib.closing(ThrottledDisk(slow, SPEED))), slow
        except FleetError:
            if kind is not None:
                raise
    return stack.enter_context(SlowDisk(slow, home / "disk", DELAY_S)), home / "disk"


def _cold_url(slow: Path) -> str:
    store = slow / "store"
    version = next(path.name for path in (store / "bench").iterdir())
    return f"/t/bench/{version}"


def _start(hot: Content, cold: Content, home: Path, stack: contextlib.ExitStack) -> dict[str, Rival]:
    ports = free_ports("127.0.0.1", 0)
    # One root for nginx with both kinds of content below it.
    root = home / "root"
    root.mkdir()
    (root / "hot").symlink_to(hot.files)
    (root / "cold").symlink_to(cold.files)
    plain = Content(hot.store, root, hot.url, hot.counts)
    paths = (
        [f"/hot{path}" for path in hot.plain_paths(HOT_BYTES)],
        [f"/cold{p}" for p in cold.plain_paths(COLD_BYTES)],
    )
    servers = {}
    ours = rivals.oca(hot, home, (next(ports), next(ports)), 0, more=[cold.store])
    stack.callback(ours.stop)
    servers["oca"] = Rival(ours, hot.paths(HOT_BYTES), cold.paths(COLD_BYTES))
    for threads in (False, True):
        theirs = rivals.nginx(plain, home, next(ports), 0, threads=threads, ready=paths[0][0])
        stack.callback(theirs.stop)
        servers[theirs.name] = Rival(theirs, *paths)
    return servers


def _round(rival: Rival, disk: AnyDisk, seconds: float, home: Path, seed: int, pause_s: float) -> dict[str, float]:
    """One run against one server: milliseconds, and what the disk saw."""

    def hot() -> load.Run:
        server, paths = rival.server, rival.hot
        return load.measure(server, paths, seconds, 1, home, connections=_HOT_CONNECTIONS, pause_s=pause_s)

    alone = hot()
    disk.drop()
    order = list(rival.cold)
    random.Random(seed).shuffle(order)
    listed = home / "cold.json"
    listed.write_text(json.dumps(order))
    command = ["taskset", "-c", "1", sys.executable, "-m", "bench.cold", str(rival.server.port), str(listed)]
    before = disk.read_bytes
    readers = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert readers.stdout is not None
        # A busy machine takes its time to start them, and what is measured before says nothing.
        readers.stdout.readline()
        # Who keeps requests waiting for seconds gets time to answer some.
        under = hot()
    finally:
        said, _ = readers.communicate("")
    came = json.loads(said)
    read = disk.read_bytes - before
    if came["failed"]:
        raise FleetError(f"{rival.server.name} failed those who read cold content: {came['failed'][0]}")
    if not came["done"] or read < came["done"] * COLD_BYTES:
        raise FleetError(f"{came['done']} cold segments came of {read} bytes from the disk: they were not cold")
    return {
        "hot_p99_ms": alone.p99_ms,
        "hot_p99_ms_under_cold": under.p99_ms,
        "hot_gb_per_s": alone.gb_per_s,
        "hot_gb_per_s_under_cold": under.gb_per_s,
        "cold_mb_per_s": came["done"] * COLD_BYTES / 1e6 / came["seconds"],
    }


def _summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of every figure, and of the ratios taken round by round."""
    spreads: dict[str, dict[str, list[float]]] = {name: {} for name in found}
    middle = {
        name: {key: round(statistics.median(each[key] for each in of), 4) for key in of[0]}
        for name, of in found.items()
    }
    for name, of in found.items():
        for key in ("hot_p99_ms", "hot_p99_ms_under_cold"):
            values = [each[key] for each in of]
            spreads[name][key] = [round(min(values), 4), round(max(values), 4)]
    ratios = [each["hot_p99_ms_under_cold"] / each["hot_p99_ms"] for each in found["oca"]]
    summary: dict[str, Any] = {
        "runs": len(ratios),
        "hot_p99_ms": middle["oca"]["hot_p99_ms"],
        "hot_p99_ms_under_cold": middle["oca"]["hot_p99_ms_under_cold"],
        "ratio": round(statistics.median(ratios), 4),
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "nginx_hot_p99_ms_under_cold": middle["nginx"]["hot_p99_ms_under_cold"],
        "nginx_threads_hot_p99_ms_under_cold": middle["nginx-threads"]["hot_p99_ms_under_cold"],
    }
    for rival in ("nginx", "nginx-threads"):
        against = [
            ours["hot_p99_ms_under_cold"] / theirs["hot_p99_ms_under_cold"]
            for ours, theirs in zip(found["oca"], found[rival], strict=True)
        ]
        key = rival.replace("-", "_")
        summary[f"ratio_to_{key}"] = round(statistics.median(against), 4)
        summary[f"spread_to_{key}"] = [round(min(against), 4), round(max(against), 4)]
    return {**summary, "servers": middle, "spreads": spreads}


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures of `run` to plot."""
    bars = [
        Bar(words, name, middle[key], *found["spreads"][name][key])
        for key, words in (("hot_p99_ms", "alone"), ("hot_p99_ms_under_cold", "beside cold readers"))
        for name, middle in found["servers"].items()
    ]
    return [Panel("p99 of hot requests, ms", bars, log=True)]


if __name__ == "__main__":
    uvloop.run(read_cold(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())))
