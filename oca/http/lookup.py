"""Finds content whose whereabouts have to be read from a disk, in threads, so that the event loop never waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from oca.errors import FormatError
from oca.http.slices import Slice, Slices

# Enough that one disk that does not answer leaves threads for the others.
_THREADS = 8

Done = Callable[[Slice | None, Exception | None], None]
"""Called with the slice, or None if it is not held, or with what is wrong with the store."""


class Lookup:
    """Looks into the store for one event loop."""

    def __init__(self, slices: Slices) -> None:
        self._slices = slices
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_THREADS, "lookup")
        self._waiting: dict[str, list[Done]] = {}

    def want(self, path: str, done: Done) -> None:
        """Call `done` from the loop when it is known what the URL path stands for."""
        waiting = self._waiting.get(path)
        if waiting is not None:
            waiting.append(done)
            return
        self._waiting[path] = [done]
        self._pool.submit(self._find, path)

    def _find(self, path: str) -> None:
        found, error = None, None
        try:
            found = self._slices.find(path)
        except (FormatError, OSError) as failed:
            error = failed
        # It fails when the loop has ended, and with it whoever wanted to know.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._tell, path, found, error)

    def _tell(self, path: str, found: Slice | None, error: Exception | None) -> None:
        for done in self._waiting.pop(path):
            done(found, error)

    def close(self) -> None:
        """Look for nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
