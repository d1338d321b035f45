"""The scrub: reads what the store holds, slowly, again and again, and takes out of service what is damaged.

It goes on day and night at a rate of its own; what it reads does not stay in memory. A damaged file goes into
quarantine with the record of its good chunks, and the fill agent brings the others, whatever the window says. The
index counts it, and heartbeats tell the controller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from oca.bucket import Bucket
from oca.config import FillSettings
from oca.errors import FormatError, StoreError
from oca.store import verify
from oca.store.content import HeldVersion, Store
from oca.store.index import Checked, Index

_log = structlog.get_logger()
_DAY_S = 86400.0
# How often it is asked what is due, when nothing is.
_PAUSE_S = 600.0


class Scrub:
    """Checks the files of one store, those left alone longest first. `clock` tells UTC seconds."""

    def __init__(self, store: Store, settings: FillSettings, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._days = settings.scrub_days
        self._bucket = Bucket(settings.scrub_mb_per_s * 1e6)
        self._clock = clock
        self.damaged = asyncio.Event()
        """Set when a file has gone into quarantine; for whoever mends it to clear."""

    async def run(self) -> None:
        """Go on until cancelled; a disk that fails is complained of, and tried again later."""
        while self._days:
            for root in self._store.usable:
                try:
                    await self.round(root)
                except (StoreError, OSError) as error:
                    _log.error("a disk cannot be checked", disk=str(root), detail=str(error))
            await asyncio.sleep(_PAUSE_S)

    async def round(self, root: Path) -> int:
        """Check every file on a disk that is due; how many were damaged. StoreError, OSError if the disk fails."""
        index = Index(root)
        bad = 0
        now = self._clock()
        for file in await asyncio.to_thread(index.due, now - self._days * _DAY_S, now):
            try:
                held = await asyncio.to_thread(self._store.held, file.title, file.version)
            except FormatError:
                continue  # its title.json is damaged: that is found, and mended, by every look at it
            # A version may be on another disk by now, or gone.
            if held is None or file.name not in held.title.files or held.directory.parents[1] != root:
                continue
            if await self._whole(held, file):
                await asyncio.to_thread(index.found_whole, file.title, file.version, file.name, self._clock())
            else:
                bad += 1
        return bad

    async def _whole(self, held: HeldVersion, file: Checked) -> bool:
        """Read a file; whether it is whole or gone. If it is damaged it goes into quarantine."""
        path, wanted = held.directory / file.name, held.title.files[file.name]
        good: list[int] = []
        lost: list[int] = []
        try:
            if (await asyncio.to_thread(path.stat)).st_size == wanted.bytes:
                reading = verify.chunks(path, wanted)
                while (found := await asyncio.to_thread(next, reading, None)) is not None:
                    number, length, whole = found
                    (good if whole else lost).append(number)
                    await self._bucket.take(length)
                if not lost:
                    return True
        except FileNotFoundError:
            return True
        except OSError as error:
            # What cannot be read at all is a matter of the disk, not of these bytes.
            _log.error("a file cannot be read", path=str(path), detail=str(error))
            await asyncio.to_thread(self._store.blame, file.title, file.version)
            return False
        root = held.directory.parents[1]
        await asyncio.to_thread(Index(root).found_damaged, file.title, file.version, file.name, self._clock())
        where = await asyncio.to_thread(self._store.quarantine, held, file.name, good)
        _log.error("a file is damaged and in quarantine", path=str(path), now=str(where), chunks=lost, good=len(good))
        self.damaged.set()
        return False
