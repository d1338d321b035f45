"""Our segment server beside its rivals: same content, same client, turn by turn, one processor for each side.

All content is in memory while it is measured, and every server has read it from the disk itself, in its own way, as
it does for viewers: what the page cache's pieces are like decides more than anything that a server does afterwards.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, rivals
from bench.fleet import FleetError, free_ports
from bench.load import Client, Run
from bench.plot import Bar, Panel
from bench.rivals import Served
from oca import blocks

# Enough segments that no single one stays in a processor's cache, few enough that all stay in memory.
_COUNTS = {64 << 10: 512, 2 << 20: 48}
# Which one is the machine's matters: BBR paces loopback, too, and what that costs comes before all else.
_CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")
# Seconds for each server to bring the content into memory, from a slow disk.
_MOST_WARMING = 60
# What a player sends with every segment (CTA-5004, query mode), different each time.
_CMCD = "?CMCD=bl%3D21300%2Cbr%3D3200%2Ccid%3D%22bench%22%2Cd%3D4004%2Cmtp%3D25400%2Cot%3Dv%2Csf%3Dd%2Csid%3D%22{}%22"


@dataclass(frozen=True)
class Case:
    """A size of segments, asked for plainly, or as a browser does: twelve header fields more, CMCD in the query."""

    bytes: int
    browser: bool = False

    @property
    def name(self) -> str:
        """For people."""
        size = f"{self.bytes >> 20} MiB" if self.bytes >= 1 << 20 else f"{self.bytes >> 10} KiB"
        return f"{size}, browser" if self.browser else size


CASES = tuple(Case(size, browser) for browser in (False, True) for size in _COUNTS)


def _case(
    case: Case,
    servers: Sequence[Served],
    content: rivals.Content,
    rounds: int,
    seconds: float,
    home: Path,
    step: Callable[[str], None],
    client: Client,
) -> dict[str, Any]:
    """All servers in turn, `rounds` times; medians, and the ratios of ours to each rival's round by round."""
    paths = {
        name: [path + _CMCD.format(f"{count:08x}") if case.browser else path for count, path in enumerate(of)]
        for name, of in (("ours", content.paths(case.bytes)), ("plain", content.plain_paths(case.bytes)))
    }

    def ask(server: Served, lasting: float) -> Run:
        of = paths["ours" if server.name == "oca" else "plain"]
        return load.measure(server, of, lasting, 1, home, browser=case.browser, client=client)

    for _ in range(_MOST_WARMING):
        for server in servers:
            step(f"{case.name}: {server.name} brings it into memory")
            ask(server, 1.0)
        if content.in_memory(case.bytes):
            break
    else:
        raise FleetError("the content does not stay in memory: have 500 MB of it free")
    runs: dict[str, list[Run]] = {server.name: [] for server in servers}
    for number in range(rounds):
        for server in servers:
            step(f"{case.name}: {server.name} {number + 1}/{rounds}")
            runs[server.name].append(ask(server, seconds))
    found: dict[str, Any] = {"bytes": case.bytes, "browser": case.browser}
    for name, of in runs.items():
        fields = Run.__dataclass_fields__
        found[name] = {field: round(statistics.median(getattr(run, field) for run in of), 4) for field in fields}
        for field in ("machine_cpu_s_per_gb", "gb_per_s"):
            values = [getattr(run, field) for run in of]
            found[name][f"{field}_spread"] = [round(min(values), 4), round(max(values), 4)]
    ours, theirs = runs["oca"], runs["nginx"]
    cpu = [a.machine_cpu_s_per_gb / b.machine_cpu_s_per_gb for a, b in zip(ours, theirs, strict=True)]
    speed = [a.gb_per_s / b.gb_per_s for a, b in zip(ours, theirs, strict=True)]
    found["ratio_cpu"] = round(statistics.median(cpu), 4)
    found["ratio_throughput"] = round(statistics.median(speed), 4)
    if "floor" in runs:
        for name, of in (("oca", ours), ("nginx", theirs)):
            bare = [run.machine_cpu_s_per_gb for run in runs["floor"]]
            distance = [a.machine_cpu_s_per_gb / b for a, b in zip(of, bare, strict=True)]
            found[f"{name}_cpu_to_floor"] = round(statistics.median(distance), 4)
    found["spread"] = [round(value, 4) for value in (min(cpu), max(cpu), min(speed), max(speed))]
    return found


def run(
    rounds: int,
    seconds: float,
    step: Callable[[str], None],
    *,
    secure: bool = False,
    client: Client = "reader",
    written: bool = False,
) -> dict[str, Any]:
    """The whole comparison; needs two processors, one for the server and one for the client.

    `secure`: over TLS, with the same cipher for all; there is no bare loop in C to compare with then. `written`: what
    is served has not been read from a disk, but is in memory as writing it left it.
    """
    started = time.time()
    reading = blocks.reading(Path(tempfile.gettempdir()).stat().st_dev)
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
        home = Path(folder)
        content = rivals.make_content(home, _COUNTS)
        if not written:
            content.forget()
        ports = free_ports("127.0.0.1", 0)
        tls = rivals.Tls.make(home) if secure else None
        cases: list[dict[str, Any]] = []
        ciphers = set()
        for case in CASES:
            with contextlib.ExitStack() as stack:
                # Each is ended whatever becomes of the next.
                ours = rivals.oca(content, home, (next(ports), next(ports)), 0, tls=tls)
                stack.callback(ours.stop)
                theirs = rivals.nginx(content, home, next(ports), 0, tls=tls)
                stack.callback(theirs.stop)
                servers = [ours, theirs]
                if tls is None:
                    servers.append(rivals.floor(content, home, next(ports), 0, case.bytes))
                    stack.callback(servers[-1].stop)
                else:
                    ciphers |= {tls.cipher(server.port) for server in servers}
                    if len(ciphers) > 1:
                        raise FleetError(f"the servers chose different ciphers: {', '.join(sorted(ciphers))}")
                cases.append(_case(case, servers, content, rounds, seconds, home, step, client))
    found = {
        "runs": rounds,
        "client": "wrk" if secure else client,
        "congestion_control": _CONGESTION.read_text().strip(),
        "content": "written" if written else "read",
        "memory": reading.reach.memory,
        "not_in_blocks": reading.why,
        "seconds": round(time.time() - started, 1),
        "cases": cases,
    }
    return found | {"cipher": ciphers.pop()} if ciphers else found


def _named(case: dict[str, Any]) -> str:
    return Case(case["bytes"], case["browser"]).name


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures of `run` to plot."""
    named = (("machine_cpu_s_per_gb", "processor seconds of the machine per GB"), ("gb_per_s", "GB/s, one worker"))
    return [
        Panel(
            title,
            [
                Bar(
                    Case(case["bytes"], case["browser"]).name, name, case[name][field], *case[name][f"{field}_spread"]
                )
                for case in found["cases"]
                for name in ("oca", "nginx", "floor")
                if name in case
            ],
        )
        for field, title in named
    ]
