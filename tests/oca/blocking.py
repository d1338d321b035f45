"""Sees whoever waits on the event loop, by the calls that would wait and by no clock (PyPI blockbuster)."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import blockbuster.blockbuster as detection
from blockbuster import BlockBuster
from blockbuster.blockbuster import BlockBusterFunction

_TESTS = str(Path(__file__).parents[1])
# Sent only after a look at what is in memory, and a moment's matter in any directory.
_MEANT = ("os.sendfile", "os.stat", "os.replace")
# Patched types of the interpreter itself; a lock that is held shows as a hang anyhow.
_LEFT_OUT = ("threading.Lock.acquire", "threading.Lock.acquire_lock")
_MORE = ("os.open", "os.pread", "os.fsync", "os.fdatasync")


def _asked_by_a_test() -> bool:
    """Whether a test itself, and not the loop, has called: tests prepare content as they like."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        name = frame.f_code.co_filename
        if name.startswith(_TESTS) and name != __file__:
            return True
    return False


@contextlib.contextmanager
def seen() -> Iterator[list[str]]:
    """Every call of ours that could wait for a disk or a peer while an event loop runs, with its stack."""
    found: list[str] = []

    class NotedError(Exception):
        """Raised where the call was to be, and noted, for whoever is called may catch it."""

        def __init__(self, name: str) -> None:
            super().__init__(f"blocking call to {name}")
            found.append(f"{name}\n{''.join(traceback.format_stack(limit=12))}")

    watch = BlockBuster("oca")
    for name in (*_MEANT, *_LEFT_OUT):
        del watch.functions[name]
    for name in _MORE:
        watch.functions[name] = BlockBusterFunction(None, name, scanned_modules="oca")
    for function in watch.functions.values():
        # A few hundred bytes, once after each change: a revoked box is not to be let in for a sweep longer.
        function.can_block_in("oca/trust/revocations.py", "read")
        function.can_block_predicate = _or_a_test(function.can_block_predicate)
    raised, detection.BlockingError = detection.BlockingError, NotedError  # type: ignore[misc, assignment]
    watch.activate()
    try:
        yield found
    finally:
        watch.deactivate()
        detection.BlockingError = raised  # type: ignore[misc]


def _or_a_test(allowed: Callable[..., bool]) -> Callable[..., bool]:
    def either(*args: Any, **kwargs: Any) -> bool:
        return allowed(*args, **kwargs) or _asked_by_a_test()

    return either
