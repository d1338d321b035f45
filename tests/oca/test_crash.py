"""Killed at any step: whatever changes the store is cut off before each thing that it does to the disk.

`golden/crash-points.txt` lists them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from oca.store.content import Store
from tests.conftest import MakeTitle
from tests.oca.deeds import DEEDS, PUBLISHED, Deed, Scene, check_sound, finish, in_child, new_scene, tree_of, watched

GOLDEN = Path(__file__).parent / "golden" / "crash-points.txt"
KILLED = 99


def _points(scene: Scene, deed: Deed, listing: Path) -> list[str]:
    """What the deed does to the disk, in order; it is done by a child."""

    def record() -> None:
        found: list[str] = []
        watched(scene, found.append)
        deed(scene)
        listing.write_text("\n".join(found))

    assert in_child(record) == 0
    return listing.read_text().splitlines()


def _kill_before(scene: Scene, deed: Deed, number: int) -> None:
    """Do the deed in a child that dies before it does the thing of this number, counted from 0, to the disk."""

    def until() -> None:
        left = number

        def step(_: str) -> None:
            nonlocal left
            if left == 0:
                os._exit(KILLED)
            left -= 1

        watched(scene, step)
        deed(scene)

    assert in_child(until) == KILLED


@pytest.fixture
def scenes(make_title: MakeTitle, tmp_path: Path) -> Callable[[str], Scene]:
    """A new scene, as it is before a deed."""
    made = make_title(tmp_path / "origin", published=PUBLISHED)
    return lambda deed: new_scene(made, tmp_path / "store", deed)


@pytest.mark.parametrize("deed", DEEDS)
def test_killed_at_any_step(scenes: Callable[[str], Scene], tmp_path: Path, deed: str) -> None:
    """What is held is whole at any time; doing it again gives what it would have given, and leaves nothing else."""
    scene = scenes(deed)
    points = _points(scene, DEEDS[deed][1], tmp_path / "points")
    finish(scene, deed)
    wanted = tree_of(scene)
    check_sound(scene)
    assert points
    for number, point in enumerate(points):
        scene = scenes(deed)
        _kill_before(scene, DEEDS[deed][1], number)
        again = Scene(Store([scene.root]), scene.made)
        again.store.prepare()
        check_sound(again)
        finish(again, deed)
        check_sound(again)
        assert tree_of(again) == wanted, f"killed before: {point}"


def test_the_points_are_all_of_these(scenes: Callable[[str], Scene], tmp_path: Path) -> None:
    """A new step is seen in a diff, and has been killed at by the test above."""
    # Sorted, since file systems list directories in orders of their own.
    found = [
        f"{deed}: {point}"
        for deed in DEEDS
        for point in sorted(set(_points(scenes(deed), DEEDS[deed][1], tmp_path / "points")))
    ]
    if found != GOLDEN.read_text().splitlines():
        (tmp_path / GOLDEN.name).write_text("\n".join(found) + "\n")
        pytest.fail(f"look at what has changed, then: cp {tmp_path / GOLDEN.name} {GOLDEN}")
