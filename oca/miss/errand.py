"""What the workers of a box and its puller say to each other, over a socket in the folder of pulled content.

A message is its length as a big-endian u32 and then msgpack. Numbers are given by the worker and come back with
everything that concerns them. Both ends are the same program and the same user; what is not understood ends the
connection, and a worker then connects again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from oca.errors import FormatError
from oca.http.slices import Facts
from oca.title.model import Natural

_LENGTH = struct.Struct(">I")
_MOST = 1 << 20


class Find(msgspec.Struct, frozen=True, tag="find"):
    """Worker: what is at this URL path (without query)? Answered by `Found` or `Lost`."""

    number: int
    path: str


class Want(msgspec.Struct, frozen=True, tag="want"):
    """Worker: I need the chunk of a file that begins at `offset`, its byte `at` first.

    Answered by `Arrived`, until it is whole, or `Lost`.
    """

    number: int
    title: str
    version: str
    name: str
    offset: Natural
    at: Natural


class Found(msgspec.Struct, frozen=True, tag="found"):
    """Puller: that is part of the file `name`, which comes in chunks of `unit` bytes."""

    number: int
    name: str
    unit: Annotated[int, Meta(gt=0)]
    facts: Facts


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    """Puller: of a chunk, `count` bytes from its byte `first` on (and on from its start) are in the file `place`.

    `place` is below the folder. `whole`: all of it is there, and verified.
    """

    number: int
    place: str
    first: Natural
    count: Natural
    whole: bool


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """Puller: it will not come, and that is answered with this HTTP status and this sentence."""

    number: int
    status: int
    sentence: str


FromWorker = Find | Want
FromPuller = Found | Arrived | Lost


def pack(message: FromWorker | FromPuller) -> bytes:
    """The bytes that go over the socket."""
    data = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(data)) + data


async def messages(reader: asyncio.StreamReader, kind: object) -> AsyncIterator[object]:
    """The messages of `kind` (a union) that arrive, until the other end is gone. Raises FormatError."""
    decoder = msgspec.msgpack.Decoder(kind)
    while True:
        try:
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            if length > _MOST:
                raise FormatError(f"a message of {length} bytes, more than the {_MOST} allowed")
            yield decoder.decode(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            return
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FormatError(f"a message that is not understood: {error}") from None


def listen(folder: Path, name: str) -> socket.socket:
    """Listen at `name` in `folder`, taking the place of whoever listened there before. OSError if that cannot be."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    temporary = f"{name}-{os.getpid()}"
    (folder / temporary).unlink(missing_ok=True)
    try:
        with _Folder(folder) as short:
            sock.bind(f"{short}/{temporary}")
        (folder / temporary).chmod(0o600)
        sock.listen(256)
        (folder / temporary).rename(folder / name)
    except OSError:
        sock.close()
        raise
    return sock


def connect(folder: Path, name: str) -> socket.socket:
    """A connection to whoever listens at `name` in `folder`; OSError if nobody does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        with _Folder(folder) as short:
            sock.connect(f"{short}/{name}")
    except OSError:
        sock.close()
        raise
    return sock


class _Folder:
    """A short name of a folder: the address of a unix socket has room for 107 bytes (unix(7))."""

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
