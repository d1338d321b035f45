"""The short way to an answer: a plain GET with, byte for byte, the header fields of the one before it.

Players send such. The fields have been parsed once and mean the same again; only the target differs, and what is not
the exact name of a slice that is in memory goes the long way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oca.http.answer import MAX_LINE
from oca.http.gate import PREFIX, split
from oca.http.slices import Slice

if TYPE_CHECKING:
    from oca.http.access import Access
    from oca.http.server import Server

VERSION = b" HTTP/1.1"
"""What ends the request line of every request that is answered here."""
_METHOD = b"GET "
# Visible characters that the access log need not escape. What has others in query or token goes the long way.
_CLEAN = bytes(byte for byte in range(0x21, 0x7F) if byte not in b'"\\')
_TOKEN = _METHOD + PREFIX.encode()


def find(server: Server, access: Access, asked: bytes, client: str) -> Slice | None:
    """The slice that `asked`, "GET " and a target, may be answered with at once; None: ask the long way."""
    slices, token = server.slices, ""
    if asked.translate(None, _CLEAN) != b" ":
        return None
    mark = asked.find(b"?")
    name = asked if mark < 0 else asked[:mark]
    if name.startswith(_TOKEN):
        token, path = split(name[len(_METHOD) :].decode("latin-1"))
        name = _METHOD + path.encode("latin-1")
    found = slices.asked.get(name)
    if found is None or found.warm < server.now or not server.usual or len(asked) > MAX_LINE - len(VERSION):
        return None
    # What a token says of other parts of the request, the long way asks.
    if not access.open and not access.admits(token, name[len(_METHOD) :].decode("latin-1"), client):
        return None
    return found
