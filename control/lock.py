"""The lock beside a SQLite file: one controller at a time serves from it.

Two would each keep heartbeats, leases and orders of their own, and steer by half of what there is to know.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from oca.errors import OcaError


class LockError(OcaError):
    """Another controller serves from the database, or nobody can tell."""


def path_of(url: str) -> Path | None:
    """Where the lock of the database at `url` is; None for those that need none: memory, and other engines."""
    try:
        parsed = make_url(url)
    except SQLAlchemyError:
        return None  # opening it will say what is wrong
    name = parsed.database or ":memory:"
    if parsed.get_backend_name() != "sqlite":
        return None
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    if name in ("", ":memory:"):
        return None
    # By whatever name it is reached, one file has one lock.
    file = Path(name).resolve()
    return file.with_name(f"{file.name}.lock")


@contextlib.contextmanager
def held(url: str) -> Iterator[None]:
    """Hold the lock of the database at `url`; LockError if another process does. A killed process holds none."""
    path = path_of(url)
    if path is None:
        yield
        return
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise LockError(f"the lock of the database cannot be opened at {path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"
            raise LockError(
                f"another controller (process {who}) serves from {path.with_suffix('')}: end that one first; "
                "a SQLite file has one controller"
            ) from None
        except OSError as error:
            raise LockError(f"{path} cannot be locked: {error.strerror}") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: who removed it could remove one that the next process has locked.
        os.close(handle)
