"""`ocactl fill` and `steer`: bring the content where the plan wants it, and explain who serves whom."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from control.ctl.client import Controller, ControllerError, Json, controller, say, show, size
from control.ctl.watching import duration, expected, following, sentence

fill = typer.Typer(help="Fills: start one now, see how far they are.", no_args_is_help=True)
steer = typer.Typer(help="Steering: who serves which viewer, and why.", no_args_is_help=True)
_POLL_S = 0.5


@fill.command()
def run(
    context: typer.Context,
    now: Annotated[bool, typer.Option("--now", help="Fill now, outside the window too.")] = False,
    appliance: Annotated[list[str] | None, typer.Option(help="Only this appliance; repeat for more.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until all is in place.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="With --wait: seconds after which to give up.")] = 3600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would come, and how long it takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Order appliances to fill what the plan in force wants on them."""
    if dry_run:
        _rehearse(controller(context), appliance or [], as_json)
        return
    if not now:
        raise ControllerError("appliances fill by themselves in their windows: add --now to fill outside of them")
    of = controller(context)
    orders = of.ask("POST", "fills", {"appliances": appliance or []})
    if wait:
        found = _wait(of, set(orders), timeout)
        sources: dict[str, int] = {}
        for box in found:
            for source, count in box["fetched"].items():
                sources[source] = sources.get(source, 0) + count
        told = ", ".join(f"{size(count)} from {source}" for source, count in sorted(sources.items())) or "nothing"
        say(found, as_json, f"{len(found)} appliances hold what the plan wants; fetched {told}")
    else:
        say(
            orders,
            as_json,
            f"{len(orders)} appliances are told to fill now: `ocactl fill status` shows how far they are",
        )


def _named(of: Controller, boxes: list[str]) -> list[dict[str, Any]]:
    """How far the fills of these appliances are, of all if none is named; ControllerError if there is no such one."""
    found: list[dict[str, Any]] = of.ask("GET", "fills")["appliances"]
    unknown = set(boxes) - {box["appliance"] for box in found}
    if unknown:
        raise ControllerError(f"there is no appliance {', '.join(sorted(unknown))} that is filled")
    return [box for box in found if not boxes or box["appliance"] in boxes]


def _rehearse(of: Controller, boxes: list[str], as_json: bool) -> None:
    """Tell what an order to fill now would bring to each appliance, in how long."""
    found = _named(of, boxes)
    rows = [
        (
            each["appliance"],
            size(each["bytes"]),
            "not known" if each["rate_bps"] is None else f"{each['rate_bps'] / 1e6:.0f}",
            "not known" if each["rate_bps"] is None else duration(each["seconds"]),
        )
        for each in (box["outlook"] for box in found)
        if each is not None
    ]
    show(
        {"appliances": found}, as_json, {"appliance": "", "to come": "right", "Mb/s": "right", "takes": "right"}, rows
    )


def _wait(of: Controller, boxes: set[str], timeout: float) -> list[dict[str, Any]]:
    """Follow the fills until every box holds what is wanted; ControllerError if one fails or time runs out."""
    columns = (TextColumn("{task.description:<24}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    deadline = time.monotonic() + timeout
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {box: progress.add_task(box, total=None) for box in sorted(boxes)}
        while True:
            found = [box for box in of.ask("GET", "fills")["appliances"] if box["appliance"] in boxes]
            for box in found:
                progress.update(tasks[box["appliance"]], completed=box["bytes"], total=box["total"] or None)
            if all(box["held"] == box["wanted"] for box in found):
                return found
            failed = [box for box in found if box["finished"] and not box["order"] and box["errors"]]
            if failed:
                raise ControllerError(f"{failed[0]['appliance']} could not fill: {failed[0]['errors'][0]}")
            if time.monotonic() > deadline:
                raise ControllerError(f"the fill is not done after {timeout:.0f} s: `ocactl fill status` shows it")
            time.sleep(_POLL_S)


@fill.command()
def status(context: typer.Context, as_json: Json = False) -> None:
    """Show how far every appliance is with the plan in force."""
    found = controller(context).ask("GET", "fills")
    columns = {"appliance": "", "site": "", "tracks": "right", "fetched": "right", "from": "", "state": ""}
    rows = []
    for box in found["appliances"]:
        if box["paused"]:
            state = "paused"
        elif box["errors"]:
            state = box["errors"][0]
        elif not box["wanted"]:
            state = "nothing planned"
        elif box["held"] == box["wanted"]:
            state = "complete"
        else:
            state = "ordered" if box["order"] else "waits for its window"
            more = "" if box["order"] else sentence(box["outlook"]) or expected(box["outlook"])
            state += f"; {more}" if more else ""
        rows.append(
            (
                box["appliance"],
                box["site"],
                f"{box['held']}/{box['wanted']}",
                size(box["bytes"]),
                ", ".join(f"{size(count)} {kind}" for kind, count in sorted(box["classes"].items())),
                state,
            )
        )
    show(found, as_json, columns, rows)


@fill.command()
def sources(
    context: typer.Context,
    appliance: Annotated[str, typer.Argument(help="The appliance that would fetch.")],
    title: Annotated[str, typer.Argument(help="The title's id.")],
    track: Annotated[str | None, typer.Option(help="Only this track of it.")] = None,
    why: Annotated[bool, typer.Option("--why", help="Also those that are no source, and the reason.")] = False,
    as_json: Json = False,
) -> None:
    """Show where an appliance would fetch a title's tracks from now, best first."""
    query = {"appliance": appliance, "title": title} | ({"track": track} if track else {})
    found = controller(context).ask("GET", "fills/sources", **query)
    rows = []
    for each in found["tracks"]:
        listed = [source for source in each["sources"] if why or source["rank"] is not None]
        for source in listed:
            place = "–" if source["rank"] is None else str(source["rank"] + 1)
            wait = f"{source['wait_s']:.0f}" if source["wait_s"] else ""
            rows.append((each["track"], place, source["appliance"], wait, source["reason"]))
        if not listed:
            rows.append((each["track"], "–", "", "", "nobody has it to give"))
    show(found, as_json, {"track": "", "rank": "right", "source": "", "wait s": "right", "why": ""}, rows)


@fill.command()
def watch(
    context: typer.Context,
    appliance: Annotated[list[str] | None, typer.Option(help="Only this appliance; repeat for more.")] = None,
    until_done: Annotated[bool, typer.Option("--until-done", help="End when everything is in place.")] = False,
) -> None:
    """Watch fills as they go: every appliance, the tracks that are coming, and when it will be done. Ctrl-C ends."""
    following(controller(context), frozenset(appliance or ()), until_done=until_done)


Appliances = Annotated[list[str] | None, typer.Option("--appliance", help="Only this appliance; repeat for more.")]


@fill.command()
def pause(context: typer.Context, appliance: Appliances = None, as_json: Json = False) -> None:
    """Have appliances fetch nothing, in their windows neither, until `resume`. What has come is kept."""
    found = controller(context).ask("POST", "fills/pause", {"appliances": appliance or []})
    named = " ".join(found) or "all were paused before"
    say(found, as_json, f"{len(found)} appliances stop filling when they look next, within a minute: {named}")


@fill.command()
def resume(context: typer.Context, appliance: Appliances = None, as_json: Json = False) -> None:
    """Let appliances fill again; what is missing goes on where it was."""
    found = controller(context).ask("POST", "fills/resume", {"appliances": appliance or []})
    say(found, as_json, f"{len(found)} appliances may fill again: {' '.join(found) or 'none was paused'}")


@fill.command()
def cancel(
    context: typer.Context,
    appliance: Appliances = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell which orders there are.")] = False,
    as_json: Json = False,
) -> None:
    """Take orders to fill now back; outside their windows the appliances stop. What has come is kept."""
    of, named = controller(context), appliance or []
    if dry_run:
        found = [box["appliance"] for box in _named(of, named) if box["order"]]
    else:
        found = of.ask("POST", "fills/cancel", {"appliances": named})
    words = "would be taken back" if dry_run else "are taken back"
    say(found, as_json, f"{len(found)} orders {words}: {' '.join(found) or 'there were none'}")


@steer.command()
def explain(
    context: typer.Context,
    client: Annotated[str, typer.Option(help="The viewer's address.")],
    title: Annotated[str, typer.Option(help="The title's id.")],
    track: Annotated[str | None, typer.Option(help="Only this track of it.")] = None,
    as_json: Json = False,
) -> None:
    """Explain where a viewer would be sent: the prefix that matched, every candidate and its fate."""
    query = {"client": client, "title": title} | ({"track": track} if track else {})
    found = controller(context).ask("GET", "steer/explain", **query)
    if not as_json:
        match = found["match"]
        where = (
            f"in zone {match['zone']}, by {match['prefix']} from {match['source']}" if match else "in no known zone"
        )
        Console().print(f"{client} is {where}; title {title} version {found['version']}", highlight=False)
    rows = [
        (
            "–" if row["rank"] is None else str(row["rank"] + 1),
            row["appliance"],
            row["site"],
            str(row["proximity"]),
            "–" if row["distance_km"] is None else f"{row['distance_km']:.0f}",
            f"{row['load']:.0%}",
            row["reason"],
        )
        for row in found["candidates"]
    ]
    columns = {
        "rank": "right",
        "appliance": "",
        "site": "",
        "nearness": "right",
        "km": "right",
        "load": "right",
        "why": "",
    }
    show(found, as_json, columns, rows)
