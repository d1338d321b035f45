"""The main job from end to end: package, register, plan, fill, steer, and watch, with the real programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from bench import viewing
from bench.fleet import READY_S, Fleet, FleetError, script
from bench.lifeline import tied
from bench.panel import Panel
from oca.errors import OcaError

PANEL = "127.0.1.99"
# The way from a viewer's address to a site. A browser on this machine comes from 127.0.0.1 and is in the north;
# `ocactl steer explain --client 127.0.2.7` shows what somebody in the south would get.
_COVERAGE = {
    "coverageZones": {
        "north": {
            "network": ["0.0.0.0/0"],
            "network6": ["::/0"],
            "coordinates": {"latitude": 59.33, "longitude": 18.07},
        },
        "south": {"network": ["127.0.2.0/24"], "coordinates": {"latitude": 41.90, "longitude": 12.50}},
    }
}
_BOXES = (("north-1", "north"), ("north-2", "north"), ("south-1", "south"))
_SECONDS = 60


def run(video: Path, directory: Path, *, once: bool, port: int, title: str) -> None:
    """Run the demo in `directory`, which is emptied first, until Ctrl-C. OcaError says what went wrong.

    With `once` it watches by itself and ends; the last line of standard output is one JSON object, whatever happens.
    """
    console = Console(stderr=True)
    if not once:
        with contextlib.suppress(KeyboardInterrupt):
            _run(video, directory, port, title, console)
        return
    try:
        report = _run(video, directory, port, title, console, once=True)
    except KeyboardInterrupt:
        _tell({"ok": False, "error": "interrupted"})
        raise OcaError("interrupted") from None
    except BaseException as error:
        _tell({"ok": False, "error": str(error) or type(error).__name__})
        raise
    _tell(report)


def _tell(report: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def _run(
    video: Path, directory: Path, port: int, title: str, console: Console, *, once: bool = False
) -> dict[str, object]:
    if not video.is_file():
        raise OcaError(f"there is no video at {video}: name a file that exists")
    # Asked to end in whichever way, nothing may be left running; a shell's background jobs do not even hear Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    _empty(directory)
    with Fleet(directory, port=port, wait_s=1.0) as fleet:
        try:
            bring_up(fleet, video, title, console)
            if once:
                return asyncio.run(_view(fleet, title, console))
            panel = Panel(fleet, tuple(box for box, _ in _BOXES), title, NAME, PANEL)
            _invite(fleet, panel, title, console)
            asyncio.run(panel.serve())
        except KeyboardInterrupt:
            console.print("\nEnding every process.")
            raise
    return {}


def _empty(directory: Path) -> None:
    """Only a directory that a demo made is ever emptied."""
    mark = directory / ".oca-demo"
    if directory.exists():
        if any(directory.iterdir()) and not mark.exists():
            raise OcaError(f"{directory} is not empty and not of an earlier demo: name another with --dir")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    mark.touch()


def bring_up(fleet: Fleet, video: Path, title: str, console: Console, seconds: int = _SECONDS) -> None:
    """From a video, looped to so many seconds, to a fleet whose every appliance holds it."""
    step = _Steps(console)
    step(f"Package {video.name} into a ladder (H.264, AAC, DASH and HLS), looped to {seconds} s")
    origin_store = fleet.directory / "origin" / "store"
    options = ("--out", str(origin_store), "--title", title, "--loop-to", str(seconds), *_FAST)
    _pack("build", str(video), *options)
    step("Start controller, origin and three appliances in two sites")
    fleet.start_controller()
    fleet.add("origin", "core", "origin")
    for box, site in _BOXES:
        fleet.add(box, site)
    fleet.start(*fleet.boxes)
    coverage = fleet.directory / "coverage.json"
    coverage.write_text(json.dumps(_COVERAGE))
    fleet.ocactl("coverage", "set", str(coverage))
    fleet.wait_for("the first heartbeats", lambda: all(box["alive"] for box in fleet.ocactl("appliance", "list")))
    fleet.ocactl("appliance", "list", show=True)
    step("Register the title")
    fleet.ocactl("title", "add", str(origin_store / title), show=True)
    step("Import a demand sample and solve tonight's placement")
    demand = fleet.directory / "demand.csv"
    demand.write_text(_demand_sample(title))
    fleet.ocactl("demand", "import", str(demand), show=True)
    fleet.ocactl("plan", "make", show=True)
    step("Fill the appliances, peers of a site from each other where they can")
    fleet.ocactl("fill", "run", "--now", "--wait", show=True)
    fleet.wait_for("reporting of what the appliances now hold", lambda: _all_hold(fleet, title))
    console.print(f"\nReady after {step.seconds:.0f} s.")


# A newcomer watches this: the fastest preset costs size and saves minutes on two cores; so does one audio track.
NAME = "Demo"
_FAST = ("--preset", "ultrafast", "--name", NAME, "--audio", "first", "--channels", "stereo")


class _Steps:
    """Numbered headings with the time that has passed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._count = 0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __call__(self, words: str) -> None:
        self._count += 1
        self._console.print(f"\n[bold]{self._count}. {words}[/bold] [dim]({self.seconds:.0f} s)[/dim]")


def _pack(*arguments: str) -> None:
    if subprocess.run(tied([script("oca-pack"), *arguments]), check=False).returncode:
        raise FleetError(f"oca-pack {arguments[0]} failed; its message is above")


def _demand_sample(title: str) -> str:
    """Three days of views, hour by hour: evenings are busy, the north watches three times as much."""
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=3)
    rows = ["time,region,title,views"]
    for hour in range(72):
        at = start + timedelta(hours=hour)
        busy = 10 if 18 <= at.hour <= 22 else 2
        for region, share in (("north", 3), ("south", 1)):
            rows.append(f"{at:%Y-%m-%dT%H:00:00Z},{region},{title},{busy * share}")
    return "\n".join(rows) + "\n"


def _all_hold(fleet: Fleet, title: str) -> bool:
    shown = fleet.ocactl("title", "show", title)
    holders = {holder["appliance"] for holder in shown["holders"] if holder["complete"]}
    return holders >= {box for box, _ in _BOXES} | {"origin"}


def _invite(fleet: Fleet, panel: Panel, title: str, console: Console) -> None:
    play = f"{fleet.controller}/play/{title}"
    for what, url in (
        ("Watch it", panel.url),
        ("DASH", f"{play}/manifest.mpd"),
        ("HLS", f"{play}/master.m3u8"),
        ("Page", play),
        ("Controller", fleet.controller),
    ):
        console.print(f"  {what:<11} [link={url}]{url}[/link]", highlight=False)
    console.print(
        f"  Try         ocactl --controller {fleet.controller} steer explain --client 127.0.2.7 --title {title}\n"
        f"  Logs        {fleet.directory}/logs\n\nCtrl-C ends every process.",
        highlight=False,
    )


async def _view(fleet: Fleet, title: str, console: Console) -> dict[str, object]:
    """Be the viewer: watch all of it, lose the appliance, watch all of it from the next one. Counted is the first."""
    async with viewing.session() as session:
        before = await viewing.steered(session, fleet.controller, title)
        first = await _watch(session, before, before.order, console)
        console.print(f"Killing {first.appliance} (kill -9); the controller learns it from missing heartbeats.")
        fleet.kill(first.appliance)
        died = time.monotonic()
        after = await viewing.moved_on(session, fleet.controller, title, first.appliance, READY_S)
        noticed = time.monotonic() - died
        console.print(f"Steering moved on to {after.first} after {noticed:.1f} s.")
        second = await _watch(session, after, after.order, console)
    return {
        "ok": True,
        "segments": first.segments,
        "bytes": first.bytes,
        "first": first.appliance,
        "after_failure": second.appliance,
        "noticed_s": round(noticed, 2),
    }


async def _watch(
    session: aiohttp.ClientSession, where: viewing.Steered, order: Sequence[str], console: Console
) -> viewing.Watched:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"every segment from {order[0]}", total=None)
        found = await viewing.watch(
            session, where.bases[order[0]], order[0], lambda count: progress.update(task, advance=count)
        )
        progress.update(task, total=found.bytes)
    return found
