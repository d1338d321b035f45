"""Load on a server: requests over some connections for some seconds, and what they cost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.compiler import compiled
from bench.fleet import FleetError
from bench.processor import machine_busy_s
from bench.rivals import Served

_CONNECTIONS = 32
# What a run may be prolonged to where nothing came.
_LONGEST_S = 30.0

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


Client = Literal["reader", "wrk"]
"""Who asks: `reader` (reader.c) costs less, so that the server is the limit; wrk knows TLS, and is everybody's."""


class NothingCameError(FleetError):
    """A server did not answer a single request, and refused none."""


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
    client: Client = "reader",
    pause_s: float = 0.0,
) -> Run:
    """Ask for `paths` in turn for `seconds`, maybe with a browser's fields; FleetError if one request failed.

    Every connection of the reader rests for `pause_s` or a little longer after each answer. `cpu` is where the
    client runs; over TLS it is wrk in any case. If nothing came it is done again for twice as long: thirty handshakes
    may take more than a second on a busy machine, and what waits for a disk more than that.
    """
    while True:
        try:
            return _measure(server, paths, seconds, cpu, home, connections, threads, browser, client, pause_s)
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
    client: Client,
    pause_s: float,
) -> Run:
    fields = _BROWSER if browser else {}
    if server.base.startswith("https:"):
        client = "wrk"
    if client == "wrk":
        command = [*_wrk(paths, fields, home), f"-t{threads}", f"-c{connections}", f"-d{seconds:g}s", server.base]
    else:
        heads = _heads(server, paths, fields, home)
        command = [
            str(compiled("reader", home)),
            str(server.port),
            str(connections),
            str(threads),
            f"{seconds:g}",
            str(heads),
            str(round(pause_s * 1e6)),
        ]
    machine, own = machine_busy_s(), server.busy_s()
    done = subprocess.run(["taskset", "-c", str(cpu), *command], capture_output=True, text=True, check=False)
    machine, own = machine_busy_s() - machine, server.busy_s() - own
    last = re.search(r"^\{.*\}$", done.stdout, re.M)
    if done.returncode or last is None:
        raise FleetError(f"{client} failed against {server.name}: {done.stderr.strip() or done.stdout.strip()}")
    said = json.loads(last[0])
    if said["errors"]:
        words = done.stderr.strip() or done.stdout.strip()
        raise FleetError(f"{server.name} failed {said['errors']} requests of {client}: {words}")
    if not said["requests"]:
        raise NothingCameError(f"{server.name} answered nothing within {seconds:g} s")
    gigabytes = said["bytes"] / 1e9
    return Run(gigabytes / (said["us"] / 1e6), machine / gigabytes, own / gigabytes, said["p99"] / 1e3)


def _wrk(paths: Sequence[str], fields: Mapping[str, str], home: Path) -> list[str]:
    """The command, as far as it does not depend on the load."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise FleetError("wrk is missing: install it with `apt-get install wrk`")
    script = home / "paths.lua"
    headers = ",".join(f"[{json.dumps(name)}]={json.dumps(value)}" for name, value in fields.items())
    script.write_text(_LUA.format(paths=",".join(f'"{path}"' for path in paths), headers=headers))
    # A server that waits for a disk may take long, which is what is to be seen, and no failure.
    return [wrk, "--timeout", "30s", "-s", str(script)]


def _heads(server: Served, paths: Sequence[str], fields: Mapping[str, str], home: Path) -> Path:
    """A file of the heads of all requests, for the reader."""
    common = "".join(f"{name}: {value}\r\n" for name, value in {"Host": f"127.0.0.1:{server.port}", **fields}.items())
    heads = home / "heads"
    heads.write_text("".join(f"GET {path} HTTP/1.1\r\n{common}\r\n" for path in paths), newline="")
    return heads
