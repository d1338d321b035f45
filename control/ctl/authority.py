"""`oca-control authority`: the fleet's certificate authority, shown and changed on the controller's own machine."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from control.ctl.accounts import Config
from control.ctl.client import Json, say, show
from control.fleet.authority import Authority
from control.settings import ControlSettings
from oca import config
from oca.errors import ConfigError
from oca.trust import peers

app = typer.Typer(
    help="The fleet's certificate authority. To change it: prepare, wait three days, activate, wait thirty, forget.",
    no_args_is_help=True,
)
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Do not wait; boxes may have to be enrolled again.")]


@app.command("show")
def show_authority(settings_file: Config, as_json: Json = False) -> None:
    """Show the authorities that the fleet trusts, and which one signs; the first start makes one."""
    of = _open(settings_file)
    waiting = of.waiting
    rows: list[dict[str, Any]] = []
    for one in of.trusted:
        mark = peers.fingerprint(one.public_key())
        state = "signs" if mark == of.fingerprint else "signs next" if mark == waiting else "former"
        rows.append({"fingerprint": mark, "state": state, "ends": one.not_valid_after_utc.timestamp()})
    table = [
        (row["fingerprint"], row["state"], datetime.fromtimestamp(row["ends"], UTC).strftime("%Y-%m-%d"))
        for row in rows
    ]
    show(rows, as_json, {"fingerprint": "", "state": "", "ends (UTC)": ""}, table)


@app.command()
def prepare(settings_file: Config, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Make the next authority, trusted from now on; boxes hear of it within a day. Again: nothing more happens."""
    of = _open(settings_file)
    made = of.waiting if dry_run else of.prepare(time.time())
    what = f"the next authority {made}" if made else "a new authority"
    _done(as_json, f"{what} {'would be' if dry_run else 'is'} trusted", dry_run, fingerprint=made)


@app.command()
def activate(settings_file: Config, force: Force = False, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Let the next authority sign; certificates of the one before stay good until they run out."""
    made = _open(settings_file).activate(time.time(), force=force, dry_run=dry_run)
    _done(as_json, f"the authority {made} {'would sign' if dry_run else 'signs'}", dry_run, fingerprint=made)


@app.command()
def forget(settings_file: Config, force: Force = False, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Trust former authorities no longer."""
    gone = _open(settings_file).forget(time.time(), force=force, dry_run=dry_run)
    what = f"{', '.join(gone) or 'no authority'} {'would be' if dry_run else 'is'} forgotten"
    _done(as_json, what, dry_run, forgotten=gone)


def _open(settings_file: Path) -> Authority:
    settings = config.load(settings_file, ControlSettings).tls
    if not settings.listen:
        raise ConfigError(f"{settings_file} has no [tls] listen: a fleet without TLS has no authority")
    return Authority(Path(settings.state))


def _done(as_json: bool, sentence: str, dry_run: bool, **more: Any) -> None:
    say({**more, "dry_run": dry_run}, as_json, sentence)
