"""Targets: what boxes, controllers and the processes of one box tell each other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import lz4.frame

from control.http import client_address
from oca import wire
from oca.errors import FormatError
from oca.miss import errand, hops, neighbours
from oca.trust import wire_enrolment
from oca.wire import Message
from tests.fuzz.check import refused

# Sorted, so that the first byte of an input means the same kind for as long as there are no new ones.
_KINDS: list[type[Message]] = sorted(
    (
        kind
        for module in (wire, wire_enrolment)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
    ),
    key=lambda kind: kind.__name__,
)
_LOCATION = re.compile(r"https?://[!-~]+")
_TRUSTED = ("127.0.0.1", "::1", "192.0.2.1")


def _squeezed(data: bytes) -> bytes:
    """The first byte says whether the rest is an lz4 frame, or what is to be in one."""
    return data[1:] if data[:1] > b"\x7f" else bytes(lz4.frame.compress(data[1:]))


def kinds() -> list[str]:
    """The names of the messages, in the order in which the first byte of an input counts them."""
    return [kind.__name__ for kind in _KINDS]


def message(data: bytes) -> None:
    """The first byte chooses the kind of message, the rest is its JSON."""
    kind = _KINDS[data[0] % len(_KINDS)] if data else Message
    try:
        found = wire.decode(data[1:], kind, "a message")
    except FormatError as error:
        refused(error)
        return
    assert wire.decode(wire.encode(found), kind, "a message") == found, "written and read, it is another"


def bulk(data: bytes) -> None:
    """An inventory in an lz4 frame."""
    try:
        found = wire.unpack(_squeezed(data), wire.Inventory, "an inventory")
    except FormatError as error:
        refused(error)
        return
    assert wire.unpack(wire.pack(found), wire.Inventory, "an inventory") == found


def neighbours_file(data: bytes) -> None:
    """The file of neighbours, and where it leads viewers."""
    squeezed = _squeezed(data)
    try:
        known = neighbours.decode(squeezed, "north-1", "neighbours")
    except FormatError as error:
        refused(error)
        return
    for row in wire.unpack(squeezed, wire.Neighbours, "neighbours").held:
        assert known.published(row.title, row.version) >= 0
        for name in (*row.tracks, *(f"{track}.mp4" for track in row.tracks), "manifest.mpd"):
            for holder in known.holders(row.title, row.version, name):
                assert holder in known.boxes
            target = f"/t/{row.title}/{row.version}/{name}"
            location = hops.redirect(target, "north-1", known.holders(row.title, row.version, name))
            assert location is None or _LOCATION.fullmatch(location), f"a redirect to {location!r}"


def redirect(data: bytes) -> None:
    """The query of a request that is redirected."""
    query = data.decode("utf-8", "surrogateescape")
    holders = [
        wire.Source(appliance=name, url=f"http://{name}.example:8080", rank="peer") for name in ("a", "b", "c", "d")
    ]
    target, seen = f"/t/clip/v1.mp4?{query}", 0
    while (location := hops.redirect(target, "me", holders)) is not None:
        assert _LOCATION.fullmatch(location), f"a redirect to {location!r}"
        been = hops.been_to(location.partition("?")[2])
        assert been[-1] == "me", "it forgets where it has been"
        assert location.partition("://")[2][0] not in hops.been_to(query), "a loop"
        seen += 1
        assert seen <= hops.MOST, "it goes on for ever"
        target = "/t/clip/v1.mp4?" + location.partition("?")[2]


async def _feed(data: bytes, kind: object) -> list[object]:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return [found async for found in errand.messages(reader, kind)]


def errands(data: bytes) -> None:
    """What worker and puller say to each other; the first byte says who speaks."""
    kind = errand.FromWorker if data[:1] < b"\x80" else errand.FromPuller
    for said in _attempt(data[1:], kind):
        assert _attempt(errand.pack(said), kind) == [said], "packed and read, it is another"


def _attempt(data: bytes, kind: object) -> list[object]:
    try:
        return asyncio.run(_feed(data, kind))
    except FormatError as error:
        refused(error)
        return []


def forwarded(data: bytes) -> None:
    """X-Forwarded-For: lines of the field; the first says who the peer is."""
    peer, *lines = data.decode("utf-8", "surrogateescape").split("\n")
    found = client_address(peer, lines, _TRUSTED)
    if peer not in _TRUSTED:
        assert found == peer, "somebody who is not trusted is believed"
    elif found != peer:
        assert found not in _TRUSTED
        assert found in _hops(lines), f"nobody said {found!r}"


def _hops(lines: list[str]) -> Iterator[str]:
    return (part.strip() for line in lines for part in line.split(","))
