"""How the bytes of a connection cross its socket: in clear, or encrypted. The HTTP above is the same."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Protocol

from oca.http.slices import Descriptor

Bytes = bytes | memoryview
# With MSG_MORE a long body leaves in more segments than corked; below this the two calls of a cork cost more.
_CORK_FROM = 200_000
_MORE = int(socket.MSG_MORE)
_CLIENT_ERRNOS = frozenset(
    (errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED, errno.EHOSTUNREACH)
)


class Transport(Protocol):
    """A non-blocking socket. All raise BlockingIOError where they would block, OSError if the client is gone."""

    @property
    def direct(self) -> bool:
        """Whether file bytes go from the page cache to the socket without entering this process."""

    @property
    def receive(self) -> Callable[[int], bytes]:
        """Up to so many bytes; none at the end of what the client sends."""

    def send(self, data: Bytes, more: int) -> int:
        """Take bytes; how many were taken. `more` bytes follow at once, so none need leave yet."""

    def send_file(self, descriptor: Descriptor, offset: int, length: int) -> int:
        """Take bytes of a file that are in memory; how many were taken, 0 if the file ends at `offset`.

        FileFaultError if the file is at fault and not the client.
        """

    def answer(self, head: bytes, descriptor: Descriptor, offset: int, length: int) -> tuple[int, int]:
        """Take a whole answer, or as much of it as fits: how many bytes of its head, how many of the file.

        Raises nothing: whatever stands against the rest is met again when that is sent.
        """

    def flush(self) -> None:
        """An answer is complete: nothing of it is to wait for more."""

    def end(self) -> None:
        """Say that nothing more will come."""


class FileFaultError(OSError):
    """A file could not be read."""


class Plain:
    """In clear: file bytes go from the page cache to the socket by sendfile and never enter this process."""

    __slots__ = ("_corked", "_fd", "_send", "_socket", "receive")
    direct = True

    def __init__(self, sock: socket.socket, send: Callable[[Bytes, int], int] | None = None) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._send = send or sock.send
        self._corked = False
        self.receive: Callable[[int], bytes] = sock.recv

    def send(self, data: Bytes, more: int) -> int:
        """As in Transport; a head alone would cost a packet of its own."""
        if more > _CORK_FROM and not self._corked:
            self._corked = True
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        return self._send(data, _MORE if more else 0)

    def answer(self, head: bytes, descriptor: Descriptor, offset: int, length: int) -> tuple[int, int]:
        """As in Transport; nothing but the system calls where the answer is short."""
        sent = body = 0
        try:
            sent = self.send(head, length) if length > _CORK_FROM else self._send(head, _MORE if length else 0)
            if sent == len(head):
                body = os.sendfile(self._fd, descriptor.fd, offset, length)
                if self._corked and body == length:
                    self.flush()
        except OSError:
            pass
        return sent, body

    def flush(self) -> None:
        """As in Transport."""
        if self._corked:
            self._corked = False
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def send_file(self, descriptor: Descriptor, offset: int, length: int) -> int:
        """As in Transport."""
        try:
            return os.sendfile(self._fd, descriptor.fd, offset, length)
        except OSError as error:
            if isinstance(error, BlockingIOError) or error.errno in _CLIENT_ERRNOS:
                raise
            raise FileFaultError(error.errno, error.strerror) from error

    def end(self) -> None:
        """As in Transport (RFC 9112 9.6)."""
        self._socket.shutdown(socket.SHUT_WR)
