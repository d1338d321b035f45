"""What a URL stands for: a slice of an open file, with the validators and the head that go with it.

    /t/<title>/<version>/<file>                 a whole file
    /t/<title>/<version>/<track>/init.mp4       the head of a track file
    /t/<title>/<version>/<track>/<n>.m4s        segment n (from 1) of a track file

Only files that title.json lists are ever opened, by names checked against the grammar of ids: there is no way
from a URL to any other file. Caches are bounded; all are dropped when the store changes.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from oca.errors import FormatError
from oca.http.conditional import http_date
from oca.residency import Residency
from oca.store.content import HeldVersion, Store
from oca.title import segments
from oca.title.digest import digest
from oca.title.model import MAX_TITLE_JSON, TITLE_JSON, Title, Track
from oca.title.segments import SegmentIndex

_ID = r"[a-z0-9][a-z0-9._-]{0,63}"
_PATH = re.compile(rf"/t/({_ID})/([0-9a-f]{{32}})/({_ID})(?:/(?:(init)\.mp4|([1-9][0-9]{{0,5}})\.m4s))?")

TYPES = {
    ".mp4": "video/mp4",
    ".m4s": "video/iso.segment",
    ".mpd": "application/dash+xml",
    ".m3u8": "application/vnd.apple.mpegurl",
    ".vtt": "text/vtt; charset=utf-8",
    ".jpg": "image/jpeg",
    ".json": "application/json",
}

# Sent with every response: manifests and segments are fetched by pages from anywhere (Fetch standard, CORS).
CORS = (
    "Access-Control-Allow-Origin: *\r\n"
    "Access-Control-Expose-Headers: Content-Length, Content-Range, ETag, Date, CMSD-Static, CMSD-Dynamic\r\n"
    "Timing-Allow-Origin: *\r\n"
)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL names: a version of a title, and of it a file (`number` -1) or a slice of a track (0: init)."""

    title: str
    version: str
    name: str
    number: int


def place_of(path: str) -> Place | None:
    """What `path` (without query) names; None if it is no URL of content."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    title, version, name, init, number = match.groups()
    return Place(title, version, name, -1 if init is None and number is None else int(number or 0))


class Descriptor:
    """An open file. It closes when the last slice that needs it is gone, so a send in progress keeps it open."""

    __slots__ = ("_residency", "device", "fd", "size")

    arriving: ClassVar[bool] = False
    """Whether bytes may still have to come from elsewhere: then the subclass has `ready` and `when_ready`."""

    def __init__(self, path: Path) -> None:
        # O_NOFOLLOW: a symbolic link in a store is never ours. O_NOATIME would need ownership of the file.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        found = os.fstat(self.fd)
        self.size, self.device = found.st_size, found.st_dev
        self._residency = Residency(self.fd, self.size)

    def resident(self, offset: int, length: int) -> int:
        """How many of the `length` bytes at `offset` are in memory, from the first on."""
        return self._residency.resident(offset, length)

    def gather(self, offset: int, length: int) -> bool:
        """Read, in a thread, the blocks that `length` bytes at `offset` lie in; False if the kernel cannot."""
        return self._residency.gather(offset, length)

    def ready(self, offset: int, length: int) -> int:
        """Of an arriving file: how many of the bytes are there, 0 if none yet; OSError if they never will be."""
        raise NotImplementedError

    def when_ready(self, offset: int, length: int, done: Callable[[], None]) -> None:
        """Of an arriving file: call `done` once from the loop, later, when asking `ready` again makes sense."""
        raise NotImplementedError

    def __del__(self) -> None:
        fd = getattr(self, "fd", -1)
        if fd >= 0:
            with contextlib.suppress(OSError):  # a disk that is gone; the descriptor is closed all the same
                os.close(fd)


@dataclass(slots=True)
class Slice:
    """`length` bytes at `offset` of an open file, and what HTTP says of them. `number` -1: the whole file."""

    descriptor: Descriptor
    offset: int
    length: int
    title: str
    version: str
    track: str
    number: int
    content_type: str
    etag: str
    modified: int
    fields: str
    """Header lines common to every status: type, validators, caching, CORS."""
    head: bytes
    """Everything of a plain 200 after the Date line, the empty line included."""
    warm: float = 0.0
    """Until when (time.monotonic()) all of it is taken to be in memory, because it was found there."""
    noted: bytes = b""
    """What the access log says of each plain answer with it, once it has said so."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be said of a slice, wherever its bytes are. `etag` is quoted, `published` in seconds."""

    title: str
    version: str
    track: str
    number: int
    offset: int
    length: int
    content_type: str
    etag: str
    published: int


class _Lru(OrderedDict[K, V], Generic[K, V]):
    """A dict of at most `limit` entries that forgets the least recently used."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def touch(self, key: K) -> V | None:
        value = self.get(key)
        if value is not None:
            with contextlib.suppress(KeyError):  # another thread has just made room
                self.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self[key] = value
        if len(self) > self.limit:
            with contextlib.suppress(KeyError):
                self.popitem(last=False)


class NotLoadedError(Exception):
    """Only the disk knows."""


class _Caches:
    """What has been read from the store, in one state of its content."""

    def __init__(self, slices: int, descriptors: int, versions: int) -> None:
        self.slices: dict[str, Slice] = {}
        # The same by the beginning of a request line, "GET " and path, as it comes from the network.
        self.asked: dict[bytes, Slice] = {}
        self.most_slices = slices
        self.descriptors: _Lru[Path, Descriptor] = _Lru(descriptors)
        self.indexes: _Lru[Path, SegmentIndex] = _Lru(descriptors)
        self.versions: _Lru[tuple[str, str], HeldVersion] = _Lru(versions)
        # Asked for, and not here: a crowd that was sent to the wrong box costs the disk one look.
        self.absent: _Lru[tuple[str, str], bool] = _Lru(versions)


class Slices:
    """Finds slices by URL path: `at_hand` from the event loop, `find` from any thread. Every worker has its own."""

    def __init__(self, store: Store, *, slices: int = 16384, descriptors: int = 1024, versions: int = 1024) -> None:
        self.store = store
        self._sizes = (slices, descriptors, versions)
        self._use(_Caches(*self._sizes))
        # Files that stay open though nothing here needs them, until the second `let_go` from now: to a fill those who
        # are between two segments are being served.
        self._left: _Lru[Path, Descriptor] = _Lru(descriptors)
        self._left_before: _Lru[Path, Descriptor] = _Lru(descriptors)
        self._generation = store.generation()
        self.second = int(time.time())
        """UTC seconds, as Date has them: whoever answers keeps it current."""

    def refresh(self, generation: str) -> bool:
        """Forget everything if the store's generation is not the one of the last call; returns whether it is not."""
        if generation == self._generation:
            return False
        self._generation = generation
        self._leave()
        # Replaced, not emptied: a thread that is still reading the old state fills the old ones.
        self._use(_Caches(*self._sizes))
        return True

    def let_go(self) -> None:
        """Close the files that nobody was sent since the last call: open ones tell a fill what is being served."""
        caches, fresh = self._caches, _Caches(*self._sizes)
        self._leave()
        self._left, self._left_before = _Lru(self._left.limit), self._left
        fresh.indexes, fresh.versions, fresh.absent = caches.indexes, caches.versions, caches.absent
        self._use(fresh)

    def _use(self, caches: _Caches) -> None:
        self._caches = caches
        self.asked = caches.asked
        """Slices that were found before, by what a request line begins with: "GET " and path."""

    def _leave(self) -> None:
        for path, descriptor in list(self._caches.descriptors.items()):
            self._left.put(path, descriptor)

    def at_hand(self, path: str) -> Slice | None:
        """As `find`, but raises NotLoadedError where that would have to read from a disk."""
        caches = self._caches
        found = caches.slices.get(path)
        if found is not None:
            return found
        place = place_of(path)
        if place is None or (place.title, place.version) in caches.absent:
            return None
        held = caches.versions.get((place.title, place.version))
        if held is None or place.number < 0:
            raise NotLoadedError
        track = _track(held, place.name)
        if track is None:
            return None
        if held.directory / track.files[0] not in caches.descriptors:
            raise NotLoadedError
        if held.directory / track.files[1] not in caches.indexes:
            raise NotLoadedError
        return self.find(path)

    def find(self, path: str) -> Slice | None:
        """The slice that `path` (without query) names; None if nothing verified is held under that name.

        Raises OSError or FormatError when the store is damaged: the caller answers 500 and says so in the log.
        """
        caches = self._caches
        found = caches.slices.get(path)
        place = place_of(path) if found is None else None
        if place is not None:
            found = self._find(caches, place)
            if found is not None:
                if len(caches.slices) >= caches.most_slices:
                    # Starting over costs less than keeping order at every hit.
                    caches.slices.clear()
                    caches.asked.clear()
                caches.slices[path] = found
                caches.asked[f"GET {path}".encode()] = found
        return found

    def _find(self, caches: _Caches, place: Place) -> Slice | None:
        name = (place.title, place.version)
        held = caches.versions.touch(name)
        if held is None:
            held = self.store.held(*name)
            if held is None:
                caches.absent.put(name, True)
                return None
            caches.versions.put(name, held)
        if place.number < 0:
            return self._whole(caches, held, place.name)
        track = _track(held, place.name)
        span = self._index(caches, held, track).slice(place.number) if track is not None else None
        if track is None or span is None:
            return None
        return self._make(caches, held, track.files[0], *span, track, place.number)

    def _whole(self, caches: _Caches, held: HeldVersion, name: str) -> Slice | None:
        track = next((t for t in held.title.tracks if name in t.files), None)
        if track is not None and track.name not in held.tracks:
            return None
        if name == TITLE_JSON:
            size = (held.directory / name).stat().st_size
            if size > MAX_TITLE_JSON:
                return None
        elif name in held.title.files:
            size = held.title.files[name].bytes
        else:
            return None
        try:
            return self._make(caches, held, name, 0, size, track, -1)
        except FileNotFoundError:
            return None  # a shared file that is still on its way in

    def _index(self, caches: _Caches, held: HeldVersion, track: Track) -> SegmentIndex:
        path = held.directory / track.files[1]
        index = caches.indexes.touch(path)
        if index is None:
            data = path.read_bytes()
            if digest(data) != held.title.files[track.files[1]].digest:
                raise FormatError(f"{path} is corrupt: its digest is not the one in {TITLE_JSON}")
            index = segments.decode(data, str(path))
            if index.track_bytes > held.title.files[track.files[0]].bytes:
                raise FormatError(f"{path} is corrupt: its segments end beyond the end of {track.files[0]}")
            caches.indexes.put(path, index)
        return index

    def _make(
        self,
        caches: _Caches,
        held: HeldVersion,
        name: str,
        offset: int,
        length: int,
        track: Track | None,
        number: int,
    ) -> Slice:
        path = held.directory / name
        descriptor = caches.descriptors.touch(path)
        if descriptor is None:
            descriptor = Descriptor(path)
            caches.descriptors.put(path, descriptor)
        facts = facts_of(held.title, held.version, held.published, name, offset, length, track, number)
        return describe(descriptor, facts, self.second)


def _track(held: HeldVersion, name: str) -> Track | None:
    return next((t for t in held.title.tracks if t.name == name and name in held.tracks), None)


def facts_of(
    title: Title,
    version: str,
    published: int,
    name: str,
    offset: int,
    length: int,
    track: Track | None,
    number: int,
) -> Facts:
    """The facts of a slice of file `name`; `published` in seconds since the epoch."""
    whole = version if name == TITLE_JSON else title.files[name].digest[:32]
    return Facts(
        title=title.id,
        version=version,
        track=track.name if track else "",
        number=number,
        offset=offset,
        length=length,
        content_type=_content_type(name, track, number),
        etag=f'"{whole}"' if number < 0 else f'"{whole}-{number}"',
        published=published,
    )


def describe(descriptor: Descriptor, facts: Facts, second: int) -> Slice:
    """The slice that has these facts; `second` is that of Date, in UTC seconds."""
    # RFC 9110 8.8.2.1: never later than Date, even if the clock of the publishing box was ahead, and although the
    # Date of answers may be a second old, or more on a busy box.
    modified = min(facts.published, second)
    fields = (
        f"ETag: {facts.etag}\r\nLast-Modified: {http_date(modified)}\r\n"
        f"Cache-Control: public, max-age=31536000, immutable\r\nAccept-Ranges: bytes\r\n{CORS}"
    )
    return Slice(
        descriptor=descriptor,
        offset=facts.offset,
        length=facts.length,
        title=facts.title,
        version=facts.version,
        track=facts.track,
        number=facts.number,
        content_type=facts.content_type,
        etag=facts.etag,
        modified=modified,
        fields=fields,
        head=f"Content-Type: {facts.content_type}\r\nContent-Length: {facts.length}\r\n{fields}\r\n".encode(),
    )


def _content_type(name: str, track: Track | None, number: int) -> str:
    if number > 0:
        return TYPES[".m4s"]
    if track is not None and name.endswith(".mp4"):
        return "audio/mp4" if track.kind == "audio" else TYPES[".mp4"]
    return TYPES.get(Path(name).suffix, "application/octet-stream")
