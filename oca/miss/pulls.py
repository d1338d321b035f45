"""All pulls of a box: what viewers ask for and the box does not hold is brought once, for any number of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oca.config import ApplianceSettings
from oca.counters import Counters
from oca.errors import FormatError
from oca.http.slices import Facts, facts_of, place_of
from oca.miss.neighbours import Known, NeighboursFile
from oca.miss.pull import Content, Pull, PullError, title_json
from oca.miss.pulled import Key, Pulled
from oca.miss.room import Room
from oca.miss.upstream import Upstreams
from oca.title import model as title_format
from oca.title import segments
from oca.title.digest import version_of
from oca.title.model import TITLE_JSON, File, Title
from oca.title.segments import SegmentIndex
from oca.trust import fleet
from oca.trust.identity import Identity

# Chunks on their way at once; half of the space they may take is always left for those that are there.
_PARALLEL = 16
# Titles and segment indexes kept decoded.
_DECODED = 64
UNKNOWN = "no such content is held here, nor by any other box that is known"


K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Version:
    """A version: what its title.json says, the bytes of that, and its publication time in seconds."""

    title: Title
    size: int
    published: int


@dataclass(frozen=True, slots=True)
class Part:
    """What a URL names: something of file `name`, which comes in chunks of `unit` bytes."""

    name: str
    unit: int
    facts: Facts


class Pulls:
    """What is being pulled, and what is known of it. Belongs to one event loop."""

    def __init__(self, settings: ApplianceSettings) -> None:
        root = Path(settings.store[0])
        self.counters = Counters()
        self.pulled = Pulled(root, settings.miss.pulled_bytes)
        self.upstreams = Upstreams(
            settings.miss, self.counters, fleet.proof(Identity.of(Path(settings.identity)), settings.sources)
        )
        self._known = Known()
        self._file = NeighboursFile(root, settings.appliance)
        self._versions: OrderedDict[tuple[str, str], Version] = OrderedDict()
        self._indexes: OrderedDict[Key, SegmentIndex] = OrderedDict()
        self._reading: dict[tuple[str, str], asyncio.Task[Version]] = {}
        self._pulls: dict[Key, tuple[Pull, asyncio.Task[None]]] = {}
        self._room = Room(_PARALLEL, settings.miss.pulled_bytes // 2)

    async def look(self) -> None:
        """Read the neighbours if they have changed."""
        if self._file.changed():
            self._known = await asyncio.to_thread(self._file.read)

    async def find(self, path: str) -> Part:
        """What is at a URL path (without query). Raises PullError."""
        place = place_of(path)
        if place is None:
            raise PullError(UNKNOWN, absent=True)
        version = await self.version(place.title, place.version)
        title, name, offset = version.title, place.name, 0
        if place.number >= 0:
            track = next((track for track in title.tracks if track.name == name), None)
            if track is None:
                raise PullError(UNKNOWN, absent=True)
            key = Key(place.title, place.version, track.files[1], 0)
            span = (await self._index(key, version, title.files[track.files[0]].bytes)).slice(place.number)
            if span is None:
                raise PullError(UNKNOWN, absent=True)
            name, (offset, length) = track.files[0], span
        else:
            track = next((track for track in title.tracks if name in track.files), None)
            if name == TITLE_JSON:
                length = version.size
            elif name in title.files:
                length = title.files[name].bytes
            else:
                raise PullError(UNKNOWN, absent=True)
        unit = max(1, version.size) if name == TITLE_JSON else title.chunk_bytes
        facts = facts_of(title, place.version, version.published, name, offset, length, track, place.number)
        return Part(name, unit, facts)

    async def version(self, title: str, version: str) -> Version:
        """A version; its title.json is brought once for all who ask. Raises PullError."""
        found = self._versions.get((title, version))
        if found is not None:
            self._versions.move_to_end((title, version))
            return found
        task = self._reading.get((title, version))
        if task is None:
            task = self._reading[title, version] = asyncio.create_task(self._read_version(title, version))
            task.add_done_callback(lambda _: self._reading.pop((title, version)))
            task.add_done_callback(_heed)
        return await asyncio.shield(task)

    async def _read_version(self, title: str, version: str) -> Version:
        key = Key(title, version, TITLE_JSON, 0)
        path = self.pulled.folder / key.place
        try:
            data, published = await asyncio.to_thread(lambda: (path.read_bytes(), int(path.stat().st_mtime)))
        except OSError:
            data, published = b"", 0
        if version_of(data) != version or not self.pulled.find(key, len(data)):
            sources = self._known.holders(title, version, TITLE_JSON)
            published = self._known.published(title, version)
            async with self._room.of(0):
                data = await title_json(key, published, sources, self.upstreams, self.pulled, self.counters)
        try:
            read = title_format.decode(data, f"{TITLE_JSON} of {title} {version}")
        except FormatError as error:
            raise PullError(str(error)) from None
        if read.id != title:
            raise PullError(UNKNOWN, absent=True)
        found = Version(read, len(data), published)
        _put(self._versions, (title, version), found)
        return found

    async def _index(self, key: Key, version: Version, media_bytes: int) -> SegmentIndex:
        """Where the segments of a track are, by its .idx. Raises PullError."""
        found = self._indexes.get(key)
        if found is None:
            where = f"{key.name} of {key.title} {key.version}"
            file = version.title.files[key.name]
            if file.bytes > segments.MAX_BYTES:
                raise PullError(f"{where} is longer than any index")
            chunks = [key._replace(offset=file.span(number)[0]) for number in range(len(file.chunks))]
            for running in [await self.begin(chunk, 0) for chunk in chunks]:
                if running is not None:
                    await asyncio.shield(running[1])
            try:
                data = await asyncio.to_thread(lambda: b"".join(map(self.pulled.read, chunks)))
                found = segments.decode(data, where)
            except (OSError, FormatError) as error:
                raise PullError(f"{where} cannot be used: {error}") from None
            if found.track_bytes > media_bytes:
                raise PullError(f"{where} is corrupt: its segments end beyond the end of their file")
            _put(self._indexes, key, found)
        self._indexes.move_to_end(key)
        return found

    async def begin(self, key: Key, at: int) -> tuple[Pull, asyncio.Task[None]] | None:
        """The pull that brings a chunk, begun at its byte `at` if nobody has yet; None if the chunk is held.

        Raises PullError, as the task does.
        """
        version = await self.version(key.title, key.version)
        if key.name == TITLE_JSON:
            if not self.pulled.find(key, version.size):
                self._versions.pop((key.title, key.version), None)
                await self.version(key.title, key.version)
            return None
        file = version.title.files.get(key.name)
        number = _number(file, key.offset) if file is not None else None
        if file is None or number is None:
            raise PullError(UNKNOWN, absent=True)
        length = file.span(number)[1]
        if length > self._room.limit:
            raise PullError(
                f"a chunk of this title takes {length} bytes, which is more than half of pulled_bytes: raise it"
            )
        if self.pulled.find(key, length):
            return None
        running = self._pulls.get(key)
        if running is None:
            content = Content(number, file.bytes, length, file.chunks[number])
            sources = self._known.holders(key.title, key.version, key.name)
            pull = Pull(key, content, at, sources, self.upstreams, self.pulled)
            running = self._pulls[key] = (pull, asyncio.create_task(self._run(pull)))
            running[1].add_done_callback(lambda _: self._pulls.pop(key))
            running[1].add_done_callback(_heed)
        return running

    async def _run(self, pull: Pull) -> None:
        async with self._room.of(pull.content.length):
            await pull.run(self.counters)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [task for _, task in self._pulls.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.upstreams.close()
        await asyncio.to_thread(self.pulled.close)


def _number(file: File, offset: int) -> int | None:
    """The number of the chunk of `file` that begins at `offset`, None if none does."""
    number, rest = divmod(offset, file.chunk_bytes)
    return number if not rest and number < len(file.chunks) else None


def _put(table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    if len(table) > _DECODED:
        table.popitem(last=False)


def _heed(task: asyncio.Task[Any]) -> None:
    """Whoever waited has gone: a failure that nobody asks for any more is no fault of the program."""
    if not task.cancelled():
        task.exception()
