"""Which programs run, told by their command lines."""

from __future__ import annotations

import time
from pathlib import Path

DEADLINE_S = 60


def programs(directory: Path) -> list[str]:
    """Command lines of running processes that use this directory; who has ended, but was not waited for, has none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(directory) in line and "oca-bench" not in line:
            found.append(line)
    return found


def appear(directory: Path, *names: str, seconds: float = DEADLINE_S) -> None:
    """Wait until processes run that use this directory and have these names in their command lines."""
    deadline = time.monotonic() + seconds
    while missing := [name for name in names if not any(name in line for line in programs(directory))]:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def gone(directory: Path) -> None:
    """Wait until no process uses this directory."""
    deadline = time.monotonic() + DEADLINE_S
    while found := programs(directory):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
