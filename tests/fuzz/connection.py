"""Target: what a client sends, through a connection of a real server to the answers on the wire."""

from __future__ import annotations

import asyncio
import atexit
import functools
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from oca.http import reasons
from oca.http.accesslog import AccessLog, Line
from oca.http.connection import Connection
from oca.http.limits import LimitSettings
from oca.http.pacing import Pacing, PacingSettings
from oca.http.server import Server
from oca.http.slices import Slices
from oca.http.transport import Plain
from oca.store.content import Store
from oca.title import model as title
from oca.title import segments
from oca.title.digest import file_digest, version_of
from oca.title.model import File, Period, Title, Track
from oca.title.segments import Segment, SegmentIndex

VERSION = b"<v>"
"""Stands for the version of the title that is there, so that inputs outlive a change of its format."""
_PATIENCE_S = 60.0
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) [A-Za-z -]+")
_FIELD = re.compile(rb"([A-Za-z-]+): ([ -~]+)")
# What our answers have. Anything else would be a client's words in an answer's head.
_FIELDS = frozenset(
    b"date connection content-type content-length content-range accept-ranges etag last-modified cache-control allow "
    b"access-control-allow-origin access-control-allow-methods access-control-allow-headers "
    b"access-control-expose-headers access-control-max-age timing-allow-origin x-content-type-options "
    b"cross-origin-resource-policy retry-after location vary".split()
)
# Refusals that depend on how much of a head has come when it is looked at; each of them ends the connection.
_REFUSALS = frozenset((400, 414, 431, 505))


class Box:
    """A server without listening sockets, over a store with one small title."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="oca-fuzz-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        store = Store([folder])
        store.prepare()
        self.version = _publish(store, folder).encode()
        self._loop = asyncio.new_event_loop()
        atexit.register(self._loop.close)
        # What a callback raises, the loop would only log.
        self._raised: list[BaseException] = []
        self._loop.set_exception_handler(self._keep)
        self._log = AccessLog("")
        self._server = self._loop.run_until_complete(self._start(store))

    async def _start(self, store: Store) -> Server:
        limits = LimitSettings()
        return Server([], Slices(store), self._log, limits, pacing=Pacing(PacingSettings(cmcd=True)))

    def ask(self, *pieces: bytes) -> list[tuple[int, int]]:
        """Status and length of each answer to a client that sends these pieces, each after it got its answers."""
        client, served = socket.socketpair()
        client.setblocking(False)
        served.setblocking(False)
        server = self._server
        self._log._lines.clear()
        # As after accepting it.
        connection = Connection(server, served, "192.0.2.1", Plain(served), server.access)
        server._connections[connection] = ()
        server._ledger.enter(())
        server.counters.open += 1
        try:
            sent, at = bytearray(), 0
            for piece in pieces:
                if piece and not connection.closed and client.send(piece) != len(piece):
                    raise AssertionError("the input is too long for a socket")
                at = self._settle(connection, client, sent, at)
            client.shutdown(socket.SHUT_WR)
            end = time.monotonic() + _PATIENCE_S
            while not connection.closed:
                self._turn()
                _drain(client, sent)
                assert time.monotonic() < end, "the connection neither answers nor ends"
            _drain(client, sent)
            noted = self._log._lines.splitlines()
            lines = [msgspec.json.decode(line, type=Line).request.encode("latin-1") for line in noted]
        finally:
            client.close()
            if not connection.closed:
                connection.close(reasons.SHUTDOWN)
        return _answers(bytes(sent), lines)

    def _settle(self, connection: Connection, client: socket.socket, sent: bytearray, at: int) -> int:
        """Let the server read what has come and answer it."""
        end = time.monotonic() + _PATIENCE_S
        quiet = 0
        while quiet < 2:
            self._turn()
            _drain(client, sent)
            busy = connection.busy or len(sent) > at
            at, quiet = len(sent), 0 if busy else quiet + 1
            assert time.monotonic() < end, "a request gets no answer"
        return at

    def _turn(self) -> None:
        self._loop.call_soon(self._loop.stop)
        self._loop.run_forever()
        if self._raised:
            raise self._raised.pop()

    def _keep(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._raised.append(context.get("exception") or RuntimeError(context["message"]))


def _drain(client: socket.socket, into: bytearray) -> None:
    while True:
        try:
            data = client.recv(1 << 16)
        except BlockingIOError:
            return
        if not data:
            return
        into += data


def _publish(store: Store, folder: Path) -> str:
    staged = folder / ".filling" / "made"
    staged.mkdir()
    index = SegmentIndex(25, 100, (Segment(200, 300, 0, 100, 50), Segment(500, 400, 100, 100, 50)))
    (staged / "v1.mp4").write_bytes(bytes(range(225)) * 4)
    (staged / "v1.idx").write_bytes(segments.encode(index))
    (staged / "manifest.mpd").write_text("<MPD/>")
    track = Track(
        name="v1",
        kind="video",
        codecs="avc1.64001e",
        timescale=25,
        duration=200,
        segments=2,
        bandwidth=800,
        average_bandwidth=700,
        width=64,
        height=36,
        frame_rate="25",
    )
    files = {}
    for path in sorted(staged.iterdir()):
        found = file_digest(path)
        files[path.name] = File(found.bytes, found.whole, found.chunks)
    data = title.encode(Title(id="clip", name="clip", periods=[Period("0", [track])], files=files))
    (staged / "title.json").write_bytes(data)
    version = version_of(data)
    store.publish(staged, "clip", version, 1_700_000_000)
    return version


def _answers(sent: bytes, lines: list[bytes]) -> list[tuple[int, int]]:
    """Take apart what the server sent, strictly (RFC 9112): status and length of the body of each answer."""
    found: list[tuple[int, int]] = []
    closed = False
    while sent:
        assert not closed, "an answer after the one that was to be the last"
        head, end, sent = sent.partition(b"\r\n\r\n")
        assert end, "half a head"
        first, *rest = head.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        assert status, f"status line {first!r}"
        fields: dict[bytes, bytes] = {}
        for line in rest:
            field = _FIELD.fullmatch(line)
            assert field, f"field line {line!r}"
            name = field[1].lower()
            assert name in _FIELDS, f"a field that we never send: {line!r}"
            assert name not in fields, f"{name!r} is there twice"
            fields[name] = field[2]
        assert b"date" in fields
        closed = fields.get(b"connection") == b"close"
        code, length = int(status[1]), int(fields.get(b"content-length", b"0"))
        assert len(found) < len(lines), "more answers than requests"
        asked = lines[len(found)]
        if code in (204, 304) or (asked.startswith(b"HEAD ") and not (closed and sent)):
            length = 0
        assert len(sent) >= length, "half a body"
        sent = sent[length:]
        found.append((code, length))
    assert len(found) == len(lines), "a request without an answer"
    return found


@functools.cache
def _box() -> Box:
    return Box()


def requests(data: bytes) -> None:
    """The first two bytes say where the rest is cut: sent whole or in two pieces, it gets the same answers."""
    box = _box()
    sent = data[2:].replace(VERSION, box.version)
    whole = box.ask(sent)
    cut = int.from_bytes(data[:2], "big") % (len(sent) + 1)
    pieces = box.ask(sent[:cut], sent[cut:])
    assert _alike(whole) == _alike(pieces), f"in two pieces the answers are {pieces}, at once {whole}"
    for code, _ in whole:
        assert code < 500 or code == 505, f"the server is at fault: {code}"


def _alike(answers: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(0, 0) if code in _REFUSALS else (code, length) for code, length in answers]
