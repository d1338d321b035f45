"""Sizes as people write them: 200T, 500 GB, 1.5G, 64KiB."""

from __future__ import annotations

from oca.errors import ConfigError

_POWERS = "KMGTP"


def parse_size(text: str) -> int:
    """Bytes of "200T", "500 GB" (powers of 1000), "8MiB" (of 1024) or a plain number; ConfigError if it is none."""
    number, base = text.strip().upper().removesuffix("B").strip(), 1000
    if number.endswith("I"):
        number, base = number[:-1], 1024
    power = _POWERS.find(number[-1:]) + 1 if number else 0
    try:
        # "1I" has no power to be a binary one of.
        found = float(number[: len(number) - (power > 0)]) * base**power if power or base == 1000 else -1.0
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e18:
        raise ConfigError(f"{text[:40]!r} is not a size: write 200T, 500G, 8MiB or a number of bytes")
    return int(found)
