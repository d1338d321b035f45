"""`oca`: run an appliance and look at what it holds."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from oca import __version__, blocks, config, journal
from oca.appliance import Appliance, check_safety
from oca.bucket import Bucket
from oca.config import ApplianceSettings
from oca.errors import ConfigError, StoreError, guarded
from oca.heartbeat import inventory
from oca.http import pacing
from oca.store import verify
from oca.store.content import Store
from oca.trust import enrolment
from oca.trust.identity import Identity

app = typer.Typer(
    help="Run a video CDN appliance: serve the content in its store, and report to a controller.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Config = Annotated[Path, typer.Option("--config", "-c", help="The appliance's settings, a TOML file.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def serve(settings_file: Config) -> None:
    """Serve the store over HTTP until SIGTERM, sending heartbeats to the controllers in the settings."""
    settings = config.load(settings_file, ApplianceSettings)
    journal.start("oca")
    uvloop.run(_serve(settings_file, settings))


async def _serve(settings_file: Path, settings: ApplianceSettings) -> None:
    await Appliance(settings_file, settings).run()


@app.command()
def check(settings_file: Config) -> None:
    """Check that an appliance would start with these settings; say nothing if so."""
    settings = config.load(settings_file, ApplianceSettings)
    for sentence in Store([Path(root) for root in settings.store]).prepare():
        sys.stderr.write(f"warning: {sentence}\n")
    for address in filter(None, (settings.listen, settings.admin, settings.metrics)):
        config.split_address(address)
    check_safety(settings)
    with socket.socket() as sock:
        pacing.use_congestion([sock], settings.pacing.congestion)


@app.command()
def disks(
    settings_file: Config,
    accept: Annotated[
        Path | None, typer.Option(help="Use this empty directory, although a disk of this box was there before.")
    ] = None,
    json: Json = False,
) -> None:
    """List the disks of the store, and which of them can be used."""
    settings = config.load(settings_file, ApplianceSettings)
    store = Store([Path(root) for root in settings.store])
    if accept is not None and accept not in store.roots:
        raise ConfigError(
            f"{accept} is none of the store directories in {settings_file}: {', '.join(settings.store)}"
        )
    for sentence in store.prepare(accept=accept):
        sys.stderr.write(f"warning: {sentence}\n")
    rows = [
        {
            "disk": str(root),
            "ok": root in store.usable,
            "problem": store.disks.failed.get(root, ""),
            **_memory(root if root in store.usable else None),
        }
        for root in store.roots
    ]
    if json:
        sys.stdout.buffer.write(msgspec.json.encode(rows) + b"\n")
    else:
        table = Table("disk", "state", "memory holds its content in")
        for row in rows:
            held = f"{row['memory']}: {row['not_in_blocks']}" if row["not_in_blocks"] else row["memory"]
            table.add_row(str(row["disk"]), "ok" if row["ok"] else str(row["problem"]), str(held))
        Console().print(table)
    raise typer.Exit(0 if all(row["ok"] for row in rows) else 1)


def _memory(root: Path | None) -> dict[str, str]:
    """What memory holds a disk's content in, and why not in blocks."""
    found = blocks.reading(root.stat().st_dev) if root else None
    return {"memory": found.reach.memory if found else "", "not_in_blocks": found.why if found else ""}


@app.command()
def held(settings_file: Config, json: Json = False) -> None:
    """List the titles and tracks in the store, as they are reported to the controller."""
    settings = config.load(settings_file, ApplianceSettings)
    store = Store([Path(root) for root in settings.store])
    found, damaged = inventory(store, settings.appliance, store.generation())
    if json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    else:
        table = Table("title", "version", "tracks")
        for row in found.held:
            table.add_row(row.title, row.version, " ".join(row.tracks))
        Console().print(table)
    for sentence in damaged:
        sys.stderr.write(f"damaged: {sentence}\n")
    raise typer.Exit(1 if damaged else 0)


@app.command("verify")
def verify_command(
    settings_file: Config,
    title: Annotated[str, typer.Argument(help="Only this title.")] = "",
    rate: Annotated[float, typer.Option(help="Most to read, in MB/s; 0: as fast as the disk gives it.")] = 0,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Take damaged files out of service; a fill brings what is lost.")
    ] = False,
    json: Json = False,
) -> None:
    """Read every chunk of what the store holds and compare it with title.json; exit 1 if anything is damaged.

    What is read does not stay in memory in place of what viewers watch.
    """
    settings = config.load(settings_file, ApplianceSettings)
    store = Store([Path(root) for root in settings.store])
    store.generation()
    found = [name for name in store.versions() if title in ("", name[0])]
    if title and not found:
        raise StoreError(f"there is no title {title!r} in the store: `oca held` lists those there are")
    with _reading(sum(store.version_bytes(*name) for name in found), rate) as pace:
        places = [(name, store.directory(*name)) for name in found]
        reports = [(name, verify.verify(path, pace, partial=True)) for name, path in places if path is not None]
    moved = [str(path) for name, report in reports if quarantine for path in verify.isolate(store, *name, report)]
    problems = [problem for _, report in reports for problem in report.problems]
    if json:
        row = {
            "ok": not problems,
            "versions": len(reports),
            "bytes": sum(report.bytes for _, report in reports),
            "problems": [
                {"path": str(each.path), "file": each.file, "chunk": each.chunk, "problem": each.sentence}
                for each in problems
            ],
            "quarantined": moved,
        }
        sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
    else:
        for problem in problems:
            sys.stderr.write(f"error: {problem.sentence}\n")
        for path in moved:
            sys.stderr.write(f"in quarantine: {path}\n")
        if not problems:
            sys.stdout.write(f"{len(reports)} versions, {sum(r.bytes for _, r in reports)} bytes, all sound\n")
    raise typer.Exit(1 if problems else 0)


@contextmanager
def _reading(total: int, rate: float) -> Iterator[verify.Pace]:
    """A bar for reading `total` bytes, at most `rate` MB/s if not 0."""
    console, bucket = Console(stderr=True), Bucket(rate * 1e6 or math.inf)
    columns = (BarColumn(), TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("verify", total=total)

        def pace(amount: int) -> None:
            progress.advance(task, amount)
            time.sleep(bucket.reserve(amount))

        yield pace


@app.command()
def enrol(
    settings_file: Config,
    controller: Annotated[str, typer.Option(help="The controller's address for TLS, https://host:port.")],
    authority: Annotated[str, typer.Option(help="Fingerprint of the fleet's authority, as the controller shows it.")],
    code: Annotated[str, typer.Option(help="The one-time code; asked for if it is not given.")] = "",
    user: Annotated[str, typer.Option(help="Who is to own the files, if you are root: the user that serves.")] = "",
    new_key: Annotated[bool, typer.Option("--new-key", help="Make another key, though there is one.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the controller's fingerprint; send no code, write nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Get this box its certificate of the fleet, against a one-time code; doing it again does no harm."""
    settings = config.load(settings_file, ApplianceSettings)
    own, owner = Identity.of(Path(settings.identity)), enrolment.owner(user)
    if not code:
        code = typer.prompt("code", err=True)
    got = uvloop.run(
        enrolment.enrol(
            own,
            settings.appliance,
            controller,
            code,
            authority,
            owner=owner,
            new_key=new_key,
            dry_run=dry_run,
            say=lambda sentence: sys.stderr.write(f"{sentence}\n"),
        )
    )
    if got is None:
        row = {"appliance": settings.appliance, "dry_run": True, "identity": settings.identity}
        said = f"{controller} is of this fleet; the code was not sent, and {settings.identity} is as it was"
    else:
        until = datetime.fromtimestamp(got.peer.ends, UTC).isoformat("T", "seconds")
        row = {
            "appliance": settings.appliance,
            "dry_run": False,
            "identity": settings.identity,
            "serial": f"{got.peer.serial:x}",
            "expires": until,
            "controllers": list(got.controllers),
        }
        said = f"{settings.appliance} is enrolled until {until}; controllers over TLS: {' '.join(got.controllers)}"
    sys.stdout.write((msgspec.json.encode(row).decode() if json else said) + "\n")


@app.command()
def renew(
    settings_file: Config,
    now: Annotated[bool, typer.Option("--now", help="Renew although two thirds of its life are not over.")] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="Renew now, for another key.")] = False,
    json: Json = False,
) -> None:
    """Renew this box's certificate if that is due, and take up the fleet's authorities; meant to run daily."""
    settings = config.load(settings_file, ApplianceSettings)
    own = Identity.of(Path(settings.identity))
    changed = uvloop.run(enrolment.renew(own, settings.controllers, new_key=new_key, anyway=now))
    until = datetime.fromtimestamp(enrolment.holder(own).ends, UTC).isoformat("T", "seconds")
    if json:
        row = {"appliance": settings.appliance, "changed": changed, "expires": until}
        sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
    else:
        sys.stdout.write(f"{'changed' if changed else 'nothing to change'}; the certificate is good until {until}\n")


@app.command()
def version() -> None:
    """Print the version of this program."""
    sys.stdout.write(f"{__version__}\n")


def main() -> None:
    """Entry point of the console script."""
    guarded(app)
