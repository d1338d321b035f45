"""The errors a person reads: one sentence that says what is wrong, where, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

# In characters. Longer is only what quotes something that somebody made long on purpose.
_LONGEST = 4000


class OcaError(Exception):
    """Base of every error meant for a person; `str()` of it is the whole sentence to print.

    What it quotes may be hostile: it is cut, and what a terminal acts on or UTF-8 does not have is escaped.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]}…"
        return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class FormatError(OcaError):
    """Bytes from disk or network that are not what their format says, or are of a newer format."""


class ConfigError(OcaError):
    """A setting that is missing, unknown or out of range."""


class DigestError(OcaError):
    """Content whose bytes do not match the digest they were published under."""


class StoreError(OcaError):
    """A store directory that cannot be used as asked."""


def fail(sentence: str, status: int = 1) -> NoReturn:
    """Print `error: sentence` to stderr and leave the process with `status` (never 0)."""
    sys.stderr.write(f"error: {sentence}\n")
    raise SystemExit(status)


def guarded(command: Callable[[], None]) -> None:
    """Run a console program: an OcaError becomes its sentence and exit code 1, Ctrl-C becomes 130."""
    try:
        command()
    except OcaError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output (head, less) went away: nothing to report, nothing to flush into.
        sys.stderr.close()
        raise SystemExit(141) from None
