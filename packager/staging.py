"""The staging directory of a build: gone when the build ends, found again by the same build if it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oca.errors import OcaError

# A dot first: no title can have that name, so nobody mistakes it for content on its way in.
_PREFIX = ".build-"
KEEP_S = 7 * 86400.0
"""For how long what a killed build has done is kept for the same build."""


class StagingError(OcaError):
    """A staging directory that is in use."""


class SpaceError(OcaError):
    """A disk without room for what is to be written."""


class KeptError(OcaError):
    """What ended a build has nothing to do with what was asked: what is done is kept for the same command."""


@contextmanager
def staging(filling: Path, name: str) -> Iterator[Path]:
    """The directory under `filling` of the build called `name`, ours until the block ends. StagingError if taken.

    It goes when the block ends well or with an OcaError other than a KeptError, and stays when we are killed,
    interrupted or let down by the disk. The kernel drops the lock of a build that dies: what can be locked and is old
    is a ruin, removed here.
    """
    _clear(filling, time.time() - KEEP_S)
    directory = filling / f"{_PREFIX}{name}"
    descriptor = _lock(directory)
    try:
        os.utime(directory)
        yield directory
    except KeptError:
        raise
    except OcaError:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    else:
        shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(descriptor)


def _lock(directory: Path) -> int:
    """The descriptor of a directory that nobody else has, made if it is missing."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # the build that had it has just ended
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino == directory.stat().st_ino:
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise StagingError(
                    f"the same build is running, in {directory}: wait for it, or end it and type this again"
                ) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)


def _clear(filling: Path, before: float) -> None:
    """Remove what builds left there that nobody has come back for since `before`, in UTC seconds."""
    for ruin in filling.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(ruin, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_mtime < before:
                    shutil.rmtree(ruin)
            finally:
                os.close(descriptor)


def check_space(directory: Path, needed: int) -> None:
    """Raise SpaceError unless the disk of `directory` has `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise SpaceError(
            f"{directory} has {free / 1e9:.1f} GB free, and this build may need {needed / 1e9:.1f} GB: "
            "make room, or give another --out"
        )
