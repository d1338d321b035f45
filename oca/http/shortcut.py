"""The short way to an answer: a plain GET with, byte for byte, the header fields of the one before it.

Players send such. The fields have been parsed once and mean the same again; only the target differs, and what is not
the exact name of a slice that is in memory goes the long way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oca.http.answer import MAX_LINE
from oca.http.gate import split
from oca.http.slices import Slice

if TYPE_CHECKING:
    from oca.http.access import Access
    from oca.http.server import Server


def find(server: Server, access: Access, data: bytes, fields: bytes, client: str) -> tuple[bytes, Slice] | None:
    """Request line and slice, if `data` is one whole request that repeats `fields` and can be answered at once."""
    cut = data.find(b"\r\n")
    if data[cut:] != fields or data[:4] != b"GET " or data[cut - 9 : cut] != b" HTTP/1.1":
        return None
    line = data[:cut]
    target = line[4:-9].decode("latin-1")
    token, path = split(target.partition("?")[0])
    found = server.slices.known(path)
    if found is None or found.warm < server.now or cut > MAX_LINE or not server.usual:
        return None
    if " " in target or not (target.isascii() and target.isprintable()):
        return None
    # What a token says of other parts of the request, the long way asks.
    if not access.open and not access.admits(token, path, client):
        return None
    return line, found
