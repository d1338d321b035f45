"""A small fleet on this machine: controller, origin and appliances as the real programs over real sockets."""

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

from oca.errors import OcaError

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

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C in the terminal reaches us alone."""
        with self.log.open("ab") as log, _signals_wait():
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

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
        host: str = "127.0.0.1",
        port: int = 0,
        beat_s: float = 1.0,
        keys: Path | None = None,
    ) -> None:
        """With `keys`, viewers need a token (`oca.http.gate`)."""
        self.directory = directory
        self._tokens = f'\n[tokens]\nkeys = "{keys}"\n' if keys else ""
        self.host = host
        self.beat_s = beat_s
        self.boxes: dict[str, Box] = {}
        self.programs: dict[str, Program] = {}
        self._ports = free_ports(host, port)
        self.controller = f"http://{host}:{next(self._ports)}"
        (directory / "logs").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_controller(self) -> None:
        """Start the controller: heartbeats every `beat_s`, dead after three of them missed."""
        listen = self.controller.removeprefix("http://")
        settings = self.directory / "control.toml"
        settings.write_text(
            f'listen = "{listen}"\npublic_url = "{self.controller}"\n'
            f'database = "sqlite+aiosqlite:///{self.directory / "control.db"}"\n'
            f"heartbeat_s = {self.beat_s}\ndead_s = {3 * self.beat_s}\nsteer_ttl_s = 2\n\n[api]\nopen = true\n"
            + self._tokens
        )
        self._start("controller", "oca-control", "serve", "--config", str(settings))
        self._wait("controller", f"{self.controller}/healthz")

    def add(self, box: str, site: str, role: str = "edge", storage_bytes: int = 0) -> Box:
        """Write the settings of an appliance and register it with the controller."""
        home = self.directory / box
        home.mkdir(exist_ok=True)
        url, admin = (f"http://{self.host}:{next(self._ports)}" for _ in range(2))
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
            self._start(box, "oca", "serve", "--config", str(self.boxes[box].settings))
        for box in boxes:
            self._wait(box, f"{self.boxes[box].admin}/healthz")
            if self.boxes[box].role != "origin":
                self._start(f"{box}-fill", "oca-fill", "run", "--config", str(self.boxes[box].settings))

    def ocactl(self, *arguments: str, show: bool = False) -> Any:
        """Run an operator's command. Shown to the person, or with `--json` and its answer returned."""
        command = [script("ocactl"), "--controller", self.controller, *arguments]
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
