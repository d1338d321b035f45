"""One box asks another for a file or a part of one: what it says, and what the head of the answer has to say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from oca.errors import OcaError

Span = tuple[int, int, int]
"""Offset and length of a part, and the size of its file, in bytes."""
HELD_ONLY = "OCA-Held-Only"
"""Header field of one box's request to another: answer 404 rather than redirect it or pull for it. Stops loops."""
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
_TRANSIENT = frozenset((408, 425, 429, *range(500, 600)))


class SourceError(OcaError):
    """What one source did wrong. `verdict`: try it again, it lacks this file, or it is not to be trusted."""

    def __init__(self, verdict: Literal["retry", "absent", "bad"], sentence: str) -> None:
        super().__init__(sentence)
        self.verdict = verdict


def check_head(status: int, headers: Mapping[str, str], span: Span | None) -> None:
    """Raise SourceError unless this head announces exactly what was asked for (RFC 9110 14.4, 15.3.7)."""
    ranged = span is not None and span[1] != span[2]
    if status in _TRANSIENT:
        raise SourceError("retry", f"it answers {status}")
    if 300 <= status < 400:
        raise SourceError("absent", f"it redirects ({status}), which is not followed")
    if ranged and status == 200:
        raise SourceError("bad", "it ignores Range and sends the whole file")
    if status != (206 if ranged else 200):
        raise SourceError("absent", f"it answers {status}")
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceError("bad", f"it encodes the content as {headers['Content-Encoding'][:40]}")
    if span is None:
        return
    offset, length, size = span
    if headers.get("Content-Length", str(length)) != str(length):
        raise SourceError("bad", f"it announces {headers['Content-Length'][:40]} bytes instead of {length}")
    if ranged:
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or tuple(map(int, match.groups())) != (offset, offset + length - 1, size):
            said = headers.get("Content-Range", "nothing")[:80]
            raise SourceError("bad", f"it announces the range {said!r}, not {offset}-{offset + length - 1}/{size}")
