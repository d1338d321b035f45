"""Programs that tests start, and ports for those that must be told one beforehand."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def held(host: str = "127.0.0.1") -> socket.socket:
    """A socket that keeps a port from everybody but who asks for just this one; nobody listens on it.

    Whoever lets the kernel choose, servers and clients alike, does not get the port as long as the socket is open; a
    program that is told the port can listen there. Until it does, connections are refused.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    return sock


def port_of(sock: socket.socket) -> int:
    """The port that a socket has."""
    port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A program in a session of its own, its stderr a pipe; ended with the block, whatever happens there.

    For programs that say little: one that has written 64 KiB which nobody reads waits for ever.
    """
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def said(process: subprocess.Popen[str], event: str) -> dict[str, Any]:
    """The line with which a program says that something has happened; AssertionError if it ends without it."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        told: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        if told.get("event") == event:
            return told
    raise AssertionError("".join(lines))
