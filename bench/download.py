"""A client that fetches and throws away: the kernel counts the bytes of a body and never copies them to us.

MSG_TRUNC on a TCP socket discards what has arrived (tcp(7)), so simulated viewers cost little more than the
server they load. Bodies are counted against their Content-Length, not looked at.
"""

from __future__ import annotations

import asyncio
import re
import socket
from urllib.parse import urljoin, urlsplit

from oca.errors import OcaError

_HEAD = 64 << 10
_PIECE = 1 << 20
_REDIRECTS = 4
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*\r\n", re.IGNORECASE)
_LOCATION = re.compile(rb"\r\nlocation:[ \t]*([^\r\n]+)\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
# Named in every discarding read, and never written to.
_nowhere = bytearray(_PIECE)


class DownloadError(OcaError):
    """A resource did not come whole; `kind` is short, for counting: "503", "timeout", "refused", "cut short"."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Client:
    """One viewer's connections: one to each server, kept open between requests. Not for concurrent use."""

    def __init__(self, connect_s: float = 5.0, stall_s: float = 15.0) -> None:
        self._connect_s = connect_s
        self._stall_s = stall_s
        self._open: dict[tuple[str, int], socket.socket] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._open.values():
            sock.close()
        self._open.clear()

    async def get(self, url: str) -> int:
        """Bytes of the body of a 200 at an http URL, redirects followed. Raises DownloadError."""
        for _ in range(_REDIRECTS):
            found = await self._ask(url)
            if isinstance(found, int):
                return found
            url = urljoin(url, found)
        raise DownloadError("redirects", f"{url} is redirected more than {_REDIRECTS} times")

    async def _ask(self, url: str) -> int | str:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise DownloadError("scheme", f"{url} is not an http URL")
        place = (parts.hostname, parts.port or 80)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        sock, fresh = self._open.pop(place, None), False
        while True:
            if sock is None:
                sock, fresh = await self._connect(place), True
            try:
                async with asyncio.timeout(self._stall_s):
                    await asyncio.get_running_loop().sock_sendall(sock, request)
                    head, rest = await self._head(sock)
                break
            except TimeoutError:
                sock.close()
                raise DownloadError("timeout", f"{url} is not answered") from None
            except OSError as error:
                sock.close()
                if fresh:
                    raise DownloadError("cut short", f"{url} is not answered: {error}") from None
                sock = None  # kept open too long; it is asked anew
        try:
            return await self._body(url, sock, head, rest, place)
        except BaseException:
            sock.close()
            raise

    async def _connect(self, place: tuple[str, int]) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                family, kind, protocol, _, address = (await loop.getaddrinfo(*place, type=socket.SOCK_STREAM))[0]
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.setblocking(False)
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    await loop.sock_connect(sock, address)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise DownloadError("timeout", f"{place[0]}:{place[1]} does not answer") from None
        except OSError as error:
            raise DownloadError("refused", f"{place[0]}:{place[1]}: {error}") from None
        return sock

    async def _head(self, sock: socket.socket) -> tuple[bytes, int]:
        """The head of a response, and how many bytes after it have been read with it."""
        loop, data = asyncio.get_running_loop(), b""
        while (end := data.find(b"\r\n\r\n") + 4) < 4:
            # So little that hardly any of the body is copied.
            part = await loop.sock_recv(sock, 1024)
            if not part or len(data) > _HEAD:
                raise ConnectionResetError("the connection ended before a head was complete")
            data += part
        return data[:end], len(data) - end

    async def _body(self, url: str, sock: socket.socket, head: bytes, rest: int, place: tuple[str, int]) -> int | str:
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None or length is None:
            raise DownloadError("malformed", f"{url} is answered without status or length")
        size = int(length[1])
        left = size - rest
        while left > 0:
            try:
                count = sock.recv_into(_nowhere, min(left, _PIECE), socket.MSG_TRUNC)
            except BlockingIOError:
                await self._readable(url, sock)
                continue
            except OSError as error:
                raise DownloadError("cut short", f"{url} ends after {size - left} of {size} bytes: {error}") from None
            if count == 0:
                raise DownloadError("cut short", f"{url} ends after {size - left} of {size} bytes")
            left -= count
        if _CLOSE.search(head):
            sock.close()
        else:
            self._open[place] = sock
        code = int(status[1])
        if code == 200:
            return size
        location = _LOCATION.search(head)
        if code in (301, 302, 303, 307, 308) and location is not None:
            return location[1].decode("latin-1").strip()
        raise DownloadError(str(code), f"{url} answers {code}")

    async def _readable(self, url: str, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        came = loop.create_future()
        loop.add_reader(sock.fileno(), lambda: None if came.done() else came.set_result(None))
        try:
            async with asyncio.timeout(self._stall_s):
                await came
        except TimeoutError:
            raise DownloadError("timeout", f"{url} stalls") from None
        finally:
            loop.remove_reader(sock.fileno())
