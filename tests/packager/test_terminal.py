"""How far a build is, as people see it on a terminal and programs read it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from packager import terminal
from packager.terminal import Lines


def on_a_terminal(columns: int, program: str, *arguments: str) -> str:
    """All that a Python program writes to a terminal that wide, without what moves the cursor."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=its,
        env={**environment, "TERM": "xterm"},
    )
    os.close(its)
    written = b""
    with suppress(OSError):  # EIO: nobody has the other end any more
        while part := os.read(ours, 1 << 16):
            written += part
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


def test_a_row_for_each_rung(make: Callable[..., Path], tmp_path: Path) -> None:
    """In 80 columns: all in all first, then each rung, with pictures done, share and time left; nothing wraps."""
    video = make("rungs.mp4", "-f", "lavfi", "-i", "testsrc2=s=160x384:r=25:d=2", "-c:v", "libx264")
    program = "import sys; from packager.cli import main; sys.argv[0] = 'oca-pack'; main()"
    options = ("--out", str(tmp_path), "--preset", "ultrafast", "--codec", "h264", "--codec", "hevc")
    rows = on_a_terminal(80, program, "build", str(video), *options).replace("\r", "\n").split("\n")
    assert max(map(len, rows)) <= 80
    last = [row.rstrip() for row in rows if "100%" in row][-11:]
    assert [row.split()[0] for row in last] == [
        "encode",
        *("v-240-235", "v-288-375", "v-384-560", "v-384-750"),
        *("v-240-164-hevc", "v-288-262-hevc", "v-384-392-hevc", "v-384-525-hevc"),
        *("thumbnails", "package"),
    ]
    for name in ("encode", "v-384-750", "v-384-525-hevc"):
        assert re.fullmatch(rf" *{name} +━+ 50/50 +100% 0:00:00", next(r for r in reversed(last) if name in r))


def test_lines_of_tracks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracks are told in the line of their step, which comes once a second, and at its end; the next has none.

    Of the step and of each track there is the time left, once some of it is done.
    """
    now = 1000.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    with Lines() as lines:
        for done in (0, 50, 80, 100):
            now = 1000 + done / 100
            lines.step("encode v1", done, 100)
            lines.step("encode v2", done // 2, 100)
            lines.step("encode", done, 100)
        lines.step("package", 1, 1)
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["step"], each["done"]) for each in told] == [("encode", 0), ("encode", 100), ("package", 1)]
    none, all_of, half = (
        {"done": done, "total": 100, "seconds_left": left} for done, left in ((0, None), (100, 0.0), (50, 1.0))
    )
    assert [each.get("tracks") for each in told] == [{"v1": none, "v2": none}, {"v1": all_of, "v2": half}, None]
    assert [each["seconds_left"] for each in told] == [None, 0.0, None]
