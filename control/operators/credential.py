"""The token that an operator proves who they are with: what it looks like."""

from __future__ import annotations

import re
import secrets

_TOKEN = re.compile(r"ocak_[A-Za-z0-9_-]{43}")


def new() -> str:
    """A token that nobody has seen: 256 random bits, behind a prefix by which scanners find those that leaked."""
    return "ocak_" + secrets.token_urlsafe(32)


def is_token(text: str) -> bool:
    """Whether `text` looks like a token; that says nothing of whose it is."""
    return _TOKEN.fullmatch(text) is not None
