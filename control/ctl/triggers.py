"""`ocactl trigger`: what upstream CDNs asked for (CDNI, RFC 8007)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from control.ctl.client import Json, controller, say, show

app = typer.Typer(help="Triggers of upstream CDNs: preposition, invalidate, purge.", no_args_is_help=True)


@app.command("list")
def list_triggers(context: typer.Context, as_json: Json = False) -> None:
    """List the triggers that are kept, newest first: who asked for what, and how far it is."""
    found = controller(context).ask("GET", "triggers")
    rows = [
        (
            str(row["id"]),
            datetime.fromtimestamp(row["ctime"], UTC).strftime("%Y-%m-%d %H:%MZ"),
            row["account"],
            row["trigger"]["type"],
            " ".join(sorted({title for title, _ in row["versions"]})),
            row["status"],
            "; ".join(error["description"] for error in row["errors"]),
        )
        for row in found
    ]
    show(found, as_json, {"id": "right", "at": "", "from": "", "type": "", "titles": "", "status": "", "": ""}, rows)


@app.command("remove")
def remove(
    context: typer.Context,
    number: Annotated[int, typer.Argument(min=1, help="Its id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what it is.")] = False,
    as_json: Json = False,
) -> None:
    """Forget a trigger. What it prepositions comes no longer, and stays only where plans want it."""
    of = controller(context)
    (row,) = [row for row in of.ask("GET", "triggers") if row["id"] == number] or [None]
    if row is None or not dry_run:
        of.ask("DELETE", f"cdni/triggers/{number}")
    words = "would be removed" if dry_run else "is removed"
    say(row, as_json, f"trigger {number}, {row['trigger']['type']}, {row['status']}, {words}" if row else "")
