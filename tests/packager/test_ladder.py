"""The ladder is pure: tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.ids import is_id
from packager.ladder.rungs import RATES, ladder


@pytest.mark.parametrize(
    ("size", "tracks"),
    [
        ((1920, 1080), [f"v-{lines}-{kbps}" for kbps, lines in RATES]),
        ((3840, 2160), [f"v-{lines}-{kbps}" for kbps, lines in RATES]),
        ((1280, 720), [f"v-{lines}-{kbps}" for kbps, lines in RATES[:8]]),
        ((1280, 719), [f"v-{lines}-{kbps}" for kbps, lines in RATES[:6]]),
        ((320, 240), ["v-240-235"]),
        ((320, 180), ["v-180-235"]),
        ((3, 3), ["v-4-235"]),
    ],
)
def test_rungs(size: tuple[int, int], tracks: list[str]) -> None:
    """Every rung up to the source's height is there; a source below all of them gets one at its own size."""
    assert [rung.track for rung in ladder(*size)] == tracks


@pytest.mark.parametrize(
    ("size", "width"), [((1280, 720), 426), ((720, 1280), 136), ((2048, 858), 572), ((320, 240), 320)]
)
def test_width_follows_the_shape(size: tuple[int, int], width: int) -> None:
    """The width of the 240-line rung is the nearest even one to the source's shape."""
    assert ladder(*size)[0].width == width


@given(st.integers(2, 16384), st.integers(2, 16384))
def test_every_ladder_is_sound(width: int, height: int) -> None:
    """Whatever the source: even sizes, rising rates, no line more than it has but to be even, names that are ids."""
    rungs = ladder(width, height)
    assert rungs
    assert all(rung.width % 2 == 0 == rung.height % 2 and rung.width > 0 for rung in rungs)
    assert all(rung.height <= height + 1 for rung in rungs)
    assert [rung.kbps for rung in rungs] == sorted({rung.kbps for rung in rungs})
    assert all(is_id(rung.track) and rung.reason for rung in rungs)
