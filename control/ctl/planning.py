"""`ocactl coverage`, `demand` and `plan`: who is near, what will be watched, and what goes where."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from control.ctl.client import ControllerError, Json, controller, quoted, say, show, size
from control.ctl.watching import sentence

coverage = typer.Typer(help="Coverage: which addresses belong to which site.", no_args_is_help=True)
demand = typer.Typer(help="Demand: what was watched, and what will be.", no_args_is_help=True)
plan = typer.Typer(help="Plans: which titles go to which appliance, and why.", no_args_is_help=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ControllerError(f"cannot read {path}: {error.strerror}") from None


@coverage.command("set")
def set_coverage(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A coverage zone file as Apache Traffic Control has it, JSON.")],
    as_json: Json = False,
) -> None:
    """Put a coverage zone file in force."""
    done = controller(context).ask("PUT", "coverage", _read(file), name=file.name)
    say(done, as_json, f"coverage of {done['zones']} zones is in force")


@coverage.command("show")
def show_coverage(context: typer.Context, as_json: Json = False) -> None:
    """Show the zones in force."""
    found = controller(context).ask("GET", "coverage")
    rows = [(z["name"], str(z["latitude"]), str(z["longitude"])) for z in found]
    show(found, as_json, {"zone": "", "latitude": "right", "longitude": "right"}, rows)


@demand.command("import")
def import_demand(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV with the header title,region,requests (of the last 24 hours; a region is a group of the "
            "coverage file) or time,region,title,views (history), or JSON lines of the latter."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Import observed demand, the whole file or none of it.

    Requests of the last 24 hours count in the last whole hour, in the place of what is known of that title and region
    in those 24 hours: `demand show` then expects these numbers, unless older demand weighs in.
    """
    done = controller(context).ask("POST", "demand", _read(file), name=file.name)
    sentence = f"{done['observations']} observations of {done['views']:.0f} views imported"
    if done["unknown_titles"]:
        sentence += f"; not in the catalog yet: {', '.join(done['unknown_titles'][:10])}"
    if done["unknown_regions"]:
        sentence += f"; not in the coverage file in force: {', '.join(done['unknown_regions'][:10])}"
    say(done, as_json, sentence)


@demand.command("show")
def show_demand(context: typer.Context, as_json: Json = False) -> None:
    """Show the views expected in the next 24 hours."""
    found = controller(context).ask("GET", "demand")
    rows = [(row["region"], row["title"], f"{row['views']:.1f}") for row in found]
    show(found, as_json, {"region": "", "title": "", "views": "right"}, rows)


@plan.command()
def make(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Solve and show, but put nothing in force.")] = False,
    as_json: Json = False,
) -> None:
    """Solve the placement for the next day and put it in force."""
    with Console(stderr=True).status("solving the placement"):
        done = controller(context).ask("POST", "plans", {"dry_run": dry_run})
    name = "dry run" if dry_run else f"plan {done['plan']}"
    say(
        done,
        as_json,
        f"{name}: {done['tracks']} tracks ({size(done['bytes'])}) on {done['appliances']} appliances, "
        f"{size(done['objective'])} a day served locally, gap {done['gap']:.2%}, {done['seconds']:.2f} s; "
        f"{len(done['passed_over'])} titles passed over",
    )
    _overruns(done["outlook"])


def _overruns(outlooks: list[dict[str, Any]]) -> None:
    """Say on stderr which fills will not be done in one window: before they begin.

    A box that has not told of its windows is new or away; `fill watch` says so of those that stay it.
    """
    for each in outlooks:
        words = sentence(each)
        if words and each["rate_bps"] is not None:
            Console(stderr=True).print(f"{each['appliance']}: {words}", highlight=False, style="yellow")


@plan.command("list")
def list_plans(context: typer.Context, as_json: Json = False) -> None:
    """List the plans, newest first; the first is in force."""
    found = controller(context).ask("GET", "plans")
    rows = [
        (str(p["id"]), datetime.fromtimestamp(p["at"], UTC).isoformat(" ", "seconds"), size(p["objective"]))
        for p in found
    ]
    show(found, as_json, {"plan": "right", "made (UTC)": "", "served locally a day": "right"}, rows)


@plan.command("show")
def show_plan(
    context: typer.Context,
    number: Annotated[str, typer.Argument(help="Number of the plan; the one in force if not said.")] = "latest",
    as_json: Json = False,
) -> None:
    """Show what a plan puts where, and why."""
    found = controller(context).ask("GET", f"plans/{quoted(number)}")
    titles: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found["rows"]:
        titles.setdefault((row["appliance"], row["title"]), []).append(row)
    rows = [
        (box, title, str(len(of)), size(sum(row["bytes"] for row in of)), of[0]["reason"])
        for (box, title), of in titles.items()
    ]
    show(found, as_json, {"appliance": "", "title": "", "tracks": "right", "size": "right", "why": ""}, rows)
    _overruns(found["outlook"])
