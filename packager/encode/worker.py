"""A worker of a Dask cluster, which does tasks of builds that run on another machine."""

from __future__ import annotations

import importlib.metadata
import sys
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oca.errors import ConfigError, OcaError
from packager import ffmpeg
from packager.encode.work import Task
from packager.ffmpeg import Ffmpeg

if TYPE_CHECKING:
    from dask.typing import Key
    from distributed import Worker

TOPIC = "oca-pack"
"""Of the events by which workers tell how far they are: [run, name of a task, pictures]."""
# A worker remembers the runs it has worked for; more than a cluster has at once.
_REMEMBERED = 64
_SHARED = "source and store must be on disks that all workers share, under the same paths"


class UnfitError(OcaError):
    """A worker that has not what it takes."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a worker must see for a run of a build: the source as it is here, and `token`, which holds the run's name.

    `versions` are of the programs whose work must fit together.
    """

    run: str
    token: Path
    source: Path
    bytes: int
    changed: int
    versions: tuple[tuple[str, str], ...]


def versions(binary: Ffmpeg) -> tuple[tuple[str, str], ...]:
    """What has to be the same on all machines, by name: else Dask breaks, or pieces do not fit together."""
    python = ".".join(map(str, sys.version_info[:2]))
    distributed = importlib.metadata.version("distributed")
    ours = importlib.metadata.version("oca")
    return ("Python", python), ("distributed", distributed), ("oca", ours), ("ffmpeg", binary.version)


_guard = threading.Lock()
_fit: dict[str, Ffmpeg] = {}


def check(terms: Terms, where: str) -> Ffmpeg:
    """The ffmpeg of the worker `where`, which we are in; UnfitError unless all is there as the terms say."""
    with _guard:
        if terms.run in _fit:
            return _fit[terms.run]
        try:
            stat = terms.source.stat()
            token = terms.token.read_text()
            trial = terms.token.with_name(f".{uuid.uuid4().hex}")
            trial.touch()
            trial.unlink()
        except OSError as error:
            raise UnfitError(
                f"the Dask worker {where} cannot use {error.filename} ({error.strerror}): {_SHARED}"
            ) from None
        if token != terms.run or (stat.st_size, int(stat.st_mtime)) != (terms.bytes, terms.changed):
            other = terms.source if token == terms.run else terms.token.parent
            raise UnfitError(f"the Dask worker {where} has another {other} than this machine: {_SHARED}")
        try:
            binary = ffmpeg.find()
        except ConfigError as error:
            raise UnfitError(f"the Dask worker {where}: {error}") from None
        for (name, wanted), (_, there) in zip(terms.versions, versions(binary), strict=True):
            if there != wanted:
                raise UnfitError(
                    f"the Dask worker {where} has {name} {there}, and this machine {wanted}: install the same on both"
                )
        while len(_fit) >= _REMEMBERED:
            del _fit[next(iter(_fit))]
        _fit[terms.run] = binary
        return binary


def join(terms: Terms, dask_worker: Worker) -> None:
    """Raise what `check` does; Dask gives the worker along."""
    check(terms, dask_worker.address)


def do(terms: Terms, task: Task) -> int:
    """Do a task of a run; how many pieces it made."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def tell(frames: int) -> None:
        if not wanted(worker, key):
            raise UnfitError("nobody waits for this any more")
        worker.log_event(TOPIC, [terms.run, task.name, frames])

    return task.do(check(terms, worker.address), tell)


def wanted(worker: Worker, key: Key) -> bool:
    """Whether somebody waits for the task: a thread is not ended when a client dies or takes its task back."""
    state = worker.state.tasks.get(key)
    return (
        state is not None and state.state != "cancelled" and worker.status.name not in ("closing", "closed", "failed")
    )


def stop(run: str) -> None:
    """End what was begun for a run, and whatever of it begins from now on."""
    with _guard:
        binary = _fit.get(run)
    if binary is not None:
        binary.stop.now()
