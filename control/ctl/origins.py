"""`ocactl origin`: buckets of S3 services that hold what was published."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from control.ctl.client import Controller, ControllerError, Json, controller, quoted, show

app = typer.Typer(help="Origins that are buckets; [[origins]] in control.toml names them.", no_args_is_help=True)
_COLUMNS = {"origin": "", "bucket": "", "service": "", "site": "", "versions": "right", "state": ""}


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return one["name"], one["bucket"], one["url"], one["site"], str(one["versions"]), one["problem"] or "in order"


@app.command("list")
def list_origins(context: typer.Context, as_json: Json = False) -> None:
    """List the buckets, how many versions of the catalog each holds, and what is wrong with it."""
    found = controller(context).ask("GET", "origins")
    show(found, as_json, _COLUMNS, [_row(one) for one in found])


@app.command("show")
def show_origin(
    context: typer.Context, name: Annotated[str, typer.Argument(help="The origin's name.")], as_json: Json = False
) -> None:
    """Look into a bucket: the whole versions there, and which are in the catalog."""
    found = controller(context).ask("GET", f"origins/{quoted(name)}")
    rows = [(each["title"], each["version"], "yes" if each["registered"] else "no") for each in found["titles"]]
    show(found, as_json, {"title": "", "version": "", "registered": ""}, rows)


def register(of: Controller, url: str, owner: str = "default") -> dict[str, Any]:
    """Register the version at s3://BUCKET/PREFIX/TITLE[/VERSION], which the controller reads from the bucket."""
    origins = {f"{one['bucket']}/": one["name"] for one in of.ask("GET", "origins")}
    base = max((base for base in origins if url.startswith(base)), key=len, default=None)
    title, _, version = url.removesuffix("/")[len(base or "") :].partition("/")
    if base is None or not title:
        known = ", ".join(base.removesuffix("/") for base in sorted(origins)) or "none"
        raise ControllerError(
            f"{url[:200]} is in no bucket of the controller's [[origins]] ({known}): write s3://BUCKET/PREFIX/TITLE"
        )
    wanted = {"title": title, "version": version or None, "owner": owner}
    done: dict[str, Any] = of.ask("POST", f"origins/{quoted(origins[base])}/titles", wanted)
    return done
