"""Connections that are turned away: each gets its answer, and for a moment the time to read it.

A request is usually in the receive buffer already, or on its way. Closing a socket then sends a reset, which destroys
an answer that the client has not read yet (RFC 9112 9.6). So what arrives is discarded until the client has closed.
"""

from __future__ import annotations

import asyncio
import socket

# How long, how much from each, and how many at once: a flood must not hold what connections were refused for.
_PATIENCE_S = 2.0
_DISCARDED = 64 << 10
MOST = 1024


class Farewell:
    """The sockets that have been told to go; `most` of them are waited for, others are closed at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int = MOST) -> None:
        self._loop = loop
        self._most = most
        # Of each, by descriptor: the socket, when it is closed whatever happens, bytes that may still come.
        self._waiting: dict[int, tuple[socket.socket, float, int]] = {}

    def __len__(self) -> int:
        """Sockets that are waited for."""
        return len(self._waiting)

    def say(self, sock: socket.socket, words: bytes, now: float) -> int:
        """Send the last words on a fresh non-blocking socket and take it over; the bytes that were sent."""
        sent = 0
        try:
            sent = sock.send(words)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return sent
        fd = sock.fileno()
        self._waiting[fd] = (sock, now + _PATIENCE_S, _DISCARDED)
        self._loop.add_reader(fd, self._discard, fd)
        self._discard(fd)
        if len(self._waiting) > self._most and fd in self._waiting:
            self._close(fd)
        return sent

    def expire(self, now: float) -> None:
        """Close those that have had their time."""
        for fd in [fd for fd, (_, end, _) in self._waiting.items() if now >= end]:
            self._close(fd)

    def close(self) -> None:
        """Close all."""
        for fd in list(self._waiting):
            self._close(fd)

    def _discard(self, fd: int) -> None:
        sock, end, left = self._waiting[fd]
        try:
            data = sock.recv(_DISCARDED)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data and left > len(data):
            self._waiting[fd] = (sock, end, left - len(data))
        else:
            self._close(fd)

    def _close(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        self._waiting.pop(fd)[0].close()
