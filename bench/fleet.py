"""A small fleet on this machine: controller, origin and appliances as the real programs over real sockets.

Each has a loopback address of its own, all equally long, and all appliances have the same port: Shaka bans a location
that failed by its host name, without the port, and by any part of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lifeline import tied
from oca.errors import OcaError

# Whoever connects to these comes from 127.0.0.1, unless it has bound itself to another one.
CONTROLLER, _APPLIANCE = "127.0.1.100", "127.0.1.{}"
_FIRST, _LAST = 101, 254
# A port is looked for on every address, since the programs have it on several.
_EVERY = "0.0.0.0"
# A machine that is emulated takes longer.
_FIRST_PORT = 10_000
READY_S = 60.0
_STOP_S = 25.0


class FleetError(OcaError):
    """A program of the fleet did not do what it was started for."""


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals to end come when the block is done: in between, a process would be running that nobody knows of."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread only
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {number: signal.signal(number, lambda told, _: came.append(told)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for told in came:
            signal.raise_signal(told)


@dataclass
class Program:
    """One process of the fleet, its output in a log file of its own."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    killed: bool = False
    """Whether its end was wanted: `kill` did it, and nobody started it since."""

    def start(self) -> None:
        """Start it in a session of its own, so that a terminal's Ctrl-C reaches us alone; it ends when we end."""
        self.killed = False
        with self.log.open("ab") as log, _signals_wait():
            self.process = subprocess.Popen(
                tied(self.command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it and its workers as a power cut would."""
        self.killed = True
        if self.process is not None:
            if self.running:  # its group is named by it, and it by a number that would be another's later
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def ended_by_itself(self) -> bool:
        """Whether it was started, and has ended although nobody wanted it to."""
        return self.process is not None and not self.running and not self.killed

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.process is not None and self.running:
            self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """SIGTERM, wait, and SIGKILL if that was not enough."""
        self.ask_to_stop()
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_S)
            self.kill()

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        return self.log.read_text("utf-8", "replace")[-2000:].strip() if self.log.exists() else ""


@dataclass(frozen=True)
class Box:
    """Where one appliance (or the origin) of the fleet lives."""

    id: str
    site: str
    role: str
    url: str
    admin: str
    settings: Path
    store: Path


class Fleet:
    """The programs of a fleet and the files they use, all below one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        beat_s: float = 1.0,
        dead_s: float | None = None,
        steer_ttl_s: int = 2,
        wait_s: float | None = None,
        keys: Path | None = None,
    ) -> None:
        """The controller's port is the first free one from `port`, the appliances' are the next ones; 0 takes any.

        `beat_s` passes between heartbeats, `dead_s` (three times as much) until a silent box is dead, `steer_ttl_s`
        before players ask steering again, and `wait_s` before the fill of a box escalates to the origin, unless
        as long as usual. With `keys`, viewers need a token (`oca.http.gate`).
        """
        self.directory = directory
        self._tokens = f'\n[tokens]\nkeys = "{keys}"\n' if keys else ""
        self.beat_s = beat_s
        self.boxes: dict[str, Box] = {}
        self.programs: dict[str, Program] = {}
        self._dead_s = 3 * beat_s if dead_s is None else dead_s
        self._steer_ttl_s = steer_ttl_s
        self._escalation = "" if wait_s is None else f"\n[escalation]\nwait_s = {wait_s}\n"
        ports = free_ports(_EVERY, port)
        self.port = next(ports)
        """The controller's; it is free on other addresses than the fleet's, too."""
        self.controller = f"http://{CONTROLLER}:{self.port}"
        self._content, self._admin = next(ports), next(ports)
        (directory / "logs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_controller(self) -> None:
        """Start the controller: what it was told of times goes into its settings."""
        listen = self.controller.removeprefix("http://")
        settings = self.directory / "control.toml"
        settings.write_text(
            f'listen = "{listen}"\npublic_url = "{self.controller}"\n'
            f'database = "sqlite+aiosqlite:///{self.directory / "control.db"}"\n'
            f"heartbeat_s = {self.beat_s}\ndead_s = {self._dead_s}\n"
            f"steer_ttl_s = {self._steer_ttl_s}\n\n[api]\nopen = true\n{self._escalation}" + self._tokens
        )
        self._start("controller", "oca-control", "serve", "--config", str(settings))
        self._wait("controller", f"{self.controller}/healthz")

    def add(self, box: str, site: str, role: str = "edge", storage_bytes: int = 0) -> Box:
        """Write the settings of an appliance and register it with the controller; its address is the next one."""
        number = _FIRST + len(self.boxes)
        if number > _LAST:
            raise FleetError(f"a fleet has {_LAST - _FIRST + 1} appliances at most")
        home = self.directory / box
        home.mkdir(exist_ok=True)
        host = _APPLIANCE.format(number)
        url, admin = f"http://{host}:{self._content}", f"http://{host}:{self._admin}"
        made = Box(box, site, role, url, admin, home / "oca.toml", home / "store")
        made.settings.write_text(
            f'appliance = "{box}"\nurl = "{url}"\nlisten = "{url.removeprefix("http://")}"\n'
            f'admin = "{admin.removeprefix("http://")}"\nstore = ["{made.store}"]\n'
            f'controllers = ["{self.controller}"]\naccess_log = "{home / "access.log"}"\n'
            f"workers = 1\nstorage_bytes = {storage_bytes}\n\n[fill]\npoll_s = {self.beat_s}\n" + self._tokens
        )
        self.boxes[box] = made
        storage = ["--storage", str(storage_bytes)] if storage_bytes else []
        self.ocactl("appliance", "add", box, "--site", site, "--url", url, "--role", role, *storage)
        return made

    def start(self, *boxes: str) -> None:
        """Start the servers of appliances together, and the fill agents of all but origins."""
        for box in boxes:
            self._serve(box)
        for box in boxes:
            self._wait(box, f"{self.boxes[box].admin}/healthz")
            self._fill(box)

    def kill(self, box: str) -> None:
        """End the programs of an appliance as a power cut would."""
        for program in self._programs(box):
            program.kill()

    def revive(self, box: str) -> None:
        """Start the programs of a killed appliance again, without waiting for them; by the main thread."""
        if not all(program.killed for program in self._programs(box)):
            raise FleetError(f"{box} has not been killed")
        self._serve(box)
        self._fill(box)

    def is_running(self, box: str) -> bool:
        """Whether all programs of an appliance are alive."""
        return all(program.running for program in self._programs(box))

    def check(self) -> None:
        """FleetError with a program's last words if one has ended although nobody wanted it to."""
        for program in self.programs.values():
            if program.ended_by_itself:
                raise FleetError(f"{program.name} ended by itself: {program.last_words()}")

    def ocactl(self, *arguments: str, show: bool = False) -> Any:
        """Run an operator's command. Shown to the person, or with `--json` and its answer returned."""
        command = tied([script("ocactl"), "--controller", self.controller, *arguments])
        if show:
            if subprocess.run(command, env=_environment(), check=False).returncode:
                raise FleetError(f"ocactl {' '.join(arguments)} failed")
            return None
        done = subprocess.run([*command, "--json"], env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise FleetError(f"ocactl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def wait_for(self, what: str, condition: Any, seconds: float = READY_S) -> None:
        """Wait until `condition()` is true; FleetError naming `what` if it does not become so."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise FleetError(f"{what} did not happen within {seconds:.0f} s; logs are in {self.directory}/logs")
            time.sleep(0.05)

    def stop(self) -> None:
        """End every process; all at once first, then one by one."""
        for program in self.programs.values():
            program.ask_to_stop()
        for program in self.programs.values():
            program.stop()

    def _programs(self, box: str) -> list[Program]:
        return [self.programs[name] for name in (box, f"{box}-fill") if name in self.programs]

    def _serve(self, box: str) -> None:
        self._start(box, "oca", "serve", "--config", str(self.boxes[box].settings))

    def _fill(self, box: str) -> None:
        if self.boxes[box].role != "origin":
            self._start(f"{box}-fill", "oca-fill", "run", "--config", str(self.boxes[box].settings))

    def _start(self, name: str, program: str, *arguments: str) -> None:
        log = self.directory / "logs" / f"{name}.log"
        self.programs[name] = Program(name, [script(program), *arguments], log)
        self.programs[name].start()

    def _wait(self, name: str, url: str) -> None:
        program = self.programs[name]
        try:
            if program.process is not None:
                self.wait_until_answering(url, program.process, name)
        except FleetError as error:
            raise FleetError(f"{error}; it said: {program.last_words()}") from None

    @staticmethod
    def wait_until_answering(
        url: str, process: subprocess.Popen[bytes], name: str, tls: ssl.SSLContext | None = None
    ) -> None:
        """Wait for 200 from `url`; FleetError if the process ends, or does not answer in time."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise FleetError(f"{name} ended at once")
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2, context=tls) as response:
                if response.status == 200:
                    return
            time.sleep(0.05)
        raise FleetError(f"{name} did not answer at {url} within {READY_S:.0f} s")


def _environment() -> dict[str, str]:
    """Ours, but the token of the person who runs us is for their own controller, not for this one."""
    return {**os.environ, "OCACTL_TOKEN": ""}


def script(name: str) -> str:
    """The console script that belongs to the Python we run under."""
    path = Path(sys.executable).with_name(name)
    if not os.access(path, os.X_OK):
        raise FleetError(f"{path} is missing: run `make setup`")
    return str(path)


def free_ports(host: str, first: int) -> Iterator[int]:
    """Free TCP ports: from `first` upwards if it is not 0, else any that clients do not use for their own ends."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # What the kernel picks for port 0 it may pick for a client a moment later, before a server listens there.
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    given: set[int] = set()
    while True:
        port = first or random.randrange(min(_FIRST_PORT, end - 1000), end)
        with socket.socket(family) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
                taken = port in given
            except OSError:
                taken = True
        if not taken:
            given.add(port)
            yield port
        if first:
            first += 1
