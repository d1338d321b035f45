"""The short way to an answer: a plain GET with, byte for byte, the header fields of the one before it.

Players send such. The fields have been parsed once and mean the same again; only the target differs, and what is not
the exact name of a slice that can be found without a disk goes the long way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from oca.http.answer import MAX_LINE
from oca.http.gate import PREFIX, split
from oca.http.slices import NotLoadedError, Slice

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
    """The slice that `asked`, "GET " and a target, may be answered with; None: ask the long way."""
    slices, token = server.slices, ""
    if not server.usual or len(asked) > MAX_LINE - len(VERSION) or asked.translate(None, _CLEAN) != b" ":
        return None
    mark = asked.find(b"?")
    name = asked if mark < 0 else asked[:mark]
    if name.startswith(_TOKEN):
        token, path = split(name[len(_METHOD) :].decode("latin-1"))
        name = _METHOD + path.encode("latin-1")
    path = name[len(_METHOD) :].decode("latin-1")
    try:
        found = slices.asked.get(name) or slices.at_hand(path)
    except NotLoadedError:
        return None
    # What a token says of other parts of the request, the long way asks.
    if found is None or not (access.open or access.admits(token, path, client)):
        return None
    return found
