"""What the virtual machine boots: Debian's kernel and a minimal Debian, made once and kept in .cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".cache" / "machine"
PACKAGES = ("python3", "kmod", "openssl", "iproute2", "nginx-light", "wrk", "linux-image-cloud-amd64")
# What is installed in our virtual environment is taken along, so the machine needs the same Python.
_SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# There is no hardware to drive, and nobody to read.
_WASTE = (
    *("boot", "var/cache", "var/lib/apt", "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale"),
    *("usr/lib/modules/*/kernel/drivers", "usr/lib/modules/*/kernel/sound"),
)


class MachineError(Exception):
    """The machine cannot be made or run; the sentence says what to do."""


@dataclass(frozen=True)
class System:
    """Files to boot from: a kernel, and an initramfs without an /init (cpio, newc)."""

    kernel: Path
    root: Path


def suite(python: tuple[int, int]) -> str:
    """The release of Debian whose Python is `python`; MachineError if there is none."""
    if python not in _SUITES:
        known = " or ".join(f"{major}.{minor} ({name})" for (major, minor), name in _SUITES.items())
        raise MachineError(
            f"the virtual environment has Python {python[0]}.{python[1]}, and the virtual machine needs that of a "
            f"Debian, {known}: make .venv with one of them (PYTHON=python3.11 make setup)"
        )
    return _SUITES[python]


def mirror(lines: str) -> str:
    """The first mirror in a list, one to a line, that is reached by HTTP; Debian's own if there is none."""
    found = re.search(r"^https?://\S+[^\s/]", lines, re.M)
    return found[0] if found else _DEFAULT_MIRROR


def need(*programs: str) -> None:
    """MachineError if the host has not all of these."""
    for program in programs:
        if shutil.which(program, path=_PATH) is None:
            raise MachineError(f"{program} is missing: `scripts/setup machine` installs it")


def prepare() -> System:
    """The system, made if it is not there yet or was made otherwise; progress goes to stderr."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        raise MachineError(
            f"the virtual machine is a Linux on x86-64, and so must be its host, which is {sys.platform} on "
            f"{os.uname().machine}: run this on such a machine"
        )
    need("qemu-system-x86_64", "cpio")
    release = suite(sys.version_info[:2])
    # This file is the recipe: whatever it is made from stands in it.
    inputs = f"{release} {' '.join(PACKAGES)} {Path(__file__).read_text('utf-8')}"
    made = CACHE / f"{release}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    if not made.exists():
        make(release, made)
    return System(made / "vmlinuz", made / "root.cpio")


def pack(folder: Path, target: Path) -> None:
    """Append the content of `folder` to an initramfs; the kernel takes several archives one after the other."""
    names = "\0".join(str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))) + "\0"
    command = ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"]
    with target.open("ab") as file:
        subprocess.run(command, input=names.encode(), stdout=file, cwd=folder, check=True)


def make(release: str, made: Path) -> None:
    """Make the system in the directory `made`, and remove those made otherwise; MachineError if this is not root."""
    if os.geteuid():
        raise MachineError(
            "making the virtual machine's Debian needs root, once: run "
            f"`sudo {sys.executable} {Path(__file__).with_name('machine.py')} --prepare`, then this again"
        )
    need("debootstrap", "chroot")
    shutil.rmtree(CACHE, ignore_errors=True)
    CACHE.mkdir(parents=True)
    source = _mirror_of_apt(release)
    began = time.monotonic()
    tell(f"making a minimal Debian {release}, whose Python is ours, from {source}; once, about a minute")
    # Beside its place, not in /tmp, which may be mounted so that no program runs from there.
    with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as folder:
        root, staged = Path(folder) / "root", Path(folder) / "staged"
        staged.mkdir()
        _run(
            *("debootstrap", "--force-check-gpg", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(release, str(root), source),
        )
        (kernel,) = (root / "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, staged / "vmlinuz")
        version = kernel.name.removeprefix("vmlinuz-")
        for pattern in _WASTE:
            for path in root.glob(pattern):
                shutil.rmtree(path)
        _run("chroot", str(root), "/sbin/depmod", version)
        tell(f"packing it, with Linux {version}")
        pack(root, staged / "root.cpio")
        staged.rename(made)
    tell(f"made in {time.monotonic() - began:.0f} s")


def _mirror_of_apt(release: str) -> str:
    """The mirror of Debian that this machine itself uses, as apt understands its own settings."""
    if shutil.which("apt-get") is None:
        return _DEFAULT_MIRROR
    wanted = ("Created-By: Packages", "Origin: Debian", "Label: Debian", f"Codename: {release}", "Component: main")
    command = ["apt-get", "indextargets", "--format", "$(SITE)", *wanted]
    return mirror(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def _proxy_of_apt() -> dict[str, str]:
    """The proxy that apt uses, for debootstrap, which does not ask it."""
    if shutil.which("apt-config") is None or "http_proxy" in os.environ:
        return {}
    command = ["apt-config", "shell", "proxy", "Acquire::http::Proxy"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.match(r"proxy='(http[^']+)'", said)
    return {"http_proxy": found[1], "https_proxy": found[1]} if found else {}


def _run(*command: str) -> None:
    """Run a program, with a line of what it says every few seconds; MachineError with the last of it if it fails."""
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **_proxy_of_apt()}
    tail: deque[str] = deque(maxlen=12)
    told = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.decode("utf-8", "replace").rstrip())
            if time.monotonic() - told > 5:
                told = time.monotonic()
                tell(f"  {tail[-1].removeprefix('I: ')}")
    if process.returncode:
        raise MachineError(f"{command[0]} failed with exit code {process.returncode}; it said: " + "\n".join(tail))


def tell(words: str) -> None:
    """A line for the person who waits."""
    print(words, file=sys.stderr, flush=True)
