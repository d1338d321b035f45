"""A PostgreSQL of the tests' own: in a directory that goes with it, reached through a socket there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Debian keeps each version's programs in a directory that is in nobody's PATH.
_PLACES = ":".join([os.environ.get("PATH", os.defpath), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
_PATIENCE_S = 100


@contextlib.contextmanager
def running() -> Iterator[Path]:
    """The directory with the server's socket, which trusts the user `oca`; AssertionError if it does not start."""
    # Not below pytest's own directory, which only its user may enter. The path of a socket is short.
    directory = Path(tempfile.mkdtemp(prefix="oca-pg-", dir="/tmp"))
    options: dict[str, Any] = {"cwd": directory}
    if os.geteuid() == 0:
        # It refuses to run as root.
        options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        shutil.chown(directory, "postgres", "postgres")
    data = directory / "data"
    try:
        with (directory / "log").open("wb") as log:
            options |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            made = [_program("initdb"), "-D", data, "-U", "oca", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
            code = subprocess.run(made, **options, timeout=_PATIENCE_S, check=False).returncode
            assert code == 0, (directory / "log").read_text()
            settings = [f"-cunix_socket_directories={directory}", "-clisten_addresses=", "-cfsync=off"]
            server = subprocess.Popen([_program("postgres"), "-D", data, *settings], **options)
        try:
            _wait(server, data / "postmaster.pid", directory / "log")
            yield directory
        finally:
            # At once, but not by SIGKILL, which would leave its shared memory.
            server.send_signal(signal.SIGQUIT)
            server.wait(_PATIENCE_S)
    finally:
        shutil.rmtree(directory)


def _program(name: str) -> str:
    found = shutil.which(name, path=_PLACES)
    assert found is not None, f"{name} is not installed: run scripts/setup test"
    return found


def _wait(server: subprocess.Popen[bytes], pid: Path, log: Path) -> None:
    """Until the server has written that it is ready, as pg_ctl waits."""
    give_up = time.monotonic() + _PATIENCE_S
    while not (pid.exists() and pid.read_text().rstrip().endswith("ready")):
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < give_up, log.read_text()
        time.sleep(0.02)
