"""The lifeline of a program: it ends when whoever started it ends, by SIGKILL, too.

Run as a script, with the process id of the starter and a command, it becomes that command. So the kernel is asked in
the child's own image, and not between fork and exec, where a process with threads must not run Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tied(command: Sequence[str]) -> list[str]:
    """The command that runs `command` tied to this process; to be started by the main thread.

    The kernel counts the thread that starts it as its parent: the end of another one would end it.
    """
    return [sys.executable, "-S", str(Path(__file__)), str(os.getpid()), *command]


def become(parent: int, command: Sequence[str]) -> None:
    """Ask the kernel to kill this process when its parent dies, which survives exec, and become `command`."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was set
        raise SystemExit(1)
    os.execv(command[0], list(command))


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
