"""Programs that tests start, and ports for those that must be told one beforehand."""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Forked from a process that has imported what takes a second or two to import.
_READY = multiprocessing.get_context("forkserver")
_READY.set_forkserver_preload(["tests.programs", "control.daemon"])
_PATIENCE_S = 100


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


def ran(module: str, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A program's whole run in a process of its own that need not import: its `main`, its command with its name."""
    with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err:
        process = _READY.Process(target=_become, args=(module, command, out.name, err.name))
        process.start()
        process.join(_PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, _PATIENCE_S)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, process.exitcode, out.read(), err.read())


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


def _become(module: str, command: Sequence[str], out: str, err: str) -> None:
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.argv = [*command]
    importlib.import_module(module).main()
