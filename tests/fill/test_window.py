"""The window: the site's wall clock decides, whatever clocks and calendars do."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fill.window import Window, instant, local, of, utc
from oca.config import ApplianceSettings, FillSettings, load
from oca.errors import ConfigError


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def window(zone: str, start: str, hours: float) -> Window:
    return of(FillSettings(window_start=start, window_hours=hours, timezone=zone))


@pytest.mark.parametrize(
    ("zone", "start", "hours", "now", "opens", "closes"),
    [
        # an ordinary night, before, in and after the window; "-" before opens: it is open
        ("Europe/Berlin", "02:00", 12, "2026-01-10T00:59:59", "2026-01-10T01:00", "2026-01-10T13:00"),
        ("Europe/Berlin", "02:00", 12, "2026-01-10T01:00:00", "-2026-01-11T01:00", "2026-01-10T13:00"),
        ("Europe/Berlin", "02:00", 12, "2026-01-10T13:00:00", "2026-01-11T01:00", "2026-01-11T13:00"),
        # across midnight, and a zone off by half an hour
        ("Asia/Kolkata", "20:00", 12, "2026-01-10T18:31:00", "-2026-01-11T14:30", "2026-01-11T02:30"),
        ("Asia/Kolkata", "20:00", 12, "2026-01-11T02:00:00", "-2026-01-11T14:30", "2026-01-11T02:30"),
        ("Pacific/Kiritimati", "23:30", 1, "2026-01-10T09:45:00", "-2026-01-11T09:30", "2026-01-10T10:30"),
        # clocks go forward: an hour shorter, begun at the skip if the start is skipped
        ("Europe/Berlin", "02:00", 12, "2026-03-29T00:59:59", "2026-03-29T01:00", "2026-03-29T12:00"),
        ("America/New_York", "02:30", 1, "2026-03-08T06:00:00", "2026-03-08T07:00", "2026-03-08T07:30"),
        ("America/New_York", "23:00", 3.5, "2026-03-08T05:00:00", "-2026-03-09T03:00", "2026-03-08T07:00"),
        ("Australia/Lord_Howe", "02:15", 12, "2026-10-03T15:00:00", "2026-10-03T15:30", "2026-10-04T03:15"),
        # a window within the skipped hour does not happen that night
        ("Europe/Berlin", "02:15", 0.5, "2026-03-28T12:00:00", "2026-03-30T00:15", "2026-03-30T00:45"),
        # clocks go back: an hour longer, from the first time the clock shows the start
        ("Europe/Berlin", "02:00", 12, "2026-10-24T23:59:59", "2026-10-25T00:00", "2026-10-25T13:00"),
        ("America/New_York", "01:30", 1, "2026-11-01T06:45:00", "-2026-11-02T06:30", "2026-11-01T07:30"),
        ("America/New_York", "01:30", 1, "2026-11-01T05:29:00", "2026-11-01T05:30", "2026-11-01T07:30"),
        # a date that was left out: the window before it runs into the one that the skip cuts short
        ("Pacific/Apia", "22:00", 12, "2011-12-30T09:00:00", "-2011-12-31T08:00", "2011-12-30T20:00"),
    ],
)
def test_table(zone: str, start: str, hours: float, now: str, opens: str, closes: str) -> None:
    """Opening and closing are right to the second."""
    found = window(zone, start, hours)
    assert found.is_open(at(now)) == opens.startswith("-")
    assert utc(found.opens(at(now)) or 0) == f"{opens.removeprefix('-')}:00Z"
    assert utc(found.closes(at(now)) or 0) == f"{closes}:00Z"


ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo"]
zones = st.sampled_from(ZONES).map(ZoneInfo)
minutes = st.integers(0, 1439)
instants = st.integers(1_262_304_000, 2_051_222_400)  # 2010 to 2034
lengths = st.integers(1, 1439)


@given(zones, minutes, lengths, instants)
def test_answers_agree(zone: ZoneInfo, start: int, length: int, now: int) -> None:
    """What is open stays so until `closes`, what is closed until `opens`, and both are real changes."""
    found = Window(((time(start // 60, start % 60), timedelta(minutes=length)),), zone)
    opens, closes = found.opens(now), found.closes(now)
    assert opens is not None
    assert closes is not None
    assert now < opens
    assert now < closes
    change = min(opens, closes)
    assert (closes < opens) == found.is_open(now)
    assert found.is_open(change - 1) == found.is_open((now + change) // 2) == found.is_open(now)
    assert found.is_open(change) != found.is_open(now)
    assert found.is_open(opens)
    assert not found.is_open(closes)


@given(zones, minutes, lengths, instants)
def test_wall_clock_decides(zone: ZoneInfo, start: int, length: int, now: int) -> None:
    """On days without a change of the clocks, what the clock shows is all that counts."""
    offsets = {datetime.fromtimestamp(now + days * 86400, zone).utcoffset() for days in range(-2, 3)}
    if len(offsets) > 1:
        return
    wall = datetime.fromtimestamp(now, zone)
    since = (wall.hour * 60 + wall.minute - start) % 1440
    found = Window(((time(start // 60, start % 60), timedelta(minutes=length)),), zone)
    assert found.is_open(now) == (since < length)


@given(zones, st.lists(st.tuples(minutes, lengths), min_size=2, max_size=4), instants)
def test_several_windows(zone: ZoneInfo, windows: list[tuple[int, int]], now: int) -> None:
    """It is open when one of them would be; what is open stays so until `closes`, what is closed until `opens`."""
    stretches = [(time(start // 60, start % 60), timedelta(minutes=length)) for start, length in windows]
    alone = [Window((stretch,), zone) for stretch in stretches]
    found = Window(tuple(stretches), zone)
    if found.always:
        return
    assert found.is_open(now) == any(one.is_open(now) for one in alone)
    opens, closes = found.opens(now), found.closes(now)
    assert opens is not None
    assert closes is not None
    change = min(opens, closes)
    assert (closes < opens) == found.is_open(now)
    assert found.is_open(change - 1) == found.is_open(now) != found.is_open(change)


@pytest.mark.parametrize(
    ("windows", "now", "opens", "closes"),
    [
        (["02:00-08:00", "13:00-15:30"], "2026-01-10T01:00", "2026-01-10T02:00", "2026-01-10T08:00"),
        (["13:00-15:30", "02:00-08:00"], "2026-01-10T08:00", "2026-01-10T13:00", "2026-01-10T15:30"),
        (["02:00-08:00", "13:00-15:30"], "2026-01-10T14:00", "-2026-01-11T02:00", "2026-01-10T15:30"),
        (["22:00-02:00", "01:00-03:00"], "2026-01-10T23:00", "-2026-01-11T22:00", "2026-01-11T03:00"),
        (["20:00-24:00", "00:00-01:00"], "2026-01-10T23:00", "-2026-01-11T20:00", "2026-01-11T01:00"),
        (["01:00-09:00", "02:00-03:00"], "2026-01-10T02:30", "-2026-01-11T01:00", "2026-01-10T09:00"),
    ],
)
def test_windows_of_a_day(windows: list[str], now: str, opens: str, closes: str) -> None:
    """In any order; those that meet or overlap are one."""
    found = of(FillSettings(windows=windows, timezone="UTC"))
    assert found.is_open(at(now)) == opens.startswith("-")
    assert utc(found.opens(at(now)) or 0) == f"{opens.removeprefix('-')}:00Z"
    assert utc(found.closes(at(now)) or 0) == f"{closes}:00Z"


@pytest.mark.parametrize("windows", [["05:00-05:00"], ["00:00-24:00"], ["00:00-12:00", "12:00-24:00"]])
def test_windows_that_cover_a_day(windows: list[str]) -> None:
    assert of(FillSettings(windows=windows)).always


@pytest.mark.parametrize("bad", ["2:00-3:00", "02:00", "25:00-26:00", "24:00-02:00", "02:00-24:01", "02:00 - 03:00"])
def test_windows_that_are_none(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "oca.toml"
    path.write_text(f'appliance = "a"\nstore = ["s"]\nurl = "http://a.example"\n[fill]\nwindows = ["{bad}"]\n')
    with pytest.raises(ConfigError, match="windows"):
        load(path, ApplianceSettings)


@given(zones, minutes, instants)
def test_24_hours_never_close(zone: ZoneInfo, start: int, now: int) -> None:
    """A window of a day has no gap, on days of 23 and 25 hours neither."""
    found = Window(((time(start // 60, start % 60), timedelta(hours=24)),), zone)
    assert found.is_open(now)
    assert found.opens(now) is None
    assert found.closes(now) is None


@given(zones, instants, st.integers(1, 7200))
def test_instants_keep_order(zone: ZoneInfo, now: int, later: int) -> None:
    """A later time on the wall is never an earlier instant."""
    wall = datetime.fromtimestamp(now, zone).replace(tzinfo=None)
    assert instant(wall, zone) <= instant(wall + timedelta(seconds=later), zone)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../etc/passwd", "", "Europe", "Europe/Berlin\0"])
def test_unknown_zone(zone: str) -> None:
    """A name that is no time zone is a sentence about the setting."""
    with pytest.raises(ConfigError, match=r"fill\.timezone .* IANA"):
        of(msgspec.structs.replace(FillSettings(), timezone=zone))


def test_local_text() -> None:
    """Local times carry their offset, so that 02:30 twice in a night can be told apart."""
    assert local(at("2026-10-25T00:30:00"), ZoneInfo("Europe/Berlin")) == "2026-10-25 02:30+02:00"
    assert local(at("2026-10-25T01:30:00"), ZoneInfo("Europe/Berlin")) == "2026-10-25 02:30+01:00"
