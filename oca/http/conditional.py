"""Conditional requests: whether to act, given validators the client already has (RFC 9110 section 13)."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["act", "not modified", "failed"]

_ENTITY_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\uffff]*)"')
_IMF_FIXDATE = "%a, %d %b %Y %H:%M:%S GMT"
_RFC850 = re.compile(r"[A-Za-z]+, (\d\d)-([A-Za-z]{3})-(\d\d) (\d\d:\d\d:\d\d) GMT")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: int) -> str:
    """An IMF-fixdate (RFC 9110 5.6.7); independent of the process's locale, unlike strftime."""
    t = time.gmtime(seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04} "
        f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
    )


def parse_date(text: str) -> int | None:
    """Seconds since the epoch of an HTTP date in any of the three forms of RFC 9110 5.6.7, None if it is none."""
    match = _RFC850.fullmatch(text)
    if match:
        day, month, year, clock = match.groups()
        # 5.6.7: a two-digit year more than 50 years ahead is in the past.
        century = time.gmtime().tm_year // 100 * 100
        full = century + int(year)
        if full > time.gmtime().tm_year + 50:
            full -= 100
        text, form = f"{day} {month} {full} {clock}", "%d %b %Y %H:%M:%S"
    elif text.endswith(" GMT"):
        form = _IMF_FIXDATE
    else:
        form = "%a %b %d %H:%M:%S %Y"  # asctime
    try:
        return calendar.timegm(time.strptime(text, form))
    except ValueError:
        return None


def evaluate(
    etag: str,
    modified: int,
    *,
    if_match: Sequence[str] = (),
    if_none_match: Sequence[str] = (),
    if_modified_since: Sequence[str] = (),
    if_unmodified_since: Sequence[str] = (),
) -> Verdict:
    """Apply the preconditions of a GET or HEAD in the order of RFC 9110 13.2.2.

    `etag` is the current strong entity tag with its quotes, `modified` the Last-Modified time in seconds. Each
    precondition is the list of values of its field lines; several lines are one list (5.3).
    """
    if if_match:  # 13.1.1: strong comparison; takes precedence over If-Unmodified-Since
        if not _matches(if_match, etag, weak=False):
            return "failed"
    elif len(if_unmodified_since) == 1:  # 13.1.4: ignored if not a valid date
        since = parse_date(if_unmodified_since[0].strip(" \t"))
        if since is not None and modified > since:
            return "failed"
    if if_none_match:  # 13.1.2: weak comparison; takes precedence over If-Modified-Since
        if _matches(if_none_match, etag, weak=True):
            return "not modified"
    elif len(if_modified_since) == 1:  # 13.1.3: ignored if not a valid date
        since = parse_date(if_modified_since[0].strip(" \t"))
        if since is not None and modified <= since:
            return "not modified"
    return "act"


def range_applies(if_range: Sequence[str], etag: str, modified: int) -> bool:
    """Whether the Range header counts (RFC 9110 13.1.5): no If-Range, or one that is current by strong comparison.

    A weak tag, another date than exactly Last-Modified, garbage, or more than one value: the whole is sent.
    """
    if not if_range:
        return True
    if len(if_range) > 1:
        return False
    value = if_range[0].strip(" \t")
    if value.startswith(('"', "W/")):
        return value == etag
    return parse_date(value) == modified


def _matches(lines: Sequence[str], etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags, or `*`, matches the strong tag `etag` (RFC 9110 8.8.3.2)."""
    value = ",".join(lines).strip(" \t")
    if value == "*":
        return True
    return any((weak or not prefix) and f'"{opaque}"' == etag for prefix, opaque in _ENTITY_TAG.findall(value))
