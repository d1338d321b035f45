"""Full TLS handshakes, beside nginx: how many a second of processor time pays for."""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import rivals
from bench.fleet import FleetError, free_ports
from bench.plot import Bar, Panel
from bench.rivals import Served

_SIZE = 64 << 10
_VERSIONS = {"TLSv1.3": "-tls1_3", "TLSv1.2": "-tls1_2"}


@dataclass(frozen=True)
class Run:
    """Handshakes for each second of the server's processor time, and for each second that passed."""

    per_cpu_s: float
    per_s: float


def measure(server: Served, seconds: int, flag: str) -> Run:
    """Let `openssl s_time` connect anew for so many seconds, without resuming; FleetError if it cannot."""
    openssl = shutil.which("openssl")
    if openssl is None:
        raise FleetError("openssl is missing: install it with `apt-get install openssl`")
    load = ["s_time", "-connect", f"localhost:{server.port}", "-new", "-time", str(seconds), flag]
    before, began = server.busy_s(), time.monotonic()
    done = subprocess.run(["taskset", "-c", "1", openssl, *load], capture_output=True, text=True, check=False)
    passed, busy = time.monotonic() - began, server.busy_s() - before
    found = re.search(r"^([0-9]+) connections in [0-9]+ real seconds", done.stdout, re.M)
    if done.returncode or found is None or not int(found[1]):
        raise FleetError(f"openssl s_time failed against {server.name}: {done.stderr.strip() or done.stdout.strip()}")
    return Run(int(found[1]) / busy, int(found[1]) / passed)


def run(rounds: int, seconds: float, step: Callable[[str], None]) -> dict[str, Any]:
    """Both in turn, `rounds` times, with one certificate (ECDSA with P-256), one processor for each side."""
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        content, tls, ports = rivals.make_content(home, {_SIZE: 1}), rivals.Tls.make(home), free_ports("127.0.0.1", 0)
        servers = [rivals.oca(content, home, (next(ports), next(ports)), 0, tls=tls)]
        stack.callback(servers[0].stop)
        servers.append(rivals.nginx(content, home, next(ports), 0, tls=tls))
        stack.callback(servers[1].stop)
        versions: dict[str, Any] = {}
        for version, flag in _VERSIONS.items():
            runs: dict[str, list[Run]] = {server.name: [] for server in servers}
            for number in range(-1, rounds):  # the first round only warms up
                for server in servers:
                    step(f"{version}: {server.name} {max(number, 0) + 1}/{rounds}")
                    found = measure(server, max(1, round(seconds)) if number >= 0 else 1, flag)
                    if number >= 0:
                        runs[server.name].append(found)
            versions[version] = _compare(runs)
    return {"runs": rounds, **versions["TLSv1.3"], "TLSv1.2": versions["TLSv1.2"]}


def _compare(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians, and the ratios of ours to nginx's round by round."""
    ratios = [a.per_cpu_s / b.per_cpu_s for a, b in zip(runs["oca"], runs["nginx"], strict=True)]
    found = {
        f"{name}_{field}": round(statistics.median(getattr(run, field) for run in of), 1)
        for name, of in runs.items()
        for field in Run.__dataclass_fields__
    }
    spread = [round(min(ratios), 4), round(max(ratios), 4)]
    return {**found, "ratio": round(statistics.median(ratios), 4), "spread": spread}


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures of `run` to plot."""
    return [
        Panel(
            "full handshakes per second of the server's processor",
            [
                Bar(version, name, of[f"{name}_per_cpu_s"], of[f"{name}_per_cpu_s"], of[f"{name}_per_cpu_s"])
                for version, of in (("TLSv1.3", found), ("TLSv1.2", found["TLSv1.2"]))
                for name in ("oca", "nginx")
            ],
        )
    ]
