"""`ocactl fill watch` draws what matters, on narrow terminals and on wide ones."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from control.ctl.watching import Pace, screen, sentence

NOW = 1_780_000_000.0


def outlook(**more: Any) -> dict[str, Any]:
    values = {
        "appliance": "n",
        "bytes": 10**9,
        "rate_bps": 10**8,
        "seconds": 80.0,
        "windows": 1,
        "ends": NOW,
        "fits": True,
    }
    return values | more


def box(name: str, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "appliance": name,
        "site": "north",
        "wanted": 9,
        "held": 3,
        "order": 0,
        "paused": False,
        "finished": False,
        "outside_window": False,
        "fetched": {"origin": 5 * 10**8, "north-2": 10**8},
        "classes": {"origin": 5 * 10**8, "peer": 10**8},
        "errors": [],
        "outlook": outlook(),
        "tracks": [],
    }
    return values | more


def track(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {"title": "bunny", "track": name, "state": state, "bytes": 50, "total": 100} | more


ROWS = [
    box(
        "north-1",
        tracks=[
            track("v-1080", "fetching"),
            track("v-720", "failed", error="no source gives it"),
            track("a-eng", "waiting"),
        ],
    ),
    box("north-2", held=9),
    box("north-3", paused=True),
    box("north-4", outside_window=True, outlook=outlook(fits=False, windows=2, seconds=30_000.0)),
    box("north-5", errors=["bunny v-720: no room for 5 bytes"], finished=True),
    box("north-6", order=4, fetched={}, classes={}, outlook=None),
    box("north-7", outside_window=True),
    box("north-8", order=5, outlook=outlook(fits=False, windows=3)),
]


def drawn(width: int, rows: list[dict[str, Any]], pace: Pace | None = None, problem: str = "") -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(screen(3, rows, pace or Pace(), NOW, width, problem))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_everything_is_said_and_no_line_is_too_long(width: int) -> None:
    text = drawn(width, ROWS, problem="the controller is away")
    assert all(len(line) <= width for line in text.splitlines())
    for words in ("plan 3: 1 of 8", "north-1", "3/9", "complete", "paused", "bunny v-1080", "1 more wait", "ordered"):
        assert words in text
    assert "the controller is away" in text
    assert "appliances have everything, 3.5 GB origin, 700.0 MB peer" in text
    assert ("500.0 MB origin, 100.0 MB peer" in text) is (width == 200)
    told = " ".join(text.split())
    assert "1.0 GB take 8 h 20 min, longer than the window: 2 windows, there on 2026-" in told
    assert "no room for 5 bytes" in text
    assert "waits for its window; 1.0 GB to come, there on 2026-" in told
    assert "3 windows" not in told, "who is ordered to fill now waits for none"
    assert "no source gives it" in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_much_from_many_classes_is_told_whole(width: int) -> None:
    """Figures are cut at no width, and stay with their units; long names are, and say so."""
    classes = {"origin": 4_567 * 10**9, "peer": 3_456 * 10**9, "tier": 123 * 10**9}
    names = [f"hamburg-edge-{n}" for n in range(3)]
    coming = track("v-1080-4500", "fetching") | {"title": "the-long-title-of-a-film-of-many-words"}
    rows = [box(name, wanted=24_000, held=12_345, classes=classes, tracks=[coming]) for name in names]
    rows.append(box("north-2", held=9))
    pace = Pace()
    for row in rows:
        pace.look(row["appliance"], NOW - 2, 4 * 10**8)
    lines = drawn(
        width, rows, pace, "the controller is away for a reason that takes many words: " + "x " * 99
    ).splitlines()
    assert all(len(line) <= width for line in lines)
    told = " ".join(" ".join(lines).split())
    assert "have everything, 13.7 TB origin, 10.4 TB peer, 369.0 GB tier" in told
    assert told.count("4.6 TB origin, 3.5 TB peer, 123.0 GB tier") == 3, "and of every appliance that fetches"
    assert told.count("done in 10 s, 2026-") == 3
    assert sum(line.rstrip().endswith("complete") for line in lines) == 1
    assert told.count("x ") == 98
    cut = [line for line in lines if "…" in line]
    assert len(cut) == (0 if width == 200 else 3)
    assert all(line.startswith("  the-long-title") for line in cut)
    assert not [line for line in lines if line.split()[:1] in (["GB"], ["TB"])]
    assert len({line.index("/24000") for line in lines if "/24000" in line} | {_end(lines, "9/9") - 6}) == 1


def _end(lines: list[str], figures: str) -> int:
    """Up to which column the only line with these figures has them."""
    (at,) = (line.index(figures) + len(figures) for line in lines if figures in line)
    return at


def test_the_rate_is_that_of_the_last_looks_and_tells_when_it_is_done() -> None:
    pace = Pace()
    assert pace.look("north-1", NOW - 2, 4 * 10**8) == 0
    text = drawn(200, [box("north-1")], pace)
    assert "100.0 MB/s" in text
    assert "done in 10 s" in text
    pace.look("north-appliance-in-the-cellar", NOW - 2, 4 * 10**8)
    narrow = drawn(80, [box("north-appliance-in-the-cellar")], pace).splitlines()
    done = [line for line in narrow if line.strip().startswith("done in ")]
    assert ["Z; 500.0 MB origin, 100.0 MB peer" in line for line in done] == [True], "it is not cut off"
    assert all(len(line) <= 80 for line in narrow)
    assert pace.look("north-1", NOW + 1, 0) == 0, "another run began"
    assert pace.look("north-1", NOW + 2, 7) == 7


@pytest.mark.parametrize(
    ("outlook", "words"),
    [
        (None, ""),
        (outlook(), ""),
        (outlook(fits=False, rate_bps=None, ends=None), "it has not told of its windows yet"),
        (outlook(fits=False, ends=None), "will not come within a year"),
        (outlook(fits=False, windows=3, seconds=60.0), "take 60 s, longer than the window: 3 windows"),
    ],
)
def test_only_what_does_not_fit_is_said(outlook: dict[str, Any] | None, words: str) -> None:
    assert (words in sentence(outlook)) if words else sentence(outlook) == ""
