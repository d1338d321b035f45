"""`ocactl site` and `report`: what the lines of sites carry, and whether it pays."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from control.ctl.client import Json, controller, quoted, say, show, size

site = typer.Typer(help="Sites: what their appliances may fetch together.", no_args_is_help=True)
report = typer.Typer(help="Reports: what fills cost, and what they were good for.", no_args_is_help=True)


@site.command("list")
def list_sites(context: typer.Context, as_json: Json = False) -> None:
    """List the sites, their appliances, and what these may fetch together from outside."""
    found = controller(context).ask("GET", "sites")
    rows = [
        (each["site"], " ".join(each["appliances"]), f"{each['fill_bps'] / 1e6:,.0f}" if each["fill_bps"] else "–")
        for each in found
    ]
    show(found, as_json, {"site": "", "appliances": "", "fill Mbit/s": "right"}, rows)


@site.command("set")
def set_site(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The site.")],
    fill_mbps: Annotated[
        float, typer.Option(min=0, help="Mbit/s that its appliances may fetch together from outside; 0: no limit.")
    ],
    as_json: Json = False,
) -> None:
    """Limit what the appliances of a site fetch together over its line; each one's own limit stays."""
    done = controller(context).ask("PUT", f"sites/{quoted(name)}", {"fill_bps": round(fill_mbps * 1e6)})
    words = f"share {fill_mbps:g} Mbit/s" if fill_mbps else "have no limit but each its own"
    say(done, as_json, f"fills of site {name} {words} from now on")


@report.command("fill")
def report_fill(
    context: typer.Context,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How many days, this one counting.")] = 30,
    as_json: Json = False,
) -> None:
    """Set what came over the line against what viewers got of it: a fill that does not pay is visible."""
    found = controller(context).ask("GET", "reports/fill", days=str(days))
    columns = {"appliance": "", "site": "", "filled": "right", "over the line": "right", "to viewers": "right"}
    rows = [
        (row["appliance"], row["site"], size(row["filled"]), size(row["uplink"]), size(row["viewers"]), *_worth(row))
        for row in found
    ]
    show(found, as_json, {**columns, "viewers : line": "right", "": ""}, rows)


def _worth(row: dict[str, Any]) -> tuple[str, str]:
    """How often viewers got what came over the line, and what that means."""
    if not row["uplink"]:
        return "–", "nothing came over the line"
    factor = row["viewers"] / row["uplink"]
    # Without the fill each of those bytes would have crossed the line once.
    return f"{factor:.2f}", "pays" if factor >= 1 else "does not pay: the line carried more than viewers got"
