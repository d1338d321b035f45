"""`oca-control operator`: who may act, decided on the controller's own machine, against its database."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from control.ctl.client import Json, parse_duration, say, show
from control.database import DatabaseError, open_database
from control.operators import accounts
from control.operators.accounts import Account, Role
from control.settings import ControlSettings
from oca import config

app = typer.Typer(
    help="Operators: make one and its token, list, remove. Local: no token is asked.", no_args_is_help=True
)
Name = Annotated[str, typer.Argument(help="The operator's name, as the audit log shows it.")]
Config = Annotated[Path, typer.Option("--config", "-c", help="The controller's settings, a TOML file.")]
T = TypeVar("T")


@app.command()
def add(
    name: Name,
    settings_file: Config,
    role: Annotated[
        Role,
        typer.Option(
            help="read may look at all, act may change it too, upstream is another CDN that may make triggers."
        ),
    ],
    lasts: Annotated[
        str, typer.Option("--for", help="How long the token is good, such as 90d; always if not said.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make an operator, and print the token once: only its digest is kept."""
    seconds = parse_duration(lasts) if lasts else None
    account, token = _with_database(settings_file, lambda engine: accounts.add(engine, name, role, seconds))
    if as_json:
        say({**_shown(account), "token": token}, True, "")
        return
    sys.stderr.write(
        f"operator {name} may {'act' if role == 'act' else 'read'}{_until(account)}; this token is shown once, "
        "for OCACTL_TOKEN or ~/.config/oca/token (mode 600):\n"
    )
    say(None, False, token)


@app.command("list")
def list_accounts(settings_file: Config, as_json: Json = False) -> None:
    """List the operators."""
    found = _with_database(settings_file, accounts.read)
    rows = [
        (a.name, a.role, _day(a.made), _day(a.expires) + (" (over)" if a.expired(time.time()) else ""), _day(a.used))
        for a in found.values()
    ]
    columns = {"operator": "", "role": "", "made (UTC)": "", "expires (UTC)": "", "last used (UTC, to the hour)": ""}
    show([_shown(account) for account in found.values()], as_json, columns, rows)


@app.command()
def remove(
    name: Name,
    settings_file: Config,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove an operator; a running controller refuses the token within a second or two."""
    account = _with_database(settings_file, lambda engine: accounts.remove(engine, name, dry_run=dry_run))
    done = "would be removed" if dry_run else "removed"
    say({**_shown(account), "dry_run": dry_run}, as_json, f"operator {name}, role {account.role}, {done}")


def _with_database(settings_file: Path, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    settings = config.load(settings_file, ControlSettings)

    async def run() -> T:
        engine = await open_database(settings.database)
        try:
            return await work(engine)
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise DatabaseError(f"the database of {settings_file} cannot be written or read: {cause}") from None
        finally:
            await engine.dispose()

    return uvloop.run(run())


def _shown(account: Account) -> dict[str, Any]:
    """All of an account but the digest."""
    return {name: getattr(account, name) for name in ("name", "role", "made", "expires", "used")}


def _until(account: Account) -> str:
    return "" if account.expires is None else f" until {_day(account.expires)} UTC"


def _day(at: float | None) -> str:
    return "never" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
