"""The systemd units are what systemd accepts, and ask for few rights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[1] / "systemd").glob("*.service"))


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze."""
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    """No unknown key, no wrong value, and the program is there, if these here stand for those in /opt/oca/bin."""
    here = Path(sys.executable).parent
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/oca/bin", str(here)))
    done = analyze("verify", "--man=no", "--generators=no", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_the_unit_asks_for_few_rights(unit: Path) -> None:
    """An exposure of at most 3.0 of 10 by systemd's own measure."""
    done = analyze("security", "--offline=true", "--threshold=30", str(unit))
    assert done.returncode == 0, done.stdout
