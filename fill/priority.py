"""The priority of a fill at the disk: behind all who serve viewers, whoever starts the agent."""

from __future__ import annotations

import ctypes
import os

# Of ioprio_set(2), for which there is no function in libc.
_SYSCALLS = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_OF_A_PROCESS = 1
_BEST_EFFORT, _LOWEST, _CLASS_SHIFT = 2, 7, 13


def step_back() -> bool:
    """Read and write at the lowest best-effort priority, threads begun from now on too; whether that could be had.

    Not as idle: beside viewers who never pause, a fill would never end.
    """
    number = _SYSCALLS.get(os.uname().machine)
    if number is None:
        return False
    priority = _BEST_EFFORT << _CLASS_SHIFT | _LOWEST
    return bool(ctypes.CDLL(None).syscall(number, _OF_A_PROCESS, 0, priority) == 0)
