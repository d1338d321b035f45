"""The outlook of a fill: when it is done, by the clock on the wall, and whether one window is enough."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fill.outlook import finish, outlook
from fill.window import Window, of
from oca.config import FillSettings

HOUR = 3600.0
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()


def window(*stretches: str, zone: str = "UTC") -> Window:
    return of(FillSettings(windows=list(stretches), timezone=zone))


@pytest.mark.parametrize(
    ("windows", "hours", "ends", "number"),
    [
        (["00:00-00:00"], 30, 30, 1),
        (["02:00-06:00"], 0, 0, 0),
        (["02:00-06:00"], 4, 18, 1),
        (["02:00-06:00"], 5, 39, 2),
        (["10:00-14:00"], 2, 2, 1),
        (["10:00-14:00"], 3, 23, 2),
        (["22:00-23:00", "02:00-03:00"], 2, 15, 2),
    ],
)
def test_when_it_is_done(windows: list[str], hours: float, ends: float, number: int) -> None:
    """Hours of work from noon on, done in windows only."""
    assert finish(window(*windows), NOON, hours * HOUR) == (NOON + ends * HOUR, number)


def test_the_night_the_clocks_go_forward_is_shorter() -> None:
    """From 02:00 to 06:00 in Berlin is three hours then."""
    night = datetime(2026, 3, 28, 20, tzinfo=UTC).timestamp()
    assert finish(window("02:00-06:00", zone="Europe/Berlin"), night, 3.5 * HOUR)[1] == 2


def test_what_never_ends_is_said() -> None:
    assert finish(window("02:00-02:01"), NOON, 400 * 24 * HOUR)[0] is None


@given(st.floats(0, 40 * HOUR), st.floats(0, 40 * HOUR))
def test_more_work_is_never_done_earlier(one: float, more: float) -> None:
    nights = window("02:00-06:00", "13:00-14:00", zone="Europe/Berlin")
    less, all_of_it = finish(nights, NOON, one), finish(nights, NOON, one + more)
    assert less[0] is not None
    assert all_of_it[0] is not None
    assert less[0] <= all_of_it[0]
    assert less[1] <= all_of_it[1]


def test_the_slower_of_box_and_line_decides() -> None:
    """A gigabyte at 8 Mbit/s is a thousand seconds, unless the line of the site needs longer."""
    nights = window("02:00-06:00")
    alone = outlook("north-1", 10**9, 8_000_000, 0.0, nights, NOON)
    assert (alone.seconds, alone.fits) == (1000, True)
    crowded = outlook("north-1", 10**9, 8_000_000, 5 * HOUR, nights, NOON)
    assert (crowded.seconds, crowded.windows, crowded.fits) == (5 * HOUR, 2, False)
    assert outlook("north-1", 0, 8_000_000, 5 * HOUR, nights, NOON).fits, "nothing is to come"
