"""Every message between appliance and controller, in one place.

JSON bodies; those that can be long (inventory, neighbours) as an lz4 frame of JSON. A message carries its format
number; a newer one is refused with a sentence, unknown fields are ignored, known fields are checked strictly. Times
are UTC in seconds since the epoch. Rates are bit/s, sizes bytes. Every call is idempotent.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import lz4.frame
import msgspec
from msgspec import Meta

from oca.errors import FormatError
from oca.title.model import check_format

FORMAT = 1
# Decompressed; 100,000 tracks held are some 6 MB. More is an attack, or a bug.
MAX_BODY = 64 << 20

# \Z and not $, which would let a line end pass. A Url goes into manifests as it is: host and port, nothing to quote.
Id = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
VersionId = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Url = Annotated[str, Meta(pattern=r"^https?://[A-Za-z0-9._~%:\[\]-]+\Z", max_length=256)]
# A presigned URL: where an object is, and in its query who lets it be read, how long, and their signature.
SignedUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[A-Za-z0-9._~%:\[\]-]+(/[A-Za-z0-9._~%-]+)+\?[A-Za-z0-9._~%&=+/-]+\Z", max_length=16_384
    ),
]
# What a database column holds.
Natural = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every message carries: the number of its format."""

    format: int = FORMAT


# Local times from and to, such as 22:00-06:00; from a time to the same is a day.
Stretch = Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]-(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)\Z")]


class FillTerms(msgspec.Struct, frozen=True, kw_only=True):
    """When a box may fetch, by the clock of an IANA time zone, and how much at most in bit/s."""

    windows: Annotated[list[Stretch], Meta(max_length=100)]
    timezone: Annotated[str, Meta(max_length=64)]
    rate_bps: Natural


class Heartbeat(Message, frozen=True, kw_only=True):
    """POST /api/v1/appliances/{appliance}/heartbeat: alive, and this is my load."""

    appliance: Id
    at: float
    started: float
    url: Url
    inventory: str  # generation of the store; the controller asks for the inventory when it has another
    storage_bytes: Natural
    used_bytes: Natural
    connections: Natural = 0
    sending_bps: Natural = 0
    requests: Natural = 0
    hits: Natural = 0
    draining: bool = False
    neighbours: str = ""  # generation of the neighbours it knows
    sent_bytes: Natural = 0  # to viewers, since `started`
    fill: FillTerms | None = None
    damaged: Natural = 0  # files found damaged in the last 30 days, mended or not


class HeartbeatReply(Message, frozen=True, kw_only=True):
    """How long to wait until the next heartbeat, what time it is, and whether the inventory is wanted now.

    `fill`, `neighbours` and `revocations` are the generations that GET fill, GET neighbours and GET revocations would
    give now; that of `fill` is its ETag without the quotes.
    """

    time: float
    interval_s: float
    fill: str
    send_inventory: bool = False
    neighbours: str = ""
    revocations: str = ""


class HeldTracks(msgspec.Struct, frozen=True):
    """Names of the tracks held of one version."""

    title: Id
    version: VersionId
    tracks: list[Id]


class Inventory(Message, frozen=True, kw_only=True):
    """PUT /api/v1/appliances/{appliance}/inventory, lz4: everything held, replacing what was told before."""

    appliance: Id
    generation: str
    held: list[HeldTracks]


class FillItem(msgspec.Struct, frozen=True, kw_only=True):
    """Tracks of one version that the plan wants on an appliance; manifests have the highest value per byte first."""

    title: Id
    version: VersionId
    published: Natural
    tracks: list[Id]
    bytes: Natural
    value: float = 0.0


class Doomed(msgspec.Struct, frozen=True):
    """A version that no box is to hold any longer."""

    title: Id
    version: VersionId


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a track may be fetched, and how many seconds to prefer earlier sources before turning to this one.

    Sources of one rank and one `cost` are as good as each other. A bucket of an S3 service is a source, too: then
    `appliance` is what the controller calls it, `objects` has a URL for each file of the track, for `objects_s`
    seconds, and nothing lies under `url` itself.
    """

    appliance: Id
    url: Url
    rank: Literal["peer", "tier", "origin"]
    wait_s: float = 0.0
    cost: Natural = 0
    objects: dict[Id, SignedUrl] = {}
    objects_s: Annotated[float, Meta(ge=0, le=604_800)] = 0.0

    @property
    def place(self) -> str:
        """What tells it from others: buckets of one service have its URL in common."""
        return f"{self.url}#{self.appliance}" if self.objects else self.url


class FillManifest(Message, frozen=True, kw_only=True):
    """GET /api/v1/appliances/{appliance}/fill: all that the plan in force wants there, with a strong ETag.

    `plan` is 0 while there is no plan; then nothing is filled and nothing removed. `force` asks to fill now,
    window or not; it is the number of the operator's order, reported back so that it is obeyed once. While `paused`,
    nothing is fetched, whatever else is said. What is `doomed` goes from the store, whether room is needed or not.

    `boxes` and `uplink_bps` are for when no controller can be reached: who else to ask for a track, and how much of
    its site's line the box may take then, None without a limit.
    """

    appliance: Id
    plan: Natural
    items: list[FillItem]
    force: Natural = 0
    paused: bool = False
    doomed: list[Doomed] = []
    boxes: list[Source] = []
    uplink_bps: Natural | None = None


class FillLease(Message, frozen=True, kw_only=True):
    """POST /api/v1/appliances/{appliance}/fill-lease: what a box that fills may take of its site's line.

    `rate_bps` bit/s for `seconds`, then it asks again; None without a limit, 0 when there is nothing left for now.
    """

    rate_bps: Natural | None
    seconds: Annotated[float, Meta(gt=0, le=3600)]


class Track(msgspec.Struct, frozen=True):
    """A track by its names: the numbers that a controller has for tracks are its own."""

    title: Id
    version: VersionId
    track: Id


class SourcesOrder(Message, frozen=True, kw_only=True):
    """POST /api/v1/appliances/{appliance}/sources: where may these tracks be fetched? Answered by `Sources`."""

    tracks: Annotated[list[Track], Meta(min_length=1, max_length=100)]


class Sources(Message, frozen=True, kw_only=True):
    """For each track asked for, in that order, its sources ranked, best first.

    None of a track that nobody has to give, or that the catalog does not know.
    """

    tracks: list[list[Source]]


class HeldElsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds one version: for each track, indexes into the list of boxes, best first. Times in seconds."""

    title: Id
    version: VersionId
    published: Natural
    tracks: dict[Id, list[Natural]]


class Neighbours(Message, frozen=True, kw_only=True):
    """GET /api/v1/appliances/{appliance}/neighbours, lz4: the other boxes as one appliance sees them, nearest first.

    Enough to redirect viewers and to pull content while no controller can be reached. Of each track some of its
    holders that were alive, and every origin that holds it.
    """

    appliance: Id
    generation: str
    boxes: list[Source]
    held: list[HeldElsewhere]


FillState = Literal["waiting", "fetching", "done", "failed"]


class FillProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far one track is. `bytes` counts verified bytes, `fetched` what each source (by appliance id) gave."""

    title: Id
    version: VersionId
    track: Id
    state: FillState
    bytes: Natural
    total: Natural
    fetched: dict[Id, Natural] = {}
    error: Annotated[str, Meta(max_length=500)] = ""


class FillReport(Message, frozen=True, kw_only=True):
    """POST /api/v1/appliances/{appliance}/fill-report: state of the current run; `batch` makes a repeat harmless."""

    appliance: Id
    batch: Annotated[str, Meta(max_length=64)]
    plan: Natural
    at: float
    force: Natural = 0
    finished: bool = False
    outside_window: bool = False
    progress: list[FillProgress]


M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The JSON body of a message."""
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[M], where: str) -> M:
    """Read and check a JSON body; `where` (such as "heartbeat of north-1") names it in a FormatError."""
    if len(data) > MAX_BODY:
        raise FormatError(f"{where} is {len(data)} bytes long, more than the {MAX_BODY} allowed")
    check_format(data, FORMAT, where)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{where} is corrupt: {error}") from None


def pack(message: Message) -> bytes:
    """The body of a bulk message: an lz4 frame of its JSON."""
    return bytes(lz4.frame.compress(encode(message)))


def unpack(data: bytes, kind: type[M], where: str) -> M:
    """Read and check a bulk body, never inflating it beyond MAX_BODY bytes."""
    try:
        with lz4.frame.LZ4FrameDecompressor() as frame:
            plain = frame.decompress(data, max_length=MAX_BODY)
            if not frame.eof:
                raise FormatError(f"{where} is corrupt: its lz4 frame is cut short or beyond {MAX_BODY} bytes")
            if frame.unused_data:
                raise FormatError(f"{where} is corrupt: there is something behind its lz4 frame")
    except RuntimeError as error:
        raise FormatError(f"{where} is corrupt: {error}") from None
    return decode(plain, kind, where)
