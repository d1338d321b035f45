"""Buckets of S3 services as origins: which versions each holds whole, and URLs by which appliances may fetch them.

The keys stay here: they are read from a file or the environment, and go neither into the database nor over the wire.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta

from control.state import State, UnknownError, Version
from fill.ranking import Holder
from oca.errors import ConfigError, FormatError, OcaError
from oca.ids import is_id, is_version
from oca.objectstore import Bucket, Keys, Place, keys
from oca.title.digest import version_of
from oca.title.model import TITLE_JSON, decode
from oca.wire import Id, Source

_log = structlog.get_logger()
_TICK_S = 1.0
# Questions at a time: they take threads that others use, too.
_AT_ONCE = 4
# Before a bucket that could not be asked is asked again.
_RETRY_S = 10.0
Key = tuple[str, str]
"""Title and version."""


class OriginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[origins]]: a bucket that holds versions as `oca-pack publish` puts them there."""

    name: Annotated[Id, Meta(description="what it is called in fills; no appliance may have the same name")]
    bucket: Annotated[str, Meta(description="where it is: s3://BUCKET or s3://BUCKET/PREFIX")]
    endpoint: Annotated[str, Meta(description="URL of the S3 service, as appliances reach it too; '' for AWS")] = ""
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}\Z", description="region of the bucket")] = "us-east-1"
    site: Annotated[
        str, Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?\Z", description="site it stands in, for distances")
    ] = ""
    key_file: Annotated[
        str,
        Meta(
            description="file with access_key_id and secret_access_key as TOML, mode 600; '' takes AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY from the environment"
        ),
    ] = ""
    url_life_s: Annotated[
        int,
        Meta(
            ge=60,
            le=604_800,
            description="seconds for which a URL that a box gets may be used",
            extra={"danger": "too long: who gets hold of one reads the file for so long"},
        ),
    ] = 3600
    look_s: Annotated[
        int, Meta(ge=1, description="seconds after which it is asked again what it holds; new titles are at once")
    ] = 300


@dataclass(slots=True)
class Origin:
    """One bucket, and what is known of it."""

    settings: OriginSettings
    place: Place
    _opened: tuple[Keys, Bucket] | None = None
    held: frozenset[Key] = frozenset()
    asked: frozenset[Key] = frozenset()
    """What it has been asked about since the last look at all."""
    looked_at: float = float("-inf")
    rests_until: float = float("-inf")
    problem: str = ""
    """Why it could not be asked last, '' if it could."""

    def bucket(self) -> Bucket:
        """The bucket, opened with the keys that are there now. OcaError if there are none. Reads the disk."""
        found = keys(Path(self.settings.key_file) if self.settings.key_file else None)
        if self._opened is None or self._opened[0] != found:
            self._opened = (found, Bucket(self.place, found))
        return self._opened[1]


@dataclass(slots=True)
class Origins:
    """All buckets of the settings, by name."""

    by_name: dict[str, Origin] = field(default_factory=dict)
    _ends: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @classmethod
    def of(cls, settings: Sequence[OriginSettings]) -> Origins:
        """Those of the settings; ConfigError if one of them cannot be meant."""
        made = cls({each.name: Origin(each, Place(each.bucket, each.endpoint, each.region)) for each in settings})
        if len(made.by_name) != len(settings):
            raise ConfigError("two of [[origins]] have the same name")
        for origin in made.by_name.values():
            origin.bucket()
        return made

    def check(self, appliances: Container[str]) -> None:
        """ConfigError if one of them has the name of an appliance: fills tell by names whence bytes came."""
        for name in self.by_name:
            if name in appliances:
                raise ConfigError(f"[[origins]] {name} has the name of an appliance: give it another one")

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def one(self, name: str) -> Origin:
        """The origin of this name; UnknownError if there is none."""
        found = self.by_name.get(name)
        if found is None:
            raise UnknownError(f"there is no bucket {name[:64]!r}: [[origins]] in control.toml lists them")
        return found

    def holders(self, version: Version | None, cost: Callable[[str], int]) -> list[Holder]:
        """Those that hold a version, all of them without one; `cost` tells that of the way from a site."""
        key = (version.title.id, version.version) if version is not None else None
        return [
            Holder(name, origin.settings.site, "origin", origin.place.url, True, cost(origin.settings.site))
            for name, origin in self.by_name.items()
            if key is None or key in origin.held
        ]

    def holds(self, key: Key) -> list[str]:
        """Names of those that hold a version, in the catalog or not."""
        return sorted(name for name, origin in self.by_name.items() if key in origin.held)

    def signed(self, sources: Iterable[Source], version: Version, track: str) -> list[Source]:
        """The sources, with URLs for the files of a track where they are buckets; without those that cannot sign."""
        files = next(each.files for each in version.title.tracks if each.name == track)
        names = [TITLE_JSON, *version.title.shared_files, *files]
        found = []
        for source in sources:
            origin = self.by_name.get(source.appliance)
            if origin is None:
                found.append(source)
                continue
            life = origin.settings.url_life_s
            try:
                objects = origin.bucket().sign(version.title.id, version.version, names, life)
            except OcaError as error:
                self._note(origin, str(error))
                continue
            found.append(msgspec.structs.replace(source, objects=objects, objects_s=float(life)))
        return found

    def _note(self, origin: Origin, problem: str) -> None:
        """Keep what is wrong with an origin, and say it once."""
        if problem and problem != origin.problem:
            _log.error("an origin's bucket cannot be used", origin=origin.settings.name, detail=problem)
        origin.problem = problem

    async def follow(self, state: State) -> None:
        """Keep what the buckets hold current, until cancelled: what is new in the catalog at once."""
        while True:
            known = frozenset((title.id, version) for title in state.titles.values() for version in title.versions)
            await asyncio.gather(*(self._look(origin, known) for origin in self.by_name.values()))
            await asyncio.sleep(_TICK_S)

    async def _look(self, origin: Origin, known: frozenset[Key]) -> None:
        now = time.monotonic()
        if now < origin.rests_until:
            return
        due = now - origin.looked_at >= origin.settings.look_s
        wanted = known if due else known - origin.asked
        origin.asked = known if due else origin.asked | wanted
        if due:
            origin.looked_at = now
        if wanted:
            await self.ask(origin, wanted)

    async def ask(self, origin: Origin, wanted: Collection[Key]) -> None:
        """Find out which versions an origin holds. What was known of them stays where it cannot be asked."""
        try:
            bucket = await asyncio.to_thread(origin.bucket)
            found = await asyncio.gather(*(self._held(bucket, key) for key in wanted))
        except OcaError as error:
            self._note(origin, str(error))
            origin.asked -= set(wanted)
            origin.rests_until = time.monotonic() + _RETRY_S
            return
        origin.held = (origin.held - set(wanted)) | {key for key in found if key is not None}
        self._note(origin, "")

    async def _held(self, bucket: Bucket, key: Key) -> Key | None:
        async with self._ends:
            return key if await asyncio.to_thread(bucket.holds, *key) else None

    async def titles(self, origin: Origin) -> dict[str, list[str]]:
        """The whole versions of every title in a bucket, in the catalog or not."""
        bucket = await asyncio.to_thread(origin.bucket)

        def read() -> dict[str, list[str]]:
            names = [name for name in bucket.titles() if is_id(name)]
            return {name: _whole(bucket, name) for name in names}

        return await asyncio.to_thread(read)

    async def read(self, origin: Origin, title: str, version: str) -> tuple[bytes, dict[str, bytes], int]:
        """title.json of a version ('': the only one), the indexes of its tracks, and when it was published."""
        bucket = await asyncio.to_thread(origin.bucket)
        return await asyncio.to_thread(_read, bucket, title, version)


def _whole(bucket: Bucket, title: str) -> list[str]:
    return [name for name in bucket.versions(title) if is_version(name) and bucket.holds(title, name)]


def _read(bucket: Bucket, title: str, version: str) -> tuple[bytes, dict[str, bytes], int]:
    if not version:
        there = _whole(bucket, title)
        if len(there) != 1:
            words = f"{len(there)} versions: name one, such as {there[-1]}" if there else "no version that is whole"
            raise UnknownError(f"{bucket.place}/{title} holds {words}")
        version = there[0]
    where = f"{bucket.place}/{title}/{version}/{TITLE_JSON}"
    data, published = bucket.read(title, version, TITLE_JSON)
    if version_of(data) != version:
        raise FormatError(f"{where} is corrupt: it is not the one of version {version}; publish the version again")
    read = decode(data, where)
    if read.id != title:
        raise FormatError(f"{where} is of title {read.id}, not {title}")
    indexes = {}
    for track in read.tracks:
        name = track.files[1]
        indexes[track.name], _ = bucket.read(title, version, name, read.files[name].bytes)
    return data, indexes, published
