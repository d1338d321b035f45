"""How fast bytes leave: a ceiling per connection in the kernel's pacing, and the congestion control of all.

Off unless configured. A paced segment arrives as an even stream instead of a burst that fills the queue in front of
the viewer's own line; a ceiling that is too low makes players choose a worse picture.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from oca.errors import ConfigError

# Linux's asm-generic/socket.h; the socket module does not have it.
_SO_MAX_PACING_RATE = 47
_UNPACED = (1 << 64) - 1
_KERNEL = Path("/proc/sys/net/ipv4")
# CTA-5004: rtp, requested maximum throughput, kbit/s, in CMCD-Status or in the query. Players ask for some five
# times what they need, so less than any video's rate is a mistake, not a wish.
# Nothing that begins a match may also be passed over in one: a hostile head would take seconds.
_ASKED = re.compile(
    rb"(?:[?&]CMCD=(?:[^?&# \r\n]*?(?:%2C|,))?rtp(?:%3D|=)|\r\nCMCD-Status:(?:[^\r\n]*?[, \t])?rtp=)"
    rb"([0-9]{1,9})(?![0-9.])",
    re.IGNORECASE,
)
LEAST_KBPS = 1000


class PacingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[pacing]: how fast a connection may be sent to."""

    rate_mbps: Annotated[
        float, Meta(ge=0, description="most that one connection is sent, in Mbit/s; 0 sets no ceiling")
    ] = 0.0
    cmcd: Annotated[
        bool, Meta(description="whether a player's rtp (CMCD, CTA-5004) lowers the ceiling of its connection")
    ] = False
    congestion: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9_-]{0,15}\Z",
            description="TCP congestion control, such as bbr; '' takes the system's default",
        ),
    ] = ""


class Pacing:
    """Sets the ceiling of connections as the settings and the players' wishes say."""

    def __init__(self, settings: PacingSettings) -> None:
        self._ceiling = int(settings.rate_mbps * 125_000) or _UNPACED
        self._cmcd = settings.cmcd

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return self._cmcd or self._ceiling != _UNPACED

    def rate(self, head: bytes) -> int:
        """The ceiling in bytes a second for the answer to a request head."""
        asked = _ASKED.search(head) if self._cmcd else None
        kbps = int(asked[1]) if asked else 0
        return min(self._ceiling, max(kbps, LEAST_KBPS) * 125) if kbps else self._ceiling

    def pace(self, sock: socket.socket, head: bytes, before: int) -> int:
        """Give a socket whose ceiling was `before` that of the answer to a request head; which it is."""
        rate = self.rate(head)
        if rate != before:
            # What the kernel refuses, because the client is gone, the sending meets again.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=Q", rate))
        return rate


def available() -> list[str]:
    """The congestion controls that this kernel lets us choose."""
    return (_KERNEL / "tcp_available_congestion_control").read_text().split()


def use_congestion(socks: Iterable[socket.socket], name: str) -> None:
    """Set the congestion control of everything accepted on listening sockets; ConfigError if there is no such one.

    `name` "" restores the system's, for the sockets may have come from a program with other settings.
    """
    chosen = name or (_KERNEL / "tcp_congestion_control").read_text().strip()
    for sock in socks:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, chosen.encode())
        except OSError as error:
            raise ConfigError(
                f"congestion control {chosen!r} cannot be used ({error.strerror}): this kernel has "
                f"{', '.join(available())}; another may need `modprobe tcp_{chosen}`"
            ) from None
