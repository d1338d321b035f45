"""Where a version may be fetched: one appliance as a manifest names it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from oca.errors import FormatError

_PATHWAY = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Neither quotes nor spaces nor control characters: the URL goes into quoted strings of HLS and into XML as it is.
_URL = re.compile(r"https?://[!#-;=?-\[\]_a-z~%]+")


@dataclass(frozen=True, slots=True)
class Location:
    """`id` is the HLS pathway id and the DASH serviceLocation, `base` the URL of the version, ending in "/"."""

    id: str
    base: str

    def __post_init__(self) -> None:
        if _PATHWAY.fullmatch(self.id) is None:
            raise FormatError(f"location id {self.id[:80]!r} is not a pathway id: use 1 to 64 of A-Z a-z 0-9 . _ -")
        if not self.base.endswith("/"):
            raise FormatError(f"location {self.id} has base {self.base[:200]!r}: a base must end in '/'")
        check_url(self.base, f"base of location {self.id}")


def check_url(url: str, what: str) -> str:
    """Return `url` if it is an absolute http(s) URL fit for a manifest, else raise FormatError naming `what`."""
    if _URL.fullmatch(url) is None:
        raise FormatError(f"{what} {url[:200]!r} is not an absolute http(s) URL, percent-encoded where necessary")
    return url
