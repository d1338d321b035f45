"""Programs of the fleet are started and ended whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bench import fleet
from bench.lifeline import tied
from tests.bench.programs import appear, gone


def test_a_signal_does_not_lose_the_program_that_is_being_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the fork and the moment we know of it: it counts, and the program can be ended."""
    start = subprocess.Popen

    def interrupted(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        made: subprocess.Popen[bytes] = start(*given, **more)
        signal.raise_signal(signal.SIGINT)
        return made

    monkeypatch.setattr(fleet.subprocess, "Popen", interrupted)
    program = fleet.Program("sleeper", ["sleep", "600"], tmp_path / "log")
    # Whatever ran before in this process may have left another one.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            program.start()
        assert program.running
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        program.stop()
        assert not program.running
    finally:
        signal.signal(signal.SIGINT, found)


FLEET = """
import sys, time
from pathlib import Path
from bench.fleet import Fleet
with Fleet(Path(sys.argv[1])) as fleet:
    fleet.start_controller()
    fleet.add("north-1", "north")
    fleet.start("north-1")
    print("up", flush=True)
    time.sleep(600)
"""


def test_kill_9_ends_every_program_and_its_workers(tmp_path: Path) -> None:
    """No `finally` runs then: the kernel ends the programs, and they their workers."""
    home = tmp_path / "fleet"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", FLEET, home], stdout=subprocess.PIPE, stderr=log, start_new_session=True, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n", (tmp_path / "log").read_text()
            # While a process becomes another program it has no command line for a moment.
            appear(home, "bin/oca-control serve", "bin/oca serve", "oca.worker", "bin/oca-fill run")
        finally:
            process.kill()
            process.wait()
    gone(home)


def test_a_program_whose_starter_is_gone_does_not_begin(tmp_path: Path) -> None:
    """It died between the fork and the moment that the kernel was asked."""
    command = tied(["/bin/touch", str(tmp_path / "begun")])
    command[command.index(str(os.getpid()))] = str(os.getppid())
    assert subprocess.run(command, check=False).returncode == 1
    assert not (tmp_path / "begun").exists()


def test_who_was_killed_on_purpose_has_not_ended_by_itself(tmp_path: Path) -> None:
    """A program that ends although nobody wanted it to ends the fleet, with its last words."""
    made = fleet.Fleet(tmp_path)
    made.programs = {
        "wanted": fleet.Program("wanted", ["/bin/sleep", "600"], tmp_path / "wanted.log"),
        "other": fleet.Program(
            "other", ["/bin/sh", "-c", "read line; echo the disk is full"], tmp_path / "other.log"
        ),
    }
    made.programs["wanted"].start()
    with made:
        made.kill("wanted")
        assert not made.is_running("wanted")
        made.check()
        made.programs["other"].start()
        made.wait_for("its end", lambda: not made.programs["other"].running)
        with pytest.raises(fleet.FleetError, match="other ended by itself: the disk is full"):
            made.check()


def test_every_program_has_an_address_of_its_own_and_appliances_one_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet.Fleet, "ocactl", lambda *_, **__: None)
    made = fleet.Fleet(tmp_path)
    boxes = [made.add(f"box-{number}", "north") for number in range(3)]
    urls = [urlsplit(url) for url in (made.controller, *(box.url for box in boxes))]
    assert [url.hostname for url in urls] == ["127.0.1.100", "127.0.1.101", "127.0.1.102", "127.0.1.103"]
    assert len({url.port for url in urls[1:]} | {urls[0].port}) == 2
    assert {urlsplit(box.admin).hostname for box in boxes} == {url.hostname for url in urls[1:]}


def test_who_connects_without_a_bound_address_comes_from_127_0_0_1() -> None:
    """Coverage goes by it: the kernel does not pick the address that is connected to."""
    with (
        socket.create_server((fleet.CONTROLLER, 0)) as server,
        socket.create_connection(server.getsockname(), timeout=60),
    ):
        connection, (address, _) = server.accept()
        connection.close()
    assert address == "127.0.0.1"
