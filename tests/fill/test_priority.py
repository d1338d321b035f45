"""A fill steps back behind those who serve."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from fill import priority


def test_runs_reads_and_writes_behind_others() -> None:
    """Threads too, in which all of it is done."""
    if shutil.which("ionice") is None:
        pytest.skip("ionice tells of priorities")
    program = (
        "import os, subprocess, threading\n"
        "from fill.priority import step_back\n"
        "assert step_back()\n"
        "look = lambda: print(os.sched_getscheduler(threading.get_native_id()) == os.SCHED_IDLE,\n"
        "                     subprocess.check_output(['ionice'], text=True), end='', flush=True)\n"
        "look()\n"
        "thread = threading.Thread(target=look)\n"
        "thread.start()\n"
        "thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True best-effort: prio 7\n" * 2


def test_the_disk_comes_last_where_the_processor_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may forbid the one and not the other."""

    def forbidden(*_: object) -> None:
        raise PermissionError

    asked = []
    monkeypatch.setattr("os.sched_setscheduler", forbidden)
    monkeypatch.setattr(priority, "_at_the_disk", lambda: asked.append(True) or True)
    assert not priority.step_back()
    assert asked
