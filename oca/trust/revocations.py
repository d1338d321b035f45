"""Revocations: the certificates and boxes of the fleet that are trusted no longer.

A box keeps them as `revoked.json` beside its certificate, as the controller last told: the message
`oca.trust.wire_enrolment.RevocationList`. So boxes refuse each other also while no controller can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import structlog

from oca import wire
from oca.errors import FormatError
from oca.store.content import write_durably
from oca.title.digest import digest
from oca.trust.peers import Peer
from oca.trust.wire_enrolment import RevocationList

_log = structlog.get_logger()
Mark = tuple[int, int]


@dataclass(frozen=True)
class Revocations:
    """Serial numbers of certificates, and ids of appliances none of whose certificates is good."""

    serials: frozenset[int] = frozenset()
    appliances: frozenset[str] = frozenset()

    def __call__(self, peer: Peer) -> bool:
        """Whether what a certificate says is worth nothing any more."""
        return peer.serial in self.serials or (peer.role == "appliance" and peer.id in self.appliances)

    @cached_property
    def generation(self) -> str:
        """A string that is another whenever something else is revoked."""
        return digest(wire.encode(self._list("")))[:32]

    @property
    def message(self) -> RevocationList:
        """All of it, as it goes over the wire."""
        return self._list(self.generation)

    def _list(self, generation: str) -> RevocationList:
        serials = [f"{serial:x}" for serial in sorted(self.serials)]
        return RevocationList(generation=generation, serials=serials, appliances=sorted(self.appliances))


def decode(data: bytes, where: str) -> tuple[Revocations, str]:
    """What a message says, and its generation as it stands there; a FormatError names `where`."""
    message = wire.decode(data, RevocationList, where)
    serials = frozenset(int(serial, 16) for serial in message.serials)
    return Revocations(serials, frozenset(message.appliances)), message.generation


class RevocationsFile:
    """The file of a box, read again when it changes. To ask costs a stat, once per handshake."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = ""
        """As the controller called it."""
        self.known = Revocations()
        """As last read; another object whenever the file has changed."""
        self._seen: Mark = (0, 0)

    def mark(self) -> Mark:
        """Changes when the file does."""
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_mtime_ns, found.st_ino

    def __call__(self, peer: Peer) -> bool:
        """Whether what a certificate says is worth nothing any more."""
        self.read()
        return self.known(peer)

    def read(self) -> None:
        """Take up a file that has changed. One that is damaged is logged, and what was known stays."""
        mark = self.mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self.known, self.generation = decode(self.path.read_bytes(), str(self.path))
        except FileNotFoundError:
            self.known, self.generation = Revocations(), ""
        except (OSError, FormatError) as error:
            # The controller is asked for it again, since no generation of its is ''.
            self.generation = ""
            _log.warning("revocations cannot be read until the controller tells of them again", detail=str(error))

    def write(self, data: bytes) -> None:
        """Take a message as it came over the wire; FormatError if it is none, OSError if the disk refuses."""
        decode(data, "list of revocations")
        write_durably(self.path, data)
        self.read()
