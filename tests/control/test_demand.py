"""Demand: a file is taken whole or refused by line, and the forecast follows what was watched lately."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.demand import DAY_S, HALF_LIFE_DAYS, HOUR_S, Observation, forecast, parse
from oca.errors import FormatError

HEAD = b"time,region,title,views\n"
NOON = int(datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp())


def hour(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def test_csv() -> None:
    """Times with Z, offset or minutes; dates; blank lines; other columns and order; a byte order mark; CRLF."""
    data = (
        "\ufefftitle,views, time ,region,device\r\n"
        "sintel,12.5,2026-05-01T20:00:00Z,north,tv\r\n"
        "\r\n"
        'sintel,0,2026-05-01T20:15+02:00,"West, Coast",tv\r\n'
        "sintel, 7 ,2026-05-02,north,tv"
    ).encode()
    assert parse(data, "d.csv", NOON) == [
        Observation(hour("2026-05-01T20:00Z"), "north", "sintel", 12.5),
        Observation(hour("2026-05-01T18:00Z"), "West, Coast", "sintel", 0.0),
        Observation(hour("2026-05-02T00:00Z"), "north", "sintel", 7.0),
    ]


def test_json_lines() -> None:
    """The same fields as objects; unknown ones are ignored."""
    data = (
        b'{"time": "2026-05-01T20:59:59.9Z", "region": "north", "title": "sintel", "views": 3, "device": "tv"}\n\n'
        b'{"time": "2026-05-01", "region": "north", "title": "tears", "views": 0.5}\n'
    )
    assert parse(data, "d.jsonl", NOON) == [
        Observation(hour("2026-05-01T20:00Z"), "north", "sintel", 3.0),
        Observation(hour("2026-05-01T00:00Z"), "north", "tears", 0.5),
    ]


def test_requests_of_the_last_day() -> None:
    """They count in the last whole hour, and what is expected then is these numbers."""
    data = b"region,title,requests,note\nnorth,sintel,1000,x\nsouth,sintel,0.5,y\nsouth,tears,0,z\n"
    for now in (NOON, NOON + 1, NOON + HOUR_S - 1):
        found = parse(data, "d.csv", now)
        assert found == [
            Observation(NOON - HOUR_S, "north", "sintel", 1000.0, 24),
            Observation(NOON - HOUR_S, "south", "sintel", 0.5, 24),
            Observation(NOON - HOUR_S, "south", "tears", 0.0, 24),
        ]
        assert forecast(found, now) == {("north", "sintel"): 1000.0, ("south", "sintel"): 0.5}


GOOD = b"2026-05-01T20:00Z,north,sintel,3\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"2026-05-01T20:00Z,north,sintel", "3 fields under a header of 4"),
        (b"2026-05-01T20:00Z,north,sintel,1,2", "5 fields under a header of 4"),
        (b"yesterday,north,sintel,1", "time 'yesterday'"),
        (b"2026-02-30,north,sintel,1", "time '2026-02-30'"),
        (b"2026-05-01T20:00,north,sintel,1", "no time zone"),
        (b"1969-12-31,north,sintel,1", "before 1970"),
        (b"0001-01-01T00:00+23:59,north,sintel,1", "before 1970"),
        (b"9999-12-31T23:00-01:00,north,sintel,1", "after the year 9999"),
        (b"2026-05-01T20:00Z,,sintel,1", "region ''"),
        (b"2026-05-01T20:00Z,a\x07b,sintel,1", "region"),
        (b"2026-05-01T20:00Z,north,../etc,1", "title '../etc'"),
        (b"2026-05-01T20:00Z,north,sintel,", "views ''"),
        (b"2026-05-01T20:00Z,north,sintel,many", "views 'many'"),
        (b"2026-05-01T20:00Z,north,sintel,-1", "views '-1'"),
        (b"2026-05-01T20:00Z,north,sintel,nan", "views 'nan'"),
        (b"2026-05-01T20:00Z,north,sintel,inf", "views 'inf'"),
        (b"2026-05-01T20:00Z,north,sintel,1e300", "views '1e300'"),
        (b"2026-05-01T22:30+02:00,north,sintel,9", "line 2"),
        (b'2026-05-01T20:00Z,"north"x,sintel,1', "','"),
        (b"2026-05-01T20:00Z,no\xffrth,sintel,1", "UTF-8"),
        (b"2026-05-01T20:00Z,north,sin\0tel,1", "title"),
    ],
)
def test_bad_row(row: bytes, said: str) -> None:
    """File, line and what is wrong, and nothing of the file is taken."""
    with pytest.raises(FormatError) as caught:
        parse(HEAD + GOOD + b"\n" + row + b"\n", "d.csv", NOON)
    assert str(caught.value).startswith("d.csv line 4: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"region": "north", "title": "sintel", "views": 1}', "not an object with time,"),
        (b'{"time": 1777665600, "region": "north", "title": "sintel", "views": 1}', "time is not a text"),
        (b'{"time": "2026-05-01", "region": "north", "title": "sintel"}', "views 'None'"),
        (b'{"time": "2026-05-01", "region": "north", "title": "sintel", "views": true}', "views 'True'"),
        (b'{"time": "2026-05-01", "region": "north", "title": "sintel", "views": NaN}', "views 'nan'"),
        (b'{"time": "2026-05-01", "region": "north", "title": "sintel", "views": [1]}', "views"),
        (b'{"time": "2026-05-01", "region": "north", "title": "sintel", "views": 1%s}' % (b"0" * 400), "views"),
    ],
)
def test_bad_json_line(line: bytes, said: str) -> None:
    """As for CSV."""
    good = b'{"time": "2026-05-02", "region": "north", "title": "sintel", "views": 1}\n'
    with pytest.raises(FormatError) as caught:
        parse(good + line, "d.jsonl", NOON)
    assert str(caught.value).startswith("d.jsonl line 2: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "holds no demand"),
        (HEAD, "holds no demand"),
        (
            GOOD,
            "line 1: the header has 0 columns 'title', it needs one each of title,region,requests or",
        ),
        (b"title,region,views\n", "line 1: the header has 0 columns 'requests'"),
        (b"title,region,requests,region\n", "line 1: the header has 2 columns 'region'"),
        (b"time,region,title,requests\n", "line 1: the header has 0 columns 'views'"),
        (b"title,region,requests\n", "holds no demand"),
        (b"title,region,requests\nsintel,north,1\nsintel,north,2\n", "line 3: same region and title as line 2"),
        (b"title,region,requests\nsintel,north,1\nSintel,north,2\n", "line 3: title 'Sintel'"),
        (b"title,region,requests\nsintel,north,1\ntears,north,-2\n", "line 3: requests '-2'"),
        (b"title,region,requests\nsintel,north\n", "line 2: 2 fields under a header of 3"),
        (b"time,region,title,views,views\n", "line 1: the header has 2 columns 'views'"),
        (b'"time\n,region', "line 1"),
    ],
)
def test_bad_file(data: bytes, said: str) -> None:
    """A file that says nothing, or not what its columns are."""
    with pytest.raises(FormatError, match=said):
        parse(data, "d.csv", NOON)


def test_a_line_is_where_its_row_begins() -> None:
    """A field over several lines does not shift the numbers."""
    with pytest.raises(FormatError, match="line 2: region"):
        parse(HEAD + b'2026-05-01,"no\nrth",sintel,1\n', "d.csv", NOON)


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond the limit is refused before it is read."""
    monkeypatch.setattr("control.demand.MAX_BYTES", 10)
    with pytest.raises(FormatError, match="import it in pieces"):
        parse(HEAD + GOOD, "d.csv", NOON)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: HEAD + text.encode("utf-8", "replace")))
def test_any_bytes(data: bytes) -> None:
    """Whatever comes in, it is observations or a FormatError."""
    with contextlib.suppress(FormatError):
        assert parse(data, "d.csv", NOON)


def daily(title: str, *views: float) -> list[Observation]:
    """One observation a day, the last of them at NOON."""
    return [
        Observation(NOON - (len(views) - 1 - day) * DAY_S, "north", title, number) for day, number in enumerate(views)
    ]


def test_constant_demand_is_expected_to_go_on() -> None:
    """Hours of a day add up, days average."""
    observations = [Observation(NOON - hour * HOUR_S, "north", "sintel", 2.0) for hour in range(72)]
    assert forecast(observations, NOON) == {("north", "sintel"): pytest.approx(48)}


def test_half_life() -> None:
    """What was watched a half-life ago counts half as much as what was watched today."""
    quiet = [0.0] * (int(HALF_LIFE_DAYS) - 1)
    early = forecast(daily("sintel", 100.0, *quiet, 0.0), NOON)
    late = forecast(daily("sintel", 0.0, *quiet, 100.0), NOON)
    assert late["north", "sintel"] == pytest.approx(2 * early["north", "sintel"])


def test_a_new_title_is_not_held_back_by_days_before_it() -> None:
    """Beside a title of a week, one of a day is worth what it had on its day."""
    found = forecast(daily("old", *[10.0] * 7) + daily("new", 500.0), NOON)
    assert found == {("north", "old"): pytest.approx(10), ("north", "new"): pytest.approx(500)}


def test_late_import_and_the_future() -> None:
    """Demand imported late is as good as at its end; what lies ahead of now is not known yet."""
    observations = daily("sintel", 10.0, 20.0)
    assert forecast(observations, NOON + 30 * DAY_S) == forecast(observations, NOON)
    assert forecast(observations, NOON - 1) == {("north", "sintel"): pytest.approx(10)}
    assert forecast(observations, NOON - 2 * DAY_S) == {}
    assert forecast([], NOON) == {}
    assert forecast(daily("sintel", 0.0), NOON) == {}


observations = st.lists(
    st.builds(
        lambda day, title, views: Observation(NOON - day * DAY_S, "north", title, views),
        st.integers(0, 40),
        st.sampled_from(["sintel", "tears"]),
        st.floats(0, 1e6),
    ),
    max_size=40,
    unique_by=lambda each: (each.hour, each.title),
)


@given(observations)
def test_an_average_lies_between(observed: list[Observation]) -> None:
    """No forecast is above the best day, none below 0, order does not matter, and JSON can carry it."""
    found = forecast(observed, NOON)
    for (_, title), views in found.items():
        assert 0 < views <= max(each.views for each in observed if each.title == title) * (1 + 1e-9)
    assert forecast(observed[::-1], NOON).keys() == found.keys()
    json.dumps(list(found.values()), allow_nan=False)
