"""How throughput grows with the number of workers; the clients run on the processors that the workers leave."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import load, rivals, serve
from bench.fleet import FleetError, free_ports
from bench.plot import Bar, Panel

SIZES = {64 << 10: 512, 2 << 20: 48}


def run(workers: Sequence[int], rounds: int, seconds: float, step: Callable[[str], None]) -> dict[str, Any]:
    """Gigabytes a second for each number of workers, the first of which the others are compared with."""
    processors = sorted(os.sched_getaffinity(0))
    if max(workers) >= len(processors):
        raise FleetError(
            f"{max(workers)} workers and their clients need more than {len(processors)} processors: ask for fewer"
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
                        own, others = _listed(processors[:count]), _listed(processors[count:])
                        server = rivals.oca(content, home, (next(ports), next(ports)), own, workers=count)
                        stack.callback(server.stop)
                        clients = len(processors) - count
                        found = load.measure(
                            server,
                            content.paths(size),
                            seconds,
                            others,
                            home,
                            connections=32 * clients,
                            threads=clients,
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
    return {"runs": rounds, "processors": len(processors), "rows": rows}


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
