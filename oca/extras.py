"""Entry points of programs whose modules come with an extra: without it they say which one, and no traceback."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from oca.errors import fail

# By the first name of a module: what brings it. All else that is missing is no matter of extras.
_EXTRAS = {
    "aiosqlite": "control",
    "alembic": "control",
    "ffmpeg": "pack",
    "highspy": "control",
    "imageio_ffmpeg": "pack",
    "mako": "control",
    "numpy": "control",
    "pulp": "control",
    "pytricia": "control",
    "sqlalchemy": "control",
}


def run(program: str, module: str) -> None:
    """Import `module` and run its `main`; exit 1 with a sentence if it takes an extra that is not installed."""
    try:
        main: Callable[[], None] = importlib.import_module(module).main
        main()
    except ImportError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        fail(f"{program} needs the package {error.name}, which is not installed: pip install 'oca[{extra}]'")


def pack() -> None:
    """Console script `oca-pack`."""
    run("oca-pack", "packager.cli")


def control() -> None:
    """Console script `oca-control`."""
    run("oca-control", "control.daemon")


def ocactl() -> None:
    """Console script `ocactl`."""
    run("ocactl", "control.ocactl")
