"""`ocactl title`: what may be placed, filled and played."""

from __future__ import annotations

import base64
import email.utils
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from control.ctl import origins
from control.ctl.client import ControllerError, Json, controller, fetch, fetch_with_fields, quoted, say, show, size
from oca.ids import is_version
from oca.title import model as title_format
from oca.title.digest import version_of
from oca.title.model import TITLE_JSON

app = typer.Typer(help="Titles: register, list, look at, choose the version that viewers get.", no_args_is_help=True)


@app.command()
def add(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A version's URL on an origin (http://BOX:PORT/t/TITLE/VERSION/), a title's or a version's "
            "directory, or s3://BUCKET/PREFIX/TITLE."
        ),
    ],
    owner: Annotated[str, typer.Option("--owner", help="Whose title it is; the first version decides.")] = "default",
    as_json: Json = False,
) -> None:
    """Register a packaged title with the controller, and make this version the active one."""
    if source.startswith("s3://"):
        done = origins.register(controller(context), source, owner)
        say(done, as_json, f"title {done['title']} registered, version {done['version']} is active")
        return
    title_json, published, read = _from_url(source) if "://" in source else _from_directory(Path(source))
    found = title_format.decode(title_json, f"{source}/{TITLE_JSON}")
    upload = {
        "title_json": base64.b64encode(title_json).decode(),
        "indexes": {track.name: base64.b64encode(read(track.files[1])).decode() for track in found.tracks},
        "published": published,
        "owner": owner,
    }
    done = controller(context).ask("POST", "titles", upload)
    say(done, as_json, f"title {done['title']} registered, version {done['version']} is active")


def _from_directory(path: Path) -> tuple[bytes, int, Any]:
    if not (path / TITLE_JSON).is_file() and path.is_dir():
        versions = [entry for entry in path.iterdir() if is_version(entry.name)]
        if len(versions) > 1:
            newest = max(versions, key=lambda entry: entry.stat().st_mtime)
            raise ControllerError(f"{path} holds {len(versions)} versions: name one, such as {newest}")
        path = versions[0] if versions else path
    try:
        data = (path / TITLE_JSON).read_bytes()
        published = int((path / TITLE_JSON).stat().st_mtime)
    except OSError as error:
        raise ControllerError(f"{path} is no title: cannot read {TITLE_JSON} there ({error.strerror})") from None

    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise ControllerError(f"cannot read {path / name}: {error.strerror}") from None

    return data, published, read


def _from_url(url: str) -> tuple[bytes, int, Any]:
    base = url.removesuffix(TITLE_JSON).rstrip("/")
    data, fields = fetch_with_fields(f"{base}/{TITLE_JSON}", who="the origin")
    # Last-Modified of title.json is the publication time, the same on every box.
    modified = email.utils.parsedate_tz(fields.get("Last-Modified", ""))
    if modified is None:
        raise ControllerError(f"{base} gives no Last-Modified: is it an origin of ours?")
    check_named(base, data)
    return data, email.utils.mktime_tz(modified), lambda name: fetch(f"{base}/{name}", who="the origin")


def check_named(url: str, title_json: bytes) -> None:
    """That a title.json is of the title and version that its URL ends with; ControllerError if it is not."""
    said = url.split("/")[-2:]
    found = [title_format.decode(title_json, f"{url}/{TITLE_JSON}").id, version_of(title_json)]
    if said != found:
        raise ControllerError(
            f"{url} gives title {found[0]} version {found[1]} (by BLAKE3 of its {TITLE_JSON}), which is not what its "
            "URL says: give the URL of a version, such as http://box:8080/t/TITLE/VERSION/"
        )


@app.command("list")
def list_titles(context: typer.Context, as_json: Json = False) -> None:
    """List the titles in the catalog."""
    found = controller(context).ask("GET", "titles")
    columns = {"title": "", "name": "", "seconds": "right", "size": "right", "versions": "right", "held whole by": ""}
    rows = [
        (
            t["id"],
            t["name"],
            f"{t['seconds']:.0f}",
            size(t["bytes"]),
            str(len(t["versions"])),
            " ".join(holder["appliance"] for holder in t["holders"] if holder["complete"]),
        )
        for t in found
    ]
    show(found, as_json, columns, rows)


@app.command("show")
def show_title(
    context: typer.Context, title: Annotated[str, typer.Argument(help="The title's id.")], as_json: Json = False
) -> None:
    """Show a title's tracks, and who holds each."""
    found = controller(context).ask("GET", f"titles/{quoted(title)}")
    columns = {
        "id": "right",
        "track": "",
        "codecs": "",
        "lines": "right",
        "kbit/s": "right",
        "size": "right",
        "held by": "",
    }
    rows = [
        (
            str(t["id"]),
            t["name"],
            t["codecs"],
            str(t.get("height", "")),
            f"{t['bandwidth'] / 1000:.0f}",
            size(t["bytes"]),
            " ".join(t["holders"]),
        )
        for t in found["tracks"]
    ]
    show(found, as_json, columns, rows)
    for site in [] if as_json else found["sites"]:
        lacks = "; ".join(f"{box} lacks {', '.join(names)}" for box, names in sorted(site["missing"].items()))
        words = "live" if site["live"] else site["gate"] or "not live: no appliance there holds all of it"
        Console().print(f"{site['site']}: {words}{f' ({lacks})' if lacks else ''}", highlight=False, soft_wrap=True)


@app.command()
def remove(
    context: typer.Context,
    title: Annotated[str, typer.Argument(help="The title's id.")],
    version: Annotated[str | None, typer.Option(help="Only this version; not the one that viewers get.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Take a title out of the catalog; appliances remove it when they look next. Origins keep their files."""
    query = ({"version": version} if version else {}) | ({"dry_run": "1"} if dry_run else {})
    done = controller(context).ask("DELETE", f"titles/{quoted(title)}", **query)
    what = f"{title} ({', '.join(done['versions'])})"
    from_ = f"on {' '.join(done['appliances'])}" if done["appliances"] else "on no appliance"
    say(done, as_json, f"{'would be removed' if dry_run else 'removed'}: {what}, held {from_}")


@app.command()
def activate(
    context: typer.Context,
    title: Annotated[str, typer.Argument(help="The title's id.")],
    version: Annotated[str, typer.Argument(help="The version that viewers are to get.")],
    as_json: Json = False,
) -> None:
    """Make another registered version the one that viewers get."""
    done = controller(context).ask("PUT", f"titles/{quoted(title)}/active", {"version": version})
    say(done, as_json, f"viewers of {title} get version {version} from now on")
