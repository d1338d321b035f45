"""A viewer that checks every byte: asks steering, fetches a whole title from where it was sent, compares."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import msgspec

from oca.errors import OcaError
from oca.title import model as title
from oca.title import segments
from oca.title.digest import digest, version_of

_DASH = "{urn:mpeg:dash:schema:mpd:2011}"
_TIMEOUT = aiohttp.ClientTimeout(total=60)


class ViewingError(OcaError):
    """What a viewer got is not what was published, or nobody gave it."""


@dataclass(frozen=True)
class Steered:
    """Where a manifest and steering send this viewer: ids in order, base URLs by id, and the steering URL."""

    order: list[str]
    bases: dict[str, str]
    steering: str

    @property
    def first(self) -> str:
        """The appliance to use now."""
        return self.order[0]


@dataclass(frozen=True)
class Watched:
    """What was fetched and found right: segments of all tracks, and their bytes."""

    appliance: str
    segments: int
    bytes: int


async def get(session: aiohttp.ClientSession, url: str) -> bytes:
    """The body of a 200; ViewingError with a sentence for everything else."""
    try:
        async with session.get(url) as response:
            data = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ViewingError(f"{url} could not be fetched: {error or type(error).__name__}") from None
    if response.status != 200:
        raise ViewingError(f"{url} answered {response.status}: {data[:200].decode('utf-8', 'replace').strip()}")
    return data


async def steered(session: aiohttp.ClientSession, controller: str, title_id: str) -> Steered:
    """Fetch the personalised MPD, and the steering document that it names."""
    mpd = ET.fromstring(await get(session, f"{controller}/play/{title_id}/manifest.mpd"))
    bases = {e.get("serviceLocation", ""): (e.text or "").strip() for e in mpd.iter(f"{_DASH}BaseURL")}
    element = mpd.find(f"{_DASH}ContentSteering")
    if element is None or not element.text or not bases:
        raise ViewingError(f"the manifest of {title_id} names no locations or no steering")
    document = msgspec.json.decode(await get(session, element.text.strip()))
    order = [pathway for pathway in document["PATHWAY-PRIORITY"] if pathway in bases]
    if not order:
        raise ViewingError(f"steering sends viewers of {title_id} to none of the locations in its manifest")
    return Steered(order, bases, element.text.strip())


async def watch(
    session: aiohttp.ClientSession, base: str, appliance: str, progress: Callable[[int], None]
) -> Watched:
    """Fetch every file and every segment of every track below `base`; each byte must be what title.json says.

    Only segments count, each once; init segments and the files themselves are checked as well. `progress` gets the
    bytes of each segment. ViewingError says what was not as published.
    """
    data = await get(session, f"{base}title.json")
    published = title.decode(data, f"{base}title.json")
    if version_of(data) != urlsplit(base).path.rstrip("/").rpartition("/")[2]:
        raise ViewingError(f"{base}title.json is not the version that its URL names")
    for name in published.shared_files:
        if digest(await get(session, base + name)) != published.files[name].digest:
            raise ViewingError(f"{base}{name} is not what was published")
    fetched, count = 0, 0
    for track in published.tracks:
        media, listed = [await get(session, base + name) for name in track.files]
        for name, got in zip(track.files, (media, listed), strict=True):
            if digest(got) != published.files[name].digest:
                raise ViewingError(f"{base}{name} is not what was published")
        index = segments.decode(listed, f"{base}{track.name}.idx")
        for number in range(len(index.segments) + 1):
            name = f"{track.name}/{number}.m4s" if number else f"{track.name}/init.mp4"
            span = index.slice(number)
            got = await get(session, base + name)
            if span is None or got != media[span[0] : span[0] + span[1]]:
                raise ViewingError(f"{base}{name} is not the slice of {track.name}.mp4 that its index says")
            if number:
                fetched, count = fetched + len(got), count + 1
                progress(len(got))
    return Watched(appliance, count, fetched)


async def moved_on(
    session: aiohttp.ClientSession, controller: str, title_id: str, gone: str, seconds: float
) -> Steered:
    """Ask steering until it no longer names `gone`; ViewingError after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                now = await steered(session, controller, title_id)
                if gone not in now.order:
                    return now
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise ViewingError(f"steering still names {gone} {seconds:.0f} s after its death") from None


def session() -> aiohttp.ClientSession:
    """A client that neither keeps cookies nor gives up early."""
    return aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar())
