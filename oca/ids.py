"""Identifiers: titles, files, appliances and sites obey one grammar, tracks a stricter one."""

from __future__ import annotations

import re

from oca.errors import FormatError

# A dot first is impossible, so an id can never be `.`, `..` or one of the store's own dot directories.
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# A track's name is part of names of files and of ids in manifests and playlists: no dot, and short.
_TRACK = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
TRACK_RULE = "1 to 32 of a-z, 0-9 and '-', starting with a letter or a digit"
_VERSION = re.compile(r"[0-9a-f]{32}")


def is_id(text: str) -> bool:
    """Whether `text` is an id: `[a-z0-9][a-z0-9._-]{0,63}`."""
    return _ID.fullmatch(text) is not None


def is_track(text: str) -> bool:
    """Whether `text` can be a track's name: `[a-z0-9][a-z0-9-]{0,31}`."""
    return _TRACK.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` is a version: 32 lower-case hexadecimal digits (128 bits of BLAKE3)."""
    return _VERSION.fullmatch(text) is not None


def check_id(text: str, what: str) -> str:
    """Return `text` if it is an id, else raise FormatError naming `what` (such as "title id")."""
    if not is_id(text):
        raise FormatError(
            f"{what} {text[:80]!r} is not an id: use 1 to 64 of a-z, 0-9, '.', '_', '-', "
            "starting with a letter or a digit"
        )
    return text
