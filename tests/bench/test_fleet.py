"""Programs of the fleet are started and ended whatever happens meanwhile."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import fleet


def test_a_signal_does_not_lose_the_program_that_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the fork and the moment we know of it: it counts, and the program can be ended."""
    start = subprocess.Popen

    def interrupted(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        made: subprocess.Popen[bytes] = start(*given, **more)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(fleet.subprocess, "Popen", interrupted)
    program = fleet.Program("sleeper", ["sleep", "600"], tmp_path / "log")
    # Whatever ran before in this process may have left another one.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            program.start()
        assert program.running
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        program.stop()
        assert not program.running
    finally:
        signal.signal(signal.SIGINT, found)
