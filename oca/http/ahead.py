"""Brings content from disks into memory, in threads, so that the event loop never waits for a disk.

A few threads per disk, and each only reads a bounded window: all sending stays with the loop, so a slow reader
holds no thread, and a slow disk holds up nobody who does not want content from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from oca import blocks
from oca.counters import Counters
from oca.http.slices import Descriptor

WINDOW = blocks.BLOCK
"""Bytes brought in at once for one connection: a segment of high quality."""
# How far the kernel is asked to read ahead of us in one call; larger requests would be cut to the device's limit.
_ASK = 256 << 10

Done = Callable[[OSError | None], None]


class ReadAhead:
    """Reads windows of files into the page cache. Not thread-safe: belongs to one event loop."""

    def __init__(self, threads: int, counters: Counters) -> None:
        self._threads = threads
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._disks: dict[int, ThreadPoolExecutor] = {}
        # Disks that are read in blocks.
        self._whole: set[int] = set()
        self._waiting: dict[tuple[int, int, int], list[Done]] = {}
        # What is sent here is read from the disk, and not even copied.
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def window(self, descriptor: Descriptor, offset: int, length: int) -> int:
        """How many of `length` bytes at `offset` are best brought in at once."""
        return min(length, WINDOW - offset % WINDOW if descriptor.device in self._whole else WINDOW)

    def want(self, descriptor: Descriptor, offset: int, length: int, done: Done) -> None:
        """Call `done` from the loop once `length` bytes at `offset` are in memory, or with the disk's error.

        Whoever wants the same window meanwhile waits for the same read.
        """
        key = (descriptor.fd, offset, length)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(done)
            return
        self._waiting[key] = [done]
        self._counters.cold_reads += 1
        self._counters.cold_bytes += length
        self._pool(descriptor.device).submit(self._read, key, descriptor)

    def _pool(self, device: int) -> ThreadPoolExecutor:
        pool = self._disks.get(device)
        if pool is None:
            pool = self._disks[device] = ThreadPoolExecutor(self._threads, f"disk-{device}")
        return pool

    def _read(self, key: tuple[int, int, int], descriptor: Descriptor) -> None:
        """In a thread: wait until the disk has given all of the window. Few calls, for each takes the loop's lock."""
        fd, offset, length = key
        end, error = offset + length, None
        try:
            if not blocks.hindrance(descriptor.device) and descriptor.gather(offset, length):
                self._whole.add(descriptor.device)
            else:
                for start in range(offset, end, _ASK):
                    os.posix_fadvise(fd, start, min(_ASK, end - start), os.POSIX_FADV_WILLNEED)
            while offset < end:
                count = os.sendfile(self._nowhere, fd, offset, end - offset)
                if count == 0:
                    break  # shorter than it was published: the sending will find out and say so
                offset += count
        except OSError as failed:
            error = failed
        # It fails when the loop has ended, and with it whoever wanted to know.
        with contextlib.suppress(RuntimeError):
            # Carries the descriptor along: it must stay open until here, and is to be closed by the loop.
            self._loop.call_soon_threadsafe(partial(self._tell, key, descriptor, error))

    def _tell(self, key: tuple[int, int, int], _descriptor: Descriptor, error: OSError | None) -> None:
        for done in self._waiting.pop(key):
            done(error)

    def close(self) -> None:
        """Start no more reads. Those under way end by themselves."""
        for pool in self._disks.values():
            pool.shutdown(wait=False, cancel_futures=True)
        os.close(self._nowhere)
