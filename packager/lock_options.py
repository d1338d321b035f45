"""The options of `oca-pack build` that say how to encrypt."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from oca.errors import ConfigError
from packager.encryption import cpix, encrypt, keys

Scheme = StrEnum("Scheme", ["cenc", "cbcs"])
_KEYS = "Keys and URLs of encryption"
Encrypt = Annotated[
    Scheme | None,
    typer.Option(
        "--encrypt", rich_help_panel=_KEYS, help="Encrypt: cbcs for Apple's players, cenc for older others."
    ),
]
Key = Annotated[
    list[str],
    typer.Option(
        "--key",
        metavar=f"[{'|'.join(keys.LABELS)}=]KID:KEY",
        rich_help_panel=_KEYS,
        help="Key id and key, 32 hexadecimal digits each; for all tracks, or those named. Repeatable. Whoever is on "
        "this machine can read command lines while they run (ps): better use --key-file.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        rich_help_panel=_KEYS,
        help="Keys, KID:KEY or KID:KEY audio on each line; nobody else may be able to read the file.",
    ),
]
Cpix = Annotated[
    Path | None,
    typer.Option(
        "--cpix", metavar="FILE", rich_help_panel=_KEYS, help="A CPIX document: keys, and what DRM systems need."
    ),
]
ClearkeyUrl = Annotated[
    str,
    typer.Option(
        "--clearkey-url", metavar="URL", rich_help_panel=_KEYS, help="Where players ask for licences of ClearKey."
    ),
]
KeyUrl = Annotated[
    str,
    typer.Option(
        "--key-url",
        metavar="URL",
        rich_help_panel=_KEYS,
        help="Where HLS players that know no key system ask for a key, as 16 bytes; {kid} in it is the key id.",
    ),
]


def encryption(
    scheme: Scheme | None,
    key: list[str],
    key_file: Path | None,
    document: Path | None,
    clearkey_url: str,
    key_url: str,
) -> encrypt.Encryption | None:
    """What the options on encryption ask for; ConfigError if they do not go together."""
    ways = [bool(key), key_file is not None, document is not None]
    if scheme is None:
        if any(ways) or clearkey_url or key_url:
            raise ConfigError(
                "there are keys or URLs of keys, and nothing is to be encrypted: add --encrypt cenc or cbcs"
            )
        return None
    if sum(ways) != 1:
        raise ConfigError("--encrypt takes its keys from one of --key, --key-file and --cpix: give one of these")
    how: Literal["cenc", "cbcs"] = "cenc" if scheme == "cenc" else "cbcs"
    if document is not None:
        found = cpix.read(document, how)
    else:
        found = keys.read(key_file) if key_file is not None else keys.given(key)
    return encrypt.Encryption(encrypt.find(), how, found, clearkey_url, key_url)
