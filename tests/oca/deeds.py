"""What changes a store, done to a small one so that tests can cut it off at any step.

What counts as a step is what Python tells audit hooks of: files opened for writing, renamed, removed, directories
made or removed, times set.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fill import staging
from oca.store.content import FILLING, Store
from oca.store.landing import Landing
from tests.conftest import MadeTitle

PUBLISHED = 1_700_000_000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.utime", "os.truncate")


@dataclass
class Scene:
    """A store before something is done to it, and the published title that it is about."""

    store: Store
    made: MadeTitle

    @property
    def root(self) -> Path:
        return self.store.roots[0]

    @property
    def place(self) -> Path:
        return self.root / self.made.id / self.made.version


def _nothing(scene: Scene) -> None:
    pass


def _stage(scene: Scene) -> None:
    """Everything of the title waits to be committed."""
    waiting = scene.store.staging(scene.made.id, scene.made.version)
    for path in scene.made.directory.iterdir():
        shutil.copy(path, waiting / path.name)


def _hold(scene: Scene) -> None:
    _stage(scene)
    _commit(scene)


def _set_aside(scene: Scene) -> None:
    _hold(scene)
    _quarantine(scene)
    scene.store.staging(scene.made.id, scene.made.version)


def _commit(scene: Scene) -> None:
    names = sorted(path.name for path in scene.made.directory.iterdir())
    scene.store.commit(scene.made.id, scene.made.version, ["title.json", *names], PUBLISHED)


def _land(scene: Scene) -> None:
    """One chunk of a track arrives."""
    waiting = scene.store.staging(scene.made.id, scene.made.version)
    landing = Landing(waiting / "v1.mp4", scene.made.title.files["v1.mp4"])
    landing.claims()
    landing.settle(0, scene.made.bytes_of("v1.mp4"))


def _publish(scene: Scene) -> None:
    staged = scene.root / FILLING / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    shutil.copytree(scene.made.directory, staged)
    scene.store.publish(staged, scene.made.id, scene.made.version, PUBLISHED)


def _remove(scene: Scene) -> None:
    for track in ("v1", "a1"):
        held = scene.store.held(scene.made.id, scene.made.version)
        if held is not None:
            scene.store.remove_track(held, track)


def _quarantine(scene: Scene) -> None:
    held = scene.store.held(scene.made.id, scene.made.version)
    assert held is not None
    if (scene.place / "v1.mp4").exists():
        scene.store.quarantine(held, "v1.mp4", [])


def _recover(scene: Scene) -> None:
    waiting = scene.store.staging(scene.made.id, scene.made.version)
    scene.store.recover(scene.made.id, scene.made.version, "v1.mp4", waiting)


Deed = Callable[[Scene], None]
DEEDS: dict[str, tuple[Deed, Deed]] = {
    "land": (_nothing, _land),
    "commit": (_stage, _commit),
    "publish": (_nothing, _publish),
    "remove": (_hold, _remove),
    "quarantine": (_hold, _quarantine),
    "recover": (_set_aside, _recover),
}


def new_scene(made: MadeTitle, root: Path, deed: str) -> Scene:
    """A store as it is before a deed is done to it; what was at `root` is gone."""
    shutil.rmtree(root, ignore_errors=True)
    scene = Scene(Store([root]), made)
    scene.store.prepare()
    DEEDS[deed][0](scene)
    return scene


def watched(scene: Scene, step: Callable[[str], None]) -> None:
    """From now on call `step` before each thing that this process does to the store's disk."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES):
            path = arguments[0]
            if isinstance(path, str | os.PathLike) and str(path).startswith(f"{scene.root}/"):
                name = str(path).removeprefix(f"{scene.root}/").replace(scene.made.version, "VERSION")
                step(f"{event.removeprefix('os.')} {re.sub('[0-9a-f]{32}', '*', name)}")

    sys.addaudithook(hook)


def in_child(deed: Callable[[], None]) -> int:
    """The exit code of a process that does this and no more."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            deed()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def tree_of(scene: Scene) -> dict[str, int]:
    """Every path under the store and its size; directories have none, and records may claim a chunk twice."""
    return {
        str(path.relative_to(scene.root)): path.stat().st_size if path.is_file() and path.suffix != ".chunks" else 0
        for path in sorted(scene.root.rglob("*"))
    }


def finish(scene: Scene, deed: str) -> None:
    """What happens after a crash, sooner or later: the same is done again, and what nobody wants is swept away."""
    DEEDS[deed][1](scene)
    wanted = [(scene.made.id, scene.made.version, track) for track in ("v1", "a1")]
    hour_ago = time.time() - 7200
    for path in scene.root.rglob(".*"):
        if path.is_file() and len(path.suffix) == 33:
            os.utime(path, (hour_ago, hour_ago))
    staging.sweep(scene.store, [] if deed == "remove" else wanted)


def check_sound(scene: Scene) -> None:
    """All that counts as held is as it was published."""
    for title, version in scene.store.versions():
        held = scene.store.held(title, version)
        if held is not None and held.tracks:
            files = [name for track in held.title.tracks if track.name in held.tracks for name in track.files]
            for name in [*held.title.shared_files, *files]:
                assert (held.directory / name).read_bytes() == scene.made.bytes_of(name), name
            assert held.published == PUBLISHED
