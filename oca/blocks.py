"""Where the page cache can hold what is read in blocks of 2 MiB instead of pages of 4 KiB.

What is sent from such blocks costs less: fewer pieces to hand to the network and to copy out of (docs/serving.md).
Linux makes them of a mapping that asks for huge pages, but only on file systems that know folios larger than a page,
and readahead(2) and WILLNEED never do.
"""

from __future__ import annotations

import enum
import functools
import os
import re
from pathlib import Path
from typing import NamedTuple

BLOCK = 2 << 20
"""Bytes; blocks begin at multiples of it."""
# Since which Linux files are read into large folios. MADV_HUGEPAGE has been heeded for that since 5.18.
_SINCE = {"xfs": (5, 18), "ext4": (6, 16)}
_HUGE_PAGE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MOUNTS = Path("/proc/self/mountinfo")
_DEVICES = Path("/sys/dev/block")


class Reach(enum.Enum):
    """How far a disk is read for a window of a file that is not in memory, as long as it answers quickly."""

    BLOCK = "block"
    """The whole blocks that the window lies in."""
    FAR = "far"
    """The window and what the kernel reads ahead by itself, in ever larger pieces."""
    WINDOW = "window"
    """The window alone."""

    @property
    def memory(self) -> str:
        """What memory holds of it, in words."""
        return {"block": "blocks of 2 MiB", "far": "large pieces", "window": "pages"}[self.value]


class Reading(NamedTuple):
    """How a disk is read, and why not in blocks ("" if it is)."""

    reach: Reach
    why: str = ""


def suited(file_system: str, release: str, huge_page: int, read_ahead_kb: int) -> Reading:
    """How to read, by the kernel's release, its huge page in bytes, the disk's read-ahead.

    A huge page of another size (arm64 with pages of 64 KiB has 512 MiB) is too much to read for one segment. And the
    kernel marks a block to be read on from: sending it would start the next read on the event loop, where read-ahead
    is as large as a block. By default it is 128 KiB.
    """
    version = re.match(r"(\d+)\.(\d+)", release)
    if version is None or (int(version[1]), int(version[2])) < _SINCE.get(file_system, (1 << 30, 0)):
        able = " and ".join(f"{name} since Linux {major}.{minor}" for name, (major, minor) in _SINCE.items())
        return Reading(Reach.WINDOW, f"{file_system or 'this'} on Linux {release} cannot; {able} can")
    if read_ahead_kb << 10 >= BLOCK:
        why = f"the disk's read-ahead is {read_ahead_kb} KiB: set queue/read_ahead_kb below {BLOCK >> 10}"
        return Reading(Reach.FAR, why)
    if huge_page != BLOCK:
        return Reading(Reach.WINDOW, f"huge pages of this kernel are {huge_page >> 10} KiB")
    return Reading(Reach.BLOCK)


@functools.cache
def reading(device: int) -> Reading:
    """How files on a device (st_dev) are read; asks the kernel once."""
    try:
        huge_page = int(_HUGE_PAGE.read_text())
        return suited(_file_system(device), os.uname().release, huge_page, _read_ahead_kb(device))
    except (OSError, ValueError) as error:
        return Reading(Reach.WINDOW, f"the kernel says too little: {error}")


def _file_system(device: int) -> str:
    """The type of what is mounted from a device, "" if nothing is."""
    name = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == name:
            return kind.split()[0]
    return ""


def disk_of(device: int) -> Path | None:
    """What the kernel tells of the whole disk that a device (st_dev) is on or a partition of; None if it is none."""
    place = _DEVICES / f"{os.major(device)}:{os.minor(device)}"
    if not place.exists():
        return None
    place = place.resolve()
    return place.parent if (place / "partition").exists() else place


def _read_ahead_kb(device: int) -> int:
    """How far the kernel reads ahead on a disk, in KiB; 0 for what is no disk."""
    disk = disk_of(device)
    return int((disk / "queue" / "read_ahead_kb").read_text()) if disk else 0
