"""Redirects from box to box without loops: a redirected URL says in its query which boxes it has been to. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from oca.ids import is_id
from oca.wire import Source

PARAMETER = "oca-hops"
MOST = 3
"""Redirects of one request; after that nobody holds it as far as we know."""
# RFC 3986 3.4: what a query may hold as it is; everything else in it is percent-encoded, a line end most of all.
_QUERY = "/?:@!$&'()*+,;=-._~%"


def been_to(query: str) -> list[str]:
    """The boxes that a request with this query has been redirected by, in order; whatever is no id is left out."""
    values = [part[len(PARAMETER) + 1 :] for part in query.split("&") if part.startswith(f"{PARAMETER}=")]
    return [box for value in values for box in value.split(",") if is_id(box)]


def redirect(target: str, me: str, holders: Sequence[Source]) -> str | None:
    """Where box `me` sends a request for `target` (path and query) that one of `holders`, best first, can answer.

    None when there is nobody that it has not been to, or when it has been redirected `MOST` times already.
    """
    path, _, query = target.partition("?")
    hops = been_to(query)
    if len(hops) >= MOST:
        return None
    holder = next((holder for holder in holders if holder.appliance not in (*hops, me)), None)
    if holder is None:
        return None
    kept = [part for part in query.split("&") if part and not part.startswith(f"{PARAMETER}=")]
    asked = "&".join([*kept, f"{PARAMETER}={','.join([*hops, me])}"])
    return f"{holder.url}{path}?{quote(asked, safe=_QUERY, errors='surrogateescape')}"
