"""Brings content from disks into memory, in threads, so that the event loop never waits for a disk.

A few threads per disk, and each only reads a bounded window: all sending stays with the loop, so a slow reader
holds no thread, and a slow disk holds up nobody who does not want content from it. The threads give the processor to
the loop: fetching pages costs more of it than sending them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from oca import blocks
from oca.blocks import Reach
from oca.counters import Counters
from oca.http.slices import Descriptor

WINDOW = blocks.BLOCK
"""Bytes brought in at once for one connection: a segment of high quality."""
# How far the kernel is asked to read ahead of us in one call; larger requests would be cut to the device's limit.
_ASK = 256 << 10
_SLOW_S = 0.100
"""A disk that takes longer to answer, its queue included, is asked for nothing but what is to be sent."""

# The least priority that still has a share of a full processor (setpriority(2)): eight threads have a tenth of it.
_LEAST = 19

Done = Callable[[OSError | None], None]


class Disk:
    """How one disk is read: by threads of its own, and for now as far as it answers quickly."""

    __slots__ = ("_takes_s", "pool", "whole")

    def __init__(self, device: int, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads, f"disk-{device}", initializer=_give_way)
        # Whether it has been read in blocks.
        self.whole = False
        # How long a window takes of late, from being wanted on.
        self._takes_s = 0.0

    def took(self, seconds: float) -> None:
        """A window has been read."""
        self._takes_s += (seconds - self._takes_s) / 4

    def quick(self, waited_s: float = 0.0) -> bool:
        """Whether it has time to read more than a window, which has waited for its turn so long."""
        return max(self._takes_s, waited_s) < _SLOW_S


def _give_way() -> None:
    """In a thread: let it run least of all, which is still often enough where others want all of the processor."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST)


class ReadAhead:
    """Reads windows of files into the page cache. Not thread-safe: belongs to one event loop."""

    def __init__(self, threads: int, counters: Counters) -> None:
        self._threads = threads
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._disks: dict[int, Disk] = {}
        self._waiting: dict[tuple[int, int, int], list[Done]] = {}
        # What is sent here is read from the disk, and not even copied.
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def window(self, descriptor: Descriptor, offset: int, length: int) -> int:
        """How many of `length` bytes at `offset` are best brought in at once."""
        disk = self.disk(descriptor)
        return min(length, WINDOW - offset % WINDOW if disk.whole and disk.quick() else WINDOW)

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
        disk = self.disk(descriptor)
        disk.pool.submit(self._read, key, descriptor, disk, time.monotonic())

    def disk(self, descriptor: Descriptor) -> Disk:
        """The disk that a file is on."""
        disk = self._disks.get(descriptor.device)
        if disk is None:
            disk = self._disks[descriptor.device] = Disk(descriptor.device, self._threads)
        return disk

    def _read(self, key: tuple[int, int, int], descriptor: Descriptor, disk: Disk, since: float) -> None:
        """In a thread: wait until the disk has given all of the window. Few calls, for each takes the loop's lock."""
        fd, offset, length = key
        end, error = offset + length, None
        try:
            quick = disk.quick(time.monotonic() - since)
            reach = blocks.reading(descriptor.device).reach if quick else Reach.WINDOW
            if reach is Reach.BLOCK and descriptor.gather(offset, length):
                disk.whole = True
            elif reach is not Reach.FAR:
                for start in range(offset, end, _ASK):
                    os.posix_fadvise(fd, start, min(_ASK, end - start), os.POSIX_FADV_WILLNEED)
            while offset < end:
                count = os.sendfile(self._nowhere, fd, offset, end - offset)
                if count == 0:
                    break  # shorter than it was published: the sending will find out and say so
                offset += count
        except OSError as failed:
            error = failed
        disk.took(time.monotonic() - since)
        # It fails when the loop has ended, and with it whoever wanted to know.
        with contextlib.suppress(RuntimeError):
            # Carries the descriptor along: it must stay open until here, and is to be closed by the loop.
            self._loop.call_soon_threadsafe(partial(self._tell, key, descriptor, error))

    def _tell(self, key: tuple[int, int, int], _descriptor: Descriptor, error: OSError | None) -> None:
        for done in self._waiting.pop(key):
            done(error)

    def close(self) -> None:
        """Start no more reads. Those under way end by themselves."""
        for disk in self._disks.values():
            disk.pool.shutdown(wait=False, cancel_futures=True)
        os.close(self._nowhere)
