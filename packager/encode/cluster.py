"""A Dask cluster that does the work of a build, on machines that have its files by the same paths.

Dask brings tasks to workers, and does those of a worker that dies again elsewhere; its scheduler remembers nothing
when it ends. That is enough: a piece that is done is a directory with its name, whoever made it, and however often.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import re
import time
import uuid
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oca.errors import ConfigError
from packager.encode import worker
from packager.encode.work import Execute, Task
from packager.encode.worker import Terms, UnfitError, versions
from packager.ffmpeg import Ffmpeg
from packager.staging import KEEP_S, KeptError

if TYPE_CHECKING:
    from distributed import Client, Future

_ADDRESS = re.compile(r"(tcp|tls)://[^/\s]+:[0-9]{1,5}")
_CONNECT_S = 10
# A cluster with no worker is given up after this long: one that was restarted is there again by then.
_LONELY_S = 60.0
# Shared file systems believe for so long what they saw before.
_SEEN_S = 90.0
_LOOK_S = 1.0
_TOKEN = "shared"
_KEPT = f"what is encoded is kept for {KEEP_S / 86400:.0f} days, and the same command goes on from there"


class ClusterError(KeptError):
    """A cluster that cannot do the work, or does it no more; the work that is done is kept."""


@contextlib.contextmanager
def executing(address: str, binary: Ffmpeg, source: Path, folder: Path) -> Iterator[Execute | None]:
    """What does tasks on the cluster at `address`, None if there is none: then this machine does them.

    Every worker must see `source`, be able to write to `folder`, and have the same versions as this machine.
    Raises ConfigError if Dask is missing or the address is none, ClusterError if the cluster is unfit.
    """
    if not address:
        yield None
        return
    if not _ADDRESS.fullmatch(address):
        raise ConfigError(f"{address!r} is no address of a Dask scheduler: give one as in tcp://10.0.0.5:8786")
    try:
        import distributed
    except ImportError as error:
        raise ConfigError(f"--dask needs Dask ({error}): pip install 'oca[dask]'") from None
    _hush()
    stat = source.stat()
    run = uuid.uuid4().hex
    token = folder.absolute() / _TOKEN
    token.write_text(run)
    terms = Terms(run, token, source.absolute(), stat.st_size, int(stat.st_mtime), versions(binary))
    try:
        # A client would wait for ever for the greeting of what is no scheduler, and cannot be stopped then.
        asyncio.run(_greet(address))
        with warnings.catch_warnings():
            # Said in our own words, and only of what matters.
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)
            client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False, name="oca-pack")
    except Exception as error:  # of sockets, of TLS, of what is read from whoever is there
        raise ClusterError(
            f"there is no Dask scheduler to be reached at {address} ({_first(error)}): start `dask scheduler` "
            "there, or leave --dask out"
        ) from None
    try:
        found = Cluster(client, address, terms)
        found.check()
        yield found.do
    finally:
        # A scheduler that is gone cannot be told that we are going.
        with contextlib.suppress(Exception):
            client.close(timeout=_CONNECT_S)


async def _greet(address: str) -> None:
    """Connect, to see whether it can be done, and leave again."""
    from distributed import Security
    from distributed.comm.core import connect

    how = Security().get_connection_args("client")
    comm = await asyncio.wait_for(connect(address, timeout=_CONNECT_S, **how), 2 * _CONNECT_S)
    comm.abort()


class Cluster:
    """The client's side of a run: tasks go out, pieces come to be, and nothing is left running."""

    def __init__(self, client: Client, address: str, terms: Terms) -> None:
        self._client, self._address, self._terms = client, address, terms

    def check(self) -> None:
        """ClusterError, naming the worker, unless there is one and all of them fit."""
        try:
            self._client.wait_for_workers(1, timeout=_CONNECT_S)
        except TimeoutError:
            raise ClusterError(
                f"the Dask scheduler at {self._address} has no worker: start some, with `dask worker {self._address}`"
            ) from None
        told: Mapping[str, BaseException | None] = self._client.run(worker.join, self._terms, on_error="return")
        for where, error in sorted(told.items()):
            if error is not None:
                raise _unfit(where, error)

    def do(self, tasks: Sequence[Task], tell: Callable[[str, int], None]) -> int:
        """Do tasks; how many pieces they made. However this ends, no ffmpeg of ours is left running on a worker."""
        finished: queue.SimpleQueue[Future[int]] = queue.SimpleQueue()

        def heard(event: tuple[float, Any]) -> None:
            run, name, frames = event[1]
            if run == self._terms.run:
                tell(name, frames)

        self._client.subscribe_topic(worker.TOPIC, heard)
        running: dict[Hashable, Task] = {}
        futures = []
        try:
            for task in tasks:
                key = f"{worker.TOPIC}-{self._terms.run}-{task.name}"
                future = self._client.submit(worker.do, self._terms, task, key=key, pure=False)
                running[future.key] = task
                futures.append(future)
                future.add_done_callback(finished.put)
            pieces = 0
            while running:
                future = self._next(finished)
                task = running.pop(future.key)
                pieces += self._result(future, task)
                for path in task.places:
                    appears(path, _SEEN_S)
            return pieces
        except BaseException:
            self._halt(futures)
            raise
        finally:
            with contextlib.suppress(Exception):
                self._client.unsubscribe_topic(worker.TOPIC)

    def _next(self, finished: queue.SimpleQueue[Future[int]]) -> Future[int]:
        """The next task that is done, whatever came of it; ClusterError if there is nobody left to do it."""
        alone = time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                return finished.get(timeout=_LOOK_S)
            if self._client.status != "running":
                raise self._lost()
            if self._workers():
                alone = time.monotonic()
            elif time.monotonic() - alone > _LONELY_S:
                raise ClusterError(
                    f"the Dask scheduler at {self._address} has had no worker for {_LONELY_S:.0f} s: start some; "
                    f"{_KEPT}"
                )

    def _workers(self) -> int:
        try:
            return len(self._client.nthreads())
        except (OSError, TimeoutError):
            raise self._lost() from None

    def _lost(self) -> ClusterError:
        return ClusterError(f"the connection to the Dask scheduler at {self._address} is lost; {_KEPT}")

    def _result(self, future: Future[int], task: Task) -> int:
        import distributed

        if future.status == "cancelled":
            raise self._lost()
        try:
            return future.result()
        except distributed.KilledWorker as error:
            raise ClusterError(
                f"{task.name} was given up, since one worker after the other died of it, the last at "
                f"{error.last_worker.address}: see there whether memory or disk ran out; {_KEPT}"
            ) from None
        except UnfitError as error:
            raise ClusterError(f"{error}; {_KEPT}") from None

    def _halt(self, futures: list[Future[int]]) -> None:
        """Take tasks back, and end what they run."""
        if self._client.status != "running":
            return  # workers notice by themselves that nobody wants it
        with contextlib.suppress(Exception):
            self._client.cancel(futures, force=True)
            self._client.run(worker.stop, self._terms.run, on_error="ignore")


def appears(path: Path, within: float) -> None:
    """Wait until a file that another machine has made is seen here; ClusterError if it is not in `within` seconds."""
    deadline = time.monotonic() + within
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(f"a worker has written {path}, which is not to be seen here: look to the shared disk")
        # To read the directory anew makes a network file system ask its server.
        for parent in path.parents[1::-1]:
            with contextlib.suppress(OSError):
                list(parent.iterdir())
        time.sleep(_LOOK_S / 10)


def _unfit(where: str, error: BaseException) -> ClusterError:
    if isinstance(error, UnfitError):
        return ClusterError(str(error))
    if isinstance(error, ImportError) or "ModuleNotFoundError" in str(error):
        return ClusterError(
            f"the Dask worker {where} lacks oca-pack ({_first(error)}): pip install 'oca[pack,dask]' there"
        )
    return ClusterError(f"the Dask worker {where} cannot be asked what it has: {_first(error)}")


def _first(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _hush() -> None:
    """Keep Dask's own lines off the terminal: whatever matters comes as an exception, too."""
    for handler in logging.getLogger("distributed").handlers:
        handler.setLevel(logging.CRITICAL + 1)
