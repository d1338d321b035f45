"""The ffmpeg program: where it is, and runs of it that never outlive this process.

This is the only place that starts a subprocess, of other programs as well, and the only one that stops it.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import imageio_ffmpeg

from oca.errors import ConfigError, OcaError

# 5.1 brought -fps_mode; it is what Debian 12 has.
MINIMUM = (5, 1)
_ENCODERS = ("libx264", "aac")
_INSTALL = "install ffmpeg (apt install ffmpeg) or set OCA_FFMPEG to the path of one"
# What it wrote is thrown away, so it need not finish it.
_TERMINATE_S = 2.0
_STDERR_LINES = 2000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class FfmpegError(OcaError):
    """A run of ffmpeg, or another program, that failed; `log` holds the last lines it wrote."""

    def __init__(self, sentence: str, log: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.log = log


class Stop:
    """Ends runs of ffmpeg from another thread, those that are to begin as well."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._wanted = False

    def now(self) -> None:
        """End what runs; whatever begins from now on is ended at once."""
        with self._guard:
            self._wanted = True
            for process in self._running:
                process.kill()  # asked politely it would first encode all that it has read

    @contextmanager
    def over(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """While the block lasts, `now` ends this process."""
        with self._guard:
            self._running.add(process)
            if self._wanted:
                process.kill()
        try:
            yield
        finally:
            with self._guard:
                self._running.discard(process)


@dataclass(frozen=True, slots=True)
class Program:
    """A checked program: its path and the version it calls itself; `show` gets each command line before it runs."""

    name: ClassVar[str] = ""

    path: Path
    version: str
    show: Callable[[str], None] = lambda _: None
    stop: Stop = field(default_factory=Stop, compare=False)

    def run(
        self,
        arguments: Sequence[str],
        line: Callable[[str], None] = lambda _: None,
        secrets: Mapping[str, str] | None = None,
        folder: Path | None = None,
        complaint: Callable[[str], None] = lambda _: None,
    ) -> list[str]:
        """Run to the end; `line` gets each line of standard output, and `complaint`, in another thread, of standard
        error, whose last lines are returned.

        `secrets` go into its environment, which the user who runs it can read, and root; a command line everybody
        can. They are not shown. `folder` is where it runs, if not here. Raises FfmpegError when it fails. However
        this returns, the process is gone.
        """
        secrets = secrets or {}
        command = [str(self.path), *arguments]
        self.show(" ".join([*(f"{name}=<secret>" for name in secrets), shlex.join(command)]))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=folder,
            env={**os.environ, **secrets} if secrets else None,
            start_new_session=True,  # Ctrl-C is for us alone; we end it in order
            preexec_fn=partial(_die_with_parent, os.getpid()),
        )
        log: deque[str] = deque(maxlen=_STDERR_LINES)
        with process, self.stop.over(process):
            drain = threading.Thread(target=_drain, args=(process, log, complaint), daemon=True)
            drain.start()
            try:
                for text in process.stdout or ():
                    line(text.rstrip("\n"))
                status = process.wait()
            finally:
                _stop(process)
                drain.join()
        lines = list(log)
        if status != 0:
            said = lines[-1] if lines else f"it ended with status {status} and said nothing"
            raise FfmpegError(f"{self.name} failed: {said}", lines)
        return lines


@dataclass(frozen=True, slots=True)
class Ffmpeg(Program):
    """A checked ffmpeg, and the encoders that it was built with."""

    name: ClassVar[str] = "ffmpeg"

    encoders: frozenset[str] = frozenset()

    def filters(self) -> frozenset[str]:
        """Names of the filters it was built with."""
        output: list[str] = []
        self.run(["-hide_banner", "-filters"], output.append)
        return frozenset(words[1] for text in output if len(words := text.split()) > 1)

    def decodable(self) -> frozenset[str]:
        """Names of the codecs that it can decode."""
        output: list[str] = []
        self.run(["-hide_banner", "-codecs"], output.append)
        return frozenset(words[1] for text in output if len(words := text.split()) > 1 and words[0].startswith("D"))

    def require(self, encoders: Iterable[str]) -> None:
        """ConfigError if it was built without one of these."""
        missing = [name for name in encoders if name not in self.encoders]
        if missing:
            raise ConfigError(f"{self.path} was built without {' and '.join(missing)}: {_INSTALL}")


@contextmanager
def side_by_side(binary: Ffmpeg, count: int) -> Iterator[tuple[Ffmpeg, ThreadPoolExecutor]]:
    """A pool for `count` runs of ffmpeg at once, by the Ffmpeg that is given along.

    When the block ends with an error, or is interrupted, none is left running and none begins any more.
    """
    stop = Stop()
    with ThreadPoolExecutor(count) as pool:
        try:
            yield replace(binary, stop=stop), pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop.now()
            raise


def _drain(process: subprocess.Popen[str], log: deque[str], complaint: Callable[[str], None]) -> None:
    for text in process.stderr or ():
        if text.strip():
            log.append(text.strip()[:1000])
            complaint(log[-1])


def _stop(process: subprocess.Popen[str]) -> None:
    """Terminate, wait, kill, reap."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_TERMINATE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent(parent: int) -> None:
    """In the child: the kernel kills it when we die, even by SIGKILL, when no `finally` runs."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # we died before that was set
        os._exit(1)


def find() -> Ffmpeg:
    """The ffmpeg to use: $OCA_FFMPEG, else the imageio-ffmpeg package's, else PATH's; ConfigError if unfit."""
    chosen = os.environ.get("OCA_FFMPEG") or _bundled() or shutil.which("ffmpeg")
    if chosen is None:
        raise ConfigError(f"there is no ffmpeg on this machine: {_INSTALL}")
    ffmpeg = Ffmpeg(Path(chosen), "")
    output: list[str] = []
    try:
        ffmpeg.run(["-version"], output.append)
        said = " ".join(output[:1])
        ffmpeg.run(["-hide_banner", "-encoders"], output.append)
    except (OSError, FfmpegError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{chosen} cannot be run as ffmpeg ({reason}): {_INSTALL}") from None
    check_version(said, chosen)
    encoders = frozenset(words[1] for text in output if len(words := text.split()) > 1)
    found = Ffmpeg(ffmpeg.path, said.removeprefix("ffmpeg version ").split(" ")[0], encoders=encoders)
    found.require(_ENCODERS)
    return found


def check_version(said: str, where: str) -> None:
    """Raise ConfigError unless `said`, the first line of `ffmpeg -version`, names MINIMUM or newer."""
    if not said.startswith("ffmpeg version "):
        raise ConfigError(f"{where} does not say that it is ffmpeg: {_INSTALL}")
    found = re.match(r"ffmpeg version n?(\d+)\.(\d+)", said)
    # Builds from git say N-<count>-g<hash>; they are newer than any release that matters here.
    if found and (int(found[1]), int(found[2])) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise ConfigError(f"{where} is version {found[1]}.{found[2]}, and {wanted} or newer is needed: {_INSTALL}")


def _bundled() -> str | None:
    """The imageio-ffmpeg package's own binary; it looks further by itself, which is left to `find`."""
    folder = Path(imageio_ffmpeg.__file__).parent / "binaries"
    return next((str(path) for path in sorted(folder.glob("ffmpeg*")) if os.access(path, os.X_OK)), None)
