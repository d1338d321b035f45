"""Programs without their extras: a sentence that says which one is missing, or no matter at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Makes modules unimportable, as if nobody had installed them.
_ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""
EVERYTHING = (
    *("aiosqlite", "alembic", "ffmpeg", "highspy", "imageio_ffmpeg", "mako", "numpy", "obstore", "pulp", "pytricia"),
    *("sqlalchemy", "distributed", "asyncpg"),
)


def run(tmp_path: Path, absent: tuple[str, ...], program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a console script while `absent` cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(_ABSENT.format(absent=set(absent)))
    command = [sys.executable, str(Path(sys.executable).with_name(program)), *arguments]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COLUMNS": "80"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("program", "arguments", "absent", "extra"),
    [
        ("ocactl", ("plan", "solve", "problem.json"), EVERYTHING, "control"),
        ("ocactl", ("title", "list", "--controller"), ("numpy",), ""),
        ("ocactl", ("plan", "check", "a.json", "b.json"), ("numpy",), "control"),
        ("oca-control", ("serve", "--config", "x.toml"), EVERYTHING, "control"),
        ("oca-control", ("serve", "--config", "x.toml"), ("alembic",), "control"),
        ("oca-pack", ("ladder", "x.mp4"), EVERYTHING, "pack"),
        ("oca-pack", ("ladder", "x.mp4"), ("imageio_ffmpeg",), ""),
    ],
)
def test_a_program_without_its_extra(
    tmp_path: Path, program: str, arguments: tuple[str, ...], absent: tuple[str, ...], extra: str
) -> None:
    """One sentence on stderr that says what to install."""
    done = run(tmp_path, absent, program, *arguments)
    assert done.returncode in (1, 2), done
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    if extra:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert f"pip install 'oca[{extra}]'" in done.stderr


@pytest.mark.parametrize("program", ["oca", "oca-fill"])
def test_an_appliance_takes_no_extra(tmp_path: Path, program: str) -> None:
    """It checks its settings and looks at its store with none of them there."""
    settings = tmp_path / "oca.toml"
    settings.write_text(f'appliance = "n1"\nstore = ["{tmp_path}/s"]\nurl = "http://127.0.0.1:1"\n')
    (tmp_path / "s").mkdir()
    command = {"oca": ("held", "--json"), "oca-fill": ("window",)}[program]
    done = run(tmp_path, EVERYTHING, program, *command, "--config", str(settings))
    assert (done.returncode, done.stderr) == (0, ""), done
