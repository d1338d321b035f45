"""TLS 1.2 and 1.3 on a connection's own descriptor: no memory BIO, no asyncio transport, no second HTTP path.

Where the kernel can encrypt (kTLS), sendfile does as on a connection in clear. Elsewhere file bytes pass once
through a buffer that all connections of a process share, straight into the records that OpenSSL writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Literal

from oca.http.slices import Descriptor
from oca.http.transport import Bytes, FileFaultError, Plain

_RECORD = 16 << 10
# Whole records at once, so few that they are still in the processor's near caches when they are encrypted.
CHUNK = 16 * _RECORD
# What is left after one chunk and fits goes with it.
_REST = 2048
_shared = memoryview(bytearray(CHUNK + _REST))
# Linux's tcp.h and tls.h; the size of the structure that holds the keys differs with the cipher.
_TCP_ULP, _SOL_TLS, _TLS_TX = 31, 282, 1
_CRYPTO_INFO = (56, 40)  # AES-256-GCM and ChaCha20-Poly1305; AES-128-GCM

Way = Literal["kernel", "user"]


class Secure:
    """The transport of a connection whose handshake is done; takes the socket over."""

    __slots__ = ("_corked", "_held", "_kernel", "_offered", "_socket", "_write", "receive", "way")

    def __init__(self, sock: ssl.SSLSocket, kernel: bool) -> None:
        """`kernel`: whether the kernel may have taken over the keys."""
        self._socket = sock
        # Bytes taken with `more`: they share a record with what follows.
        self._held = b""
        # What OpenSSL could not write it must be offered again, and no less of it.
        self._offered = 0
        self._corked = False
        # Where the kernel encrypts, what is sent on the socket below OpenSSL is clear text.
        self._kernel = Plain(sock, partial(socket.socket.send, sock)) if kernel and kernel_encrypts(sock) else None
        self._write: Callable[[Bytes], int] = sock.write
        self.receive: Callable[[int], bytes] = self._receive
        self.way: Way = "kernel" if self._kernel is not None else "user"
        """Who encrypts."""

    @property
    def direct(self) -> bool:
        """As in Transport."""
        return self._kernel is not None

    def _receive(self, count: int) -> bytes:
        # A record holds 16 KiB at most. Who asks for as much leaves nothing behind where no poll would show it.
        try:
            return self._socket.read(count)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def send(self, data: Bytes, more: int) -> int:
        """As in Transport."""
        if self._kernel is not None:
            return self._kernel.send(data, more)
        held = self._held
        if more and len(held) + len(data) <= _RECORD:
            self._held = held + data
            return len(data)
        try:
            count = self._write(held + data if held else data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None
        self._held = b""
        return count - len(held)

    def send_file(self, descriptor: Descriptor, offset: int, length: int) -> int:
        """As in Transport; about CHUNK bytes at once."""
        if self._kernel is not None:
            return self._kernel.send_file(descriptor, offset, length)
        held = len(self._held)
        wanted = self._offered or (length if held + length <= CHUNK + _REST else CHUNK - held)
        if held:
            _shared[:held] = self._held
        try:
            count = os.preadv(descriptor.fd, [_shared[held : held + wanted]], offset)
        except OSError as error:
            raise FileFaultError(error.errno, error.strerror) from error
        if count < self._offered or count == 0:
            return 0  # the file has become shorter
        # OpenSSL writes every record by itself; the kernel is to make full packets of them.
        self._cork(True)
        try:
            self._write(_shared[: held + count])
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            self._offered = count
            raise BlockingIOError from None
        self._held, self._offered = b"", 0
        if count == length:
            self._cork(False)
        return count

    def answer(self, head: bytes, descriptor: Descriptor, offset: int, length: int) -> tuple[int, int]:
        """As in Transport."""
        if self._kernel is not None:
            return self._kernel.answer(head, descriptor, offset, length)
        sent = body = 0
        with contextlib.suppress(OSError):
            sent = self.send(head, length)
            if sent == len(head):
                body = self.send_file(descriptor, offset, length)
        return sent, body

    def flush(self) -> None:
        """As in Transport."""
        if self._kernel is not None:
            self._kernel.flush()

    def _cork(self, wanted: bool) -> None:
        if wanted != self._corked:
            self._corked = wanted
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, wanted)

    def end(self) -> None:
        """As in Transport: close_notify (RFC 8446 6.1), then the end of the stream."""
        with contextlib.suppress(OSError):
            # It is sent. That the client's own has not come yet is an error here, and no matter to us.
            self._socket.unwrap()
        # What still comes is thrown away, so nobody needs to decrypt it.
        self.receive = partial(socket.socket.recv, self._socket)
        socket.socket.shutdown(self._socket, socket.SHUT_WR)


def kernel_can_encrypt() -> bool:
    """Whether the kernel has TLS at all; asking it for every connection would cost a tenth of a handshake."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_ULP, b"tls")
        except OSError as error:
            return error.errno == errno.ENOTCONN
    return True


def kernel_encrypts(sock: socket.socket) -> bool:
    """Whether the kernel encrypts what is sent on a socket. That its TLS module is attached would prove nothing."""
    for size in _CRYPTO_INFO:
        with contextlib.suppress(OSError):
            sock.getsockopt(_SOL_TLS, _TLS_TX, size)
            return True
    return False
