"""Liveness: whether enough boxes of a site hold enough of a version for its viewers to be sent there. Pure.

Until then they go elsewhere, in the end to an origin: a site whose first box has just got a title would put all its
viewers on that one box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta


class LiveSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[live]: when a title is live in a site."""

    boxes: Annotated[
        int, Meta(ge=1, description="appliances of a site that must hold a title before its viewers are sent there")
    ] = 1
    share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="share of a title's tracks that counts as holding it; below 1 only where boxes pass on what "
            "they lack (on_miss)",
        ),
    ] = 1.0


@dataclass(frozen=True, slots=True)
class Holding:
    """An edge of a site, whether it serves viewers now, and how many of the tracks asked for it holds."""

    appliance: str
    site: str
    serving: bool
    held: int


def enough(wanted: int, settings: LiveSettings) -> int:
    """How many of so many tracks count as holding a version."""
    # 0.1 * 30 is a little more than 3 to a computer.
    return max(1, math.ceil(wanted * settings.share - 1e-9))


def gates(boxes: Iterable[Holding], wanted: int, settings: LiveSettings) -> Mapping[str, str]:
    """By site what keeps a version from being live there, "" for nothing. `wanted` are the tracks asked for.

    A site with fewer boxes than the settings ask for is live once all of those that serve hold it.
    """
    serving: dict[str, list[Holding]] = {}
    for box in boxes:
        serving.setdefault(box.site, [])
        if box.serving:
            serving[box.site].append(box)
    found = {}
    for site, those in serving.items():
        needed = min(settings.boxes, len(those))
        holding = sum(box.held >= enough(wanted, settings) for box in those)
        found[site] = "" if holding >= needed else f"not live in {site}: {holding} of {needed} appliances hold it"
    return found
