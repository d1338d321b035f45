"""Sizes as people write them."""

from __future__ import annotations

import pytest

from oca.errors import ConfigError
from oca.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("200T", 200 * 10**12),
        ("500 GB", 500 * 10**9),
        ("1.5g", 1_500_000_000),
        ("1P", 10**15),
        ("7", 7),
        ("7B", 7),
        ("0", 0),
        ("2kb", 2000),
        ("1e3", 1000),
        ("64K", 64_000),
        ("64KiB", 65_536),
        ("8 mib", 8 << 20),
        ("0.5Gi", 1 << 29),
        ("1i", None),
        ("iB", None),
        ("B", None),
        ("", None),
        ("T", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e30", None),
        ("1X", None),
        ("1 T T", None),
    ],
)
def test_parse_size(text: str, found: int | None) -> None:
    """Bytes, or a sentence."""
    if found is None:
        with pytest.raises(ConfigError, match="is not a size"):
            parse_size(text)
    else:
        assert parse_size(text) == found
