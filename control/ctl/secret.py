"""Where ocactl finds the operator's token: never on the command line, which every user of the machine can read."""

from __future__ import annotations

import os
from pathlib import Path

from control.ctl.client import ControllerError
from control.operators import credential

VARIABLE = "OCACTL_TOKEN"
_USUAL = Path(".config/oca/token")


def find(file: Path | None) -> str:
    """The token from `file`, else from OCACTL_TOKEN (set but empty: none), else from ~/.config/oca/token; "" if none.

    ControllerError if what is there is no token, or if others may read the file.
    """
    if file is not None:
        return _read(file)
    told = os.environ.get(VARIABLE)
    if told is not None:
        return _checked(told.strip(), f"${VARIABLE}") if told.strip() else ""
    try:
        usual = Path.home() / _USUAL
        there = usual.exists()
    except (OSError, RuntimeError):
        return ""
    return _read(usual) if there else ""


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(1024)
    except OSError as error:
        raise ControllerError(f"cannot read the token in {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ControllerError(
            f"others than you may read the token in {path} (mode {mode:04o}): `chmod 600 {path}`, "
            "and if anybody else was on this machine, have it replaced"
        )
    return _checked(data.decode("ascii", "replace").strip(), str(path))


def _checked(token: str, where: str) -> str:
    if not credential.is_token(token):
        raise ControllerError(f"what {where} holds is no token: `oca-control operator add` prints one, ocak_ first")
    return token
