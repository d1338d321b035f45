"""The verified fetch: brings files of a version from ranked sources, by ranges, chunk by chunk.

Nothing that a source sends counts before its BLAKE3 is the one in title.json, and title.json counts only if its
own BLAKE3 is the version. The best rank with a source that works is used, all of its nearest sources side by side,
each for what it can do; a worse or dearer one only once the better have failed.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import aiohttp
import structlog
from yarl import URL

from oca.asking import HELD_ONLY, SourceError, Span, check_head
from oca.breaker import Breaker
from oca.bucket import Bucket
from oca.clock import Clock
from oca.errors import ConfigError, FormatError, OcaError
from oca.health import Health, Limits, pause_s, quickest, too_slow
from oca.pieces import PIECE, step_aside
from oca.signed import Signed, unsigned
from oca.store.landing import Landing
from oca.title import model as title_format
from oca.title.digest import CHUNK_BYTES, digest, version_of
from oca.title.model import MAX_TITLE_JSON, TITLE_JSON, File, Title
from oca.trust.fleet import shown
from oca.trust.identity import Proof
from oca.wire import Source

_log = structlog.get_logger()
# Somebody else is trying a source: when to look what came of it.
_LOOK_S = 0.05
# What a service of objects answers to a URL that has ended: 403, or 400 if what signed it has ended.
_ENDED = frozenset((400, 401, 403))

T = TypeVar("T")
Absent = dict[str, str]
"""By place what sources said that lack a file."""
Leave = Callable[[float], bool]
"""Whether to give up a source that takes too long and sends so many bytes per second."""


class Part(NamedTuple):
    """What a request is to bring: `span` of a file, else something of unknown length; no more than `room` takes."""

    span: Span | None
    room: bytearray
    leave: Leave


Get = Callable[[Source, Leave], Awaitable[T]]
Progress = Callable[[Source | None, int], None]
"""Called with each verified chunk's source (None: it was on disk already) and bytes."""


class FetchError(OcaError):
    """No source gave what was asked for; the sentence says what each one did."""


class _EndedError(Exception):
    """A service of objects refuses a URL."""


async def _nobody() -> Sequence[Source]:
    return ()


def _plainly(proof: Proof | None, url: str) -> dict[str, Any]:
    """What a request to somebody who is not of the fleet takes besides."""
    return {}


Show = Callable[[Proof | None, str], dict[str, Any]]


class Fetch:
    """One run of fetching: its connections, its rate cap, and what it has learned about its sources."""

    def __init__(
        self,
        bucket: Bucket | None = None,
        limits: Limits | None = None,
        proof: Proof | None = None,
        uplink: Bucket | None = None,
        *,
        object_stores: bool = True,
        clock: Clock | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """With `proof`, only boxes that prove to be of our fleet are asked; `object_stores`, which prove nothing,
        may be all the same. `uplink` caps what is not from peers. `chance` is from 0 to 1.
        """
        self._clock = clock or Clock()
        self._chance = chance
        self._proof = proof
        self._object_stores = object_stores
        self._bucket = bucket or Bucket(math.inf, self._clock)
        self._uplink = uplink or Bucket(math.inf, self._clock)
        self._limits = limits or Limits()
        self._health: dict[str, Health] = {}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._limits.connect_s, sock_read=self._limits.stall_s
        )
        # Bytes are digested as they are: a source that compresses them has not sent what was asked for.
        self._session = aiohttp.ClientSession(
            timeout=timeout,
            auto_decompress=False,
            read_bufsize=PIECE,
            headers={"Accept-Encoding": "identity", "User-Agent": "oca-fill", HELD_ONLY: "1"},
        )

    async def __aenter__(self) -> Fetch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def title(
        self, sources: Sequence[Source], title: str, version: str, signed: Signed | None = None
    ) -> tuple[bytes, Title]:
        """The bytes of a version's title.json, proved to be that version, and what they say. Raises FetchError."""
        path = f"/t/{title}/{version}/{TITLE_JSON}"

        async def get(source: Source, leave: Leave) -> tuple[bytes, Title]:
            data = bytes(await self._get(source, path, Part(None, bytearray(MAX_TITLE_JSON), leave), signed))
            if version_of(data) != version:
                raise SourceError("bad", f"its {TITLE_JSON} is not the one of version {version}")
            return data, self._decode(data, title, path)

        _, found = await self._first(sources, path, {}, get)
        return found

    def _decode(self, data: bytes, title: str, path: str) -> Title:
        """Read a title.json that is the right one; if it is unusable, no other source can have a better one."""
        try:
            read = title_format.decode(data, path)
        except FormatError as error:
            raise FetchError(str(error)) from None
        if read.id != title:
            raise FetchError(f"{path} is of title {read.id}, not {title}: the catalog's entry is wrong")
        return read

    async def file(
        self,
        sources: Sequence[Source],
        title: Title,
        version: str,
        name: str,
        landing: Landing,
        progress: Progress = lambda source, amount: None,
        signed: Signed | None = None,
    ) -> None:
        """Bring all of the file `name` to `landing`; what is verified there already is not fetched again.

        `signed` has the newest URLs of sources that are buckets. Raises FetchError when no source is left, StoreError
        when the disk refuses. May be cancelled and called again; the file is not fsynced (Store.commit does that).
        """
        file, path = title.files[name], f"/t/{title.id}/{version}/{name}"
        missing = set(range(len(file.chunks)))
        for chunk in await asyncio.to_thread(landing.claims):
            if await asyncio.to_thread(landing.holds, chunk):
                missing.discard(chunk)
                progress(None, file.span(chunk)[1])
        pending = iter(sorted(missing))
        absent: Absent = {}

        async def work() -> None:
            # Used again for each chunk: fresh memory costs a fault a page, a tenth of all that a fill costs.
            room = bytearray(min(title.chunk_bytes, file.bytes))
            for chunk in pending:
                source, data = await self._chunk(sources, path, file, chunk, absent, signed, room)
                await asyncio.to_thread(landing.settle, chunk, data)
                progress(source, len(data))

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(self._limits.parallel, len(missing))):
                    tasks.create_task(work())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    async def chunk(self, sources: Sequence[Source], path: str, file: File, chunk: int) -> tuple[Source, memoryview]:
        """The verified bytes of one chunk of `file`, which sources have at `path`, and who gave them."""
        return await self._chunk(sources, path, file, chunk, {}, None, bytearray(file.span(chunk)[1]))

    async def _chunk(
        self,
        sources: Sequence[Source],
        path: str,
        file: File,
        chunk: int,
        absent: Absent,
        signed: Signed | None,
        room: bytearray,
    ) -> tuple[Source, memoryview]:
        offset, length = file.span(chunk)

        async def get(source: Source, leave: Leave) -> memoryview:
            data = await self._get(source, path, Part((offset, length, file.bytes), room, leave), signed)
            if await asyncio.to_thread(digest, data) != file.chunks[chunk]:
                raise SourceError("bad", f"it sent wrong bytes for chunk {chunk} of {path}")
            return data

        return await self._first(sources, path, absent, get)

    async def _first(self, sources: Sequence[Source], path: str, absent: Absent, get: Get[T]) -> tuple[Source, T]:
        """What `get` gives from the best source that works. `absent` collects the sources that lack this file."""
        while True:
            source = self._best(sources, absent)
            if source is None:
                rest = self._rest(sources, absent)
                if rest is None:
                    raise FetchError(self._explain(sources, path, absent))
                await self._clock.sleep(rest)
                continue
            health = self._health.setdefault(source.place, Health(breaker=Breaker(self._limits.circuit)))
            pause = health.resume_at - self._clock.now()
            if pause > 0:
                await self._clock.sleep(pause)
                continue  # meanwhile another chunk may have found out more about this source
            began = self._clock.now()
            health.breaker.allow(began)
            health.in_flight += 1
            try:
                found = await get(source, partial(self._leave, sources, absent, source))
            except SourceError as fault:
                if fault.verdict == "absent":
                    # Who says that it has not got something works.
                    health.breaker.succeed(self._clock.now())
                    absent[source.place] = str(fault)
                else:
                    self._blame(source, health, fault, began)
                continue
            except BaseException:
                health.breaker.forgo()
                raise
            finally:
                health.in_flight -= 1
            health.failures = 0
            health.breaker.succeed(self._clock.now())
            if isinstance(found, memoryview):
                health.came(len(found), self._clock.now() - began)
            return source, found

    def _best(self, sources: Sequence[Source], absent: Absent) -> Source | None:
        """The source to ask for the next chunk: of the best that work, who will have sent it first."""
        now = self._clock.now()
        pool: list[tuple[Source, Health]] = []
        for source in sources:
            health = self._health.get(source.place, Health())
            resting = self._given_up(health, now) or not health.breaker.would_allow(now)
            worse = pool and (source.rank, source.cost) != (pool[0][0].rank, pool[0][0].cost)
            if not (resting or source.place in absent or worse):
                pool.append((source, health))
        return quickest(pool, now)

    def _leave(self, sources: Sequence[Source], absent: Absent, source: Source, rate: float) -> bool:
        """Whether to give `source` up, which sends a chunk too slowly; if so, that is known of it."""
        out = {source.place, *absent}
        others = [self._health.get(other.place, Health()) for other in sources if other.place not in out]
        if slow := too_slow(self._limits, rate, others, self._clock.now()):
            self._health[source.place].came(round(rate), 1.0)
        return slow

    def _given_up(self, health: Health, now: float) -> bool:
        """Whether it has failed too often in a row, and its rest is not over."""
        return health.bad or (health.failures >= self._limits.attempts and health.resume_at > now)

    def _rest(self, sources: Sequence[Source], absent: Absent) -> float | None:
        """When nobody can be asked: in how many seconds one whose circuit is open may be; None if there is none."""
        now = self._clock.now()
        known = [self._health[source.place] for source in sources if source.place not in absent]
        open_ones = [health.breaker.rested_in(now) for health in known if not self._given_up(health, now)]
        # At 0 somebody is trying: look again soon what came of it.
        return max(min(open_ones), _LOOK_S) if open_ones else None

    def _blame(self, source: Source, health: Health, fault: SourceError, began: float) -> None:
        """Note a failure. Chunks in flight together fail together: that counts once in a row."""
        health.breaker.fail(self._clock.now())
        if fault.verdict == "bad":
            health.bad = True
        elif began < health.failed_at:
            return
        health.failures += 1
        health.failed_at = self._clock.now()
        health.problem = str(fault)
        health.resume_at = health.failed_at + pause_s(self._limits, health.failures, self._chance())
        _log.warning("source failed", source=source.appliance, url=source.url, bad=health.bad, detail=str(fault))

    def _explain(self, sources: Sequence[Source], path: str, absent: Absent) -> str:
        if not sources:
            return f"no source for {path}"
        said = [
            f"{source.appliance}: {absent.get(source.place) or self._health[source.place].problem}"
            for source in sources
        ]
        return f"no source gives {path}: {'; '.join(said)}"

    async def _get(self, source: Source, path: str, part: Part, signed: Signed | None) -> memoryview:
        """The body of one request, unverified but of the length it must have. Raises SourceError."""
        if not source.objects:
            return await self._request(source, source.url + path, part, shown)
        name, asked = path.rpartition("/")[2], Signed([source], _nobody) if signed is None else signed
        if self._proof is not None and not self._object_stores:
            raise SourceError(
                "absent", "it is an object store and proves nothing: set object_stores = true, or sources = 'any'"
            )
        for _ in range(2):
            url = await asked.url(source, name)
            if url is None:
                raise SourceError("absent", "the controller names no URL for it there")
            try:
                return await self._request(source, url, part, _plainly)
            except _EndedError:
                if not await asked.refused(source, name, url):
                    break
        raise SourceError(
            "absent",
            "it refuses the URL that the controller signed: it has ended and no controller signs another, the object "
            "is missing, the controller's keys may not read it, or clocks differ",
        )

    async def _request(self, source: Source, target: str, part: Part, show: Show) -> memoryview:
        headers, span = {}, part.span
        if span is not None and span[1] != span[2]:
            headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
        url = URL(target, encoded=True)
        try:
            # Media lies where the controller says it does; a redirect could lead anywhere, any scheme included.
            more = show(self._proof, source.url)
            async with self._session.get(url, headers=headers, allow_redirects=False, **more) as response:
                if source.objects and response.status in _ENDED:
                    raise _EndedError
                check_head(response.status, response.headers, span)
                return await self._body(response, part, source)
        except ConfigError as error:
            raise SourceError("absent", str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise SourceError("retry", unsigned(f"{error or type(error).__name__}")) from None

    async def _body(self, response: aiohttp.ClientResponse, part: Part, source: Source) -> memoryview:
        """Read the body at the pace of the rate cap, and not a byte more than it may have."""
        data = memoryview(part.room)[: part.span[1] if part.span is not None else None]
        most, come, waited = len(data), 0, 0.0
        patience = self._limits.chunk_s * (max(1.0, most / CHUNK_BYTES) if part.span is not None else 1.0)
        while True:
            began = self._clock.now()
            more = await response.content.readany()
            waited += self._clock.now() - began
            if not more:
                break
            if come + len(more) > most:
                raise SourceError("bad", f"it sends more than the {most} bytes asked for")
            data[come : come + len(more)] = more
            come += len(more)
            step_aside()  # where bytes are always there this loop never waits for any
            if waited > patience and part.leave(come / waited):
                raise SourceError("retry", f"it sent {come} bytes in {waited:.0f} s, which is too slow")
            await self._bucket.take(len(more))
            if source.rank != "peer":
                await self._uplink.take(len(more))
        if part.span is not None and come < most:
            raise SourceError("retry", f"it sent {come} bytes instead of {most}")
        return data[:come]
