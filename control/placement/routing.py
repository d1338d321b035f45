"""Who serves which demand once it is decided what is stored where, and what all that costs. Pure.

Cheapest first, with a toll on appliances that are short of throughput; what still overloads one moves to where it
loses least; and what could be served cheaper by an appliance that has throughput left moves there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from control.placement.placement import Placement
from control.placement.problem import ORIGIN, Bools, Floats, Ints, Problem

# Demand is sent in so many chunks, tolls moved after each.
_CHUNKS = 16
# What a boost of 0 counts as here: nothing to the objective, and yet unserved is worse than served.
_LEAST_BOOST = 1e-9


@dataclass(frozen=True)
class Routed:
    """A placement, what it costs, and whether it keeps throughput and serves everybody."""

    placement: Placement
    objective: float
    possible: bool


def by_region(problem: Problem) -> list[Ints]:
    """The demands of each region, by file."""
    order = np.argsort(problem.region, kind="stable")
    return np.split(order, np.searchsorted(problem.region[order], np.arange(1, len(problem.regions))))


def cheapest(problem: Problem, r: int, files: Ints, held: Bools, shut: Bools | None = None) -> tuple[Ints, Floats]:
    """The source of each file for a region, and its price a request; appliances that are `shut` take nothing."""
    bytes_ = problem.request_bytes[files]
    price = np.full(len(files), np.inf)
    if np.isfinite(problem.origin_cost[r]):
        price = bytes_ * problem.origin_cost[r] + problem.origin_latency[r]
    source = np.full(len(files), ORIGIN)
    for a in np.flatnonzero(np.isfinite(problem.cost[r])):
        if shut is not None and shut[a]:
            continue
        here = bytes_ * problem.cost[r, a] + problem.latency[r, a]
        better = held[files, a] & (here < price)
        price[better] = here[better]
        source[better] = a
    return source, price


def route(problem: Problem, held: Bools, regions: list[Ints] | None = None, toll: Floats | None = None) -> Routed:
    """Serve all demand from what is held, within throughput."""
    return settle(problem, held, by_region(problem) if regions is None else regions, toll)[0]


def settle(
    problem: Problem, held: Bools, regions: list[Ints], toll: Floats | None, passes: int = 10
) -> tuple[Routed, Floats]:
    """As `route`, and the tolls at which appliances serve about what they can, begun from `toll`."""
    file = problem.file_of_demand()
    count = len(problem.region)
    usual, price = np.full(count, ORIGIN), np.zeros(count)
    for r, entries in enumerate(regions):
        usual[entries], price[entries] = cheapest(problem, r, file[entries], held)
    routes = _Routes(problem, held, file, usual, price)
    toll = np.zeros(len(problem.appliances)) if toll is None else toll
    possible = routes.fits()
    if not possible:
        toll = routes.balance(regions, toll, passes)
        possible = routes.shed()
        routes.regain()
    objective, lost = routes.cost()
    placement = Placement(np.argwhere(held), *routes.rows(usual))
    return Routed(placement, objective + storing(problem, held), possible and not lost), toll


def storing(problem: Problem, held: Bools) -> float:
    """What storage and churn cost."""
    size = problem.size.astype(float)
    kept = held[problem.stored[:, 0], problem.stored[:, 1]]
    fresh = float(size @ held.sum(1)) - float(size[problem.stored[kept, 0]].sum())
    return float((size @ held) @ problem.storage_price) + problem.churn_price * fresh


class _Routes:
    """Demand in parts: part i is `share[i]` of demand `entry[i]`, served by `source[i]` at `price[i]` a request."""

    def __init__(self, problem: Problem, held: Bools, file: Ints, source: Ints, price: Floats) -> None:
        self.problem, self.held, self.file = problem, held, file
        self.bytes = problem.requests * problem.request_bytes[file]
        self.entry = np.arange(len(source))
        self.source, self.price = source.copy(), price
        self.share = np.ones(len(source))

    def load(self) -> Floats:
        """Bytes that each appliance serves."""
        here = self.source != ORIGIN
        served = (self.bytes[self.entry] * self.share)[here]
        return np.bincount(self.source[here], served, len(self.problem.appliances)).astype(float)

    def fits(self) -> bool:
        """Whether no appliance serves more than it can."""
        return bool((self.load() <= self.problem.throughput * (1 + 1e-10)).all())

    def cost(self) -> tuple[float, bool]:
        """What serving costs, and whether something is served by nobody."""
        asked = self.problem.requests[self.entry] > 0
        lost = asked & np.isinf(self.price)
        weight = (self.problem.requests * self.problem.boost[self.file])[self.entry]
        return float((np.where(asked & ~lost, self.price, 0.0) * weight * self.share).sum()), bool(lost.any())

    def rows(self, usual: Ints) -> tuple[Ints, Floats]:
        """The rows of `Placement.served`: only demand that does not simply go where it is cheapest."""
        odd = np.zeros(len(usual), bool)
        odd[self.entry[self.source != usual[self.entry]]] = True
        some = np.flatnonzero(odd[self.entry])
        entry = self.entry[some]
        # Two parts of one demand may have met again at one source.
        key = entry * (len(self.problem.appliances) + 1) + self.source[some] + 1
        key, at, same = np.unique(key, return_index=True, return_inverse=True)
        share = np.bincount(same, self.share[some], len(key)).astype(float)
        some = some[at]
        entry = self.entry[some]
        return np.column_stack([self.file[entry], self.problem.region[entry], self.source[some]]), share

    def balance(self, regions: list[Ints], toll: Floats, passes: int) -> Floats:
        """Send a part of the demand at a time where it is cheapest with tolls, which follow what is served so far."""
        ways = [_Ways(self, r, entries) for r, entries in enumerate(regions)]
        limit, load = self.problem.throughput, self.load()
        least = 1e-6 * max((way.worth for way in ways), default=0.0)
        for number in range(passes):
            step = 2.0 / (1 + number) / _CHUNKS
            for chunk in range(_CHUNKS):
                for way in ways:
                    way.choose(self, chunk, toll, load)
                ratio = np.divide(load, limit, out=np.where(load > 0, np.inf, 0.0), where=limit > 0)
                toll = np.maximum(toll, np.where(ratio > 1, least, 0.0)) * np.clip(ratio, 0.1, 10) ** step
        return toll

    def shed(self) -> bool:
        """Move demand off appliances that would serve more than they can; False where it has nowhere to go."""
        shut = np.zeros(len(self.problem.appliances), bool)
        while True:
            over = np.where(shut, 0.0, self.load() - self.problem.throughput)
            a = int(over.argmax())
            if over[a] <= 0:
                return self.fits()
            shut[a] = True
            self._relieve(a, shut, float(over[a]))

    def _relieve(self, a: int, shut: Bools, over: float) -> None:
        """Of what an appliance serves, send `over` bytes elsewhere: what loses least by it, the last part in part."""
        problem = self.problem
        mine = np.flatnonzero(self.source == a)
        entry = self.entry[mine]
        source, price = np.full(len(mine), ORIGIN), np.full(len(mine), np.inf)
        for r in np.unique(problem.region[entry]):
            some = np.flatnonzero(problem.region[entry] == r)
            source[some], price[some] = cheapest(problem, int(r), self.file[entry[some]], self.held, shut)
        load = self.bytes[entry] * self.share[mine]
        loss = (price - self.price[mine]) * np.maximum(problem.boost[self.file[entry]], _LEAST_BOOST)
        size = problem.request_bytes[self.file[entry]]
        regret = np.divide(loss, size, out=np.full(len(mine), np.inf), where=load > 0)
        order = np.argsort(regret, kind="stable")
        order = order[np.isfinite(regret[order])]
        if not len(order):
            return
        gone = np.cumsum(load[order])
        last = min(int(np.searchsorted(gone, over)), len(order) - 1)
        moved, cut = mine[order[: last + 1]], mine[order[last]]
        kept = (float(gone[last]) - over) / float(load[order[last]])
        if kept > 0:
            self.entry = np.append(self.entry, self.entry[cut])
            self.source = np.append(self.source, a)
            self.price = np.append(self.price, self.price[cut])
            self.share = np.append(self.share, self.share[cut] * kept)
            self.share[cut] *= 1 - kept
        self.source[moved], self.price[moved] = source[order[: last + 1]], price[order[: last + 1]]

    def regain(self) -> None:
        """Let appliances with throughput left serve what they can serve cheaper, the greatest gain a byte first."""
        problem = self.problem
        order = np.argsort(problem.region[self.entry], kind="stable")
        parts = np.split(
            order, np.searchsorted(problem.region[self.entry[order]], np.arange(1, len(problem.regions)))
        )
        load = self.load()
        for a in np.argsort(load / np.maximum(problem.throughput, 1.0)):
            room = problem.throughput[a] - load[a]
            if room <= 0:
                continue
            near = [parts[r] for r in np.flatnonzero(np.isfinite(problem.cost[:, a]))]
            some = np.concatenate(near) if near else np.zeros(0, np.int64)
            some = some[self.held[self.file[self.entry[some]], a] & (self.source[some] != a)]
            entry = self.entry[some]
            f, r = self.file[entry], problem.region[entry]
            price = problem.request_bytes[f] * problem.cost[r, a] + problem.latency[r, a]
            gain = (
                (self.price[some] - price)
                * np.maximum(problem.boost[f], _LEAST_BOOST)
                / np.maximum(problem.request_bytes[f], 1e-9)
            )
            served = self.bytes[entry] * self.share[some]
            ranked = np.flatnonzero((gain > 0) & (served > 0))
            ranked = ranked[np.argsort(-gain[ranked], kind="stable")]
            ranked = ranked[np.cumsum(served[ranked]) <= room]
            before = self.source[some[ranked]]
            here = before != ORIGIN
            load -= np.bincount(before[here], served[ranked][here], len(load))
            load[a] += served[ranked].sum()
            self.source[some[ranked]], self.price[some[ranked]] = a, price[ranked]


class _Ways:
    """For each demand of a region that somebody near holds: what a request costs by each of them and the origin."""

    def __init__(self, routes: _Routes, r: int, entries: Ints) -> None:
        problem = routes.problem
        near = np.flatnonzero(np.isfinite(problem.cost[r]))
        held = routes.held[routes.file[entries][:, None], near]
        some = held.any(1)
        self.entries = entries[some]
        files = routes.file[self.entries]
        size = problem.request_bytes[files]
        price = size[:, None] * problem.cost[r, near] + problem.latency[r, near]
        price[~held[some]] = np.inf
        origin = np.full((len(files), 1), np.inf)
        if np.isfinite(problem.origin_cost[r]):
            origin[:, 0] = size * problem.origin_cost[r] + problem.origin_latency[r]
        self.price = np.hstack([price, origin])
        self.sources = np.append(near, ORIGIN)
        self.burden = size / np.maximum(problem.boost[files], _LEAST_BOOST)
        finite = self.price[np.isfinite(self.price)]
        self.worth = float(np.abs(finite).max(initial=0.0)) / float(self.burden.max(initial=1.0) or 1.0)

    def choose(self, routes: _Routes, chunk: int, toll: Floats, load: Floats) -> None:
        """Send a chunk of the demand where it is cheapest now, and keep up the load."""
        entries, price = self.entries[chunk::_CHUNKS], self.price[chunk::_CHUNKS]
        if not len(entries):
            return
        rank = price.copy()
        rank[:, :-1] += self.burden[chunk::_CHUNKS, None] * toll[self.sources[:-1]]
        best = rank.argmin(1)
        source = self.sources[best]
        for sign, where in ((-1.0, routes.source[entries]), (1.0, source)):
            here = where != ORIGIN
            load += sign * np.bincount(where[here], routes.bytes[entries[here]], len(load))
        routes.source[entries], routes.price[entries] = source, price[np.arange(len(entries)), best]
