"""`ocactl appliance`: the boxes of the fleet."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from control.ctl.client import ControllerError, Json, controller, quoted, say, show, size
from oca.sizes import parse_size

app = typer.Typer(help="Appliances: register, enrol, revoke, list, look at, drain.", no_args_is_help=True)
Box = Annotated[str, typer.Argument(help="The appliance's id, the same as in its oca.toml.")]


@app.command()
def add(
    context: typer.Context,
    box: Box,
    site: Annotated[str, typer.Option(help="The site it stands in; the coverage zone of that name is its own.")],
    url: Annotated[str, typer.Option(help="Where viewers reach it, such as http://cache1.example:8080.")],
    role: Annotated[str, typer.Option(help="edge, tier or origin.")] = "edge",
    capacity_gbps: Annotated[float, typer.Option(min=0, help="What it can send, in Gbit/s; 0 if not known.")] = 0.0,
    storage: Annotated[str, typer.Option(help="Content it may hold, such as 200T; 0 takes what it reports.")] = "0",
    as_json: Json = False,
) -> None:
    """Register an appliance, or change what is registered of it."""
    if not capacity_gbps < 1e6:
        raise ControllerError(f"--capacity-gbps {capacity_gbps} is not a capacity: write Gbit/s, such as 100")
    spec = {
        "id": box,
        "site": site,
        "url": url,
        "role": role,
        "capacity_bps": int(capacity_gbps * 1e9),
        "storage_bytes": parse_size(storage),
    }
    of = controller(context)
    known = any(one["id"] == box for one in of.ask("GET", "appliances"))
    done = of.ask("POST", "appliances", spec)
    # A box that is there may be enrolled already: a code would only lie about.
    if known or not of.ask("GET", "authorities")["fingerprint"]:
        say(done, as_json, f"appliance {box} registered at site {site}")
        return
    made = _code(context, box)
    say({**done, "enrolment": made}, as_json, f"appliance {box} registered at site {site}\n{_to_type(made)}")


def _code(context: typer.Context, box: str) -> dict[str, Any]:
    made: dict[str, Any] = controller(context).ask("POST", f"appliances/{quoted(box)}/code")
    return made


def _to_type(made: dict[str, Any]) -> str:
    """What somebody types on the box."""
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(made["expires"]))
    url = (made["controllers"] or ["https://CONTROLLER:8443"])[0]
    return (
        f"to enrol it, type on the box, once, before {until}:\n"
        f"  sudo oca enrol --config /etc/oca/oca.toml --user oca --controller {url} --code {made['code']} "
        f"--authority {made['fingerprint']}"
    )


@app.command()
def code(context: typer.Context, box: Box, as_json: Json = False) -> None:
    """Make an appliance a one-time code to enrol with, in place of the one before, and show the command to type."""
    made = _code(context, box)
    say(made, as_json, _to_type(made))


@app.command()
def revoke(
    context: typer.Context,
    box: Box,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be revoked, and revoke nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Trust no certificate of an appliance any more, and take its code back; a new code enrols it again."""
    done = controller(context).ask("POST", f"appliances/{quoted(box)}/revoke", {"format": 1, "dry_run": dry_run})
    what = f"{done['certificates']} certificates of appliance {box}" + (" and its code" if done["code"] else "")
    say(done, as_json, f"{what} {'would be' if dry_run else 'are'} revoked")


_COLUMNS = {
    "appliance": "",
    "site": "",
    "role": "",
    "state": "",
    "tracks": "right",
    "used/storage": "right",
    "Gb/s": "right",
}


def _row(box: dict[str, Any]) -> tuple[str, ...]:
    state = (
        "alive" if box["alive"] else "never heard" if box["silent_s"] is None else f"silent {box['silent_s']:.0f} s"
    )
    if box["draining"]:
        state += ", draining"
    if box.get("damaged"):
        state += f", {box['damaged']} files found damaged in 30 days"
    return (
        box["id"],
        box["site"],
        box["role"],
        state,
        str(box["tracks"]),
        f"{size(box['used_bytes'])}/{size(box['storage_bytes'])}",
        f"{box['sending_bps'] / 1e9:.2f}",
    )


@app.command("list")
def list_appliances(context: typer.Context, as_json: Json = False) -> None:
    """List the appliances as they stand now."""
    found = controller(context).ask("GET", "appliances")
    show(found, as_json, _COLUMNS, [_row(box) for box in found])


@app.command("show")
def show_appliance(context: typer.Context, box: Box, as_json: Json = False) -> None:
    """Show one appliance and the titles it holds whole."""
    found = controller(context).ask("GET", f"appliances/{quoted(box)}")
    # Downwards: across it would not fit a terminal.
    facts = zip((*_COLUMNS, "url", "titles"), (*_row(found), found["url"], " ".join(found["titles"])), strict=True)
    show(found, as_json, {"": "", "now": ""}, list(facts))


@app.command()
def drain(context: typer.Context, box: Box, as_json: Json = False) -> None:
    """Send an appliance no more viewers; those it has finish their segments and are steered away."""
    done = controller(context).ask("PUT", f"appliances/{quoted(box)}/drain", {"draining": True})
    say(done, as_json, f"appliance {box} gets no more viewers")


@app.command()
def undrain(context: typer.Context, box: Box, as_json: Json = False) -> None:
    """Send an appliance viewers again."""
    done = controller(context).ask("PUT", f"appliances/{quoted(box)}/drain", {"draining": False})
    say(done, as_json, f"appliance {box} gets viewers again")
