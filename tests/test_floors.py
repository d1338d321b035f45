"""The house is kept: appliances stand alone, modules are small and say what they are for. Imports: `make lint`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("oca", "packager", "fill", "control", "bench")
# What only the extras install: an appliance must run without.
EXTRAS = (
    *("pulp", "highspy", "sqlalchemy", "aiosqlite", "pytricia"),
    *("ffmpeg", "imageio_ffmpeg", "numpy", "distributed", "obstore"),
)


@pytest.mark.parametrize("module", ["oca.cli", "fill.cli"])
def test_an_appliance_needs_no_solver_ffmpeg_or_database(module: str) -> None:
    """The programs of an appliance import with every extra made unimportable."""
    program = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_modules_are_small() -> None:
    """A module that needs more than 400 lines is two."""
    long = [p for name in PACKAGES for p in (ROOT / name).rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long


def test_every_public_module_says_what_it_is_for() -> None:
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*.py"):
            words = ast.get_docstring(ast.parse(path.read_text())) or "?"
            assert words.splitlines()[0].endswith((".", ":")), path
