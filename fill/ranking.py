"""The ranking of sources: who an appliance should fetch a track from, and how long to wait for somebody nearer. Pure.

Own site's peers come first, then tiers, then origins, of each the nearest first; edges of other sites are never
asked, their uplinks belong to their viewers. So that a site pulls a track across its uplink once, one of the
appliances that want it there (or as many as `Escalation` says) is its fill master and goes up at once; the others
give it time to become their peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from msgspec import Meta

from fill.difference import WantedTrack
from oca.wire import FillManifest, Source

UNKNOWN_COST = 1_000_000
"""The cost of a way of which nothing is known: above all others."""
Role = Literal["edge", "tier", "origin"]
_ORDER = {"peer": 0, "tier": 1, "origin": 2}
_ROLES: dict[str, Role] = {"peer": "edge", "tier": "tier", "origin": "origin"}


class Escalation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[escalation]: who of a site goes upstream for a track that its site lacks."""

    masters: Annotated[
        int, Meta(ge=1, description="appliances of a site that go upstream for a track at once; each pulls all of it")
    ] = 1
    wait_s: Annotated[
        float, Meta(ge=0, description="seconds for which the others wait for one of them to have it")
    ] = 60.0


ONE_MASTER = Escalation()
AT_WORK_S = 86_400.0
"""How long a fill master is waited for while its fill goes on: however long its window is."""


@dataclass(frozen=True, slots=True)
class Holder:
    """An appliance that holds a track, or wants it."""

    appliance: str
    site: str
    role: Role
    url: str
    alive: bool = True
    cost: int = 0
    """What the way to it costs: kilometres, unless somebody knows better."""
    filling: bool = False
    """Whether a fill goes on there now."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a box as a source. `rank` counts from 0, None if it is none; `wait_s` before it may be asked."""

    appliance: str
    rank: int | None
    wait_s: float
    reason: str


def sources(
    me: Holder,
    holders: Sequence[Holder],
    wanting: Sequence[Holder],
    track: str,
    escalation: Escalation = ONE_MASTER,
) -> list[Source]:
    """Where `me` may fetch `track` (any string that names it), best first; dead holders are left out.

    `wanting` are those to whom the plan gives the track and who lack it, `me` among them or not. All but the fill
    masters of their site are told to wait before they turn to a source outside it.
    """
    masters = fill_masters(me, wanting, track, escalation.masters)
    wait_s = 0.0
    if me.appliance not in masters:
        # It may have much to fetch before this: as long as it is at work it will come.
        at_work = any(rival.filling for rival in wanting if rival.appliance in masters)
        wait_s = AT_WORK_S if at_work else escalation.wait_s
    found = []
    for holder in holders:
        rank = _rank(me, holder)
        if rank is not None and holder.alive and holder.appliance != me.appliance:
            wait = 0.0 if rank == "peer" else wait_s
            found.append(Source(appliance=holder.appliance, url=holder.url, rank=rank, wait_s=wait, cost=holder.cost))

    def place(source: Source) -> tuple[int, int, bytes]:
        # Of those equally near every appliance has an order of its own for every track: the load spreads by itself.
        return _ORDER[source.rank], source.cost, _weight(track, me.appliance, source.appliance)

    return sorted(found, key=place)


def explain(
    me: Holder,
    holders: Sequence[Holder],
    wanting: Sequence[Holder],
    track: str,
    everybody: Sequence[Holder],
    escalation: Escalation = ONE_MASTER,
) -> list[Verdict]:
    """The sources of `sources`, best first, then all others of `everybody`, each with the reason."""
    ranked = sources(me, holders, wanting, track, escalation)
    masters = fill_masters(me, wanting, track, escalation.masters)
    found = []
    for number, source in enumerate(ranked):
        way = "unknown distance" if source.cost == UNKNOWN_COST else f"{source.cost:,} km"
        reason = f"a peer in site {me.site}" if source.rank == "peer" else f"{source.rank}, {way} away"
        if source.wait_s:
            who = f"{' and '.join(masters)} {'go' if len(masters) > 1 else 'goes'} upstream for site {me.site}"
            long = "while its fill goes on" if source.wait_s == AT_WORK_S else f"{source.wait_s:.0f} s"
            reason += f"; {who}: wait {long} for {'one of them' if len(masters) > 1 else 'it'} to be a peer"
        elif source.rank != "peer":
            one = f"one of the {len(masters)} that go" if len(masters) > 1 else "the one that goes"
            reason += f"; {me.appliance} is {one} upstream for site {me.site}"
        found.append(Verdict(source.appliance, number, source.wait_s, reason))
    having, taken = {holder.appliance for holder in holders}, {source.appliance for source in ranked}
    for other in sorted(everybody, key=lambda box: box.appliance):
        if other.appliance not in taken:
            found.append(Verdict(other.appliance, None, 0.0, _no_source(me, other, other.appliance in having)))
    return found


def _no_source(me: Holder, other: Holder, holds: bool) -> str:
    if other.appliance == me.appliance:
        return "holds it: there is nothing to fetch" if holds else "the one that asks"
    if not holds:
        return "does not hold it"
    if _rank(me, other) is None:
        return f"an edge of site {other.site}: its line is for its own viewers"
    return "not heard of in time"


def fill_masters(me: Holder, wanting: Sequence[Holder], track: str, most: int = 1) -> list[str]:
    """The appliances of my site that go upstream for `track`: the highest in rendezvous hashing of those alive.

    When one of them dies or is done only its own tracks change hands (Thaler and Ravishankar, 1998).
    """
    rivals = {rival.appliance for rival in wanting if rival.alive and rival.site == me.site} | {me.appliance}
    return sorted(rivals, key=lambda appliance: _weight(track, appliance), reverse=True)[:most]


def guess(manifest: FillManifest, wanted: WantedTrack) -> list[Source]:
    """Whom to ask for a track while no controller tells who holds it: any of the manifest's boxes may have it.

    As far as anybody here knows, all boxes of the site want it, so that only its fill master goes upstream at once.
    """
    me = Holder(manifest.appliance, "here", "edge", "")
    boxes = [
        Holder(box.appliance, "here" if box.rank == "peer" else "elsewhere", _ROLES[box.rank], box.url)
        for box in manifest.boxes
    ]
    peers = [box for box in boxes if box.site == me.site]
    return sources(me, boxes, peers, f"{wanted.version}/{wanted.track}")


def _rank(me: Holder, holder: Holder) -> Literal["peer", "tier", "origin"] | None:
    if holder.role == "origin":
        return "origin"
    if holder.site == me.site:
        return "peer"
    return "tier" if holder.role == "tier" else None


def _weight(*names: str) -> bytes:
    # Names are ids, which hold no line feed: joined by one, no two lists of names are the same string.
    return blake3("\n".join(names).encode()).digest(length=8)
