"""How throughput grows with the number of workers; the clients run on the processors that the workers leave.

Where there are too few processors for that, each worker gets a share of one, and clients have what is left of all.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import load, rivals, serve
from bench.cgroup import ControlGroup
from bench.fleet import FleetError, free_ports
from bench.plot import Bar, Panel
from bench.processor import descendants
from bench.rivals import Served

SIZES = {64 << 10: 512, 2 << 20: 48}
# How often a share is given out, in microseconds.
_PERIOD_US = 10_000


def run(
    workers: Sequence[int], rounds: int, seconds: float, step: Callable[[str], None], share: float = 0.0
) -> dict[str, Any]:
    """Gigabytes a second for each number of workers, the first of which the others are compared with.

    `share`: what each worker may use of a processor, in percent; 0: all of one, on which no client runs.
    """
    processors = sorted(os.sched_getaffinity(0))
    if not share and max(workers) >= len(processors):
        raise FleetError(
            f"{max(workers)} workers and their clients need more than {len(processors)} processors: ask for fewer, "
            "or let each have a --share of one"
        )
    # Receiving costs about what sending does.
    if 2 * max(workers) * share / 100 > len(processors):
        raise FleetError(
            f"{max(workers)} workers at {share:g} % of a processor and their clients need more than "
            f"{len(processors)} processors: ask for fewer, or for a smaller share"
        )
    rows = []
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
        home = Path(folder)
        content = rivals.make_content(home, SIZES)
        ports = free_ports("127.0.0.1", 0)
        for size in SIZES:
            speeds: dict[int, list[float]] = {count: [] for count in workers}
            for number in range(rounds):
                for count in workers:
                    step(f"{serve.Case(size).name}: {count} workers, {number + 1}/{rounds}")
                    with contextlib.ExitStack() as stack:
                        # With a share each, workers and clients run on all.
                        own, others = (processors,) * 2 if share else (processors[:count], processors[count:])
                        server = rivals.oca(content, home, (next(ports), next(ports)), _listed(own), workers=count)
                        stack.callback(server.stop)
                        if share:
                            _limit(server, share, processors, stack)
                        found = load.measure(
                            server,
                            content.paths(size),
                            seconds,
                            _listed(others),
                            home,
                            connections=32 * len(others),
                            threads=len(others),
                        )
                    speeds[count].append(found.gb_per_s)
            first = speeds[workers[0]]
            for count in workers:
                ratios = [a / b for a, b in zip(speeds[count], first, strict=True)]
                rows.append(
                    {
                        "bytes": size,
                        "workers": count,
                        "gb_per_s": round(statistics.median(speeds[count]), 4),
                        "ratio": round(statistics.median(ratios), 4),
                        "spread": [round(min(speeds[count]), 4), round(max(speeds[count]), 4)],
                    }
                )
    return {"runs": rounds, "processors": len(processors), "share": share, "rows": rows}


def _limit(server: Served, share: float, processors: Sequence[int], stack: contextlib.ExitStack) -> None:
    """Let each worker use `share` percent of one processor."""
    quota, period = str(round(_PERIOD_US * share / 100)), str(_PERIOD_US)
    old, new = {"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota}, {"cpu.max": f"{quota} {period}"}
    for number, worker in enumerate(_workers(server)):
        stack.enter_context(contextlib.closing(ControlGroup("cpu", old, new))).admit(worker)
        for task in Path(f"/proc/{worker}/task").iterdir():
            os.sched_setaffinity(int(task.name), {processors[number % len(processors)]})


def _workers(server: Served) -> list[int]:
    """Its processes that serve."""
    found = descendants(server.pid)
    return [pid for pid in found if b"oca.worker" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures of `run` to plot."""
    return [
        Panel(
            f"GB/s, {serve.Case(size).name}",
            [
                Bar(str(row["workers"]), "oca", row["gb_per_s"], *row["spread"])
                for row in found["rows"]
                if row["bytes"] == size
            ],
        )
        for size in SIZES
    ]


def _listed(processors: Sequence[int]) -> str:
    return ",".join(map(str, processors))
