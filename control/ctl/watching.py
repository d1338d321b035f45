"""`ocactl fill watch`: fills as they go, drawn again and again to the width that there is."""

from __future__ import annotations

import re
import textwrap
import time
from collections import Counter, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from control.ctl.client import Controller, ControllerError, size

_POLL_S = 1.0
# A rate is taken over so many looks, so that it neither jumps nor lags.
_LOOKS = 10
# Tracks shown of one appliance; of the others their number.
_TRACKS = 4
_WIDE = 120
# The least that a bar takes, and what there should be beside the figures for a few words.
_BAR, _WORDS = 8, 22


class Pace:
    """How fast each appliance fetches, seen from its last looks."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[tuple[float, int]]] = {}

    def look(self, box: str, at: float, count: int) -> float:
        """Note that `box` had `count` bytes at `at`; bytes per second over the last looks, 0 if unknown."""
        seen = self._seen.setdefault(box, deque(maxlen=_LOOKS))
        if seen and count < seen[-1][1]:
            seen.clear()  # another run has begun
        seen.append((at, count))
        (first, before), (last, now) = seen[0], seen[-1]
        return (now - before) / (last - first) if last > first else 0.0


def sentence(outlook: Mapping[str, Any] | None) -> str:
    """What an operator has to know of the outlook of a fill: nothing if it fits its window."""
    if outlook is None or outlook["fits"]:
        return ""
    if outlook["rate_bps"] is None:
        return f"{size(outlook['bytes'])} to come, but it has not told of its windows yet"
    if outlook["ends"] is None:
        return f"{size(outlook['bytes'])} will not come within a year of its windows"
    return (
        f"{size(outlook['bytes'])} take {duration(outlook['seconds'])}, longer than the window: "
        f"{outlook['windows']} windows, there on {_moment(outlook['ends'])}"
    )


def expected(outlook: Mapping[str, Any] | None) -> str:
    """How much is to come, and when it will be there as windows and rate tell; nothing if that is not known."""
    if outlook is None or not outlook["bytes"] or outlook["ends"] is None:
        return ""
    return f"{size(outlook['bytes'])} to come, there on {_moment(outlook['ends'])}"


def following(of: Controller, boxes: frozenset[str], *, until_done: bool) -> None:
    """Draw until interrupted, or until all is in place; a controller that is away is said, and asked again."""
    console, pace, found = Console(), Pace(), {}
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            problem = ""
            try:
                found = of.ask("GET", "fills", tracks="1")
            except ControllerError as error:
                if not found:
                    raise
                problem = str(error)
            rows = [box for box in found["appliances"] if not boxes or box["appliance"] in boxes]
            missing = boxes - {box["appliance"] for box in rows}
            if missing:
                raise ControllerError(f"there is no appliance {', '.join(sorted(missing))} that is filled")
            live.update(screen(found["plan"], rows, pace, time.time(), console.width, problem), refresh=True)
            if until_done and not problem and all(box["held"] == box["wanted"] for box in rows):
                return
            time.sleep(_POLL_S)


def screen(
    plan: int, rows: list[dict[str, Any]], pace: Pace, now: float, width: int, problem: str = ""
) -> RenderableType:
    """One picture of all fills, `width` characters wide. Wide ones say of every appliance where its bytes come from,
    narrow ones of those that are fetching.
    """
    wide = width >= _WIDE
    names = [f"{box['appliance']} ({box['site']})" if wide else box["appliance"] for box in rows]
    tracks = [f"  {track['title']} {track['track']}" for box in rows for track in _coming(box)]
    first = max([len(name) for name in (*names, *tracks)], default=0)
    held = {box["appliance"]: f"{box['held']}/{box['wanted']}" for box in rows}
    tally = max([7, *map(len, held.values())])
    kinds = {box["appliance"]: _kinds(box["classes"]) for box in rows}
    whence = max(map(len, kinds.values()), default=0)
    figures = tally + 9 + 11 + (2 + whence if wide else 0) + 2 * 4
    first = min(first, width // 3, width - figures - _BAR) if wide else min(first, width // 4)
    bar = max(_BAR, min(40, width - first - figures - _WORDS))
    complete = sum(box["held"] == box["wanted"] for box in rows)
    total: Counter[str] = Counter()
    for box in rows:
        total.update(box["classes"])
    told = ", ".join(filter(None, [f"{complete} of {len(rows)} appliances have everything", _kinds(total)]))
    lines = [Text(part, style="bold") for part in _wrapped(f"plan {plan}: {told}", width)]
    for name, box in zip(names, rows, strict=True):
        rate = pace.look(box["appliance"], now, sum(box["fetched"].values()))
        state, style, notes = _state(box, rate, now)
        cells = [held[box["appliance"]].rjust(tally), size(sum(box["fetched"].values())).rjust(9)]
        cells.append((f"{size(rate)}/s" if rate else "").rjust(11))
        if wide:
            cells.append(kinds[box["appliance"]].ljust(whence))
        elif rate and state != "complete":
            state = f"{state}; {kinds[box['appliance']]}"
        if len(state) > width - first - bar - sum(2 + len(cell) for cell in cells) - 4:
            # What does not fit beside the figures has a line of its own.
            notes.insert(0, (state, style))
            state = ""
        lines.append(_line(name, first, _bar(box["held"], box["wanted"], bar), cells, (state, style)))
        for track in _coming(box):
            cells = [" " * tally, size(track["bytes"]).rjust(9)]
            title = f"  {track['title']} {track['track']}"
            lines.append(_line(title, first, _bar(track["bytes"], track["total"], bar), cells, ("", ""), "dim"))
            if track.get("error"):
                notes.append((track["error"], "red"))
        rest = len(box["tracks"]) - len(_coming(box))
        if rest:
            lines.append(Text(f"  {rest} more wait", style="dim"))
        for words, style in notes:
            lines += [Text(f"    {part}", style=style) for part in _wrapped(words, width - 4)]
    if problem:
        lines += [Text(part, style="red") for part in _wrapped(problem, width)]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return Group(*lines)


def _wrapped(words: str, width: int) -> list[str]:
    """Lines of at most so many characters; figures stay with their units."""
    kept = re.sub(r"(?<=\d) (?=[kMGT]?B\b)", "\N{NO-BREAK SPACE}", words)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in textwrap.wrap(kept, width)] or [""]


def _kinds(classes: Mapping[str, int]) -> str:
    """How much came from each class of sources."""
    return ", ".join(f"{size(count)} {kind}" for kind, count in sorted(classes.items()))


def _line(name: str, first: int, bar: Text, cells: list[str], state: tuple[str, str], style: str = "") -> Text:
    """One line: a name, a bar, figures in columns, and what is to be said."""
    head = Text(name, style=style)
    head.truncate(first, overflow="ellipsis", pad=True)
    words = [Text(state[0], style=state[1])] if state[0] else []
    return Text("  ").join([head, bar, *(Text(cell, style=style) for cell in cells), *words])


def _coming(box: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tracks of an appliance that are being fetched or have failed, some of them."""
    return [track for track in box["tracks"] if track["state"] != "waiting"][:_TRACKS]


def _bar(done: int, total: int, width: int) -> Text:
    full = width * done // total if total else 0
    return Text.assemble(("━" * full, "green"), ("─" * (width - full), "dim"))


def _state(box: Mapping[str, Any], rate: float, now: float) -> tuple[str, str, list[tuple[str, str]]]:
    """What to say of an appliance in a few words, in which style, and what of it takes lines of its own."""
    notes: list[tuple[str, str]] = []
    outlook = box["outlook"]
    if box["held"] == box["wanted"]:
        return "complete", "green", notes
    # Who is ordered to fill now waits for no window.
    if sentence(outlook) and not box["order"]:
        notes.append((sentence(outlook), "yellow"))
    if box["paused"]:
        return "paused", "yellow", notes
    if rate and outlook is not None:
        left = outlook["bytes"] / rate
        return f"done in {duration(left)}, {_moment(now + left)}", "", notes
    if box["errors"] and box["finished"]:
        return "failed", "red", [*notes, *((error, "red") for error in box["errors"][:_TRACKS])]
    if box["order"]:
        return "ordered", "", notes
    state = "waits for its window" if box["outside_window"] else "begins"
    more = "" if notes else expected(outlook)
    return f"{state}; {more}" if more else state, "", notes


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%MZ")
