"""Runs one target in this process, until time is up or something is found: the child of `python -m tests.fuzz`.

usage: python -m tests.fuzz.one guided TARGET [option of libFuzzer …] FOLDER …
       python -m tests.fuzz.one blind TARGET SECONDS FOUND FOLDER …
       python -m tests.fuzz.one repeat TARGET FILE
"""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

# What is instrumented: our packages, the reference beside them, and the parsers in Python that they stand on.
_INSTRUMENTED = ["oca", "packager", "fill", "control", "tests.fuzz", "tomllib", "csv"]
FAILED = 77
"""Exit status when something was found, as libFuzzer has it."""


def guided(target: Target, arguments: list[str]) -> None:
    """Fuzz by coverage, with atheris. Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        function = target.load()
    atheris.Setup([sys.argv[0], *arguments], function)
    atheris.Fuzz()


def blind(target: Target, seconds: float, found: Path, folders: list[Path]) -> None:
    """Fuzz by chance: inputs of the corpus, damaged at random. For where atheris is not to be had."""
    function, bits = target.load(), random.Random()
    inputs = [path.read_bytes() for folder in folders for path in sorted(folder.glob("*"))] or [b""]
    end, runs, told = time.monotonic() + seconds, 0, time.monotonic()
    while time.monotonic() < end:
        data = _damaged(inputs, target.words, bits)[: target.longest]
        try:
            function(data)
        except Exception:
            name = f"crash-{hashlib.sha1(data).hexdigest()}"
            (found / name).write_bytes(data)
            raise
        runs += 1
        if time.monotonic() - told > 1:
            told = time.monotonic()
            sys.stderr.write(f"#{runs}\tpulse\n")
    sys.stderr.write(f"#{runs}\tDONE\n")


def _damaged(inputs: list[bytes], words: tuple[bytes, ...], bits: random.Random) -> bytes:
    """One of `inputs` with a few bytes changed, inserted, taken out, repeated, or from another one."""
    data = bytearray(bits.choice(inputs))
    for _ in range(bits.randint(1, 8)):
        at = bits.randrange(len(data) + 1)
        end = at + bits.randint(1, 16)
        match bits.randrange(6):
            case 0 if at < len(data):
                data[at] = bits.randrange(256)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = data[at:end]
            case 3 if words:
                data[at:at] = bits.choice(words)
            case 4:
                other = bits.choice(inputs)
                start = bits.randrange(len(other) + 1)
                data[at:end] = other[start : start + bits.randint(1, 64)]
            case _:
                data[at:at] = bits.randbytes(bits.randint(1, 4))
    return bytes(data)


def main() -> None:
    """See the top of this file."""
    mode, name, *arguments = sys.argv[1:]
    target = TARGETS[name]
    if mode == "guided":
        guided(target, arguments)
    elif mode == "blind":
        seconds, found, *folders = arguments
        _or_fail(lambda: blind(target, float(seconds), Path(found), [Path(folder) for folder in folders]))
    else:
        data = Path(arguments[0]).read_bytes()
        _or_fail(lambda: target.load()(data))


def _or_fail(work: Callable[[], None]) -> None:
    try:
        work()
    except Exception:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(FAILED) from None


if __name__ == "__main__":
    main()
