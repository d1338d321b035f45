"""Imported demand: what was watched where and when, and how much of it to expect in the next 24 h. Pure.

A file is CSV with a header, in one of two forms. `title,region,requests` is what was asked for in the last 24 h:
counted in the last whole hour, it takes the place of what is known of that title and region in the 24 h that end
there, so that without older demand the forecast is these very numbers. `time,region,title,views`, also as JSON lines
of objects with these fields, is history: `time` is ISO 8601 with `Z` or an offset, counted in the UTC hour it falls
in, or a date, which stands for the whole of that UTC day. Other columns are ignored. `region` is the name of a
coverage zone. A file is taken whole or not at all.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from control.steering.coverage import MAX_NAME, is_zone_name
from oca.errors import FormatError
from oca.ids import is_id

HOUR_S = 3600
DAY_S = 24 * HOUR_S
COLUMNS = ("time", "region", "title", "views")
DAY_COLUMNS = ("title", "region", "requests")
_FORMS = f"{','.join(DAY_COLUMNS)} or {','.join(COLUMNS)}"
# 1,000 titles in 100 regions, hour by hour for a month, are 72 million rows: import such a file in pieces.
MAX_BYTES = 256 << 20
# More views of one title in an hour than there are people is a mistake, and sums stay far from infinity.
MAX_VIEWS = 1e10
# Where a zone takes a time past the last year that a date can show.
_END = datetime(9999, 12, 31, 23, tzinfo=UTC).timestamp() + HOUR_S
HALF_LIFE_DAYS = 3.0
"""A day counts half as much in the forecast as the day three days after it."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Views of a title begun in a region in the hour that starts at `hour`, UTC seconds since the epoch.

    It takes the place of all that was observed in as many `hours`, of which that hour is the last.
    """

    hour: int
    region: str
    title: str
    views: float
    hours: int = 1


def parse(data: bytes, where: str, now: int) -> list[Observation]:
    """Read and check a demand file, in its order; a FormatError names `where`, the line, and what is wrong.

    `now`, UTC seconds, is when the last 24 h end for a file that tells no times.
    """
    if len(data) > MAX_BYTES:
        raise FormatError(
            f"{where} is {len(data)} bytes long, more than the {MAX_BYTES} allowed: import it in pieces"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(f"{where} line {line}: this is not UTF-8 text") from None
    rows = _json_rows(text, where) if text.lstrip().startswith("{") else _csv_rows(text, where)
    observations = []
    lines: dict[tuple[int, str, str], int] = {}
    for line, row in rows:
        try:
            observation = _observation(row, now)
        except ValueError as error:
            raise FormatError(f"{where} line {line}: {error}") from None
        key = (observation.hour, observation.region, observation.title)
        if lines.setdefault(key, line) != line:
            same = "same hour, region and title" if "time" in row else "same region and title"
            raise FormatError(f"{where} line {line}: {same} as line {lines[key]}: add them up in one line")
        observations.append(observation)
    if not observations:
        raise FormatError(f"{where} holds no demand: give lines of {_FORMS} below a header of these names")
    return observations


def _csv_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Number of the first line, and fields by column, of each row of a CSV file (RFC 4180)."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise FormatError(f"{where} line {line}: {error}") from None
        if fields is None:
            return
        if not fields:
            continue
        if not header:
            header = [field.strip() for field in fields]
            for column in COLUMNS if "time" in header else DAY_COLUMNS:
                if header.count(column) != 1:
                    raise FormatError(
                        f"{where} line {line}: the header has {header.count(column)} columns {column!r}, "
                        f"it needs one each of {_FORMS}"
                    )
        elif len(fields) != len(header):
            raise FormatError(f"{where} line {line}: {len(fields)} fields under a header of {len(header)}")
        else:
            yield line, dict(zip(header, fields, strict=True))


def _json_rows(text: str, where: str) -> Iterator[tuple[int, dict[str, object]]]:
    """Number and object of each line of a file of JSON lines."""
    for line, entry in enumerate(text.split("\n"), 1):
        if not entry.strip():
            continue
        try:
            row = json.loads(entry)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{where} line {line}: this is not JSON: {error}") from None
        if not isinstance(row, dict) or "time" not in row:
            raise FormatError(f"{where} line {line}: this is not an object with {','.join(COLUMNS)}")
        yield line, row


def _observation(row: dict[str, object], now: int) -> Observation:
    """Check one row; ValueError says what is wrong with it."""
    region, title = _text(row, "region"), _text(row, "title")
    if not is_zone_name(region):
        raise ValueError(f"region {region[:80]!r} is not 1 to {MAX_NAME} printable characters")
    if not is_id(title):
        raise ValueError(f"title {title[:80]!r} is not a title's id")
    if "time" not in row:
        return Observation(now // HOUR_S * HOUR_S - HOUR_S, region, title, _count(row, "requests"), DAY_S // HOUR_S)
    return Observation(_hour(_text(row, "time")), region, title, _count(row, "views"))


def _text(row: dict[str, object], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is missing" if value is None else f"{column} is not a text")
    return value.strip()


def _hour(text: str) -> int:
    """The start of the UTC hour in which an ISO 8601 time or date falls."""
    try:
        # A date has a form of its own; the parser of times would take it for midnight without a zone.
        day = date.fromisoformat(text)
        time = datetime(day.year, day.month, day.day, tzinfo=UTC)
    except ValueError:
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"time {text[:80]!r} is neither an ISO 8601 time nor a date") from None
    if time.tzinfo is None:
        raise ValueError(f"time {text!r} has no time zone: end it with Z or an offset such as +02:00")
    seconds = time.timestamp()
    if seconds < 0:
        raise ValueError(f"time {text!r} is before 1970")
    if seconds >= _END:
        raise ValueError(f"time {text!r} is after the year 9999 in UTC")
    return int(seconds) // HOUR_S * HOUR_S


def _count(row: dict[str, object], column: str) -> float:
    """A number, or the text of one in a CSV file."""
    value, count = row.get(column), math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            count = float(value)
    if not 0 <= count <= MAX_VIEWS:
        raise ValueError(f"{column} {str(value)[:80]!r} is not a number from 0 to {MAX_VIEWS:.0f}")
    return count


def forecast(observations: Sequence[Observation], now: int) -> dict[tuple[str, str], float]:
    """Views to expect in the 24 h after `now` (UTC seconds), by (region, title); those without any are left out.

    Simple exponential smoothing of daily views (Brown, 1956) with a half-life of HALF_LIFE_DAYS. Days end with the
    last hour observed, not with `now`: demand imported late is old, not gone. A title's average starts on the day
    when it was first seen in the region, so that a new one is not held to have been unpopular before; days since
    then without a line count as days without a view. What is later than `now` is ignored.
    """
    known = [observation for observation in observations if observation.hour <= now]
    if not known:
        return {}
    end = max(observation.hour for observation in known) + HOUR_S
    decay = 0.5 ** (1 / HALF_LIFE_DAYS)
    sums: dict[tuple[str, str], float] = {}
    oldest: dict[tuple[str, str], int] = {}
    for observation in known:
        key = (observation.region, observation.title)
        age = (end - observation.hour - 1) // DAY_S
        sums[key] = sums.get(key, 0.0) + observation.views * decay**age
        oldest[key] = max(oldest.get(key, 0), age)
    # The weights 1, d, d² … of the days since the first sum up to (1 − dⁿ) ÷ (1 − d).
    weights = {key: (1 - decay ** (age + 1)) / (1 - decay) for key, age in oldest.items()}
    return {key: total / weights[key] for key, total in sums.items() if total > 0}
