"""The priority of a fill at disk and processor: behind all who serve viewers, whoever starts the agent."""

from __future__ import annotations

import ctypes
import os

from oca import pieces

# Of ioprio_set(2), for which there is no function in libc.
_SYSCALLS = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_OF_A_PROCESS = 1
_BEST_EFFORT, _LOWEST, _CLASS_SHIFT = 2, 7, 13


def step_back() -> bool:
    """Run, read and write behind all others, threads begun from now on too; whether that could be had.

    The processor when it is idle (SCHED_IDLE), which beside viewers who never pause still is some hundredths of it;
    the disk at the lowest best-effort priority, for beside such viewers an idle one would give nothing at all.
    """
    pieces.give_way()
    # One may be had where the other is forbidden, in a container say.
    return all((_at_the_processor(), _at_the_disk()))


def _at_the_processor() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except PermissionError:
        return False
    return True


def _at_the_disk() -> bool:
    number = _SYSCALLS.get(os.uname().machine)
    if number is None:
        return False
    priority = _BEST_EFFORT << _CLASS_SHIFT | _LOWEST
    return bool(ctypes.CDLL(None).syscall(number, _OF_A_PROCESS, 0, priority) == 0)
