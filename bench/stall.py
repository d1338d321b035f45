"""What clients that never read cost a server: memory, and the time that requests of others take."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import load, rivals
from bench.fleet import FleetError, free_ports
from bench.plot import Bar, Panel
from bench.processor import descendants
from bench.rivals import Served

HOT_BYTES, BIG_BYTES = 64 << 10, 2 << 20
STALLED, IDLE = 2000, 10_000
_HOT_CONNECTIONS = 8
# What a stalled client takes into its own socket is not the server's; a small buffer stalls it at once.
_RECEIVE_BUFFER = 4096
_SETTLE_S = 2.0
# Clients of one process; connections of one address pair are limited by its ports.
_PER_ADDRESS = 5000


def hold(port: int, path: str, count: int) -> None:
    """Open `count` connections, ask on each for `path` unless it is "", read nothing; until standard input ends."""
    _allow_descriptors(count + 64)
    held = []
    for number in range(count):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        sock.bind((f"127.0.0.{2 + number // _PER_ADDRESS}", 0))
        sock.connect(("127.0.0.1", port))
        if path:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: stall\r\n\r\n".encode())
        held.append(sock)
    sys.stdout.write("held\n")
    sys.stdout.flush()
    sys.stdin.read()


def run(
    rounds: int, seconds: float, step: Callable[[str], None], stalled: int = STALLED, idle: int = IDLE
) -> dict[str, Any]:
    """Hot requests alone, beside `stalled` readers, and beside these and `idle` connections."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oca-bench-")))
        step("writing content")
        content = rivals.make_content(home, {HOT_BYTES: 256, BIG_BYTES: 8})
        ports = free_ports("127.0.0.1", 0)
        limits = f"grace_s = 600\nidle_s = 600\nconnections = {stalled + idle + 1000}"

        def fresh() -> Served:
            return rivals.oca(content, home, (next(ports), next(ports)), 0, limits=limits)

        step("memory")
        memory = _weigh(fresh(), content.paths(BIG_BYTES)[0], stalled, idle)
        server = fresh()
        stack.callback(server.stop)
        paths = content.paths(HOT_BYTES)

        def hot(words: str) -> list[float]:
            times = []
            for number in range(rounds):
                step(f"{words}: {number + 1}/{rounds}")
                found = load.measure(server, paths, seconds, 1, home, connections=_HOT_CONNECTIONS)
                times.append(found.p99_ms)
            return times

        load.measure(server, paths, 1.0, 1, home, connections=_HOT_CONNECTIONS)
        alone = hot("alone")
        step(f"{stalled} stalled readers")
        stack.callback(_close, readers := _holders(server.port, content.paths(BIG_BYTES)[0], stalled))
        beside = hot(f"beside {stalled} stalled readers")
        step(f"{idle} idle connections")
        stack.callback(_close, idlers := _holders(server.port, "", idle))
        crowded = hot(f"beside {stalled} stalled readers and {idle} idle connections")
        for holder in (readers, idlers):
            if holder.poll() is not None:
                raise FleetError("the connections that were to stall have ended")
    return {
        "stalled": stalled,
        "idle": idle,
        "runs": rounds,
        **memory,
        "hot_p99_ms": round(statistics.median(alone), 3),
        "hot_p99_ms_beside_stalled": round(statistics.median(beside), 3),
        "hot_p99_ms_beside_stalled_and_idle": round(statistics.median(crowded), 3),
        "ratio": round(statistics.median(crowded) / statistics.median(alone), 3),
        "spread_ms": {"alone": _spread(alone), "stalled": _spread(beside), "stalled_and_idle": _spread(crowded)},
    }


def _weigh(server: Served, path: str, stalled: int, idle: int) -> dict[str, int]:
    """Bytes that each connection costs a server that has served nothing else, so that no freed memory hides it."""
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        stack.callback(_close, _holders(server.port, path, 1))
        before, kernel = _memory(server), _kernel_bytes()
        stack.callback(_close, _holders(server.port, path, stalled))
        during, waiting = _memory(server), _kernel_bytes()
        stack.callback(_close, _holders(server.port, "", idle))
        full = _memory(server)
    return {
        "process_bytes_per_stalled_reader": round((during - before) / stalled),
        "process_bytes_per_idle_connection": round((full - during) / idle),
        "kernel_bytes_per_stalled_reader": round((waiting - kernel) / stalled),
    }


def _holders(port: int, path: str, count: int) -> subprocess.Popen[str]:
    """A process that holds the connections; on return they are there and what they asked for is under way."""
    command = ["taskset", "-c", "1", sys.executable, "-m", "bench.stall", str(port), path, str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "held\n":
        process.kill()
        process.wait()
        raise FleetError(f"{count} connections could not be opened: the lines above say why")
    time.sleep(_SETTLE_S)
    return process


def _close(process: subprocess.Popen[str]) -> None:
    process.communicate("")


def _memory(server: Served) -> int:
    """Bytes of memory that the processes of a server have for themselves (their share of common pages included)."""
    total = 0
    for pid in descendants(server.pid):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def _kernel_bytes() -> int:
    """Bytes that the kernel uses for TCP, of all processes (/proc/net/sockstat, in pages)."""
    line = next(each for each in Path("/proc/net/sockstat").read_text().splitlines() if each.startswith("TCP:"))
    words = line.split()
    return int(words[words.index("mem") + 1]) * resource.getpagesize()


def _spread(times: list[float]) -> list[float]:
    return [round(min(times), 3), round(max(times), 3)]


def _allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count and os.geteuid() != 0:
        raise FleetError(f"{count} open files are needed and {hard} allowed: raise the hard limit (ulimit -Hn)")
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures of `run` to plot."""
    named = (
        ("alone", "alone", ""),
        ("stalled", "+ stalled", "_beside_stalled"),
        ("stalled_and_idle", "+ idle", "_beside_stalled_and_idle"),
    )
    times = [
        Bar(words, "oca", found[f"hot_p99_ms{key}"], *found["spread_ms"][spread]) for spread, words, key in named
    ]
    memory = [
        Bar(words, "oca", found[key] / 1024, found[key] / 1024, found[key] / 1024)
        for key, words in (
            ("process_bytes_per_stalled_reader", "stalled reader"),
            ("process_bytes_per_idle_connection", "idle connection"),
        )
    ]
    return [Panel("p99 of hot requests, ms", times), Panel("process memory, KiB", memory)]


if __name__ == "__main__":
    hold(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
