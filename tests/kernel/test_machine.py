"""The virtual machine that the kernel's TLS is tested in: what is decided about it, and how it refuses to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.machine import Console
from tests.kernel.system import MachineError, make, mirror, suite

MACHINE = Path(__file__).with_name("machine.py")
USABLE = sys.platform == "linux" and os.uname().machine == "x86_64"
MARK = "0123456789abcdef"


def heard(*lines: bytes) -> tuple[list[str], Console]:
    """What of these lines on the serial line a person is shown, and what is known of the program then."""
    console = Console(MARK)
    return [shown for line in lines if (shown := console.take(line)) is not None], console


def test_only_what_the_program_prints_is_shown() -> None:
    """Not the firmware, not the kernel, and no control sequences for a terminal."""
    shown, console = heard(
        b"\x1bc\x1b[?7l\x1b[2JSeaBIOS (version 1.16.2)\r\n",
        f"{MARK} begins\r\n".encode(),
        b"first \xe2\x80\x93 \xff\r\n",
        b"\r\n",
        f"{MARK} ends 0\r\n".encode(),
    )
    assert shown == ["first – �", ""]
    assert console.code == 0


def test_a_last_line_without_an_end_is_shown_and_the_exit_code_found() -> None:
    shown, console = heard(f"{MARK} begins\n".encode(), f"Traceback{MARK} ends 3\n".encode())
    assert (shown, console.code) == (["Traceback"], 3)


@pytest.mark.parametrize("line", [b"ends 0", b"fedcba9876543210 ends 0", f"{MARK} ends".encode(), b""])
def test_a_program_that_has_not_ended_has_no_exit_code(line: bytes) -> None:
    """Whatever it prints: the mark is another in each run."""
    _, console = heard(f"{MARK} begins\n".encode(), line)
    assert console.code is None


def test_the_tail_of_the_console_holds_what_no_program_printed() -> None:
    """So that a machine that never came up says why."""
    shown, console = heard(b"qemu: could not load kernel\n")
    assert shown == []
    assert not console.begun
    assert list(console.tail) == ["qemu: could not load kernel"]


def test_the_release_has_the_python_of_the_virtual_environment() -> None:
    assert (suite((3, 11)), suite((3, 13))) == ("bookworm", "trixie")
    with pytest.raises(MachineError, match=r"has Python 3\.12, .* 3\.13 \(trixie\): make \.venv with one of"):
        suite((3, 12))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("http://mirror.example/debian\n", "http://mirror.example/debian"),
        ("https://mirror.example/debian/\nhttp://other.example\n", "https://mirror.example/debian"),
        ("file:/srv/debian\ncdrom:[Debian]\nhttp://mirror.example/d\n", "http://mirror.example/d"),
        ("file:/srv/debian\n", "http://deb.debian.org/debian"),
        ("", "http://deb.debian.org/debian"),
    ],
)
def test_debian_comes_from_where_apt_has_it_from(lines: str, expected: str) -> None:
    assert mirror(lines) == expected


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(MACHINE), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_program_that_is_not_there_fails_with_a_sentence() -> None:
    done = start("tests/kernel/no_such.py")
    assert done.returncode == 1
    assert done.stderr.startswith("error: tests/kernel/no_such.py is no file of this checkout: name one by its path")


def test_a_host_without_the_emulator_fails_with_a_sentence(tmp_path: Path) -> None:
    """Nothing is skipped in silence."""
    done = start("tests/kernel/transfer.py", PATH=str(tmp_path))
    assert done.returncode == 1
    other = "error: the virtual machine is a Linux on x86-64, and so must be its host"
    assert done.stderr.startswith(
        "error: qemu-system-x86_64 is missing: `scripts/setup machine` installs it\n" if USABLE else other
    )


def test_who_may_not_make_a_debian_is_told_how(tmp_path: Path) -> None:
    """Before anything is made or removed."""
    uid = os.geteuid()
    os.seteuid(uid or 65534)
    try:
        with pytest.raises(MachineError, match=r"needs root, once: run `sudo .*/machine\.py --prepare`, then"):
            make("bookworm", tmp_path / "made")
    finally:
        os.seteuid(uid)
