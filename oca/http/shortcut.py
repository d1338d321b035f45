"""The short way to an answer: a plain GET with, byte for byte, the header fields of the one before it.

Players send such. The fields have been parsed once and mean the same again; only the target differs, and what is not
the exact name of a slice that is in memory goes the long way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from oca.http.answer import MAX_LINE
from oca.http.gate import PREFIX, split
from oca.http.slices import Slice

if TYPE_CHECKING:
    from oca.http.access import Access
    from oca.http.server import Server

_METHOD, _VERSION = b"GET ", b" HTTP/1.1"
_QUERY = re.compile(rb"\?[!-~]* HTTP/1\.1")
_TOKEN = _METHOD + PREFIX.encode()


def find(server: Server, access: Access, data: bytes, fields: bytes, client: str) -> tuple[bytes, Slice] | None:
    """Request line and slice, if `data` is one whole request that repeats `fields` and can be answered at once.

    `fields` is what followed the request line before it, its CR LF included; nothing repeats no fields.
    """
    if not fields or not data.endswith(fields):
        return None
    line = data[: -len(fields)]
    # What is looked up names a slice exactly or is not found, so only the query has still to be checked.
    mark = line.find(b"?")
    if mark < 0:
        asked = line[:-9]
        if line[-9:] != _VERSION:
            return None
    else:
        asked = line[:mark]
        if _QUERY.fullmatch(line, mark) is None:
            return None
    slices = server.slices
    found = slices.known(asked)
    token = ""
    if found is None and asked.startswith(_TOKEN):
        token, path = split(asked[len(_METHOD) :].decode("latin-1"))
        asked = _METHOD + path.encode("latin-1")
        found = slices.known(asked) if token.isascii() and token.isprintable() and " " not in token else None
    if found is None or found.warm < server.now or len(line) > MAX_LINE or not server.usual:
        return None
    # What a token says of other parts of the request, the long way asks.
    if not access.open and not access.admits(token, asked[len(_METHOD) :].decode("latin-1"), client):
        return None
    return line, found
