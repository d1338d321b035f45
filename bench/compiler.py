"""The C compiler, for the small programs beside this module."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench.fleet import FleetError


def compiled(name: str, home: Path) -> Path:
    """The program of `<name>.c`, made in `home` if it is not there yet; FleetError without a compiler."""
    binary = home / name
    if not binary.exists():
        compiler = shutil.which("cc")
        if compiler is None:
            raise FleetError("a C compiler is missing: install it with `apt-get install gcc libc6-dev`")
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run([compiler, "-O2", "-Wall", "-pthread", "-o", str(binary), str(source)], check=True)
    return binary
