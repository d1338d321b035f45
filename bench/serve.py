"""Our segment server beside its rivals: same content, same client, turn by turn, one processor for each side."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import rivals
from bench.fleet import FleetError, free_ports
from bench.plot import Bar, Panel
from bench.processor import machine_busy_s
from bench.rivals import Served

# Enough segments that no single one stays in a processor's cache, few enough that all stay in memory.
_COUNTS = {64 << 10: 512, 2 << 20: 48}
_CONNECTIONS = 32
# What a run may be prolonged to where nothing came.
_LONGEST_S = 30.0
# What a player sends with every segment (CTA-5004, query mode), different each time.
_CMCD = "?CMCD=bl%3D21300%2Cbr%3D3200%2Ccid%3D%22bench%22%2Cd%3D4004%2Cmtp%3D25400%2Cot%3Dv%2Csf%3Dd%2Csid%3D%22{}%22"

# What Chromium sends with a segment besides Host.
_BROWSER = {
    "Connection": "keep-alive",
    "sec-ch-ua-platform": '"Linux"',
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0",
    "sec-ch-ua": '"Chromium";v="156", "Not_A Brand";v="99"',
    "sec-ch-ua-mobile": "?0",
    "Accept": "*/*",
    "Origin": "https://player.example",
    "Sec-Fetch-Site": "cross-site",
    "Sec-Fetch-Mode": "cors",
    "Sec-Fetch-Dest": "empty",
    "Referer": "https://player.example/",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
}

_LUA = """
local paths = {{ {paths} }}
wrk.headers = {{ {headers} }}
local n = 0
request = function()
  n = n % #paths + 1
  return wrk.format("GET", paths[n])
end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{{"bytes":%d,"requests":%d,"us":%d,"p50":%d,"p99":%d,"errors":%d}}\\n', summary.bytes,
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class NothingCameError(FleetError):
    """A server did not answer a single request, and refused none."""


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


@dataclass(frozen=True)
class Run:
    """One run against one server: gigabytes a second, processor seconds per gigabyte, milliseconds."""

    gb_per_s: float
    machine_cpu_s_per_gb: float
    server_cpu_s_per_gb: float
    p99_ms: float


def measure(
    server: Served,
    paths: Sequence[str],
    seconds: float,
    cpu: int | str,
    home: Path,
    connections: int = _CONNECTIONS,
    threads: int = 1,
    browser: bool = False,
) -> Run:
    """Let wrk ask for `paths` in turn for `seconds`, maybe with a browser's fields; FleetError if one failed.

    If nothing came it is done again for twice as long: thirty handshakes may take more than a second on a busy
    machine, and what waits for a disk more than that.
    """
    while True:
        try:
            return _measure(server, paths, seconds, cpu, home, connections, threads, browser)
        except NothingCameError:
            if seconds > _LONGEST_S:
                raise
            seconds *= 2


def _measure(
    server: Served,
    paths: Sequence[str],
    seconds: float,
    cpu: int | str,
    home: Path,
    connections: int,
    threads: int,
    browser: bool,
) -> Run:
    wrk = shutil.which("wrk")
    if wrk is None:
        raise FleetError("wrk is missing: install it with `apt-get install wrk`")
    script = home / "paths.lua"
    fields = _BROWSER.items() if browser else ()
    headers = ",".join(f"[{json.dumps(name)}]={json.dumps(value)}" for name, value in fields)
    script.write_text(_LUA.format(paths=",".join(f'"{path}"' for path in paths), headers=headers))
    # A server that waits for a disk may take long, which is what is to be seen, and no failure.
    load = [f"-t{threads}", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "30s", "-s", str(script)]
    command = ["taskset", "-c", str(cpu), wrk, *load]
    machine, own = machine_busy_s(), server.busy_s()
    done = subprocess.run([*command, server.base], capture_output=True, text=True, check=False)
    machine, own = machine_busy_s() - machine, server.busy_s() - own
    last = re.search(r"^\{.*\}$", done.stdout, re.M)
    if done.returncode or last is None:
        raise FleetError(f"wrk failed against {server.name}: {done.stderr.strip() or done.stdout.strip()}")
    said = json.loads(last[0])
    if not said["errors"] and not said["bytes"]:
        raise NothingCameError(f"{server.name} answered nothing within {seconds:g} s")
    if said["errors"]:
        raise FleetError(f"{server.name} failed {said['errors']} requests of wrk: {done.stdout.strip()}")
    gigabytes = said["bytes"] / 1e9
    return Run(gigabytes / (said["us"] / 1e6), machine / gigabytes, own / gigabytes, said["p99"] / 1e3)


def _case(
    case: Case,
    servers: Sequence[Served],
    content: rivals.Content,
    rounds: int,
    seconds: float,
    home: Path,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """All servers in turn, `rounds` times; medians, and the ratios of ours to each rival's round by round."""
    runs: dict[str, list[Run]] = {server.name: [] for server in servers}
    for number in range(-1, rounds):  # the first round only warms up
        for server in servers:
            plain = server.name != "oca"
            paths = content.plain_paths(case.bytes) if plain else content.paths(case.bytes)
            if case.browser:
                paths = [path + _CMCD.format(f"{count:08x}") for count, path in enumerate(paths)]
            step(f"{case.name}: {server.name} {max(number, 0) + 1}/{rounds}")
            run = measure(server, paths, seconds if number >= 0 else 1.0, 1, home, browser=case.browser)
            if number >= 0:
                runs[server.name].append(run)
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


def run(rounds: int, seconds: float, step: Callable[[str], None], *, secure: bool = False) -> dict[str, Any]:
    """The whole comparison; needs two processors, one for the server and one for the client.

    `secure`: over TLS, with the same cipher for all; there is no bare loop in C to compare with then.
    """
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
        home = Path(folder)
        content = rivals.make_content(home, _COUNTS)
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
                cases.append(_case(case, servers, content, rounds, seconds, home, step))
    found = {"runs": rounds, "seconds": round(time.time() - started, 1), "cases": cases}
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
