"""The placement plan: which tracks each appliance should hold, and why. Pure.

The objective is bytes served locally in the next 24 h, weighed by each title's boost. A title is placed whole,
because a player must find every rung that it was offered: an item of the knapsack is a version with all its tracks.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from control.placement import knapsack
from oca.errors import OcaError

# Each further copy in a site is worth this share of the copy before: it serves nobody whom the first would not, but
# for when that one is down or busy. Small, so that small boxes first share the work; not 0, so that large ones then
# hold copies.
COPY_SHARE = 0.05
# Titles that a plan lists as passed over, per appliance: an operator looks for the first, nobody reads 100,000.
MAX_PASSED_OVER = 50


@dataclass(frozen=True, slots=True)
class PlacedTrack:
    """A track by its number in the catalog and its name; `bytes` on disk."""

    id: int
    name: str
    bytes: int
    kind: Literal["video", "audio"] = "video"


@dataclass(frozen=True, slots=True)
class PlacedTitle:
    """The version of a title to place. `shared_bytes` are the files of no track, which every holder has too."""

    title: str
    version: str
    shared_bytes: int
    tracks: tuple[PlacedTrack, ...]
    boost: float = 1.0

    @property
    def bytes(self) -> int:
        """All that a box must store to hold the title."""
        return self.shared_bytes + sum(track.bytes for track in self.tracks)


@dataclass(frozen=True, slots=True)
class Box:
    """An appliance that takes part in the plan, and the bytes of content that it may hold."""

    appliance: str
    site: str
    storage_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One track on one appliance; `value` is its share of the objective, `bytes` its own without shared files."""

    appliance: str
    title: str
    version: str
    track: int
    bytes: int
    value: float
    reason: str


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A title that an appliance does not get."""

    appliance: str
    title: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unserved:
    """A region whose `views` a day no site takes."""

    region: str
    views: float
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows by appliance, densest title first. No plan reaches more than `bound`.

    Objective and bound are in bytes served locally in 24 h; gap is (bound − objective) ÷ objective.
    `methods` says how each appliance's part was found.
    """

    rows: tuple[Row, ...]
    objective: float
    bound: float
    gap: float
    seconds: float
    passed_over: tuple[PassedOver, ...]
    unserved: tuple[Unserved, ...] = ()
    methods: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class _Want:
    """A title at a box: views a day its site expects, bytes a day this copy would serve, copies the site has."""

    title: PlacedTitle
    views: float
    served: float
    copies: int

    @property
    def value(self) -> float:
        return self.served * self.title.boost


def _want(title: PlacedTitle, views: float, copies: int) -> _Want:
    return _Want(title, views, views * view_bytes(title) * COPY_SHARE**copies, copies)


def make(
    titles: Sequence[PlacedTitle],
    boxes: Sequence[Box],
    demand: Mapping[tuple[str, str], float],
    distance_km: Callable[[str, str], float | None] = lambda _a, _b: None,
    time_limit_s: float = 10.0,
) -> Plan:
    """Decide what every box should hold.

    `titles` holds one version of each title, `demand` the views expected in the next 24 h by (region, title). Demand
    of a region without a box of its own goes to the site nearest by `distance_km`. The boxes of a site are solved one
    after the other, the largest first, each in at most `time_limit_s` seconds.
    """
    started = time.perf_counter()
    _check(titles, boxes, demand)
    sites: defaultdict[str, list[Box]] = defaultdict(list)
    for box in sorted(boxes, key=lambda box: (box.site, -box.storage_bytes, box.appliance)):
        sites[box.site].append(box)
    regions, unserved = _assign(demand, sites, distance_km)
    plan = _Draft()
    for site, of_site in sites.items():
        views = {
            title.title: math.fsum(demand.get((region, title.title), 0.0) for region in regions[site])
            for title in titles
        }
        _place_site(plan, titles, of_site, views, _where(site, regions[site]), time_limit_s)
    objective = math.fsum(row.value for row in plan.rows)
    bound = max(objective, plan.bound)
    return Plan(
        rows=tuple(plan.rows),
        objective=objective,
        bound=bound,
        gap=(bound - objective) / objective if objective else 0.0,
        seconds=time.perf_counter() - started,
        passed_over=tuple(plan.passed_over),
        unserved=unserved,
        methods=tuple(plan.methods),
    )


def view_bytes(title: PlacedTitle) -> float:
    """Bytes that one view of the title streams: one rung and one audio track, whole."""
    return math.fsum(track_shares(title))


def track_shares(title: PlacedTitle) -> list[float]:
    """Bytes that a view streams of each track, on average.

    Which rung or language a view gets is not measured yet: tracks of a kind are held to be equally likely.
    """
    kinds = Counter(track.kind for track in title.tracks)
    return [track.bytes / kinds[track.kind] for track in title.tracks]


def density(requests: float, boost: float, size_bytes: int, storage_bytes: int) -> float:
    """Value of content at a box: predicted requests × boost ÷ (size ÷ storage).

    With requests counted in bytes served it is what a knapsack packs by, value per byte, up to the box's storage.
    """
    return requests * boost / (size_bytes / storage_bytes) if size_bytes and storage_bytes else 0.0


class _Draft:
    """A plan as it grows, site by site."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.passed_over: list[PassedOver] = []
        self.methods: list[tuple[str, str]] = []
        self.bound = 0.0


def _place_site(
    plan: _Draft,
    titles: Sequence[PlacedTitle],
    boxes: Sequence[Box],
    views: Mapping[str, float],
    where: str,
    time_limit_s: float,
) -> None:
    """Add one site's boxes, given in the order in which they are solved, to the plan."""
    copies: Counter[str] = Counter()
    bounds = []
    for box in boxes:
        wanted = [_want(title, views[title.title], copies[title.title]) for title in titles]
        items = [knapsack.Item(want.title.title, want.title.bytes, want.value) for want in wanted]
        selection = knapsack.solve(items, box.storage_bytes, time_limit_s)
        _explain(plan, box, wanted, selection.keys, where)
        plan.methods.append((box.appliance, selection.method))
        bounds.append(selection.bound)
        copies.update(selection.keys)
    plan.bound += bounds[0] if len(boxes) == 1 else _site_bound(titles, boxes, views)


def _site_bound(titles: Sequence[PlacedTitle], boxes: Sequence[Box], views: Mapping[str, float]) -> float:
    """What no placement in the site exceeds: its boxes as one, titles divisible, a copy per box that could hold it.

    The bounds of the boxes, each given what those before it hold, say nothing about other choices of those before.
    """
    copies = [
        knapsack.Item(f"{title.title}/{copy}", title.bytes, _want(title, views[title.title], copy).value)
        for title in titles
        for copy in range(sum(title.bytes <= box.storage_bytes for box in boxes))
    ]
    return knapsack.fractional_bound(copies, sum(box.storage_bytes for box in boxes))


def _explain(plan: _Draft, box: Box, wanted: Sequence[_Want], keys: frozenset[str], where: str) -> None:
    """Turn one box's selection into rows and reasons."""

    def order(want: _Want) -> tuple[float, str]:
        return -density(want.served, want.title.boost, want.title.bytes, box.storage_bytes), want.title.title

    ranked = sorted((want for want in wanted if want.value > 0), key=order)
    left_out: list[PassedOver] = []
    for rank, want in enumerate(ranked, 1):
        title = want.title
        facts = (
            f"{_count(want.views)} views a day expected {where}; {_size(title.bytes)}; "
            f"density rank {rank} of {len(ranked)}"
        )
        if title.title not in keys:
            left_out.append(_passed_over(box, want, f"{facts}; {_why_not(want, box)}"))
            continue
        reason = f"{facts}; copy {want.copies + 1} in its site" if want.copies else f"{facts}; first copy in its site"
        streamed = view_bytes(title)
        for track, share in zip(title.tracks, track_shares(title), strict=True):
            value = want.value * share / streamed
            plan.rows.append(Row(box.appliance, title.title, title.version, track.id, track.bytes, value, reason))
    for want in wanted:
        if want.value <= 0:
            reason = "its boost is 0" if want.views else f"no views are expected {where}"
            left_out.append(_passed_over(box, want, reason))
    plan.passed_over += left_out[:MAX_PASSED_OVER]


def _passed_over(box: Box, want: _Want, reason: str) -> PassedOver:
    return PassedOver(box.appliance, want.title.title, want.title.version, reason)


def _why_not(want: _Want, box: Box) -> str:
    if want.title.bytes > box.storage_bytes:
        return f"larger than the whole box, which may hold {_size(box.storage_bytes)}"
    if want.copies:
        return f"its site has {want.copies} already, and other titles are worth more here"
    return f"other titles are worth more in the {_size(box.storage_bytes)} of this box"


def _assign(
    demand: Mapping[tuple[str, str], float],
    sites: Iterable[str],
    distance_km: Callable[[str, str], float | None],
) -> tuple[dict[str, list[str]], tuple[Unserved, ...]]:
    """The regions that each site serves, its own first, and those that none does."""
    totals: defaultdict[str, float] = defaultdict(float)
    for (region, _), views in sorted(demand.items()):
        totals[region] += views
    served: dict[str, list[str]] = {site: [site] for site in sites}
    unserved = []
    for region in sorted(totals):
        if region in served or not totals[region]:
            continue
        known = ((distance_km(region, site), site) for site in served)
        near = min(((km, site) for km, site in known if km is not None), default=None)
        if near is None:
            reason = "it has no appliance, and its distance to those that have is unknown: give it coordinates"
            unserved.append(Unserved(region, totals[region], reason))
        else:
            served[near[1]].append(region)
    return served, tuple(unserved)


def _where(site: str, regions: Sequence[str]) -> str:
    """The regions served, in words: the site's own and those that are nearest to it."""
    others = regions[1:]
    if not others:
        return f"in {site}"
    return f"in {site} and nearest to it ({', '.join(others) if len(others) <= 3 else f'{len(others)} regions'})"


def _count(views: float) -> str:
    return f"{views:,.0f}" if views >= 10 else f"{views:.2g}"


def _size(size: int) -> str:
    """Bytes in decimal units, as disks are sold."""
    amount, units = float(size), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while amount >= 999.5 and unit != "TB":
        amount, unit = amount / 1000, next(units)
    return f"{amount:.3g} {unit}" if unit != "TB" else f"{amount:,.1f} TB"


def _check(titles: Sequence[PlacedTitle], boxes: Sequence[Box], demand: Mapping[tuple[str, str], float]) -> None:
    """OcaError if there is nothing to plan with, or if it makes no sense."""
    if not boxes:
        raise OcaError("there are no appliances to plan for: register one with `ocactl appliance add`")
    if not titles:
        raise OcaError("the catalog is empty: add a title with `ocactl title add`")
    for what, names in (
        ("appliance", [box.appliance for box in boxes]),
        ("title", [title.title for title in titles]),
    ):
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise OcaError(f"{what} {twice[0]!r} is given twice to the plan: give it once")
    for box in boxes:
        if box.storage_bytes < 0:
            raise OcaError(
                f"appliance {box.appliance!r} has {box.storage_bytes} bytes of storage: correct that first"
            )
    for title in titles:
        if not 0 <= title.boost < math.inf:
            raise OcaError(f"title {title.title!r} has a boost of {title.boost}: give a number from 0")
        if title.shared_bytes < 0 or any(track.bytes < 0 for track in title.tracks):
            raise OcaError(f"title {title.title!r} has files of less than 0 bytes: register it again")
    for (region, name), views in demand.items():
        if not 0 <= views < math.inf:
            raise OcaError(f"demand for {name!r} in {region!r} is {views} views: import a number from 0")
    known = {title.title for title in titles}
    if not any(views > 0 and title in known for (_, title), views in demand.items()):
        raise OcaError("no demand is known for any title of the catalog: import some with `ocactl demand import`")
