"""`oca serve` as the real program: it starts, serves, reports, and stops."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from oca import wire
from oca.config import ApplianceSettings
from oca.counters import METRICS, Counters
from oca.heartbeat import Reporter
from oca.store.content import Store
from tests.programs import held, port_of

OCA = Path(sys.executable).with_name("oca")


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for another process to make a condition true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.02)


class Appliance:
    """Settings on disk and the process that runs with them."""

    def __init__(self, directory: Path, controllers: list[str], workers: int) -> None:
        self._held = [held(), held()]
        self.port, self.admin = map(port_of, self._held)
        self.store = directory / "store"
        self.settings = directory / "oca.toml"
        self.settings.write_text(
            f'appliance = "n1"\nstore = ["{self.store}"]\nurl = "http://127.0.0.1:{self.port}"\n'
            f'listen = "127.0.0.1:{self.port}"\nadmin = "127.0.0.1:{self.admin}"\n'
            f"workers = {workers}\n"
            f'controllers = {json.dumps(controllers)}\naccess_log = "{directory / "access.log"}"\n'
        )
        self.journal = directory / "journal"
        self.journal.touch()
        self._heard = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *before: str) -> None:
        self.run([*before, str(OCA), "serve", "--config", str(self.settings)])
        self.wait_for("serving")

    def run(self, command: list[str], **options: Any) -> None:
        """Start the program, in a session of its own, which writes what it has to say into a file."""
        with self.journal.open("ab") as journal:
            self.process = subprocess.Popen(command, stderr=journal, start_new_session=True, **options)

    def wait_for(self, event: str) -> None:
        """Wait until the log says `event` after what was last waited for."""

        def said() -> bool:
            assert self.process is not None
            ended = self.process.poll() is not None
            log = self.journal.read_bytes()
            at = log.find(f'"event": "{event}"'.encode(), self._heard)
            assert at >= 0 or not ended, log.decode()
            self._heard = log.find(b"\n", at) + 1 if at >= 0 else self._heard
            return at >= 0

        until(said)

    def get(self, path: str, port: int | None = None) -> tuple[int, bytes]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}{path}", timeout=60) as response:
            return response.status, response.read()

    def metrics(self) -> str:
        return self.get("/metrics", self.admin)[1].decode()

    def workers(self) -> list[int]:
        """Process ids of the workers, draining ones included."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        self.process = None
        return code

    def end(self) -> None:
        """End it, whatever state it is in, and let its ports go."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        for sock in self._held:
            sock.close()


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Callable[..., Appliance]]:
    made: list[Appliance] = []

    def make(*controllers: str, workers: int = 1) -> Appliance:
        made.append(Appliance(tmp_path, list(controllers), workers))
        return made[-1]

    yield make
    for box in made:
        box.end()


def test_nothing_is_imported_from_where_it_is_started(appliance, make_title, tmp_path: Path) -> None:
    """A directory that anybody may write to, such as /tmp, may be the one that an operator is in."""
    foreign = tmp_path / "foreign"
    for module in ("oca/__init__.py", "uvloop.py", "socket.py"):
        (foreign / module).parent.mkdir(parents=True, exist_ok=True)
        (foreign / module).write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    box = appliance()
    made = make_title(box.store)
    box.run([str(OCA), "serve", "--config", str(box.settings)], cwd=foreign)
    box.wait_for("serving")
    assert box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
    assert not (tmp_path / "imported").exists()


def test_it_serves_and_tells_of_its_health_and_counts(appliance, make_title) -> None:
    """Content on one listener; health and metrics on the other, and only there."""
    box = appliance()
    made = make_title(box.store)
    box.start()
    assert box.get(f"{made.url}/v1/1.m4s") == (200, made.segment("v1", 1))
    health = json.loads(box.get("/healthz", box.admin)[1])
    assert (health["ok"], health["appliance"]) == (True, "n1")
    until(lambda: 'way="sendfile"} 3000' in box.metrics())
    text = box.metrics()
    assert set(re.findall(r"^# TYPE (\S+)", text, re.M)) == set(METRICS)
    assert 'oca_content_requests_total{outcome="hit"} 1' in text
    for path in ("/metrics", "/healthz"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            box.get(path)
    assert box.stop() == 0


def test_metrics_alone_are_shown_elsewhere(appliance, make_title) -> None:
    """To a monitoring system, also after a reload; health and content are not."""
    box = appliance()
    with held("0.0.0.0") as kept:
        port = port_of(kept)
        box.settings.write_text(box.settings.read_text() + f'metrics = "0.0.0.0:{port}"\n')
        made = make_title(box.store)
        box.start()
        for again in (False, True):
            assert b"# TYPE oca_" in box.get("/metrics", port)[1]
            for path in ("/healthz", f"{made.url}/title.json"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    box.get(path, port)
            if not again:
                assert box.process is not None
                box.process.send_signal(signal.SIGHUP)
                box.wait_for("serving")
        assert box.stop() == 0


@pytest.mark.parametrize("admin", ["0.0.0.0:8081", "[::]:8081", "192.0.2.1:8081", "box.example:8081"])
def test_administration_is_for_the_box_alone(appliance, admin: str) -> None:
    box = appliance()
    box.settings.write_text(re.sub('admin = "[^"]*"', f'admin = "{admin}"', box.settings.read_text()))
    done = subprocess.run([OCA, "check", "-c", box.settings], capture_output=True, text=True, timeout=100)
    assert (done.returncode, "use 127.0.0.1 or [::1]" in done.stderr) == (1, True)
    assert "\n" not in done.stderr.strip()


@pytest.mark.parametrize("admin", ["127.0.0.1:8081", "[::1]:8081", "localhost:8081", "127.9.9.9:0"])
def test_loopback_has_many_names(appliance, admin: str) -> None:
    box = appliance()
    box.settings.write_text(re.sub('admin = "[^"]*"', f'admin = "{admin}"', box.settings.read_text()))
    done = subprocess.run([OCA, "check", "-c", box.settings], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_kernel_moves_the_bytes(appliance, make_title, tmp_path: Path) -> None:
    """A system call trace shows one sendfile for the segment, and no read or write of its bytes."""
    assert shutil.which("strace"), "install strace: .ci/run and `make setup` do"
    box = appliance()
    made = make_title(box.store, v1=[200_000])
    # A file per thread: in one for all, calls that overlap would be written in two pieces.
    options = (
        "-ff",
        "-y",
        "-q",
        "-e",
        "trace=sendfile,read,pread64,write,sendto,sendmsg",
        "-o",
        str(tmp_path / "trace"),
    )

    def traced() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("trace.*"))

    box.start("strace", "-D", *options)
    assert box.get(f"{made.url}/v1/1.m4s")[1] == made.segment("v1", 1)
    assert box.stop() == 0
    # strace writes its last lines after the processes it watched are gone
    until(lambda: traced().count("exited with 0") >= 2)
    # What is read ahead goes to /dev/null by the same call.
    assert sum(int(count) for count in re.findall(r"^sendfile\(\d+<socket.* = (\d+)$", traced(), re.M)) == 200_000
    calls = re.findall(r"^(\w+)\(.* = (\d+)$", traced(), re.M)
    sent = [(call, int(count)) for call, count in calls if call in ("sendto", "sendmsg", "write")]
    assert all(count < 200_000 for _, count in sent), sent


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_cleanly_with_idle_clients(appliance, make_title, number: int) -> None:
    box = appliance()
    made = make_title(box.store)
    box.start()
    with socket.create_connection(("127.0.0.1", box.port)) as client:
        client.sendall(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert b"200 OK" in client.recv(100)
        assert box.stop(number) == 0


async def test_it_reports_to_the_controller(appliance, make_title, tmp_path: Path) -> None:
    """Heartbeats at the pace the controller asks for; the inventory when it asks, and again after a change."""
    beats: asyncio.Queue[wire.Heartbeat] = asyncio.Queue()
    inventories: asyncio.Queue[wire.Inventory] = asyncio.Queue()
    known = ""

    async def heartbeat(request: web.Request) -> web.Response:
        beat = wire.decode(await request.read(), wire.Heartbeat, "heartbeat")
        beats.put_nowait(beat)
        reply = wire.HeartbeatReply(time=time.time(), fill="", interval_s=0.1, send_inventory=beat.inventory != known)
        return web.Response(body=wire.encode(reply))

    async def inventory(request: web.Request) -> web.Response:
        nonlocal known
        message = wire.unpack(await request.read(), wire.Inventory, "inventory")
        known = message.generation
        inventories.put_nowait(message)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/api/v1/appliances/n1/heartbeat", heartbeat)
    app.router.add_put("/api/v1/appliances/n1/inventory", inventory)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    dead = held()
    box = appliance(f"http://127.0.0.1:{port_of(dead)}", f"http://127.0.0.1:{port}")
    first = make_title(box.store, "one", seed=1)
    try:
        await asyncio.to_thread(box.start)
        async with asyncio.timeout(60):
            beat = await beats.get()
            assert (beat.appliance, beat.url) == ("n1", f"http://127.0.0.1:{box.port}")
            assert beat.used_bytes > 0
            told = await inventories.get()
            assert told.held == [wire.HeldTracks("one", first.version, ["a1", "v1"])]
            for _ in range(3):
                await beats.get()
            assert inventories.empty(), "an unchanged inventory is sent once"
            second = make_title(box.store, "two", seed=2)
            told = await inventories.get()
            assert [row.version for row in told.held] == [first.version, second.version]
            (second.directory / "title.json").write_bytes(b"{")
            make_title(box.store, "three", seed=3)
            told = await inventories.get()
            assert [row.title for row in told.held] == ["one", "three"], "a damaged version is left out"
        assert await asyncio.to_thread(box.stop) == 0
    finally:
        dead.close()
        await runner.cleanup()


def test_it_serves_on_while_no_controller_answers(appliance, make_title) -> None:
    with held() as dead:
        box = appliance(f"http://127.0.0.1:{port_of(dead)}")
        made = make_title(box.store)
        box.start()
        assert box.get(f"{made.url}/v1/1.m4s")[0] == 200
        assert box.stop() == 0


class Load:
    """A client that asks for one segment over and over, on fresh and on kept connections, and counts failures."""

    def __init__(self, port: int, path: str, expected: bytes) -> None:
        self.asked = self.failed = 0
        self._end = threading.Event()
        self._wanted = (port, path, expected)
        self._threads = [threading.Thread(target=self._run, args=(keep,)) for keep in (True, False)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keep: bool) -> None:
        port, path, expected = self._wanted
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not self._end.is_set():
            self.asked += 1
            try:
                client.request("GET", path)
                response = client.getresponse()
                good = response.status == 200 and response.read() == expected
                if response.will_close or not keep:
                    client.close()
            except (OSError, http.client.HTTPException):
                # A kept connection may be closed between two requests at any time (RFC 9112 9.3.1): ask again once.
                client.close()
                good = keep
            self.failed += not good
        client.close()


def test_every_worker_serves_and_a_dead_one_is_replaced(appliance, make_title) -> None:
    """kill -9 of a worker costs at most the connections it had; a new one takes its socket."""
    box = appliance(workers=2)
    made = make_title(box.store)
    box.start()
    first = box.workers()
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(set(box.workers())) == 2 and first[0] not in box.workers())
    for _ in range(40):
        assert box.get(f"{made.url}/v1/1.m4s")[0] == 200
    until(lambda: "oca_workers 2" in box.metrics())
    assert "oca_worker_deaths_total 1" in box.metrics()
    assert box.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_reload_under_load_fails_no_request(appliance, make_title, number: int) -> None:
    """New workers accept before the old ones drain; new settings count; the process id stays."""
    box = appliance(workers=2)
    made = make_title(box.store)
    box.start()
    old = box.workers()
    box.settings.write_text(box.settings.read_text().replace("workers = 2", "workers = 3"))
    with Load(box.port, f"{made.url}/v1/1.m4s", made.segment("v1", 1)) as load:
        for _ in range(2):
            before = load.asked
            box.process.send_signal(number)
            box.wait_for("serving")
            until(lambda was=before: load.asked > was + 20)
    assert load.failed == 0
    assert load.asked > 100
    until(lambda: len(box.workers()) == 3 and not set(old) & set(box.workers()))
    assert box.stop() == 0


def test_a_reload_with_bad_settings_changes_nothing(appliance, make_title) -> None:
    box = appliance()
    made = make_title(box.store)
    box.start()
    good = box.settings.read_text()
    box.settings.write_text(good + "colour = 1\n")
    old = box.workers()
    box.process.send_signal(signal.SIGHUP)
    box.wait_for("not reloaded: what is on disk would not start; going on as before")
    assert box.get(f"{made.url}/v1/1.m4s")[0] == 200
    assert box.workers() == old
    assert box.stop() == 0


def test_workers_end_with_their_supervisor(appliance, make_title) -> None:
    """kill -9 of the supervisor leaves no process behind that holds the port."""
    box = appliance(workers=2)
    make_title(box.store)
    box.start()
    workers = box.workers()
    assert len(workers) == 2
    box.stop(signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}/fd").exists() and alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    """Whether a process runs and is not a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_systemd_passes_sockets_and_hears_how_we_are(appliance, make_title, tmp_path: Path) -> None:
    """Socket activation (sd_listen_fds), READY, WATCHDOG and STOPPING (sd_notify)."""
    box = appliance()
    made = make_title(box.store)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0), reuse_port=True) as passed,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        port = passed.getsockname()[1]
        activate = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); "
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1'); os.execv(sys.argv[2], sys.argv[2:])"
        )
        heard: list[bytes] = []

        def hear() -> None:
            while b"STOPPING=1" not in heard:
                heard.append(manager.recv(100))

        box.run(
            [sys.executable, "-c", activate, str(passed.fileno()), str(OCA), "serve", "-c", str(box.settings)],
            pass_fds=[passed.fileno()],
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"},
        )
        # Heard all the time, as systemd does: the socket takes a few words only, and who has more to say waits.
        hearing = threading.Thread(target=hear)
        hearing.start()
        until(lambda: {b"READY=1", b"WATCHDOG=1"} <= set(heard))
        assert set(heard) == {b"READY=1", b"WATCHDOG=1"}
        assert box.get(f"{made.url}/v1/1.m4s", port)[1] == made.segment("v1", 1)
        assert box.stop() == 0
        hearing.join(60)
        assert set(heard) == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}


def fails(*arguments: str) -> str:
    """The one sentence that a failing command prints; its exit code is 1."""
    done = subprocess.run([OCA, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_bad_settings_are_one_sentence(appliance, tmp_path: Path) -> None:
    box = appliance()
    box.settings.write_text("appliance = 'x'\n")
    assert "missing required field `store`" in fails("serve", "--config", str(box.settings))
    assert "cannot read settings" in fails("serve", "--config", str(tmp_path / "none.toml"))


def test_a_store_that_cannot_be_written_is_one_sentence(appliance) -> None:
    box = appliance()
    box.store.write_text("a file in the way")
    assert f"store directory {box.store} cannot be written" in fails("serve", "--config", str(box.settings))


def test_an_address_in_use_is_one_sentence(appliance) -> None:
    box = appliance()
    with socket.create_server(("127.0.0.1", box.port)):
        assert "is another server running there?" in fails("serve", "--config", str(box.settings))


def test_held_lists_the_store(appliance, make_title) -> None:
    box = appliance()
    made = make_title(box.store)
    done = subprocess.run([OCA, "held", "-c", box.settings, "--json"], capture_output=True, timeout=100)
    assert json.loads(done.stdout)["held"] == [{"title": "clip", "version": made.version, "tracks": ["a1", "v1"]}]
    (made.directory / "title.json").write_bytes(b"{")
    done = subprocess.run([OCA, "held", "-c", box.settings], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "damaged: " in done.stderr


def test_usage_errors_exit_2() -> None:
    done = subprocess.run([OCA, "serve"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2


def test_a_clock_that_is_off_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And once more when it was right in between."""
    settings = ApplianceSettings(appliance="n1", store=[str(tmp_path)], url="http://127.0.0.1:1")
    reporter = Reporter(settings, Store([tmp_path]), Counters)
    told = []
    for off in (0.0, 29.0, 31.0, 400.0, -1.0, -31.0):
        reporter.compare_clocks(off)
        told.append(capsys.readouterr().out.count("the clocks of this box and of the controller differ"))
    assert told == [0, 0, 1, 0, 0, 1]
