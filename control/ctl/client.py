"""How ocactl speaks to a controller, and prints what it says."""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from email.message import Message
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oca.errors import OcaError

DEFAULT = "http://127.0.0.1:8800"
_TIMEOUT_S = 300.0

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


class ControllerError(OcaError):
    """The controller refused, or could not be reached."""


class Controller:
    """A controller's API. `token` is asked for the operator's token, "" for none, when the first request is sent."""

    def __init__(self, url: str, token: Callable[[], str] = lambda: "") -> None:
        self.url = url.rstrip("/")
        self._token = token

    def ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        """The JSON answer to a request below /api/v1; `body` is sent as it is if bytes, else as JSON."""
        url = f"{self.url}/api/v1/{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        answer, _ = fetch_with_fields(url, method, data, "the controller", self._token())
        try:
            return json.loads(answer) if answer else None
        except ValueError:
            raise ControllerError(f"{self.url} is no controller: it does not answer with JSON") from None


def quoted(part: str) -> str:
    """An id as one segment of a path, whatever was typed."""
    return urllib.parse.quote(part, safe="")


def fetch(url: str, method: str = "GET", data: bytes | None = None, who: str = "the server") -> bytes:
    """The body of the answer; ControllerError with its sentence if it is a refusal."""
    return fetch_with_fields(url, method, data, who)[0]


def fetch_with_fields(
    url: str, method: str = "GET", data: bytes | None = None, who: str = "the server", token: str = ""
) -> tuple[bytes, Message]:
    """As `fetch`, with the header fields of the answer; `token` proves who asks (RFC 6750)."""
    if not url.startswith(("http://", "https://")) or not url.isprintable():
        raise ControllerError(f"{url[:100]!r} is not an http(s) URL")
    try:
        request = urllib.request.Request(url, data=data, method=method)
        if token:
            # Not sent on to wherever a redirect leads.
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            raise ControllerError(_sentence(error.read(), f"{url} answered {error.code}")) from None
    except http.client.HTTPException as error:
        raise ControllerError(
            f"{url.partition('/api/')[0]} does not answer as {who} would ({type(error).__name__})"
        ) from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ControllerError(
            f"cannot reach {who} at {url.partition('/api/')[0]}: {getattr(reason, 'strerror', None) or reason}; "
            "is it running? --controller or $OCA_CONTROLLER say where"
        ) from None
    except ValueError as error:
        raise ControllerError(f"{url[:100]} is not a URL: {error}") from None


def _sentence(data: bytes, otherwise: str) -> str:
    try:
        return str(json.loads(data)["error"])
    except (ValueError, KeyError, TypeError):
        return otherwise


def controller(context: typer.Context) -> Controller:
    """The controller that the command line names."""
    found = context.find_root().obj
    return found if isinstance(found, Controller) else Controller(os.environ.get("OCA_CONTROLLER", DEFAULT))


def show(
    what: Any, as_json: bool, columns: Mapping[str, str] | None = None, rows: Sequence[Sequence[str]] = ()
) -> None:
    """Print JSON, or a table whose columns map heading to justification."""
    if as_json:
        sys.stdout.write(json.dumps(what) + "\n")
        return
    table = Table()
    for heading, justify in (columns or {}).items():
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for row in rows:
        # As Text, since brackets in what others have named are no markup of ours.
        table.add_row(*map(Text, row))
    Console().print(table)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30m", "2h", "90d", "2w", at most a hundred years; ControllerError if it is none."""
    number, unit = text.strip()[:-1], _UNITS.get(text.strip()[-1:])
    if unit is None or not number.isdecimal() or not number.isascii() or len(number) > 10:
        raise ControllerError(f"{text[:40]!r} is not a time: write 30m, 2h or 90d")
    found = float(int(number) * unit)
    if not 0 < found <= 36_500 * _UNITS["d"]:
        raise ControllerError(f"{text[:40]!r} is not a time between a second and a hundred years")
    return found


def say(what: Any, as_json: bool, sentence: str) -> None:
    """Print JSON, or a sentence."""
    sys.stdout.write((json.dumps(what) if as_json else sentence) + "\n")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
