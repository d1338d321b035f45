"""The fill window: when a site lets its link be used, by the clock on its wall. Pure; instants are UTC epoch seconds.

One window or several belong to each local date: each opens when the site's clock reaches its start and closes when it
reaches start plus length, and those that meet are one. So peak hours stay free whatever the clocks do. A time that
the clock skips counts as the moment it skips; of a time that occurs twice the first counts. So on the night clocks
go forward a window may be an hour shorter (one wholly within the skipped hour does not happen), on the night they go
back an hour longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from oca.config import FillSettings
from oca.errors import ConfigError

_MINUTE = timedelta(minutes=1)
_MINUTES = 24 * 60
# Longer than any run of dates that a zone skips (Pacific/Apia left out one day in 2011) or windows it swallows.
_HORIZON_DAYS = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Daily windows, each from a local time on for a length of at most a day, in `zone`."""

    stretches: tuple[tuple[time, timedelta], ...]
    zone: ZoneInfo

    @property
    def always(self) -> bool:
        """Whether it never closes."""
        minutes: set[int] = set()
        for start, length in self.stretches:
            first = start.hour * 60 + start.minute
            minutes.update(minute % _MINUTES for minute in range(first, first + int(length / _MINUTE)))
        return len(minutes) == _MINUTES

    def is_open(self, at: float) -> bool:
        """Whether filling is allowed at the instant `at`."""
        return self.always or self._span(at)[0] <= at

    def opens(self, at: float) -> float | None:
        """The first opening after `at`; None if it is always open."""
        if self.always:
            return None
        opens, closes = self._span(at)
        return opens if opens > at else self._span(closes)[0]

    def closes(self, at: float) -> float | None:
        """The first closing after `at`; None if it is always open."""
        return None if self.always else self._span(at)[1]

    def _span(self, at: float) -> tuple[float, float]:
        """Opening and closing of the window that is open at `at`, else of the next."""
        spans = (span for span in self._spans(at) if span[0] < span[1] and at < span[1])
        opens, closes = next(spans)
        for following in spans:  # where the clock skips, one window may begin as the other ends
            if following[0] > closes:
                break
            closes = max(closes, following[1])
        return opens, closes

    def _spans(self, at: float) -> Iterator[tuple[float, float]]:
        """The windows of the dates around and after `at`, in order; empty ones included."""
        today = datetime.fromtimestamp(at, self.zone).date()
        found = []
        for days in range(-2, _HORIZON_DAYS):
            for start, length in self.stretches:
                begin = datetime.combine(today + timedelta(days), start)
                found.append((instant(begin, self.zone), instant(begin + length, self.zone)))
        return iter(sorted(found))


def instant(wall: datetime, zone: ZoneInfo) -> float:
    """When the clock of `zone` first shows `wall` (naive) or has skipped it; never decreases as `wall` grows."""
    first = wall.replace(tzinfo=zone, fold=0).timestamp()
    second = wall.replace(tzinfo=zone, fold=1).timestamp()
    if first <= second:
        return first
    # PEP 495: in a gap, fold 0 lies after the skip and fold 1 before it. Search the second at which it happens.
    before = zone.utcoffset(datetime.fromtimestamp(second, zone))
    low, high = int(second), int(first)
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return float(high)


def of(settings: FillSettings) -> Window:
    """The window that the settings describe; ConfigError if the time zone is unknown."""
    try:
        zone = ZoneInfo(settings.timezone)
    except (LookupError, ValueError, OSError):
        raise ConfigError(
            f"fill.timezone {settings.timezone[:80]!r} is not a time zone: use an IANA name such as Europe/Berlin"
        ) from None
    if not settings.windows:
        length = timedelta(seconds=round(settings.window_hours * 3600))
        return Window(((time.fromisoformat(settings.window_start), length),), zone)
    stretches = []
    for text in settings.windows:
        begin, end = (int(part[:2]) * 60 + int(part[3:]) for part in text.split("-"))
        # From a time to the same is a day.
        stretches.append((time(begin // 60, begin % 60), ((end - begin - 1) % _MINUTES + 1) * _MINUTE))
    return Window(tuple(stretches), zone)


def utc(at: float) -> str:
    """An instant as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def local(at: float, zone: ZoneInfo) -> str:
    """An instant as the site's clock shows it, with its offset from UTC."""
    return datetime.fromtimestamp(at, zone).isoformat(sep=" ", timespec="minutes")
