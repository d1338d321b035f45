"""`oca-bench`: the demo and the load tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import cold as coldness
from bench import demo as demonstration
from bench import filling, ladders, scaling
from bench import handshake as handshakes
from bench import pack as packing
from bench import place as placing
from bench import plot as pictures
from bench import repackage as repackaging
from bench import serve as comparison
from bench import stall as stalling
from bench import viewers as simulation
from bench.ladders import CLIP
from bench.load import Client
from bench.viewers import Load
from oca.errors import OcaError, guarded
from packager.encode.encoders import PRESETS

app = typer.Typer(
    help="Run the whole system on one machine, load it, and compare it with others.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def demo(
    video: Annotated[Path, typer.Argument(help="The video to package and play.")],
    directory: Annotated[Path, typer.Option("--dir", help="Where the fleet keeps its files; emptied first.")] = Path(
        "demo"
    ),
    once: Annotated[
        bool, typer.Option("--once", help="Act as a viewer, lose an appliance, print one JSON object and end.")
    ] = False,
    port: Annotated[
        int,
        typer.Option(min=0, max=65000, help="The controller's port; those in use are passed over; 0 takes any."),
    ] = 8800,
    title: Annotated[str, typer.Option(help="Id of the title.")] = "demo",
) -> None:
    """Package VIDEO, place, fill and steer it over a fleet of real programs, then invite you to watch.

    Every program has a loopback address of its own, so only browsers on this machine can watch: the page 127.0.1.99,
    the controller 127.0.1.100, the origin 127.0.1.101, the appliances 127.0.1.102 and up.
    """
    demonstration.run(video, directory.resolve(), once=once, port=port, title=title)


_MEGABYTES = 400
Rounds = Annotated[int, typer.Option(min=1, help="Runs of each server, turn by turn.")]
Seconds = Annotated[float, typer.Option(min=1, help="Length of one run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the figures too, as FILE.svg or FILE.png.")]
Rival = Annotated[str, typer.Option(help="The server to compare with; nginx is the one there is.")]


@app.command()
def viewers(
    urls: Annotated[
        list[str], typer.Option("--url", help="URL of a title's manifest.mpd; repeat it, hottest first.")
    ],
    count: Annotated[int, typer.Option("--viewers", min=1, help="Players at the same time.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, help="How long they play.")] = 30.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same choices.")] = 1,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Let simulated players watch, and report throughput, stalls and quality of experience."""
    _plottable(plot)
    console = Console(stderr=True)
    columns, quiet = Progress.get_default_columns(), not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(f"{count} viewers", total=seconds)

        def show(load: Load, passed: float) -> None:
            progress.update(task, completed=passed, description=f"{count} viewers, {load.segments} segments")

        start = time.monotonic()
        load = uvloop.run(simulation.run(urls, count, seconds, seed=seed, progress=show))
    found = load.summary(time.monotonic() - start)
    if plot is not None:
        pictures.draw(load.panels(), f"{count} viewers", plot)
    _print(found, json, _pairs)
    # A load in which nobody could play is no measurement.
    raise typer.Exit(1 if load.fatal or not load.segments else 0)


@app.command()
def serve(
    rival: Rival = "nginx",
    rounds: Rounds = 9,
    seconds: Seconds = 4.0,
    workers: Annotated[
        str, typer.Option(help="Such as 1,2,4: how we grow with workers instead, on a machine with more processors.")
    ] = "",
    share: Annotated[
        float,
        typer.Option(
            min=0, max=100, help="With --workers: percent of a processor for each, where there are too few for all."
        ),
    ] = 0.0,
    tls: Annotated[bool, typer.Option("--tls", help="Over TLS, which leaves out the loop in C.")] = False,
    client: Annotated[
        Client, typer.Option(help="Who asks: our reader, the cheaper one, or wrk, which is always the one over TLS.")
    ] = "reader",
    written: Annotated[
        bool,
        typer.Option(
            "--written",
            help="Serve what is in memory as writing it left it, not what each server has read from the disk itself.",
        ),
    ] = False,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Serve segments beside nginx and a bare sendfile loop in C: processor time per gigabyte, gigabytes a second."""
    _only_nginx(rival)
    _plottable(plot)
    if workers and (tls or written):
        raise OcaError("--workers goes together with neither --tls nor --written: leave one out")
    if share and not workers:
        raise OcaError("--share is what each of --workers gets: give both")
    if workers:
        counts = _counts(workers)
        found = _run(lambda step: scaling.run(counts, rounds, seconds, step, share))
        panels, title, rows = scaling.panels(found), "Throughput by workers", _scaling_rows
    else:
        found = _run(lambda step: comparison.run(rounds, seconds, step, secure=tls, client=client, written=written))
        panels, title, rows = comparison.panels(found), "One worker on one processor", _serve_rows
    if plot is not None:
        pictures.draw(panels, title, plot)
    _print(found, json, rows)


@app.command()
def handshake(
    rival: Rival = "nginx", rounds: Rounds = 5, seconds: Seconds = 3.0, json: Json = False, plot: Plot = None
) -> None:
    """Shake hands anew again and again, beside nginx: TLS handshakes per second of processor time."""
    _only_nginx(rival)
    _plottable(plot)
    found = _run(lambda step: handshakes.run(rounds, seconds, step))
    if plot is not None:
        pictures.draw(handshakes.panels(found), "Full TLS handshakes, ECDSA with P-256", plot)
    _print(found, json, _pairs)


@app.command()
def cold(
    rival: Rival = "nginx",
    rounds: Rounds = 5,
    seconds: Seconds = 3.0,
    pause: Annotated[float, typer.Option(min=0, help="Milliseconds that hot clients rest after an answer.")] = 0.0,
    disk: Annotated[
        coldness.DiskKind | None,
        typer.Option(
            help="The disk for temporary files, throttled by the kernel to 60 MB/s, or a simulated one. "
            "Throttled, where the kernel can do that."
        ),
    ] = None,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Serve hot segments while 64 clients read others from a slow disk, beside nginx with and without threads."""
    _only_nginx(rival)
    _plottable(plot)
    found = _run(lambda step: coldness.run(rounds, seconds, step, pause / 1000, disk))
    if plot is not None:
        pictures.draw(coldness.panels(found), "Hot requests beside readers of cold content", plot)
    _print(found, json, _cold_rows)


@app.command()
def pack(
    video: Annotated[Path, typer.Argument(help="The video to package.")] = CLIP,
    rival: Annotated[str, typer.Option(help="The packager to compare with; shaka-streamer is the one there is.")] = (
        packing.SHAKA
    ),
    seconds: Annotated[float, typer.Option(min=1, help="The video is played again to this length.")] = 30.0,
    rounds: Rounds = 3,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Package a video with the fixed ladder, beside shaka-streamer with the same rungs, codecs and preset."""
    if rival != packing.SHAKA:
        raise OcaError(f"there is no rival called {rival}: the one there is is {packing.SHAKA}")
    _plottable(plot)
    found = _run(lambda step: packing.run(video, seconds, rounds, step) | repackaging.run(_MEGABYTES, rounds, step))
    if plot is not None:
        pictures.draw(packing.panels(found), "Packaging the fixed ladder", plot)
    _print(found, json, _pairs)


@app.command()
def repackage(
    megabytes: Annotated[int, typer.Option(min=1, help="Size of what is packaged, in whole minutes.")] = _MEGABYTES,
    rounds: Rounds = 3,
    json: Json = False,
) -> None:
    """Package what is encoded already, beside a plain copy of the same bytes: megabytes a second."""
    _print(_run(lambda step: repackaging.run(megabytes, rounds, step)), json, _pairs)


@app.command()
def ladder(
    clips: Annotated[
        list[Path] | None, typer.Argument(metavar="[CLIPS]...", help="Videos; five short ones if none is given.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Speed of the encoder, ultrafast to veryslow, for both.")] = "slow",
    seconds: Annotated[float, typer.Option(min=0.5, help="So much of each clip at most.")] = 10.0,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Encode and measure the per-title ladder and the fixed one: bytes at equal quality, BD-rate."""
    if preset not in PRESETS:
        raise OcaError(f"there is no preset {preset}: it is one of {', '.join(PRESETS)}")
    _plottable(plot)
    wanted = ladders.clips(clips or ())
    found = _run(lambda step: ladders.run(wanted, preset, seconds, step))
    if plot is not None:
        ladders.picture(found, plot)
    _print(found, json, _ladder_rows)


@app.command()
def fill(
    rival: Annotated[
        str, typer.Option(help="Compare with rclone or aria2 only; the figures beside nobody come with rclone.")
    ] = "",
    megabytes: Annotated[int, typer.Option(min=32, help="Size of the track, in MiB.")] = 2048,
    rounds: Rounds = 3,
    seconds: Annotated[float, typer.Option(min=1, help="For how long the rate cap is watched.")] = 30.0,
    json: Json = False,
    plot: Plot = None,
) -> None:
    """Fill a cold box beside rclone, and from several peers beside aria2; what it costs uplink and viewers."""
    names = (rival,) if rival else filling.RIVALS
    if not set(names) <= set(filling.RIVALS):
        raise OcaError(f"there is no rival called {rival}: choose one of {', '.join(filling.RIVALS)}")
    _plottable(plot)
    found = _run(lambda step: filling.run(megabytes, rounds, seconds, step, names))
    if plot is not None:
        pictures.draw(filling.panels(found), "One track to a cold box", plot)
    _print(found, json, _pairs)


@app.command()
def stall(rounds: Rounds = 5, seconds: Seconds = 3.0, json: Json = False, plot: Plot = None) -> None:
    """Serve hot segments beside 2,000 clients that never read and 10,000 idle ones: memory and p99."""
    _plottable(plot)
    found = _run(lambda step: stalling.run(rounds, seconds, step))
    if plot is not None:
        pictures.draw(stalling.panels(found), "Hot requests beside clients that do not read", plot)
    _print(found, json, _pairs)


@app.command()
def place(
    files: Annotated[int, typer.Option(min=1, help="Files of the catalog.")] = 100_000,
    appliances: Annotated[int, typer.Option(min=1, help="Appliances.")] = 100,
    regions: Annotated[int, typer.Option(min=0, help="Regions; 0 makes one for every five appliances.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same problem.")] = 1,
    zipf: Annotated[float, typer.Option(min=0, max=5, help="Slope of popularity by rank.")] = 0.8,
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds to search.")] = 120.0,
    method: Annotated[str, typer.Option(help="auto, exact, core or prices.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the problem there, as npz, too.")] = None,
    json: Json = False,
) -> None:
    """Solve a placement problem that is made up: seconds, gap to the bound, and memory."""
    found = _run(lambda step: placing.run(files, appliances, regions, seed, zipf, time_limit, method, out, step))
    _print(found, json, _pairs)


def _only_nginx(rival: str) -> None:
    if rival != "nginx":
        raise OcaError(f"there is no rival {rival!r}: nginx is the one there is")


def _counts(text: str) -> list[int]:
    try:
        counts = [int(word) for word in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise OcaError(f"--workers {text} is no list of numbers: write it as 1,2,4")
    return counts


def _plottable(plot: Path | None) -> None:
    if plot is not None:
        pictures.check(plot)


def _run(measure: Callable[[Callable[[str], None]], dict[str, Any]]) -> dict[str, Any]:
    with Console(stderr=True).status("") as status:
        return measure(lambda words: status.update(words))


def _print(found: dict[str, Any], json: bool, rows: Callable[[dict[str, Any]], Table]) -> None:
    if json:
        sys.stdout.write(dumps(found) + "\n")
    else:
        Console().print(rows(found))


def _pairs(found: dict[str, Any]) -> Table:
    table = Table("figure", "value")
    for name, value in found.items():
        table.add_row(name, str(value))
    return table


def _serve_rows(found: dict[str, Any]) -> Table:
    columns = ("GB/s", "machine CPU-s/GB", "server CPU-s/GB", "p99 ms")
    caption = (
        f"client {found['client']}, congestion control {found['congestion_control']}, content {found['content']}; "
        f"memory holds {': '.join(filter(None, (found['memory'], found['not_in_blocks'])))}"
    )
    table = Table("case", "server", *columns, "CPU : nginx", "GB/s : nginx", "CPU : floor", caption=caption)
    for case in found["cases"]:
        name = comparison.Case(case["bytes"], case["browser"]).name
        for server in [name for name in ("oca", "nginx", "floor") if name in case]:
            of = case[server]
            figures = [of[key] for key in ("gb_per_s", "machine_cpu_s_per_gb", "server_cpu_s_per_gb", "p99_ms")]
            ratios = [case["ratio_cpu"], case["ratio_throughput"]] if server == "oca" else ["", ""]
            floor = case.get(f"{server}_cpu_to_floor", "")
            table.add_row(name, server, *(f"{value:.3f}" for value in figures), *map(str, ratios), str(floor))
    return table


def _scaling_rows(found: dict[str, Any]) -> Table:
    table = Table("case", "workers", "GB/s", "ratio", "spread")
    for row in found["rows"]:
        values = (row["workers"], row["gb_per_s"], row["ratio"], row["spread"])
        table.add_row(comparison.Case(row["bytes"]).name, *map(str, values))
    return table


def _ladder_rows(found: dict[str, Any]) -> Table:
    columns = ("BD-rate", "saved at equal quality", "saved on disk", "analysis : encode", "tuning")
    table = Table("clip", "fixed", "per-title", *columns)
    for clip in found["clips"]:
        rungs = [f"{len(clip[key])}, up to {clip[key][-1]['quality']:.1f}" for key in ("fixed", "per_title")]
        rate = "" if clip["bd_rate"] is None else f"{clip['bd_rate']:+.1%}"
        parts = (f"{clip[key]:.1%}" for key in ("bytes_saved", "ladder_bytes_saved"))
        table.add_row(clip["name"], *rungs, rate, *parts, f"{clip['analysis_ratio']:.2f}", clip["tuning"])
    mean = found["mean_bd_rate"]
    for name in ("mean", "median", "min"):
        rate = "" if mean is None or name != "mean" else f"{mean:+.1%}"
        table.add_row(name, "", "", rate, f"{found[f'{name}_bytes_saved']:.1%}", "", "", "")
    return table


def _cold_rows(found: dict[str, Any]) -> Table:
    columns = ("hot p99 ms", "beside cold readers", "hot GB/s", "beside cold readers", "cold MB/s")
    caption = f"{found['disk']} disk; memory holds {found['memory']}; ours {found['ratio']} times, {found['spread']}"
    table = Table("server", *columns, caption=caption)
    for name, of in found["servers"].items():
        table.add_row(name, *(f"{value:.2f}" for value in of.values()))
    return table


def main() -> None:
    """Entry point of the console script."""
    guarded(app)
