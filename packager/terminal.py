"""How `oca-pack` tells people and programs what it does: tables, bars, lines of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def show(command: str) -> None:
    """Print a command line, to stderr."""
    sys.stderr.write(f"{command}\n")


def print_json(told: Any) -> None:
    """One JSON document, to stdout."""
    sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")


def print_table(heading: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A table, its numbers to the right; some of them may be missing."""
    table = Table(title=heading, title_justify="left")
    for number, column in enumerate(columns):
        numeric = all((row[number] or "0").replace(".", "", 1).isdigit() for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120  # a file or a pipe has no width; wrap for neither
    console.print(table)


class Bars:
    """Progress bars on stderr, one per step; those of its tracks, whose names follow the step's, are under it."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal, expand=True)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, name: str, done: int, total: int) -> None:
        """Show that `done` of `total` of step `name` is done."""
        step, _, track = name.partition(" ")
        for each in (step, name):  # a step is above its tracks, whichever is heard of first
            if each not in self._tasks:
                self._tasks[each] = self._progress.add_task(f"  {track}" if each != step else step, total=total)
        self._progress.update(self._tasks[name], completed=done, total=total)


class Lines:
    """Progress as JSON lines on stderr, one a second at most; those of tracks are in the line of their step."""

    def __init__(self) -> None:
        self._step = ""
        self._begun = (0.0, 0)
        self._told = (0.0, -1)
        self._tracks: dict[str, tuple[int, int]] = {}  # pictures done when it was first heard of, and now

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, name: str, done: int, total: int) -> None:
        """Say that `done` of `total` of step `name` is done, and how many seconds are left of it."""
        now = time.monotonic()
        name, _, track = name.partition(" ")
        if name != self._step:
            self._step, self._begun, self._told, self._tracks = name, (now, done), (0.0, -1), {}
        if track:
            self._tracks[track] = (self._tracks.get(track, (done, 0))[0], done)
            return
        if done == self._told[1] or (now - self._told[0] < 1 and done < total):
            return
        self._told = (now, done)
        spent = now - self._begun[0]

        def told_of(first: int, done: int) -> dict[str, Any]:
            left = round((total - done) * spent / (done - first), 1) if done > first else None
            return {"done": done, "total": total, "seconds_left": left}

        told: dict[str, Any] = {"step": name, **told_of(self._begun[1], done)}
        if self._tracks:
            told["tracks"] = {track: told_of(*each) for track, each in self._tracks.items()}
        sys.stderr.write(json.dumps(told) + "\n")
        sys.stderr.flush()
