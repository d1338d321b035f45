"""Fills beside rclone and aria2, and what a fill costs those around it: uplink, viewers, the rate cap, a crash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import load, rivals
from bench.fleet import Box, Fleet, FleetError, free_ports, script
from bench.plot import Bar, Panel
from bench.processor import machine_busy_s
from fill.staging import StagedFile, staged
from oca.store.content import Store
from oca.title import model as title_format

RCLONE, ARIA2 = "rclone", "aria2"
RIVALS = (RCLONE, ARIA2)
# The quickest that rclone 1.60 and aria2 1.36 have and that would do.
_HASH = "sha1"
# What rclone calls streams of one file, aria2 its split, and we chunks in flight.
_STREAMS = 4
# The boxes of a site that hold what one more box fills from all of them at once.
_PEERS = 3
_SEGMENT = 2 << 20
_SITE, _TRACKS, _TRACK_BYTES = 4, 40, 8 << 20
_CAP_MBPS = 400.0
_PATIENCE_S = 20.0
# How long a viewer who pauses does so after each segment.
_PAUSE_S = 0.001
Step = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """An origin that holds one title, the fleet around it, and the title's version."""

    fleet: Fleet
    box: Box
    version: str

    @property
    def media(self) -> Path:
        """The track of a title that has one."""
        return self.box.store / "bench" / self.version / f"s{_SEGMENT}.mp4"

    @property
    def chunk_bytes(self) -> int:
        """Length of a chunk of the title."""
        return title_format.read(self.media.parent)[0].chunk_bytes

    def sent_bytes(self) -> int:
        """Bytes of answers since it started."""
        with urllib.request.urlopen(f"{self.box.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return sum(map(int, re.findall(r"^oca_sent_bytes_total\{.*\} (\d+)$", text, re.M)))

    def settled(self) -> int:
        """The same once it has stopped changing: it lags behind by a second or two."""
        found = -1
        while found != (found := self.sent_bytes()):
            time.sleep(1.2)
        return found

    def tick(self) -> tuple[int, float]:
        """The same when it has just changed, and when that was: it is told once a second or so. FleetError."""
        first, deadline = self.sent_bytes(), time.monotonic() + _PATIENCE_S
        while (now := self.sent_bytes()) == first:
            if time.monotonic() > deadline:
                raise FleetError("the origin sends nothing any more")
            time.sleep(0.005)
        return now, time.monotonic()


@dataclass(frozen=True)
class Copy:
    """How a rival makes its copy, and in which directory."""

    make: Callable[[], None]
    place: Path


def run(megabytes: int, rounds: int, seconds: float, step: Step, names: Sequence[str] = RIVALS) -> dict[str, Any]:
    """All figures beside the rivals of these names; what it costs others comes with rclone.

    `seconds` is for how long the rate cap and the viewers are watched. FleetError, OcaError.
    """
    tools = {name: _tool(name) for name in names}
    found: dict[str, Any] = {}
    counts = {_SEGMENT: max(16, (megabytes << 20) // _SEGMENT)}
    with tempfile.TemporaryDirectory(prefix="oca-bench-") as folder:
        home = Path(folder)
        if RCLONE in tools:
            with Fleet(home / "one") as fleet:
                origin, (edge,) = _origin(fleet, counts)
                found |= _beside(edge, origin.media, rounds, step, _rclone(tools[RCLONE], origin, home))
                step("killed and started again")
                found |= _crash(origin, edge)
                step("rate cap")
                found |= _cap(origin, edge, seconds)
                found |= _viewers(origin, edge, seconds, home, rounds, step)
            shutil.rmtree(home / "one")
            with Fleet(home / "site") as fleet:
                step("a site's uplink")
                found |= _uplink(fleet, megabytes)
            shutil.rmtree(home / "site")
        if ARIA2 in tools:
            with Fleet(home / "peers") as fleet:
                origin, (edge, *peers) = _origin(fleet, counts, 1 + _PEERS)
                _hand_out(origin, peers)
                beside = _beside(edge, origin.media, rounds, step, _aria2(tools[ARIA2], origin, peers, home))
                found |= {f"{ARIA2}_{key}": value for key, value in beside.items()}
    return found


def _tool(name: str) -> str:
    """Where a rival is; FleetError if it is not here."""
    path = shutil.which("aria2c" if name == ARIA2 else name)
    if path is None:
        raise FleetError(f"{name} is missing: install it with `apt-get install {name}`")
    return path


def panels(found: dict[str, Any]) -> list[Panel]:
    """The figures as bars."""
    cases = {RCLONE: "", ARIA2: f"{ARIA2}_"}
    return [
        Panel(
            unit,
            [
                Bar(case, name, *[found[f"{prefix}{who}_{key}"]] * 3)
                for rival, prefix in cases.items()
                if f"{prefix}{key}_ratio" in found
                for case in ("one origin" if rival == RCLONE else f"{_PEERS} peers",)
                for name, who in (("oca", "oca"), (rival, "rival"))
            ],
        )
        for unit, key in (("seconds", "wall"), ("machine CPU-s/GB", "cpu"))
    ]


def _origin(fleet: Fleet, counts: dict[int, int], boxes: int = 1) -> tuple[Origin, list[Box]]:
    """A controller, an origin with random bytes in segments of these sizes, boxes of one site that want it all."""
    fleet.start_controller()
    box = fleet.add("origin", "hq", "origin")
    content = rivals.make_content(box.store.parent, counts)
    shutil.rmtree(content.files)
    fleet.start("origin")
    edges = [fleet.add(f"edge-{number}", "south", storage_bytes=1 << 40) for number in range(boxes)]
    for edge in edges:
        with edge.settings.open("a") as settings:
            settings.write(f"rate_mbps = 1000000\nparallel = {_STREAMS}\n")
    coverage, demand = fleet.directory / "coverage.json", fleet.directory / "demand.csv"
    coverage.write_text(json.dumps({"coverageZones": {"south": {"network": ["0.0.0.0/0"]}}}))
    hour = time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime(time.time() - 3600))
    demand.write_text(f"time,region,title,views\n{hour},south,bench,1000\n")
    fleet.ocactl("coverage", "set", str(coverage))
    fleet.ocactl("title", "add", str(content.store / "bench"))
    fleet.ocactl("demand", "import", str(demand))
    fleet.wait_for("the origin's inventory", lambda: fleet.ocactl("title", "show", "bench")["holders"])
    fleet.ocactl("plan", "make")
    return Origin(fleet, box, content.url.rpartition("/")[2]), edges


def _hand_out(origin: Origin, peers: Sequence[Box]) -> None:
    """Have `peers` hold what the origin holds, and wait until the controller knows."""
    for peer in peers:
        # The same files under other names: what is measured is how they are sent, and they need no more room.
        shutil.copytree(origin.box.store / "bench", peer.store / "bench", copy_function=os.link)
    origin.fleet.start(*(peer.id for peer in peers))
    wanted = {origin.box.id, *(peer.id for peer in peers)}
    origin.fleet.wait_for(
        "the peers' inventory",
        lambda: {row["appliance"] for row in origin.fleet.ocactl("title", "show", "bench")["holders"]} == wanted,
    )


def _rclone(tool: str, origin: Origin, home: Path) -> Copy:
    """A copy of the origin's track over several streams of HTTP, then checked."""
    name, place = origin.media.name, home / "copied"
    sums, listed = home / "sums", home / "names"
    sums.write_text(f"{_digest(origin.media)}  {name}\n")
    listed.write_text(f"{name}\n")

    def copy() -> None:
        url = f"{origin.box.url}/t/bench/{origin.version}/"
        streams = ("--multi-thread-streams", _STREAMS, "--multi-thread-cutoff", "10M")
        _run(tool, "copy", "--http-url", url, ":http:", place, "--files-from-raw", listed, "--no-traverse", *streams)
        _run(tool, "checksum", _HASH, sums, place)

    return Copy(copy, place)


def _aria2(tool: str, origin: Origin, peers: Sequence[Box], home: Path) -> Copy:
    """One download of the track from all peers at once, its checksum on."""
    name, place = origin.media.name, home / "downloaded"
    urls = [f"{peer.url}/t/bench/{origin.version}/{name}" for peer in peers]
    options = [f"--split={_STREAMS}", f"--max-connection-per-server={_STREAMS}"]
    options.append(f"--min-split-size={origin.chunk_bytes}")
    # Its default writes zeros over all of the file first.
    options += ["--file-allocation=falloc", f"--checksum=sha-1={_digest(origin.media)}", "--no-conf", "--quiet"]
    return Copy(lambda: _run(tool, f"--dir={place}", *options, *urls), place)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _HASH).hexdigest()


def _beside(edge: Box, media: Path, rounds: int, step: Step, rival: Copy) -> dict[str, Any]:
    """One track to a cold place: our agent to a box, a rival to a directory, in turn."""
    gigabytes = media.stat().st_size / 1e9
    took: dict[str, list[float]] = {"oca": [], "rival": []}
    cost: dict[str, list[float]] = {"oca": [], "rival": []}
    for number in range(rounds):
        for who in took if number % 2 else reversed(took):
            step(f"{who}, round {number + 1} of {rounds}")
            shutil.rmtree(edge.store, ignore_errors=True)
            shutil.rmtree(rival.place, ignore_errors=True)
            os.sync()
            began, busy = time.monotonic(), machine_busy_s()
            if who == "oca":
                _run(script("oca-fill"), "run", "--now", "--once", "--config", edge.settings)
            else:
                rival.make()
            took[who].append(time.monotonic() - began)
            cost[who].append((machine_busy_s() - busy) / gigabytes)
    shutil.rmtree(rival.place, ignore_errors=True)
    found: dict[str, Any] = {"bytes": media.stat().st_size}
    for key, values in (("wall", took), ("cpu", cost)):
        ratios = [ours / theirs for ours, theirs in zip(values["oca"], values["rival"], strict=True)]
        found[f"{key}_ratio"] = round(statistics.median(ratios), 4)
        found[f"{key}_spread"] = [round(min(ratios), 4), round(max(ratios), 4)]
        for who in values:
            found[f"{who}_{key}"] = round(statistics.median(values[who]), 3)
    return found


def _crash(origin: Origin, edge: Box) -> dict[str, Any]:
    """Kill the agent amid a fill, start it again: how many chunks came twice, of how many that were in flight."""
    shutil.rmtree(edge.store, ignore_errors=True)
    before, size = origin.settled(), origin.media.stat().st_size
    filling = subprocess.Popen(
        [script("oca-fill"), "run", "--now", "--once", "--config", str(edge.settings)], stderr=subprocess.DEVNULL
    )
    part, store = random.uniform(0.2, 0.8), Store([edge.store])
    while not any(row.chunks > part * row.of > 0 for row in _staged(store)) and filling.poll() is None:
        time.sleep(0.002)
    filling.send_signal(signal.SIGKILL)
    filling.wait()
    _run(script("oca-fill"), "run", "--now", "--once", "--config", edge.settings)
    # What was on its way when it was killed was sent, and is sent again.
    twice = max(0, origin.settled() - before - size)
    return {"refetched_chunks": round(twice / origin.chunk_bytes, 2), "connections": _STREAMS}


def _staged(store: Store) -> list[StagedFile]:
    try:
        return staged(store)
    except OSError:
        return []  # it is just being made


def _cap(origin: Origin, edge: Box, seconds: float) -> dict[str, Any]:
    """Fill below a rate: by how much, as a fraction, the rate is missed, after a moment to begin."""
    shutil.rmtree(edge.store, ignore_errors=True)
    size = origin.media.stat().st_size
    # A rate at which the track lasts for as long as it is looked at, and a while before and after.
    cap = min(_CAP_MBPS, 8e-6 * size / (seconds + 10))
    capped = edge.settings.with_name("capped.toml")
    capped.write_text(edge.settings.read_text().replace("rate_mbps = 1000000", f"rate_mbps = {cap}"))
    filling = subprocess.Popen(
        [script("oca-fill"), "run", "--now", "--config", str(capped)], stderr=subprocess.DEVNULL
    )
    try:
        # Its first chunks come at once.
        origin.tick()
        origin.tick()
        before, began = origin.tick()
        time.sleep(seconds)
        after, ended = origin.tick()
    finally:
        filling.terminate()
        filling.wait()
    return {"cap_mbps": round(cap, 1), "cap_error": round(8e-6 * (after - before) / (ended - began) / cap - 1, 4)}


def _uplink(fleet: Fleet, megabytes: int) -> dict[str, Any]:
    """A site of appliances that all want the same tracks: bytes from outside it, per byte of the tracks."""
    each = min(_TRACK_BYTES, (megabytes << 20) // _TRACKS)
    sizes = {each // 4 + 4096 * number: 4 for number in range(_TRACKS)}
    origin, edges = _origin(fleet, sizes, _SITE)
    fleet.start(*(edge.id for edge in edges))
    wanted = sum(path.stat().st_size for path in (origin.box.store / "bench" / origin.version).iterdir())
    before = origin.settled()
    fleet.ocactl("fill", "run", "--now", "--wait")
    return {"uplink_factor": round((origin.settled() - before) / wanted, 4), "site": _SITE, "tracks": _TRACKS}


def _viewers(origin: Origin, edge: Box, seconds: float, home: Path, rounds: int, step: Step) -> dict[str, Any]:
    """Viewers of a box that holds something hot: their p99 during a fill, to that without, and how fast it goes.

    Those who never pause take all that the processors have, and the fill gives way to them; beside those who pause
    it goes at full speed, or nearly.
    """
    hot = rivals.make_content(home / "hot", {64 << 10: 512})
    free = free_ports("127.0.0.1", 0)
    ports = (next(free), next(free))
    server = rivals.oca(hot, home / "hot", ports, "0-63")
    found: dict[str, Any] = {}
    try:
        for kind, pause_s in (("viewer", 0.0), ("pausing_viewer", _PAUSE_S)):
            ratios, rates = [], []
            for number in range(rounds):
                step(f"{kind.replace('_', ' ')}s, round {number + 1} of {rounds}")

                def watch(pause_s: float = pause_s) -> float:
                    """The 99th percentile of their requests, in milliseconds."""
                    paths, length = hot.paths(64 << 10), max(1, seconds / 10)
                    return load.measure(server, paths, length, "0-63", home, connections=16, pause_s=pause_s).p99_ms

                alone = watch()
                with _filling(origin, edge) as come:
                    before, began = come(), time.monotonic()
                    ratios.append(watch() / alone)
                    rates.append((come() - before) / 1e6 / (time.monotonic() - began))
            found[f"{kind}_p99_ratio"] = round(statistics.median(ratios), 3)
            found[f"{kind}_p99_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
            found[f"{kind}_fill_mb_per_s"] = round(statistics.median(rates), 1)
    finally:
        server.stop()
    return found


@contextlib.contextmanager
def _filling(origin: Origin, edge: Box) -> Iterator[Callable[[], int]]:
    """A fill that goes on, with its first chunk there: a function that tells the bytes that have come so far."""
    shutil.rmtree(edge.store, ignore_errors=True)
    store, size = Store([edge.store]), origin.media.stat().st_size
    filling = subprocess.Popen(
        [script("oca-fill"), "run", "--now", "--once", "--config", str(edge.settings)], stderr=subprocess.DEVNULL
    )

    last = 0

    def come() -> int:
        nonlocal last
        if filling.poll():
            raise FleetError(f"the fill failed: {filling.returncode}")
        rows = [row.chunks * chunk for row in _staged(store) if row.name == origin.media.name]
        # Between its last chunk and its end a file is nowhere to be seen.
        last = size if filling.returncode == 0 else max(last, *rows, 0)
        return last

    try:
        chunk = origin.chunk_bytes
        while not come() and filling.poll() is None:
            time.sleep(0.01)
        yield come
    finally:
        filling.terminate()
        filling.wait()


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise FleetError(f"{Path(str(command[0])).name} {command[1]} failed: {said}")
