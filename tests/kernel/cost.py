"""Processor time of the machine per GB over TLS: our server beside nginx, and who encrypts; runs in the machine."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

from bench import load, rivals
from bench.fleet import FleetError, free_ports
from bench.rivals import Content, Served, Tls
from tests.kernel.tls_stat import taken_over

COUNTS = {64 << 10: 256, 2 << 20: 16}
ROUNDS, SECONDS = 3, 8.0
# So few that their handshakes are nothing beside what is sent, even emulated.
CONNECTIONS = 4


def compare() -> None:
    """Print medians and the ratio to nginx, round by round; emulated, only the ratios mean anything."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home, ports = Path(folder), free_ports("127.0.0.1", 0)
        content, tls = rivals.make_content(home, COUNTS), Tls.make(home)
        servers: dict[str, Served] = {}
        for name, kernel in (("oca, kernel", True), ("oca, itself", False)):
            (home / name).mkdir()
            servers[name] = rivals.oca(content, home / name, (next(ports), next(ports)), 0, tls=tls, kernel=kernel)
            stack.callback(servers[name].stop)
        servers["nginx, kernel"] = rivals.nginx(content, home, next(ports), 0, tls=tls)
        stack.callback(servers["nginx, kernel"].stop)
        ciphers = {tls.cipher(server.port) for server in servers.values()}
        if len(ciphers) > 1:
            raise FleetError(f"the servers chose different ciphers: {', '.join(sorted(ciphers))}")
        if "TCG" in Path("/proc/cpuinfo").read_text("utf-8"):
            print("emulated: only ratios mean anything, and those only where the spread is small")
        print(f"{ciphers.pop()}; processor seconds of the machine per GB, medians of {ROUNDS} runs of {SECONDS:g} s")
        for size in COUNTS:
            _size(size, servers, content, home)


def _size(size: int, servers: dict[str, Served], content: Content, home: Path) -> None:
    found: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(-1, ROUNDS):  # the first round only warms up
        for name, server in servers.items():
            paths = content.plain_paths(size) if name.startswith("nginx") else content.paths(size)
            before = taken_over()
            seconds = SECONDS if number >= 0 else SECONDS / 2
            cost = load.measure(server, paths, seconds, 1, home, CONNECTIONS).machine_cpu_s_per_gb
            if (taken_over() > before) is not name.endswith("kernel"):
                raise FleetError(f"{name}: whether the kernel encrypts is not as the name says")
            if number >= 0:
                found[name].append(cost)
            print(f"  {size >> 10} KiB, {name}, {number + 1}/{ROUNDS}: {cost:.3f}", file=sys.stderr)
    for name, costs in found.items():
        ratio = statistics.median(a / b for a, b in zip(costs, found["nginx, kernel"], strict=True))
        words = f"{min(costs):.3f} to {max(costs):.3f}"
        print(f"{size >> 10:5d} KiB  {name:14} {statistics.median(costs):.3f} ({words}), {ratio:.2f} of nginx's")
