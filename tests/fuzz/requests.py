"""Targets: what comes with a viewer's request."""

from __future__ import annotations

import itertools
import re

from oca.http import ranges
from oca.http.conditional import evaluate, http_date, parse_date, range_applies
from oca.http.pacing import LEAST_KBPS, Pacing, PacingSettings

_ETAG, _OPAQUE, _MODIFIED = '"0123456789abcdef-v1"', "0123456789abcdef-v1", 1_700_000_000
_CEILING = 10_000_000  # bytes/s: 80 Mbit/s


def byte_ranges(data: bytes) -> None:
    """The first byte is the size of the content, the rest is the value of a Range field."""
    size, header = data[0] if data else 0, data[1:].decode("latin-1")
    asked = ranges.parse(header, size)
    wanted = _positions(header, size)
    if wanted is None:
        assert asked is None, f"{asked} of a header that is none"
        return
    if asked == "unsatisfiable":
        assert not wanted or _runs(wanted) > ranges.MAX_RANGES, "it could be sent"
        return
    assert asked is not None, "a good header is ignored"
    assert 0 < len(asked) <= ranges.MAX_RANGES, f"{len(asked)} spans"
    covered = [position for offset, length in asked for position in range(offset, offset + length)]
    assert sorted(covered) == sorted(wanted), "other bytes than those asked for, or some twice"
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(sorted(asked))), "spans that touch"


def _positions(header: str, size: int) -> set[int] | None:
    """The positions that a header selects, byte by byte as in RFC 9110 14.1.2, None if it is malformed."""
    match = re.fullmatch(r"[ \t]*bytes[ \t]*=(.*)", header, re.IGNORECASE | re.DOTALL)
    if match is None:
        return None
    wanted: set[int] = set()
    specs = [spec for spec in (item.strip(" \t") for item in match[1].split(",")) if spec]
    for spec in specs:
        if not re.fullmatch(r"[0-9]{0,19}-[0-9]{0,19}", spec) or spec == "-":
            return None
        first, last = (int(end) if end else None for end in spec.split("-"))
        if first is not None and last is not None and first > last:
            return None
        for position in range(size):
            if first is None:
                selected = last is not None and position >= size - last
            else:
                selected = first <= position and (last is None or position <= last)
            if selected:
                wanted.add(position)
    return wanted if specs else None


def _runs(positions: set[int]) -> int:
    """How many unbroken runs a set of positions has."""
    return sum(position - 1 not in positions for position in positions)


def cmcd(data: bytes) -> None:
    """A request head, and the ceiling that a player's CMCD asks for."""
    pacing = Pacing(PacingSettings(cmcd=True, rate_mbps=80))
    rate = pacing.rate(data)
    assert LEAST_KBPS * 125 <= rate <= _CEILING, f"{rate} bytes/s"
    numbers = {int(found) * 125 for found in re.findall(rb"rtp(?:=|%3D)([0-9]{1,9})", data, re.IGNORECASE)}
    assert rate in {LEAST_KBPS * 125, _CEILING, *numbers}, "a rate that nobody asked for"
    if rate != _CEILING:
        assert numbers, "lowered, and nobody asked"
        assert re.search(rb"[?&]CMCD=|\r\nCMCD-Status:", data, re.IGNORECASE), "something else was taken for CMCD"
    assert Pacing(PacingSettings()).rate(data) > _CEILING, "a wish counts though it is not to"


def preconditions(data: bytes) -> None:
    """Lines, each the value of a field; its first byte says of which."""
    fields: dict[int, list[str]] = {}
    for line in data.split(b"\n"):
        fields.setdefault(line[0] % 5 if line else 0, []).append(line[1:].decode("utf-8", "surrogateescape"))
    given = [fields.get(number, []) for number in range(5)]
    match, none_match, modified, unmodified, if_range = given
    verdict = evaluate(
        _ETAG,
        _MODIFIED,
        if_match=match,
        if_none_match=none_match,
        if_modified_since=modified,
        if_unmodified_since=unmodified,
    )
    said = "".join(itertools.chain(*given))
    if verdict == "not modified":
        assert none_match or modified
        assert _OPAQUE in said or "*" in said or modified, "not modified, for no reason"
    if verdict == "failed":
        assert match or unmodified, "failed, for no reason"
    if match and (_OPAQUE not in said and "*" not in said):
        assert verdict == "failed", "a tag matches that is another"
    if range_applies(if_range, _ETAG, _MODIFIED) and if_range:
        assert if_range[0].strip(" \t") == _ETAG or parse_date(if_range[0].strip(" \t")) == _MODIFIED
    for text in itertools.chain(*given):
        seconds = parse_date(text)
        if seconds is not None:
            assert parse_date(http_date(seconds)) == seconds, f"{text!r} is written as another time"
