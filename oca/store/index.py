"""The index of a disk: when each file of the store was last read and found whole, and which were found damaged.

`<root>/.index.db` is a small SQLite database that nothing depends on: lost or damaged, it is made anew from what is
on the disk. A file whose row is missing was found whole when it was committed, and that is its ctime; what was found
damaged before is forgotten then.
"""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from oca.errors import StoreError

_log = structlog.get_logger()
FILE = ".index.db"
_FORMAT = 1
_BUSY_S = 30.0
_REMEMBERED_S = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class Checked:
    """A file of a version, and when it was last found whole, in UTC seconds."""

    title: str
    version: str
    name: str
    at: float


class Index:
    """The index of the disk at `root`. Everything here blocks, and raises StoreError if the disk fails."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.path = root / FILE

    def due(self, before: float, now: float = math.inf) -> list[Checked]:
        """The files of verified versions that were last found whole before then, those left alone longest first.

        What is said to have been found whole after `now` was so by a clock that was wrong: that counts for nothing.
        """
        with self._opened() as database:
            known = {row[:3]: row[3] for row in database.execute("SELECT title, version, name, at FROM checked")}
            there = dict(self._files())
            gone = known.keys() - there.keys()
            database.executemany("DELETE FROM checked WHERE title = ? AND version = ? AND name = ?", gone)
        # A file that was brought anew since it was checked is whole since then.
        rows = [
            Checked(*key, max((at for at in (known.get(key, 0.0), made) if at <= now), default=0.0))
            for key, made in there.items()
        ]
        return sorted((row for row in rows if row.at < before), key=lambda row: (row.at, row.title, row.name))

    def found_whole(self, title: str, version: str, name: str, at: float) -> None:
        """Note that a file was read and is whole."""
        with self._opened() as database:
            database.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)", (title, version, name, at))

    def found_damaged(self, title: str, version: str, name: str, at: float) -> None:
        """Note that a file was read and is damaged."""
        with self._opened() as database:
            database.execute("DELETE FROM damaged WHERE at < ?", (at - _REMEMBERED_S,))
            database.execute("INSERT INTO damaged VALUES (?, ?, ?, ?)", (title, version, name, at))

    def damaged(self, since: float) -> int:
        """How often files were found damaged since then. A disk on which that happens again and again is dying."""
        if not self.path.exists():
            return 0
        with self._opened() as database:
            rows = database.execute("SELECT count(*) FROM damaged WHERE at >= ?", (since,))
            return int(rows.fetchone()[0])

    def _files(self) -> Iterator[tuple[tuple[str, str, str], float]]:
        """Every file of a verified version, and since when its name is there (ctime, in UTC seconds)."""
        for path in self._root.glob("[!.]*/[!.]*/[!.]*"):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield (path.parts[-3], path.parts[-2], path.name), path.stat().st_ctime

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The database in a transaction; made anew, once, if it is damaged."""
        try:
            database = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._refused(error) from None
            _log.warning("the index of a disk is damaged and is made anew", disk=str(self._root), detail=str(error))
            self.remove()
            try:
                database = self._open()
            except sqlite3.Error as again:
                raise self._refused(again) from None
        try:
            with database:
                database.execute("BEGIN IMMEDIATE")
                yield database
        except sqlite3.Error as error:
            raise self._refused(error) from None
        finally:
            database.close()

    def _open(self) -> sqlite3.Connection:
        new = not self.path.exists()
        database = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            # What is lost in a power cut is found whole once more, so nothing waits for the disk here.
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found not in (0, _FORMAT):
                raise sqlite3.DatabaseError(f"it is of format {found}")
            database.execute(
                "CREATE TABLE IF NOT EXISTS checked (title TEXT, version TEXT, name TEXT, at REAL NOT NULL,"
                " PRIMARY KEY (title, version, name)) WITHOUT ROWID"
            )
            database.execute(
                "CREATE TABLE IF NOT EXISTS damaged (title TEXT, version TEXT, name TEXT, at REAL NOT NULL)"
            )
            database.execute(f"PRAGMA user_version = {_FORMAT}")
            if new and os.geteuid() == 0:
                # Else what root looked at once could be used by root alone.
                owner = self._root.stat()
                os.chown(self.path, owner.st_uid, owner.st_gid)
        except BaseException:
            database.close()
            raise
        return database

    def remove(self) -> None:
        """Remove the index; the next use makes it anew. StoreError if the disk refuses."""
        try:
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove the index {self.path}: {error.strerror}") from None

    def _refused(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"the index {self.path} cannot be used: {error}; check the disk")
