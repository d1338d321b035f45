"""Builds on a Dask cluster: a real scheduler and real workers, and what comes of it when these die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from oca.errors import ConfigError, OcaError
from oca.store.content import FILLING, Store
from oca.store.verify import verify
from packager import package
from packager.encode import cluster, worker
from packager.encode.cluster import ClusterError, appears, executing
from packager.encode.worker import Terms, UnfitError, check, stop, versions
from packager.ffmpeg import Ffmpeg
from packager.package import Built, Order

pytestmark = pytest.mark.long

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
# Chunks of 4 s that take about a second each, so that a worker can be killed while it encodes one.
SLOW = ("-f", "lavfi", "-i", "testsrc2=s=426x240:r=25:d=16", "-f", "lavfi", "-i", "sine=d=16")
SMALL = ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=10:d=12", "-f", "lavfi", "-i", "sine=d=12")
ENCODED = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac")
PATIENCE_S = 100


class Machines:
    """A scheduler and its workers, each a process."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        told = folder / "scheduler.json"
        options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told))
        self.scheduler = self._start("scheduler", *options, **environment)
        wait(told.exists)
        self.address = str(wait(lambda: json.loads(told.read_text() or "{}").get("address")))

    def _start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """A process with a log beside it; its own session, so that nobody's Ctrl-C is for it."""
        with (self.folder / f"{len(list(self.folder.iterdir()))}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", arguments[0], "--no-dashboard", *arguments[1:]],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, **environment},
                start_new_session=True,
            )

    def worker(self, name: str, threads: int = 1, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until the scheduler knows it."""
        options = ("--no-nanny", "--nthreads", str(threads), "--name", name, "--local-directory", str(self.folder))
        self.workers[name] = self._start("worker", self.address, *options, **environment)
        wait(lambda: name in self.known())
        return self.workers[name]

    def known(self) -> list[str]:
        """Names of the workers that the scheduler has."""
        from distributed import Client

        with Client(self.address, timeout=PATIENCE_S, set_as_default=False) as client:
            return [each["name"] for each in client.scheduler_info(n_workers=-1)["workers"].values()]

    def end(self) -> None:
        """End all."""
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """A scheduler without workers."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    found = Machines(folder)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(scope="module")
def video(make: Make) -> Path:
    """16 s in four chunks of 4 s, with sound."""
    return make("slow.mkv", *SLOW, *ENCODED)


@pytest.fixture(scope="module")
def small(make: Make) -> Path:
    """12 s that take no time."""
    return make("small.mkv", *SMALL, *ENCODED)


@pytest.fixture(scope="module")
def alone(binary: Ffmpeg, video: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The title that this machine makes by itself of the video."""
    return package.build(binary, order(video, tmp_path_factory.mktemp("alone")))


def order(video: Path, out: Path, dask: str = "") -> Order:
    """What is built here."""
    return Order(video, out, "t", "T", preset="slow", chunk=4, dask=dask, thumbnails=False)


def wait(ready: Callable[[], object]) -> object:
    """What `ready` returns once it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := ready()):
        assert time.monotonic() < deadline
        time.sleep(0.05)  # another process's doing, which tells nobody
    return found


def children(process: int) -> list[int]:
    """Process ids of the children of a process."""
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):  # processes come and go
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def encoding(worker: subprocess.Popen[bytes], out: Path) -> int:
    """Process id of an encoder of a worker which writes a piece of a build into `out`; 0 if there is none."""
    for child in children(worker.pid):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            for descriptor in Path(f"/proc/{child}/fd").iterdir():
                if str(descriptor.readlink()).startswith(str(out)) and descriptor.readlink().is_file():
                    return child
    return 0


def pieces(out: Path) -> list[Path]:
    """The pieces that a build into `out` has done."""
    found = [Path(folder) for folder, _, names in os.walk(out / FILLING) if "media.mp4" in names]
    return sorted(folder for folder in found if not folder.parent.name.startswith("."))


def made(out: Path) -> dict[Path, int]:
    """When the pieces that are done were made, in nanoseconds."""
    return {piece: (piece / "media.mp4").stat().st_mtime_ns for piece in pieces(out)}


def gone(process: int) -> bool:
    """Whether a process runs no more."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    return True


@contextmanager
def building(
    order: Order, binary: Ffmpeg, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Iterator[list[Built | BaseException]]:
    """A build in another thread; what came of it is in the list when the block is over."""
    outcome: list[Built | BaseException] = []

    def build() -> None:
        try:
            outcome.append(package.build(binary, order, progress))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=build)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_worker_that_dies(binary: Ffmpeg, machines: Machines, video: Path, alone: Built, tmp_path: Path) -> None:
    """kill -9 in the middle of a piece: its ffmpeg is gone, another worker does it again, the bytes are the same.

    No piece that was done is done again.
    """
    one = machines.worker("one")
    machines.worker("other")
    out = tmp_path / "out"
    used: dict[Path, int] = {}

    def see(step: str, done: int, total: int) -> None:
        if step == "package" and not done:
            used.update(made(out))

    with building(order(video, out, machines.address), binary, see) as outcome:
        wait(lambda: pieces(out))
        encoder = wait(lambda: encoding(one, out))
        before = made(out)
        one.kill()
        one.wait()
        wait(lambda: gone(int(str(encoder))))
    (built,) = outcome
    assert isinstance(built, Built), built
    assert (built.version, built.title) == (alone.version, alone.title)
    assert built.encoded == built.pieces == alone.pieces
    assert verify(built.path).problems == []
    for path in alone.path.iterdir():
        assert (built.path / path.name).read_bytes() == path.read_bytes()
    assert before.items() <= used.items()
    assert len(used) == built.pieces
    assert list((out / FILLING).iterdir()) == []


def test_a_scheduler_that_dies(
    binary: Ffmpeg,
    machines: Machines,
    video: Path,
    alone: Built,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sentence, exit 1; what is encoded stays, no ffmpeg does, and the same build goes on without a cluster."""
    mine = machines.worker("one")
    out = tmp_path / "out"
    with building(order(video, out, machines.address), binary) as outcome:
        wait(lambda: pieces(out))
        encoder = wait(lambda: encoding(mine, out))
        machines.scheduler.kill()
    (error,) = outcome
    assert isinstance(error, ClusterError)
    assert f"the connection to the Dask scheduler at {machines.address} is lost; what is encoded is kept" in str(
        error
    )
    wait(lambda: gone(int(str(encoder))))
    assert list(Store([out]).versions()) == []
    kept = len(pieces(out))
    again = package.build(binary, order(video, out))
    assert again.version == alone.version
    assert again.encoded <= again.pieces - kept < again.pieces
    # And one that was never there.
    monkeypatch.setattr(cluster, "_CONNECT_S", 1)
    options = ("--preset", "slow", "--chunk", "4", "--out", tmp_path / "none")
    status, told, err = run("build", video, *options, "--dask", machines.address)
    assert (status, told) == (1, "")
    assert err.startswith(f"error: there is no Dask scheduler to be reached at {machines.address}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_ended(machines: Machines, video: Path, tmp_path: Path, how: signal.Signals) -> None:
    """However: no ffmpeg is left on the workers, which go on with others' work; what is done is kept."""
    workers = [machines.worker("one", threads=2), machines.worker("two")]
    out = tmp_path / "out"
    program = "import sys; from packager.cli import main; sys.argv[0] = 'oca-pack'; main()"
    options = ["--preset", "veryslow", "--chunk", "4", "--dask", machines.address]
    process = subprocess.Popen(
        [sys.executable, "-c", program, "build", str(video), "--out", str(out), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        encoders = [wait(lambda worker=worker: encoding(worker, out)) for worker in workers]  # type: ignore[misc]
        process.send_signal(how)
        _, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert err == b""
    for encoder in encoders:
        wait(lambda encoder=encoder: gone(int(str(encoder))))  # type: ignore[misc]
    wait(lambda: not any(children(worker.pid) for worker in workers))
    assert sorted(machines.known()) == ["one", "two"]
    assert len(list((out / FILLING).iterdir())) == 1


def test_what_workers_lack(
    binary: Ffmpeg, machines: Machines, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker at all, no such disk, another ffmpeg: one sentence that names the worker; nothing is encoded."""
    asked = order(small, tmp_path / "out", machines.address)
    monkeypatch.setattr(cluster, "_CONNECT_S", 2)
    with pytest.raises(ClusterError, match="has no worker: start some, with `dask worker tcp://"):
        package.build(binary, asked)
    monkeypatch.undo()
    machines.worker("debian", OCA_FFMPEG="/usr/bin/ffmpeg")
    with pytest.raises(
        ClusterError, match=r"the Dask worker tcp://\S+ has ffmpeg 5\S+, and this machine \S+: install"
    ):
        package.build(binary, asked)
    machines.workers["debian"].kill()
    wait(lambda: not machines.known())
    machines.worker("none", OCA_FFMPEG="/nowhere")
    with pytest.raises(ClusterError, match=r"the Dask worker tcp://\S+: /nowhere cannot be run as ffmpeg"):
        package.build(binary, asked)
    machines.workers["none"].kill()
    wait(lambda: not machines.known())
    (tmp_path / "path" / "packager").mkdir(parents=True)
    (tmp_path / "path" / "packager" / "__init__.py").touch()
    machines.worker("bare", PYTHONPATH=str(tmp_path / "path"))
    with pytest.raises(ClusterError, match=r"the Dask worker tcp://\S+ lacks oca-pack \(.*pip install"):
        package.build(binary, asked)
    assert pieces(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("deaths", "sentence"),
    [
        ("3", "has had no worker for 1 s: start some; what is"),
        ("0", "was given up, since one worker after the other"),
    ],
)
def test_no_worker_is_left(
    binary: Ffmpeg, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: str, sentence: str
) -> None:
    """If none comes, or a piece kills them all, the build ends with a sentence and keeps what it has."""
    monkeypatch.setattr(cluster, "_LONELY_S", 1.0)
    (tmp_path / "cluster").mkdir()
    machines = Machines(tmp_path / "cluster", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=deaths)
    out = tmp_path / "out"
    try:
        worker = machines.worker("one")
        with building(order(video, out, machines.address), binary) as outcome:
            wait(lambda: pieces(out) and encoding(worker, out))
            worker.kill()
        (error,) = outcome
        assert isinstance(error, ClusterError), error
        assert sentence in str(error)
        assert pieces(out) != []
    finally:
        machines.end()


def test_a_failure_in_a_worker(binary: Ffmpeg, machines: Machines, small: Path, tmp_path: Path) -> None:
    """What goes wrong there is told as if it had gone wrong here."""
    machines.worker("one")
    asked = replace(order(small, tmp_path / "out", machines.address), preset="no-such-preset")
    with pytest.raises(OcaError, match=r"cannot encode .*small\.mkv"):
        package.build(binary, asked)
    assert list((tmp_path / "out" / FILLING).iterdir()) == []


def test_progress(run: Run, machines: Machines, small: Path, tmp_path: Path) -> None:
    """With --dask, too, it is told how far the pictures are; and the command line ends in the same title."""
    machines.worker("one")
    options = ("--preset", "ultrafast", "--chunk", "4", "--json")
    status, out, err = run("build", small, "--out", tmp_path / "out", *options, "--dask", machines.address)
    assert status == 0
    assert json.loads(out)["encoded"] == json.loads(out)["pieces"] == 4
    told = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [each["done"] for each in told if each["step"] == "encode"][-1] == 120
    here = run("build", small, "--out", tmp_path / "here", *options)
    assert json.loads(here[1])["version"] == json.loads(out)["version"]


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\nNo", b"\xff" * 64])
@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_what_is_no_scheduler(
    binary: Ffmpeg, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, greeting: bytes, scheme: str
) -> None:
    """Whoever listens there, and whatever it says or does not: one sentence, after a while, and nothing is left."""
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with suppress(OSError):
                while True:
                    connections.append(server.accept()[0])
                    connections[-1].sendall(greeting)

        connections: list[socket.socket] = []
        thread = threading.Thread(target=greet)
        thread.start()
        address = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ClusterError, match="there is no Dask scheduler to be reached") as caught:
            package.build(binary, order(small, tmp_path / "out", address))
        assert "\n" not in str(caught.value)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("address", ["10.0.0.5", "tcp://", "http://a:1", "tcp://a:1/x", "tcp://a"])
def test_addresses(binary: Ffmpeg, tmp_path: Path, address: str) -> None:
    """What is no address is said to be none."""
    with (
        pytest.raises(ConfigError, match="is no address of a Dask scheduler"),
        executing(address, binary, tmp_path, tmp_path),
    ):
        pass


def test_without_dask(binary: Ffmpeg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    """It is imported by the option alone, and where it is missing what to install is said."""
    program = "import sys; import packager.cli; print([m for m in sys.modules if m in ('dask', 'distributed')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'oca\[dask\]'"),
        executing("tcp://127.0.0.1:1", binary, small, tmp_path),
    ):
        pass


def test_a_file_that_is_late(tmp_path: Path) -> None:
    """What another machine wrote may be seen here a while later; what never is is missed."""
    path = tmp_path / "a" / "b" / "c"

    def write() -> None:
        time.sleep(0.3)
        path.parent.mkdir(parents=True)
        path.touch()

    thread = threading.Thread(target=write)
    thread.start()
    appears(path, PATIENCE_S)
    thread.join()
    with pytest.raises(ClusterError, match="look to the shared disk"):
        appears(tmp_path / "other", 0.2)


def test_terms(binary: Ffmpeg, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker with another file by that name, or another disk, is refused."""
    token = tmp_path / "token"
    token.write_text("here")
    stat = small.stat()
    terms = Terms("here", token, small, stat.st_size, int(stat.st_mtime), versions(binary))
    assert check(terms, "w").version == binary.version
    assert check(terms, "w") is check(terms, "w")
    stop("here")
    stop("unknown")
    for wrong, sentence in (
        (replace(terms, run="there", bytes=7), f"has another {small} than this machine"),
        (replace(terms, run="there", changed=7), f"has another {small} than this machine"),
        (replace(terms, run="3"), f"has another {tmp_path} than this machine"),
        (replace(terms, run="4", source=tmp_path / "no"), "cannot use .*no .No such file"),
        (replace(terms, run="5", token=tmp_path / "no"), "cannot use .*no .No such file"),
    ):
        token.write_text("there")
        with pytest.raises(UnfitError, match=sentence):
            check(wrong, "w")
    elsewhere = (*terms.versions[:-2], ("oca", "0.0.1"), terms.versions[-1])
    token.write_text("6")
    with pytest.raises(UnfitError, match=r"the Dask worker w has oca \S+, and this machine 0.0.1: install the same"):
        check(replace(terms, run="6", versions=elsewhere), "w")
    monkeypatch.setattr(worker, "_REMEMBERED", 2)
    for run in ("7", "8", "9"):
        token.write_text(run)
        check(replace(terms, run=run), "w")
    assert list(worker._fit) == ["8", "9"]
