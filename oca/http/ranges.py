"""Byte ranges: what a Range header asks of a representation of known length (RFC 9110 section 14)."""

from __future__ import annotations

import re
from typing import Literal

# More ranges than any player or download tool asks for; a longer list only serves to make us work (RFC 9110, 17.15).
MAX_RANGES = 16

Span = tuple[int, int]
"""Offset and length in bytes; the length is never 0."""

Asked = list[Span] | Literal["unsatisfiable"] | None
"""The spans to send in the order asked for; or answer 416; or None: ignore the header and send it all."""

_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
# Beyond 19 digits no file reaches, and int() of a hostile megabyte of digits is slow.
_MAX_DIGITS = 19


def parse(header: str, size: int) -> Asked:
    """What `header`, the value of a Range field, asks of a representation of `size` bytes.

    A malformed header or another unit than bytes is ignored (14.2); positions beyond the end are cut, and a list
    of which nothing is left is unsatisfiable (14.1.2). Overlapping and adjoining spans are merged (15.3.7.2
    allows it), then a list with more than MAX_RANGES spans is refused as unsatisfiable (14.2 allows it).
    """
    unit, equals, listed = header.partition("=")
    if not equals or unit.strip(" \t").lower() != "bytes":
        return None
    spans: list[Span] = []
    empty = True
    for item in listed.split(","):
        spec = item.strip(" \t")
        if not spec:
            continue  # RFC 9110 5.6.1.2: a recipient must ignore a reasonable number of empty list elements
        match = _SPEC.fullmatch(spec)
        if match is None or max(map(len, match.groups())) > _MAX_DIGITS:
            return None
        empty = False
        first, last = match.groups()
        if first:
            start, end = int(first), int(last) if last else size - 1
            if last and end < start:
                return None  # 14.1.1: an int-range whose last-pos is less than its first-pos is invalid
            if start < size:
                spans.append((start, min(end, size - 1) - start + 1))
        elif last:
            # 14.1.2: a suffix longer than the representation means all of it; a suffix of 0 is unsatisfiable
            length = min(int(last), size)
            if length:
                spans.append((size - length, length))
        else:
            return None
    if empty:
        return None
    if not spans:
        return "unsatisfiable"
    merged = _merge(spans)
    return merged if len(merged) <= MAX_RANGES else "unsatisfiable"


def _merge(spans: list[Span]) -> list[Span]:
    """Spans that overlap or adjoin become one, at the place of the first of them."""
    if len(spans) == 1:
        return spans
    merged: list[Span] = []
    place: dict[Span, int] = {}
    for order, (offset, length) in sorted(enumerate(spans), key=lambda entry: entry[1]):
        if merged and offset <= merged[-1][0] + merged[-1][1]:
            last_offset, last_length = merged.pop()
            first_place = min(place.pop((last_offset, last_length)), order)
            span = (last_offset, max(last_length, offset + length - last_offset))
        else:
            first_place, span = order, (offset, length)
        merged.append(span)
        place[span] = first_place
    return sorted(merged, key=place.__getitem__)
