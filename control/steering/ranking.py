"""Steering: which appliances serve a viewer, in which order, and why. Pure, and asked for every answer.

The viewer's own site comes first, then other sites by distance, then those at unknown distance, then tiers, and
origins last. That is the order by network alone; state and content only decide who is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from control.steering.coverage import Coverage, Match

LOAD_LIMIT = 0.8
"""A box with a greater share of its capacity in use counts as congested, and goes behind the others of its site."""
# Players send the pathways of one manifest, some ten at most.
MAX_PATHWAYS = 64

_ROLES = {"edge": 0, "tier": 1, "origin": 2}
Nearness = tuple[int, bool, bool, float]
_PATHWAY = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An appliance, its state, how many of the `wanted` tracks it holds, and its load, 0 to 1 of its capacity.

    `enough` of them suffice, None: all. `gate` says why its site is not live yet, "" if it is.
    """

    appliance: str
    site: str
    role: Literal["edge", "tier", "origin"]
    url: str
    alive: bool
    draining: bool
    held: int
    wanted: int
    load: float
    enough: int | None = None
    gate: str = ""

    @property
    def holds(self) -> bool:
        """Whether it holds enough."""
        return self.held >= (self.wanted if self.enough is None else self.enough)


@dataclass(frozen=True, slots=True)
class Choice:
    """What became of a candidate. `rank` counts from 0, None if it was passed over.

    `proximity` is the rank by network alone (0 nearest; equally near ones share it), whatever its state. Bytes served
    from a proximity above the least are misses.
    """

    candidate: Candidate
    rank: int | None
    proximity: int
    distance_km: float | None
    reason: str


def rank(candidates: Sequence[Candidate], client: Match | None, coverage: Coverage, key: str = "") -> list[Choice]:
    """All candidates: those that may serve the viewer, best first, then those passed over, nearest first.

    `key` names what is asked for, such as "title/version": equally near boxes are ordered by rendezvous hashing on
    it (Thaler and Ravishankar, 1998), so that a title's viewers meet the same page cache, and a box above LOAD_LIMIT
    comes after them. A box serves if it holds enough, is alive and not draining, and its site is live; if no such
    site is live, that does not count. If no box is fit, those that hold it are trusted as they are, the living first:
    an answer that may fail is better than one that surely does.
    """
    distances = {site: _distance_km(site, client, coverage) for site in {each.site for each in candidates}}
    near = [_nearness(each, client, distances[each.site]) for each in candidates]
    proximity = {nearness: number for number, nearness in enumerate(sorted(set(near)))}

    def preference(index: int) -> tuple[Nearness, bool, bytes, str]:
        each = candidates[index]
        return near[index], each.load > LOAD_LIMIT, _weight(key, each.appliance), each.appliance

    def choice(index: int, number: int | None, reason: str) -> Choice:
        each = candidates[index]
        return Choice(each, number, proximity[near[index]], distances[each.site], reason)

    ordered = sorted(range(len(candidates)), key=preference)
    holders = [index for index in ordered if candidates[index].holds]
    fit = [index for index in holders if candidates[index].alive and not candidates[index].draining]
    chosen = [index for index in fit if not candidates[index].gate] or fit
    trusted = not chosen
    if trusted:
        chosen = sorted(holders, key=lambda index: not candidates[index].alive)
    choices = []
    for number, index in enumerate(chosen):
        each = candidates[index]
        reason = _place(each, distances[each.site], client)
        if each.load > LOAD_LIMIT:
            reason += f"; load {each.load:.0%}: behind its site mates below {LOAD_LIMIT:.0%}"
        if each.gate and not trusted:
            reason += f"; {each.gate}, but nobody else can serve"
        if trusted:
            reason += f"; {_faults(each)}, but no box that holds it is fit: trusted as a last resort"
        choices.append(choice(index, number, reason))
    taken = set(chosen)
    for index in (index for index in ordered if index not in taken):
        each = candidates[index]
        reason = f"passed over: {_faults(each)}; {_place(each, distances[each.site], client)}"
        choices.append(choice(index, None, reason))
    return choices


def steering_document(ranked: Sequence[str], ttl_s: int, reload_uri: str) -> bytes:
    """The content steering manifest, one for HLS (draft-pantos-hls-rfc8216bis) and DASH (ETSI TS 103 998).

    `ranked` are pathway ids, best first, at least one; `ttl_s` seconds until the player asks `reload_uri` again.
    """
    document = {"VERSION": 1, "TTL": ttl_s, "RELOAD-URI": reload_uri, "PATHWAY-PRIORITY": list(ranked)}
    return json.dumps(document, separators=(",", ":")).encode()


def pathways(value: str) -> list[str]:
    """The pathway ids in a `_DASH_pathway` or `_HLS_pathway` parameter, quoted or not; anything else is ignored."""
    listed = value.strip().strip('"').split(",", MAX_PATHWAYS)[:MAX_PATHWAYS]
    return list(dict.fromkeys(each for each in map(str.strip, listed) if _PATHWAY.fullmatch(each)))


def _nearness(candidate: Candidate, client: Match | None, km: float | None) -> Nearness:
    """Sorts by network alone: kind of box, the own site first, then known distances by km, then unknown ones."""
    own = client is not None and candidate.site == client.zone
    return _ROLES[candidate.role], not own, km is None, km or 0.0


def _distance_km(site: str, client: Match | None, coverage: Coverage) -> float | None:
    return None if client is None else coverage.distance_km(client.zone, site)


def _weight(key: str, appliance: str) -> bytes:
    """The lot that an appliance draws for a key; the least comes first."""
    return blake3(f"{key}\0{appliance}".encode()).digest(length=8)


def _place(candidate: Candidate, km: float | None, client: Match | None) -> str:
    """Where a candidate is, seen from the viewer."""
    site = f"site {candidate.site}" if candidate.role == "edge" else f"{candidate.role} in site {candidate.site}"
    if client is None:
        return f"{site}, the viewer's zone is unknown"
    if candidate.site == client.zone:
        return f"{site}, the viewer's own by {client.prefix} ({client.source})"
    if km is None:
        return f"{site}, at unknown distance from the viewer's zone {client.zone}"
    return f"{site}, {km:,.0f} km from the viewer's zone {client.zone}"


def _faults(candidate: Candidate) -> str:
    """All that keeps a candidate from serving, content first."""
    faults = []
    if not candidate.holds:
        faults.append(f"holds {candidate.held} of {candidate.wanted} tracks")
    if not candidate.alive:
        faults.append("not heard of in time")
    if candidate.draining:
        faults.append("draining")
    if candidate.gate:
        faults.append(candidate.gate)
    return ", ".join(faults)
