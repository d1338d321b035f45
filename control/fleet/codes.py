"""One-time codes: what is kept of one, and whether one that was typed is good.

A code has 94 random bits (`oca.trust.codeword`), so its plain BLAKE3 is as hard to turn back as any slow hash.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal

from oca.errors import FormatError
from oca.title.digest import digest
from oca.trust import codeword

LIFE_S = 86_400.0
"""How long a code is good, in seconds."""
TRIES = 10
"""Wrong codes after which the right one is good no longer."""

Verdict = Literal["good", "again", "wrong", "used", "expired", "spent"]

SENTENCES: dict[Verdict, str] = {
    # The same for a box that nobody has registered, for one without a code, and for the wrong code.
    "wrong": "this code is not good for appliance {box}: compare both with what `ocactl appliance code {box}` showed",
    "used": "this code of appliance {box} has been used, for another key; if that was not you, revoke the box with "
    "`ocactl appliance revoke {box}`; a new code is made by `ocactl appliance code {box}`",
    "expired": "this code of appliance {box} has expired: make a new one with `ocactl appliance code {box}`",
    "spent": "too many wrong codes were tried for appliance {box}: make a new one with `ocactl appliance code {box}`",
}
"""What a refusal says; {box} is the id."""


@dataclass(frozen=True, slots=True)
class Code:
    """What is kept of a code. Times in UTC seconds; `key` is the fingerprint of the key that it was used for."""

    hash: str
    expires: float
    tries: int = 0
    key: str | None = None

    def open(self, now: float) -> bool:
        """Whether it can still be used."""
        return bool(self.hash) and self.key is None and now < self.expires and self.tries < TRIES


def hashed(appliance: str, code: str) -> str:
    """What is kept of an appliance's code; FormatError if it is no code."""
    return digest(f"{appliance}:{codeword.canonical(code)}".encode())


def judge(kept: Code | None, appliance: str, code: str, key: str, now: float) -> Verdict:
    """Whether a code that was typed is good for an appliance's key (a fingerprint).

    "again": it was used for this very key and has not expired, so whoever holds the key did not get the answer.
    How long this takes says nothing of the code. A code that is not the right one learns nothing else.
    """
    try:
        mine = hashed(appliance, code)
    except FormatError:
        mine = ""
    same = hmac.compare_digest(kept.hash if kept is not None else "", mine)
    if kept is None or not kept.hash or not same:
        return "wrong"
    if kept.tries >= TRIES:
        return "spent"
    if now >= kept.expires:
        return "expired"
    if kept.key is None:
        return "good"
    return "again" if hmac.compare_digest(kept.key, key) else "used"
