"""The other boxes as the controller last told of them, from a file that survives restarts and a dead controller.

`<first store root>/.neighbours` is the message `oca.wire.Neighbours` as it arrived. Whoever cannot read it knows
nobody: the box then serves what it holds, as before.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from oca import wire
from oca.errors import FormatError
from oca.store.content import write_durably
from oca.wire import HeldElsewhere, Neighbours, Source

_log = structlog.get_logger()
FILE = ".neighbours"


class Known:
    """Who holds what elsewhere. Looking something up reads memory only."""

    def __init__(self, message: Neighbours | None = None) -> None:
        self.generation = message.generation if message is not None else ""
        self.boxes = message.boxes if message is not None else []
        held = message.held if message is not None else []
        self._held: dict[tuple[str, str], HeldElsewhere] = {(row.title, row.version): row for row in held}

    def holders(self, title: str, version: str, name: str) -> list[Source]:
        """Who may be asked for something of a version, best first.

        `name` is a track, or a file of the version; those that belong to no track are with whoever holds any.
        """
        row = self._held.get((title, version))
        if row is None:
            return []
        stem, dot, suffix = name.rpartition(".")
        listed = row.tracks.get(name)
        if listed is None and dot and suffix in ("mp4", "idx"):
            listed = row.tracks.get(stem)
        if listed is None:
            # The list of boxes is in order of nearness.
            listed = sorted({number for numbers in row.tracks.values() for number in numbers})
        return [self.boxes[number] for number in listed]

    def published(self, title: str, version: str) -> int:
        """Publication time in seconds since the epoch, 0 if nobody holds this version."""
        row = self._held.get((title, version))
        return row.published if row is not None else 0


def decode(data: bytes, me: str, where: str) -> Known:
    """Read and check the message as it comes over the wire to box `me`; a FormatError names `where`."""
    message = wire.unpack(data, Neighbours, where)
    if message.appliance != me:
        raise FormatError(f"{where} is for appliance {message.appliance}, not for {me}")
    most = len(message.boxes)
    for row in message.held:
        for track, numbers in row.tracks.items():
            if any(number >= most for number in numbers):
                raise FormatError(f"{where} is corrupt: {row.title} {track} is held by a box that is not listed")
    return Known(message)


class NeighboursFile:
    """The file under the first root of a store, for box `me`. Everything here blocks: call it from a thread."""

    def __init__(self, root: Path, me: str) -> None:
        self.path = root / FILE
        self._me = me
        self._seen = (0, 0)

    def changed(self) -> bool:
        """Whether the file is another than at the last `read`: one stat."""
        return self._stamp() != self._seen

    def read(self) -> Known:
        """What the file says; nobody if it is missing or damaged, which is logged."""
        self._seen = self._stamp()
        try:
            data = self.path.read_bytes()
            return decode(data, self._me, str(self.path))
        except FileNotFoundError:
            return Known()
        except (OSError, FormatError) as error:
            _log.warning("neighbours are not known until the controller tells of them again", detail=str(error))
            return Known()

    def write(self, data: bytes) -> Known:
        """Take a message as it came over the wire; FormatError if it is none, OSError if the disk refuses."""
        known = decode(data, self._me, "list of neighbours")
        write_durably(self.path, data)
        return known

    def _stamp(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino
