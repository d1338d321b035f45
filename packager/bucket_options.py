"""`oca-pack publish`: a version into a bucket of an S3 service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from oca.errors import ConfigError
from oca.objectstore import Bucket, Place, keys
from oca.store.verify import version_directories
from packager import publish, terminal

# For one request: 8 MiB over a slow line.
_PATIENCE_S = 300.0


def publish_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A version's directory, or a title's with one in it.")],
    bucket: Annotated[str, typer.Argument(metavar="s3://BUCKET[/PREFIX]", help="Where the origin's titles lie.")],
    endpoint: Annotated[str, typer.Option(help="URL of the S3 service.  [default: AWS]")] = "",
    region: Annotated[str, typer.Option(help="Region of the bucket.")] = "us-east-1",
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="TOML with access_key_id and secret_access_key, mode 600; else AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of text for people.")
    ] = False,
) -> None:
    """Bring a version into a bucket that is an origin; each file is verified as it is read, title.json goes last.

    What is there already is not sent again: the same command goes on with what was broken off.
    """
    found = version_directories(path)
    if len(found) > 1:
        raise ConfigError(f"{path} holds {len(found)} versions: name one, such as {found[-1]}")
    opened = Bucket(Place(bucket, endpoint, region), keys(key_file), _PATIENCE_S)
    with terminal.Lines() if as_json else terminal.Bars() as shown:
        done = publish.publish(found[0], opened, shown.step, dry_run=dry_run)
    if as_json:
        terminal.print_json(
            {
                "title": done.title,
                "version": done.version,
                "where": done.where,
                "files": done.sent,
                "bytes": done.bytes,
                "there": done.there,
                "dry_run": dry_run,
            }
        )
        return
    what = f"{len(done.sent)} files, {done.bytes} bytes" if done.sent else "nothing, all of it is there"
    sys.stdout.write(f"{'would send' if dry_run else 'sent'} to {done.where}: {what}\n")
