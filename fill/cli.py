"""`oca-fill`: keep an appliance's store as the plan wants it, and look at how that stands."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
import typer
import uvloop
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from fill import agent, staging, window
from fill.controllers import ControllerError, Controllers
from fill.difference import difference
from fill.holdings import holdings
from fill.priority import step_back
from oca import config, journal
from oca.config import ApplianceSettings
from oca.errors import guarded
from oca.store.content import Store
from oca.trust.identity import Identity, Proof
from oca.wire import FillManifest

app = typer.Typer(
    help="Fetch the content that the controller's plan wants on this appliance, verified, in the site's window.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Config = Annotated[Path, typer.Option("--config", "-c", help="The appliance's settings, a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def run(
    settings_file: Config,
    now: Annotated[bool, typer.Option("--now", help="Fill at any time, not only in the window.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Look once, then exit: with 0 if nothing is left missing, else 1.")
    ] = False,
) -> None:
    """Fill until SIGTERM. What was interrupted goes on where it was; logs are JSON lines on stderr."""
    settings = config.load(settings_file, ApplianceSettings)
    journal.start("oca-fill")
    step_back()
    raise typer.Exit(uvloop.run(_until_signal(settings, now, once)))


async def _until_signal(settings: ApplianceSettings, now: bool, once: bool) -> int:
    """Run the agent; the exit code. A signal cancels it wherever it is, which loses nothing that was verified."""
    filling = asyncio.create_task(agent.fill(settings, now=now, once=once))
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        caught.append(number)
        filling.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return 0 if await filling else 1
    except asyncio.CancelledError:
        if signal.SIGINT in caught:
            return 130
        return 1 if once else 0  # SIGTERM is how a daemon is meant to end


@app.command("window")
def show_window(settings_file: Config, json: Json = False) -> None:
    """Say whether the fill window is open, and when it opens and closes next, in UTC and in local time."""
    settings = config.load(settings_file, ApplianceSettings)
    found = _window(settings)
    if json:
        _print_json(found)
        return
    console = Console()
    console.print(f"The window is {'open' if found['open'] else 'closed'} ({settings.fill.timezone}).")
    if found["always"]:
        console.print("It never closes: its hours cover the whole day.")
        return
    table = Table("", "UTC", "local")
    for what in ("opens", "closes"):
        table.add_row(f"{what} next", found[what], found[f"{what}_local"])
    console.print(table)


@app.command()
def status(settings_file: Config, json: Json = False) -> None:
    """Show the window, what the plan wants that is not here yet, and what is on its way in or damaged."""
    settings = config.load(settings_file, ApplianceSettings)
    journal.start("oca-fill")  # a damaged version is logged, and stdout is for the answer alone
    store = Store([Path(root) for root in settings.store])
    found: dict[str, Any] = {"appliance": settings.appliance, "window": _window(settings)}
    found |= {"controller": "", "plan": 0, "missing": [], "surplus": []}
    try:
        manifest = uvloop.run(_manifest(settings))
        gap = difference(manifest, holdings(store))
        found |= {"plan": manifest.plan, "missing": gap.missing, "surplus": gap.surplus}
    except ControllerError as error:
        found["controller"] = str(error)
    found["staging"] = staging.staged(store)
    if json:
        _print_json(found)
    else:
        _print_status(found)


def _print_status(found: dict[str, Any]) -> None:
    console = Console()
    if found["controller"]:
        console.print(f"No plan to compare with: {found['controller']}", soft_wrap=True, markup=False)
    else:
        console.print(
            f"Plan {found['plan']}: {len(found['missing'])} tracks missing, {len(found['surplus'])} surplus."
        )
    opening = found["window"]
    until = f"open until {opening['closes']}" if opening["open"] else f"closed until {opening['opens']}"
    console.print(f"Window: {'always open' if opening['always'] else until}.")
    if found["missing"]:
        table = Table("title", "version", "track", title="missing")
        for track in found["missing"]:
            table.add_row(track.title, track.version, track.track)
        console.print(table)
    if found["staging"]:
        table = Table("title", "version", "file", "size", "chunks", "state", title="not served")
        for row in found["staging"]:
            state = "damaged" if row.quarantined else "on its way in"
            table.add_row(row.title, row.version, row.name, decimal(row.bytes), f"{row.chunks} of {row.of}", state)
        console.print(table)


async def _manifest(settings: ApplianceSettings) -> FillManifest:
    async with aiohttp.ClientSession() as session:
        proof = Proof(Identity.of(Path(settings.identity)))
        return await Controllers(session, settings.appliance, settings.controllers, proof).manifest()


def _window(settings: ApplianceSettings) -> dict[str, Any]:
    """The window as `window` and `status` print it; times as text, '' where there is none."""
    found, at = window.of(settings.fill), time.time()
    row: dict[str, Any] = {"open": found.is_open(at), "always": found.always, "timezone": settings.fill.timezone}
    for what, instant in (("opens", found.opens(at)), ("closes", found.closes(at))):
        row[what] = "" if instant is None else window.utc(instant)
        row[f"{what}_local"] = "" if instant is None else window.local(instant, found.zone)
    return row


def _print_json(what: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")


def main() -> None:
    """Entry point of the console script."""
    guarded(app)
