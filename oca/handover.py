"""Listening sockets and how they pass from one program image to the next without losing a connection.

One socket per worker slot, all on one address (SO_REUSEPORT), made by the supervisor or by systemd and never closed
while we run: closing one of them would reset the connections that wait in its queue. They survive an upgrade because
the supervisor replaces its own program image (same process id) and leaves them open.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

import msgspec

from oca.errors import ConfigError
from oca.http.census import Census

_VARIABLE = "OCA_HANDOVER"
_BACKLOG = 4096
# The first descriptor that systemd passes (sd_listen_fds(3)).
_SYSTEMD_FIRST = 3


class Handover(msgspec.Struct):
    """What a program image leaves to the next: descriptors of sockets, and its workers.

    Of each worker the process id and the descriptor of our end of its channel: while that is open, it serves.
    """

    content: list[int]
    admin: int
    workers: list[tuple[int, int]]
    census: int = -1
    """Descriptor of the memory in which workers count connections."""
    places: list[int] = []
    """What these workers have of it."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; connections inherit its options. ConfigError says why there can be none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        prepare(sock)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {words}; is another server running there?") from None
    return sock


def prepare(sock: socket.socket) -> None:
    """Options that every connection inherits."""
    sock.setblocking(False)
    # Without it the tail of every answer would wait for an acknowledgement; MSG_MORE corks explicitly.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def bound_unsent(socks: Iterable[socket.socket], count: int) -> None:
    """Let the kernel hold at most about `count` bytes that it could not send yet, for each connection accepted.

    Else it takes up to tcp_wmem of what a client does not read, and some thousand such clients use up all of its
    memory for TCP (tcp_mem), which slows down everybody. 0 restores the system's default.
    """
    for sock in socks:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, count)


def slots(host: str, port: int, count: int) -> list[socket.socket]:
    """`count` sockets on one address, none of them shared with another server.

    SO_REUSEPORT would let a second server of the same user join in silence and take half of our connections, so
    the address is first tried without it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except (OSError, OverflowError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"cannot listen on {host}:{port}: {words}; is another server running there?") from None
    return [listen(host, port) for _ in range(count)]


def from_systemd() -> list[socket.socket]:
    """Sockets passed by systemd socket activation, none if there was no activation (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return [adopt(_SYSTEMD_FIRST + number) for number in range(count)]


def adopt(fd: int) -> socket.socket:
    """The socket behind a descriptor that was passed to us."""
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    prepare(sock)
    return sock


def received() -> Handover | None:
    """What the image before us left, taken once; None at a first start."""
    text = os.environ.pop(_VARIABLE, "")
    return msgspec.json.decode(text, type=Handover) if text else None


def leave(content: list[socket.socket], admin: socket.socket, workers: list[tuple[int, int]], census: Census) -> None:
    """Make sockets, channels and census survive the exec that follows, and say so to the next image."""
    state = Handover([sock.fileno() for sock in content], admin.fileno(), workers, census.fd, sorted(census.taken))
    for fd in (*state.content, state.admin, *(channel for _, channel in workers), state.census):
        os.set_inheritable(fd, True)
    os.environ[_VARIABLE] = msgspec.json.encode(state).decode()
