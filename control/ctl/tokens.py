"""`ocactl token`: keys, and tokens that let viewers in; needs no controller."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import re
import secrets
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from cbor2 import CBORTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from control.ctl.client import Json, parse_duration, show
from oca.errors import OcaError
from oca.http.token import AUD, CATGEOISO3166, CATNIP, CATU, CATV, EXP, ISS, Asked, TokenError, evaluate
from oca.http.tokenkeys import Keys, claims_of, open_token, read
from oca.ids import is_id

app = typer.Typer(help="Keys, and tokens that let viewers in.", no_args_is_help=True)
_NAMES = {ISS: "iss", 2: "sub", AUD: "aud", EXP: "exp", 5: "nbf", 6: "iat", 7: "cti", CATV: "catv", CATNIP: "catnip"}
_NAMES |= {CATU: "catu", 308: "catreplay", 313: "catm", 314: "catalpn", CATGEOISO3166: "catgeoiso3166"}
KeysFile = Annotated[Path, typer.Option("--keys", help="The file of keys.")]


@app.command("new-key")
def new_key(
    file: Annotated[Path, typer.Argument(help="The file that verifies: give it to appliances and controllers.")],
    kid: Annotated[str, typer.Option(help="The key's id, such as 2026-11.")],
    kind: Annotated[str, typer.Option(help="hmac (fast, one secret for all), es256 or ed25519.")] = "hmac",
    signing: Annotated[
        Path | None,
        typer.Option(help="Where the private half of es256 or ed25519 goes; it stays with whoever mints."),
    ] = None,
) -> None:
    """Make a key and add it to FILE; what is there stays, so that old tokens hold until it is removed."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", kid):
        raise OcaError(f"{kid[:80]!r} is no id of a key: use 1 to 64 of A-Z a-z 0-9 . _ -")
    if signing is not None and signing.resolve() == file.resolve():
        raise OcaError(f"{file} is given away and must not hold the private half: name another file with --signing")
    places = [file] if kind == "hmac" else [file, signing]
    for path in places:
        if path is not None and path.exists() and kid.encode() in read(path):
            raise OcaError(f"{path} has a key {kid!r} already: choose another id")
    head = f'[[keys]]\nkid = "{kid}"\nkind = "{kind}"\n'
    if kind == "hmac":
        secret = base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
        _append(file, f'{head}secret = "{secret}"\n')
    elif kind in ("es256", "ed25519"):
        if signing is None:
            raise OcaError(f"a key of kind {kind} has two halves: say with --signing where the private one goes")
        private = ec.generate_private_key(ec.SECP256R1()) if kind == "es256" else ed25519.Ed25519PrivateKey.generate()
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        whole = private.private_bytes(pem, form, serialization.NoEncryption()).decode()
        half = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
        _append(signing, f'{head}private = """\n{whole}"""\n')
        _append(file, f'{head}public = """\n{half}"""\n')
    else:
        raise OcaError(f"{kind[:40]!r} is no kind of key: use hmac, es256 or ed25519")
    sys.stderr.write(f"added key {kid} to {file}\n")


def _append(path: Path, text: str) -> None:
    """Add to a file that only its owner and group may read; who reads meanwhile sees the old one or the new."""
    path = path.resolve()
    try:
        _replace(path, text)
    except OSError as error:
        raise OcaError(f"cannot write {path}: {error.strerror}; run this as the owner of the file, or root") from None


def _replace(path: Path, text: str) -> None:
    before = path.read_text("utf-8") if path.exists() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            if path.exists():
                # The service that reads it is mostly not who writes it.
                found = path.stat()
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fchmod(file.fileno(), found.st_mode & 0o770)
            file.write(f"{before.rstrip()}\n\n{text}" if before.strip() else text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@app.command()
def mint(
    keys: KeysFile,
    lasting: Annotated[str, typer.Option("--for", help="How long it holds: 90s, 30m, 2h, 7d.")],
    kid: Annotated[str, typer.Option(help="The key to use; the last one in the file that can make tokens.")] = "",
    title: Annotated[str, typer.Option(help="The title that may be played; without it, any.")] = "",
    path: Annotated[str, typer.Option(help="Instead of a title: how paths of content begin, such as /t/clip/.")] = "",
    networks: Annotated[
        list[str] | None, typer.Option("--network", help="Prefix that the viewer must be in; repeat it.")
    ] = None,
    countries: Annotated[
        list[str] | None, typer.Option("--country", help="ISO 3166-1 code of a country; repeat it.")
    ] = None,
    issuer: Annotated[str, typer.Option(help="Issuer to name.")] = "",
    audience: Annotated[str, typer.Option(help="Audience to name.")] = "",
    as_json: Json = False,
) -> None:
    """Print a token; put it in front of a path, as in /c/TOKEN/play/TITLE."""
    found = read(keys)
    able = {key.kid.decode(): key for key in found.values() if key.makes}
    if kid and kid not in able:
        raise OcaError(f"{keys} has no key {kid!r} that can make tokens: it has {', '.join(able) or 'none'}")
    if not able:
        raise OcaError(f"{keys} has no key that can make tokens: name the file with the private half")
    if title and not is_id(title):
        raise OcaError(f"{title[:80]!r} is no id of a title")
    if path and not path.startswith("/t/"):
        raise OcaError(f"{path[:80]!r} is no path of content: it must begin with /t/")
    key = able[kid or list(able)[-1]]
    ends = int(time.time() + parse_duration(lasting))
    claims: dict[int, object] = {EXP: ends, CATV: 1}
    if title or path:
        claims[CATU] = {3: {1: path or f"/t/{title}/"}}
    if networks:
        claims[CATNIP] = [_network(text) for text in networks]
    if countries:
        claims[CATGEOISO3166] = [code.upper() for code in countries]
    if issuer:
        claims[ISS] = issuer
    if audience:
        claims[AUD] = audience
    token = key.make(claims)
    if as_json:
        until = datetime.datetime.fromtimestamp(ends, datetime.UTC).isoformat()
        show({"token": token, "kid": key.kid.decode(), "until": until}, True, {}, [])
    else:
        sys.stdout.write(f"{token}\n")


def _network(text: str) -> CBORTag:
    """A prefix as RFC 9164 writes it."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise OcaError(f"{text[:80]!r} is no prefix: {error}") from None
    tag = 52 if network.version == 4 else 54
    return CBORTag(tag, [network.prefixlen, network.network_address.packed.rstrip(b"\0")])


@app.command()
def inspect(
    token: Annotated[str, typer.Argument(help="The token.")],
    keys: Annotated[Path | None, typer.Option("--keys", help="Verify it with these keys.")] = None,
    path: Annotated[str, typer.Option(help="Ask whether it allows this path of content.")] = "",
    client: Annotated[str, typer.Option(help="Address of the viewer who asks.")] = "192.0.2.1",
    as_json: Json = False,
) -> None:
    """Show what a token says; with keys, whether it holds, and why not. Exit code 1 if it does not."""
    shown = {_name(label): _plain(value) for label, value in claims_of(token).items()}
    why = "" if keys is None else _refusal(token, Keys(keys), path, client)
    verdict = "not verified" if keys is None else why or "good"
    rows = [*((name, str(value)) for name, value in shown.items()), ("verdict", verdict)]
    show({"claims": shown, "verdict": verdict}, as_json, {"claim": "", "value": ""}, rows)
    raise typer.Exit(1 if why else 0)


def _refusal(token: str, keys: Keys, path: str, client: str) -> str:
    try:
        claims, kid = open_token(token, keys, time.time())
        # Which audience we are is not known here, so any will do.
        if isinstance(claims, dict):
            claims.pop(AUD, None)
        grant = evaluate(claims, kid, geography=True)
    except TokenError as error:
        return str(error)
    if not path:
        # Only its times are asked about.
        grant.paths, grant.others, grant.networks, grant.countries = (), (), None, None
    return grant.refusal(Asked(path, client), time.time(), lambda _: "")


def _name(label: object) -> str:
    return _NAMES.get(label) or str(_plain(label)) if isinstance(label, int) else str(_plain(label))


def _plain(value: object, depth: int = 0) -> object:
    """As JSON can say it. Anybody may have made it: it may hold itself, and integers too long to be written."""
    if depth > 16:
        return "…"
    if isinstance(value, dict):
        return {str(_plain(key, depth + 1)): _plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, depth + 1) for inner in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, CBORTag):
        return _prefix(value) or _plain(value.value, depth + 1)
    if isinstance(value, int) and value.bit_length() > 64:
        return hex(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def _prefix(tag: CBORTag) -> str:
    """A prefix as people write it, "" if it is none."""
    size = {52: 4, 54: 16}.get(tag.tag)
    if size is None or not isinstance(tag.value, (list, tuple)) or len(tag.value) != 2:
        return ""
    length, data = tag.value
    if not isinstance(length, int) or not isinstance(data, bytes) or not 0 <= length <= 8 * size or len(data) > size:
        return ""
    return f"{ipaddress.ip_address(data.ljust(size, bytes(1)))}/{length}"
