"""Whether the bytes of a request head can be framed safely, before any parser sees them (RFC 9112)."""

from __future__ import annotations

import re

from oca.http.answer import MAX_LINE, Answer, refuse

MAX_HEAD = 16 << 10
"""The longest head: the request line, and as much again for cookies and the like."""
_BARE_LF = re.compile(rb"(?<!\r)\n")
_VERSION = re.compile(rb" HTTP/(?!1\.[01]$)[0-9]\.[0-9]$")


def refuse_line(line: bytes, date: bytes) -> Answer | None:
    """The refusal of a request line that no parser needs to see, None if it may be good."""
    if len(line) > MAX_LINE:
        return refuse(414, "the request line is too long", date)  # RFC 9110 15.5.15
    if b"\n" in line or b"\r" in line:
        # The parser passes over one in front, and reads another line than is decided by and logged here.
        return refuse(400, "lines of a request head end in CR LF", date)
    if line.endswith((b" HTTP/1.1", b" HTTP/1.0")) and line.count(b" ") == 2:
        return None
    if _VERSION.search(line):  # RFC 9110 15.6.6, RFC 9112 2.3: only the two versions whose framing we know
        return refuse(505, "only HTTP/1.0 and HTTP/1.1 are spoken here", date)
    # RFC 9112 3 lets a recipient split at any white space; two readings of a line are one too many.
    return refuse(400, "this is not an HTTP request", date)


def refuse_unfinished(buffer: bytes, date: bytes) -> Answer | None:
    """The refusal of a head that can no longer become a good one, None while it still can."""
    line_end = buffer.find(b"\r\n")
    if (line_end if line_end >= 0 else len(buffer)) > MAX_LINE:
        return refuse(414, "the request line is too long", date)  # RFC 9110 15.5.15
    if len(buffer) > MAX_HEAD:
        return refuse(431, "the request head is too long", date)  # RFC 6585 5
    if _BARE_LF.search(buffer):
        # RFC 9112 2.2 lets a recipient accept a bare LF; two readings of where a head ends are one too many.
        return refuse(400, "lines of a request head end in CR LF", date)
    return None
