"""A virtual machine with Debian's own kernel: a program of this checkout runs there, whatever kernel is ours.

`machine.py PROGRAM [ARGUMENT…]`: PROGRAM is a path in the checkout; a test_*.py is given to pytest.

The machine is an initramfs: the system (`tests.kernel.system`), and beside it the checkout with what it depends on,
packed anew for each run. What the program prints comes back over a serial line. Where the processor can, it is
virtualised (KVM), else emulated, which works everywhere and is slow: how long something takes in it says nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import queue
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.kernel.system import CHECKOUT, MachineError, System, pack, prepare, tell

TIMEOUT_S = 900.0
_PACKAGES = ("oca", "fill", "control", "packager", "bench", "tests")
# What oca depends on, and what runs its tests.
_DISTRIBUTIONS = ("oca", "hypothesis", "pytest", "pytest-aiohttp", "pytest-timeout")
# The kernel's TLS, and the ciphers that it asks for by names which no module answers to in an initramfs.
_MODULES = (
    *("tls", "gcm", "ctr", "ghash_generic", "ghash_clmulni_intel", "aesni_intel"),
    *("chacha20poly1305", "chacha_x86_64", "poly1305_x86_64"),
)
# A worker that is emulated beside others may take more than the minute in which it must be ready elsewhere.
_PATIENCE = "from oca import supervisor\nsupervisor._READY_S = 240.0\n"
_SILENCE_S = 15.0
# It takes 3 s.
_KVM_BOOTS_S = 30.0
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /tmp /run; mount -t tmpfs tmp /tmp; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
ip link set lo up
echo 127.0.0.1 localhost > /etc/hosts
for module in {modules}; do modprobe -q $module; done
cd /checkout
echo "{mark} begins"
PYTHONPATH=/checkout:/site python3 {program}
echo "{mark} ends $?"
sleep 60
"""


class Console:
    """What comes over the serial line: of the program what stands between two marks, then its exit code."""

    def __init__(self, mark: str) -> None:
        self.code: int | None = None
        self.tail: deque[str] = deque(maxlen=25)
        self._mark = mark
        self.begun = False

    def take(self, data: bytes) -> str | None:
        """A line as it arrived; what of it the program printed, None if it did not."""
        line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r|\n", "", data.decode("utf-8", "replace"))
        if not line.startswith(self._mark):
            self.tail.append(line)
        # Its last line may lack an end, so the mark may come behind it.
        printed, mark, rest = line.partition(self._mark)
        if not self.begun:
            self.begun = bool(mark)
            return None
        found = re.fullmatch(r" ends ([0-9]+)", rest)
        if found is not None:
            self.code = int(found[1])
            return printed or None
        return line


def run(program: Sequence[str], *, timeout_s: float = TIMEOUT_S, emulated: bool = False) -> int:
    """Run a program (a path in the checkout, and its arguments) in the machine; its output goes to stdout.

    Its exit code. MachineError if there was none within `timeout_s`. `emulated`: even where the processor can help.
    """
    if not (CHECKOUT / program[0].partition("::")[0]).is_file():
        raise MachineError(f"{program[0]} is no file of this checkout: name one by its path from {CHECKOUT}")
    system = prepare()
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="oca-machine-") as folder:
        ours, image = Path(folder) / "ours", Path(folder) / "initramfs"
        _collect(ours)
        init = ours / "init"
        init.write_text(_INIT.format(modules=" ".join(_MODULES), program=_command(program), mark=mark))
        init.chmod(0o755)
        shutil.copyfile(system.root, image)
        pack(ours, image)
        accelerators = ["tcg"] if emulated or not os.access("/dev/kvm", os.R_OK | os.W_OK) else ["kvm", "tcg"]
        for accelerator in accelerators:
            tell(f"booting Debian's kernel, {'virtualised' if accelerator == 'kvm' else 'emulated'}")
            console, began = Console(mark), time.monotonic()
            status = _boot(System(system.kernel, image), console, timeout_s, accelerator)
            if console.begun or accelerator == "tcg":
                break
            # That there is a /dev/kvm proves nothing where this machine is a virtual one itself.
            tell(f"it did not come up; the last on its console: {console.tail[-1] if console.tail else 'nothing'}")
    took = time.monotonic() - began
    if console.code is None:
        why = "ended" if status >= 0 else f"was killed with signal {-status}"
        if took >= timeout_s:
            why = "was stopped (--timeout gives it more)"
        last = "\n".join(["last on its console:", *(f"  {line}" for line in console.tail)])
        raise MachineError(f"the machine {why} after {took:.0f} s, before the program had ended; {last}")
    tell(f"the machine ran for {took:.0f} s")
    return console.code


def _command(program: Sequence[str]) -> str:
    """What the machine's Python is started with: a program, or tests."""
    tests = Path(program[0]).name.startswith("test_")
    return shlex.join(["-m", "pytest", "-p", "no:cacheprovider", *program] if tests else program)


def _boot(system: System, console: Console, timeout_s: float, accelerator: str) -> int:
    """Boot, and print what the program prints, until it or the machine ends or the time is up; qemu's exit code."""
    command = ["qemu-system-x86_64", "-accel", accelerator, "-cpu", "max", "-m", "3072", "-smp", "2"]
    command += ["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"]
    command += ["-kernel", str(system.kernel), "-initrd", str(system.root)]
    command += ["-append", "console=ttyS0 quiet panic=-1 loglevel=3"]
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    began = time.monotonic()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            while True:
                limit = timeout_s if console.begun or accelerator == "tcg" else _KVM_BOOTS_S
                left = began + limit - time.monotonic()
                if left <= 0:
                    break
                try:
                    data = lines.get(timeout=min(left, _SILENCE_S))
                except queue.Empty:
                    tell(f"  {time.monotonic() - began:.0f} s")
                    continue
                if data is None:
                    return process.wait()
                printed = console.take(data)
                if printed is not None:
                    print(printed, flush=True)
                if console.code is not None:
                    break
        finally:
            process.kill()
            reader.join()
    return process.returncode


def _collect(ours: Path) -> None:
    """The checkout, what it depends on, and the commands that belong to it."""
    ignored = shutil.ignore_patterns("__pycache__", "media", "assets", "*.svg", "*.png")
    for name in _PACKAGES:
        shutil.copytree(CHECKOUT / name, ours / "checkout" / name, ignore=ignored)
    shutil.copyfile(CHECKOUT / "pyproject.toml", ours / "checkout" / "pyproject.toml")
    for distribution in _needed(_DISTRIBUTIONS, set()):
        for file in distribution.files or ():
            place = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and place.is_file() and "__pycache__" not in file.parts:
                target = ours / "site" / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place, target)
    # Compiled here, where that is quick; the times of files do not survive the way there.
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*command, str(ours / "site"), str(ours / "checkout")], check=False)
    programs = ours / "usr" / "bin"
    programs.mkdir(parents=True)
    for entry in importlib.metadata.distribution("oca").entry_points:
        script = programs / entry.name
        patience = _PATIENCE if entry.name == "oca" else ""
        script.write_text(f"#!/usr/bin/python3\n{patience}from {entry.module} import {entry.attr}\n{entry.attr}()\n")
        script.chmod(0o755)


def _needed(names: Sequence[str], seen: set[str]) -> Iterator[importlib.metadata.Distribution]:
    """Distributions and all that they depend on, without extras; of ours, which is in the checkout, what it needs."""
    for name in names:
        if name.lower() in seen:
            continue
        seen.add(name.lower())
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        if name != "oca":
            yield distribution
        wanted = [text for text in distribution.requires or () if "extra ==" not in text]
        yield from _needed([found[0] for text in wanted if (found := re.match(r"[A-Za-z0-9._-]+", text))], seen)


def main() -> None:
    """Entry point: exits as the program in the machine did."""
    parser = argparse.ArgumentParser(description="Run a program of this checkout under Debian's kernel.")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds it may take")
    parser.add_argument("--emulated", action="store_true", help="do not use KVM where there is one")
    parser.add_argument("--prepare", action="store_true", help="make the system, if it is not there, and run nothing")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a program or test file, and its arguments")
    given = parser.parse_args()
    if not given.program and not given.prepare:
        parser.error("name a program, or --prepare")
    try:
        if given.prepare:
            prepare()
            return
        sys.exit(run(given.program, timeout_s=given.timeout, emulated=given.emulated))
    except MachineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
