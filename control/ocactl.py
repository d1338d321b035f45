"""`ocactl`: what an operator tells a controller."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from control.ctl import appliances, filling, origins, planning, secret, sites, solving, titles, tokens, triggers
from control.ctl.client import DEFAULT, Controller, Json, controller, parse_duration, show
from oca.errors import guarded

app = typer.Typer(
    help="Operate a fleet of appliances: titles, demand, plans, fills and steering.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(titles.app, name="title")
app.add_typer(appliances.app, name="appliance")
app.add_typer(origins.app, name="origin")
app.add_typer(planning.coverage, name="coverage")
app.add_typer(planning.demand, name="demand")
planning.plan.command("solve")(solving.solve_file)
planning.plan.command("check")(solving.check_file)
app.add_typer(planning.plan, name="plan")
app.add_typer(filling.fill, name="fill")
app.add_typer(filling.steer, name="steer")
app.add_typer(sites.site, name="site")
app.add_typer(sites.report, name="report")
app.add_typer(tokens.app, name="token")
app.add_typer(triggers.app, name="trigger")


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str, typer.Option("--controller", envvar="OCA_CONTROLLER", help="URL of the controller's API.")
    ] = DEFAULT,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with your token, mode 600; else $OCACTL_TOKEN, else ~/.config/oca/token."),
    ] = None,
) -> None:
    """Remember which controller is meant, and where the token is."""
    context.obj = Controller(url, lambda: secret.find(token_file))


@app.command()
def changes(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 50,
    as_json: Json = False,
) -> None:
    """List what was changed, when and by whom."""
    found = controller(context).ask("GET", "changes", limit=str(limit))
    rows = [
        (
            str(c["seq"]),
            datetime.fromtimestamp(c["at"], UTC).isoformat(" ", "seconds"),
            c["actor"],
            f"{c['kind']} {c['subject']}",
            c["detail"],
        )
        for c in found
    ]
    show(found, as_json, {"seq": "right", "at (UTC)": "", "by": "", "what": "", "detail": ""}, rows)


_PAGE = 1000


@app.command()
def audit(
    context: typer.Context,
    since: Annotated[str, typer.Option(help="How far back, such as 2h or 30d.")] = "1d",
    who: Annotated[str, typer.Option(help="Only this operator or appliance, or local, or anybody.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many lines at most, newest first.")] = 1000,
    as_json: Json = False,
) -> None:
    """List who did what, from where, and how it ended; refused attempts too."""
    of, start = controller(context), int(time.time() - parse_duration(since))
    found: list[dict[str, Any]] = []
    before: int | None = 0
    while before is not None and len(found) < limit:
        query = {"since": str(start), "who": who, "limit": str(min(_PAGE, limit - len(found)))}
        page = of.ask("GET", "audit", **query, before=str(before))
        found += page["rows"]
        before = page["next"]
    rows = [
        (
            datetime.fromtimestamp(row["at"], UTC).isoformat(" ", "seconds"),
            row["who"] or "nobody known",
            row["address"],
            f"{row['method']} {row['path']}".strip(),
            str(row["status"] or ""),
            row["what"],
            row["request"],
        )
        for row in found
    ]
    columns = {"at (UTC)": "", "by": "", "from": "", "asked": "", "status": "right", "what": "", "request": ""}
    show(found, as_json, columns, rows)


def main() -> None:
    """Entry point of the console script."""
    guarded(app)
