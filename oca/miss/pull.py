"""One chunk on its way from other boxes to the folder of pulled content, and what of it is there already.

The part that was asked for first is fetched first: from there to the end of the chunk, then from its start. When a
source fails the next one goes on where it stopped. Nothing counts before the digest of the whole chunk is right.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from oca.asking import SourceError
from oca.counters import Counters
from oca.errors import StoreError
from oca.miss.pulled import Arrival, Key, Pulled
from oca.miss.upstream import DISTRUST_S, SUSPECT_S, Upstreams
from oca.title.digest import digest, version_of
from oca.title.model import TITLE_JSON
from oca.wire import Source

_log = structlog.get_logger()
# Watchers hear of new bytes at most this often; each time they can send all of them.
_TELL_S = 0.01
# What lies before the part that is wanted first is brought afterwards, with a second request, if it is so long.
_WORTH = 1 << 20


@dataclass(frozen=True, slots=True)
class Content:
    """What a chunk must be: its `number`, `size` of its file and its own `length` in bytes, and its BLAKE3."""

    number: int
    size: int
    length: int
    digest: str


class PullError(Exception):
    """The chunk did not come. `absent`: because every source said that it has not got it."""

    def __init__(self, sentence: str, *, absent: bool = False) -> None:
        super().__init__(sentence)
        self.absent = absent


class Pull:
    """The bringing of one chunk, shared by all who want it. `run` it once, as a task."""

    def __init__(
        self, key: Key, content: Content, at: int, sources: Sequence[Source], upstreams: Upstreams, pulled: Pulled
    ) -> None:
        """`at` is the offset in the chunk that is wanted first."""
        self.key = key
        self.content = content
        self.first = at if _WORTH <= at < content.length else 0
        self.count = 0
        """Bytes that have arrived, beginning with `first` and going on at the start after the end."""
        self.place = ""
        """Where the bytes are, below the folder; '' before the first one."""
        self.watchers: list[Callable[[], None]] = []
        """Called when something has changed."""
        self._sources = sources
        self._upstreams = upstreams
        self._pulled = pulled
        self._path = f"/t/{key.title}/{key.version}/{key.name}"
        self._telling: asyncio.TimerHandle | None = None
        self._told = 0.0
        self._gave: dict[str, Source] = {}

    async def run(self, counters: Counters) -> None:
        """Bring it; afterwards it is verified and held. Raises PullError. Cancelled, it leaves nothing behind."""
        length = self.content.length
        self._pulled.room(length, self.key)
        arrival: Arrival | None = None
        try:
            arrival = await asyncio.to_thread(self._pulled.arrive, self.key, length)
            await self._bring(arrival, counters)
            await asyncio.to_thread(arrival.keep)
        except BaseException as error:
            self._pulled.release(length)
            if arrival is not None:
                arrival.discard()
            if not isinstance(error, PullError):
                counters.pull("failed")
            if isinstance(error, StoreError):
                _log.error("cannot pull", detail=str(error))
                raise PullError("this box cannot store what it would pass on") from None
            raise
        finally:
            if self._telling is not None:
                self._telling.cancel()
        self.place = self.key.place
        self._pulled.settle(self.key, length)
        counters.pull("kept")

    async def _bring(self, arrival: Arrival, counters: Counters) -> None:
        """Receive and verify all of it."""

        async def take(part: bytes) -> None:
            at = (self.first + self.count) % self.content.length
            await asyncio.to_thread(arrival.write, at, part)
            self.count += len(part)
            counters.pulled_bytes += len(part)
            self.place = arrival.place
            self._tell_soon()

        said: dict[str, str] = {}
        asked = absent = 0
        async with aclosing(self._upstreams.each(self._sources, said)) as each:
            async for source in each:
                asked += 1
                before = self.count
                try:
                    while (rest := self._rest()) is not None:
                        span = (self.key.offset + rest[0], rest[1], self.content.size)
                        await self._upstreams.ask(source, self._path, span, take)
                except SourceError as fault:
                    said[source.appliance] = str(fault)
                    absent += fault.verdict == "absent"
                    if fault.verdict == "bad":
                        self._upstreams.distrust(source, str(fault), DISTRUST_S)
                    _log.warning("upstream failed", source=source.appliance, path=self._path, detail=str(fault))
                finally:
                    if self.count > before:
                        self._gave[source.appliance] = source
                if self._rest() is None:
                    await self._verify(arrival, source, counters)
                    return
        counters.pull("failed")
        raise PullError(explain(self._path, said), absent=asked == absent == len(said))

    def _rest(self) -> tuple[int, int] | None:
        """Offset in the chunk and length of what to ask for next, None if all is there."""
        length = self.content.length
        if self.count >= length:
            return None
        to_end = length - self.first
        if self.count < to_end:
            return self.first + self.count, to_end - self.count
        return self.count - to_end, length - self.count

    async def _verify(self, arrival: Arrival, source: Source, counters: Counters) -> None:
        # Read back from the file: what is checked is what will be sent.
        data = await asyncio.to_thread(arrival.read)
        if await asyncio.to_thread(digest, data) == self.content.digest:
            return
        counters.pull("wrong")
        where = f"chunk {self.content.number} of {self._path}"
        if len(self._gave) == 1:
            self._upstreams.distrust(source, f"it sent wrong bytes for {where}", DISTRUST_S)
        # Of bytes from several boxes nobody knows which are wrong. Whoever came last is asked alone next, and
        # then it is known of that one; the others rest for so long.
        for other in self._gave.values():
            if other is not source:
                self._upstreams.distrust(other, f"it sent some of the bytes of {where}, which are wrong", SUSPECT_S)
        raise PullError(f"wrong bytes came for {where} from {' and '.join(sorted(self._gave))}")

    def _tell_soon(self) -> None:
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_at(max(loop.time(), self._told + _TELL_S), self._tell)

    def _tell(self) -> None:
        self._telling, self._told = None, asyncio.get_running_loop().time()
        for watcher in self.watchers:
            watcher()


async def title_json(
    key: Key, published: int, sources: Sequence[Source], upstreams: Upstreams, pulled: Pulled, counters: Counters
) -> bytes:
    """Bring the title.json of a version, prove that it is the one, and keep it. Raises PullError.

    As in the store, its modification time is the publication time.
    """
    path = f"/t/{key.title}/{key.version}/{TITLE_JSON}"
    said: dict[str, str] = {}
    asked = absent = 0
    async with aclosing(upstreams.each(sources, said)) as each:
        async for source in each:
            asked += 1
            data = bytearray()

            async def take(part: bytes, data: bytearray = data) -> None:
                data += part

            try:
                await upstreams.ask(source, path, None, take)
            except SourceError as fault:
                said[source.appliance] = str(fault)
                absent += fault.verdict == "absent"
                if fault.verdict == "bad":
                    upstreams.distrust(source, str(fault), DISTRUST_S)
                continue
            counters.pulled_bytes += len(data)
            if await asyncio.to_thread(version_of, bytes(data)) == key.version:
                await _keep(key, bytes(data), published, pulled)
                counters.pull("kept")
                return bytes(data)
            counters.pull("wrong")
            said[source.appliance] = f"its {TITLE_JSON} is not the one of version {key.version}"
            upstreams.distrust(source, said[source.appliance], DISTRUST_S)
    counters.pull("failed")
    raise PullError(explain(path, said), absent=asked == absent == len(said))


async def _keep(key: Key, data: bytes, published: int, pulled: Pulled) -> None:
    pulled.room(len(data), key)
    try:
        arrival = await asyncio.to_thread(pulled.arrive, key, len(data))
        try:
            await asyncio.to_thread(arrival.write, 0, data)
            await asyncio.to_thread(arrival.keep, published)
        finally:
            arrival.discard()
    except BaseException as error:
        pulled.release(len(data))
        if isinstance(error, StoreError):
            _log.error("cannot pull", detail=str(error))
            raise PullError("this box cannot store what it would pass on") from None
        raise
    pulled.settle(key, len(data))


def explain(path: str, said: dict[str, str]) -> str:
    """The sentence that says whom we asked for `path` and what each did."""
    if not said:
        return f"no other box is known to hold {path}"
    return f"no other box gives {path}: {'; '.join(f'{box}: {what}' for box, what in said.items())}"
