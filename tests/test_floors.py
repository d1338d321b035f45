"""The floors of the house: no import goes up, and the appliance stands alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "oca": {"oca"},
    "packager": {"packager", "oca"},
    "fill": {"fill", "oca"},
    "control": {"control", "oca", "fill"},
    "bench": {"bench", "oca", "packager", "fill", "control"},
}
# What only the extras install: an appliance must run without.
EXTRAS = (
    *("pulp", "highspy", "sqlalchemy", "aiosqlite", "pytricia"),
    *("ffmpeg", "imageio_ffmpeg", "numpy", "distributed", "obstore"),
)


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_goes_up(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        above = imports(path) & MAY_IMPORT.keys() - MAY_IMPORT[package]
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("module", ["oca.cli", "fill.cli"])
def test_an_appliance_needs_no_solver_ffmpeg_or_database(module: str) -> None:
    """The programs of an appliance import with every extra made unimportable."""
    program = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r})); import {module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_modules_are_small() -> None:
    """A module that needs more than 400 lines is two."""
    long = [p for name in MAY_IMPORT for p in (ROOT / name).rglob("*.py") if len(p.read_text().splitlines()) > 400]
    assert not long


def test_every_public_module_says_what_it_is_for() -> None:
    for name in MAY_IMPORT:
        for path in (ROOT / name).rglob("*.py"):
            words = ast.get_docstring(ast.parse(path.read_text())) or "?"
            assert words.splitlines()[0].endswith((".", ":")), path
