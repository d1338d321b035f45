"""What the files of a block want, given prices on the appliances: each file is a problem of its own then. Pure.

With prices on storage, throughput and filling nothing ties one file to another; what is left for each is to choose
the appliances that save more than they cost (facility location). For all files of a block at once: a lower bound by
dual ascent (Bilde and Krarup 1977, Erlenkotter 1978), and a good choice by greedy addition.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from control.placement.placement import Prices
from control.placement.problem import Bools, Floats, Ints, Problem

# Raises of a file's bids from the least to the most, so that regions share the price of a copy.
_RAISES = 2
# Copies that greedy addition gives a file at most.
_ADDITIONS = 64
# A copy that saves this share of its price may pay once others are elsewhere.
_NEARLY = 0.6


@dataclass(frozen=True)
class Near:
    """The appliances that a region reaches, and for every appliance its place among them, or -1."""

    boxes: Ints
    place: Ints


@dataclass(frozen=True)
class Wanted:
    """What a region asks of the block: of files `rows`, weighed requests and bytes, and what its origin costs."""

    rows: Ints
    weight: Floats
    priced: Floats
    bytes: Floats
    origin: Floats


@dataclass(frozen=True)
class Answer:
    """What a block says to prices: the least its files can cost, and what greedy addition chooses.

    `cost` is that of the choice at the prices; `storage`, `throughput` and `fill` are what it uses of the appliances.
    `live` are the files for which a copy may pay at prices a little lower.
    """

    bound: float
    cost: float
    storage: Floats
    throughput: Floats
    fill: Floats
    chosen: Bools
    live: Bools


def near(problem: Problem) -> list[Near]:
    """By region."""
    found = []
    for r in range(len(problem.regions)):
        boxes = np.flatnonzero(np.isfinite(problem.cost[r]))
        place = np.full(len(problem.appliances), -1)
        place[boxes] = np.arange(len(boxes))
        found.append(Near(boxes, place))
    return found


class Block:
    """Some files of a problem, ascending, with all that their choices need. `weights` count a file more than once."""

    def __init__(
        self, problem: Problem, rows: Ints, reach: list[Near], unserved: Floats, weights: Floats | None = None
    ) -> None:
        self.problem, self.rows, self.reach = problem, rows, reach
        self.weights = np.ones(len(rows)) if weights is None else weights
        self.size = problem.size[rows].astype(float)
        self.allowed = problem.allowed(rows)
        self.pinned = problem.pairs(problem.pins, rows)
        self.stored = problem.pairs(problem.stored, rows)
        self.replicas = problem.replicas[rows]
        self.wanted = self._demand(unserved)

    def _demand(self, unserved: Floats) -> list[Wanted]:
        problem, rows = self.problem, self.rows
        counts = problem.start[rows + 1] - problem.start[rows]
        of = np.repeat(np.arange(len(rows)), counts)
        entry = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts) + problem.start[rows][of]
        region = problem.region[entry]
        order = np.argsort(region, kind="stable")
        ends = np.searchsorted(region[order], np.arange(1, len(problem.regions)))
        found = []
        for r, some in enumerate(np.split(order, ends)):
            some = some[problem.requests[entry[some]] > 0]
            local = of[some]
            requests, size = problem.requests[entry[some]], problem.request_bytes[rows[local]]
            weight = requests * problem.boost[rows[local]]
            served = requests * size
            if np.isfinite(problem.origin_cost[r]):
                origin = weight * (size * problem.origin_cost[r] + problem.origin_latency[r])
            else:
                origin = served * unserved[r] + self.size[local] * unserved[r]
            found.append(Wanted(local, weight, weight * size, served, origin))
        return found

    def savings(self, r: int, throughput: Floats) -> Floats:
        """What each appliance near region r saves against its origin, for each row that wants something."""
        want, boxes = self.wanted[r], self.reach[r].boxes
        cost = want.priced[:, None] * self.problem.cost[r, boxes] + want.bytes[:, None] * throughput[boxes]
        delay = self.problem.latency[r, boxes]
        if delay.any():
            cost += want.weight[:, None] * delay
        np.subtract(want.origin[:, None], cost, out=cost)
        np.maximum(cost, 0, out=cost)
        cost *= self.allowed[want.rows[:, None], boxes]
        found: Floats = cost
        return found

    def holding(self, prices: Prices) -> Floats:
        """What a copy of each file on each appliance costs at these prices; infinite where it may not be."""
        problem = self.problem
        cost = self.size[:, None] * (problem.storage_price + prices.storage)
        cost += np.where(self.stored, 0.0, self.size[:, None] * (problem.churn_price + prices.fill))
        cost[~self.allowed] = np.inf
        return cost

    def potential(self, throughput: Floats) -> Floats:
        """What a copy on each appliance would save if it were the only one."""
        total: Floats = np.zeros((len(self.rows), len(self.problem.appliances)))
        for r, reach in enumerate(self.reach):
            rows = self.wanted[r].rows
            if len(rows):
                total[rows[:, None], reach.boxes] += self.savings(r, throughput)
        return total

    def ask(self, prices: Prices, tilt: float = 0.0) -> Answer:
        """The answer to prices. `tilt` blurs the choice between appliances that are nearly as good, not the bound."""
        holding = self.holding(prices)
        savings = [self.savings(r, prices.throughput) for r in range(len(self.reach))]
        gains = np.zeros_like(holding)
        for r, reach in enumerate(self.reach):
            gains[self.wanted[r].rows[:, None], reach.boxes] += savings[r]
        # Files for which no copy pays, even alone, are done: the origin serves them.
        live = (gains > holding).any(1) | self.pinned.any(1) | (self.replicas > 0)
        bound = sum(float(w.origin @ self.weights[w.rows]) for w in self.wanted)
        cost = bound
        chosen = np.zeros_like(self.allowed)
        storage, throughput, fill = (np.zeros(len(self.problem.appliances)) for _ in range(3))
        if live.any():
            part = _Part(self, np.flatnonzero(live), holding, savings)
            bound += part.ascend()
            cost += part.add(tilt, chosen)
            throughput = part.throughput()
            held = chosen * (self.size * self.weights)[:, None]
            storage, fill = held.sum(0), (held * ~self.stored).sum(0)
        near_ = np.any(gains > _NEARLY * holding, axis=1)
        return Answer(bound, cost, storage, throughput, fill, chosen, near_)


class _Part:
    """The files of a block for which copies may pay: rows, what copies cost, what they save by region."""

    def __init__(self, block: Block, live: Ints, holding: Floats, savings: list[Floats]) -> None:
        self.block, self.live = block, live
        self.weights = block.weights[live]
        self.holding = holding[live]
        self.pinned = block.pinned[live]
        self.replicas = block.replicas[live]
        at = np.full(len(block.rows), -1)
        at[live] = np.arange(len(live))
        self.rows: list[Ints] = []
        self.savings: list[Floats] = []
        self.bytes: list[Floats] = []
        for want, saving in zip(block.wanted, savings, strict=True):
            local = at[want.rows]
            some = (local >= 0) & (saving.any(1) if saving.shape[1] else False)
            self.rows.append(local[some])
            self.savings.append(saving[some])
            self.bytes.append(want.bytes[some])

    def ascend(self) -> float:
        """A lower bound on what copies change: bids of regions for copies that no copy's bidders together exceed.

        A region's bid is what it pays beyond the best that it could have, up to its origin; what it does not bid, its
        discount, is what the bound loses. What stays of a copy's price when all have bid counts where one must be.
        """
        slack = np.maximum(self.holding, 0.0)
        least = np.minimum(self.holding, 0.0)
        discounts = [saving.max(1, initial=0.0) for saving in self.savings]
        most = [discount.copy() for discount in discounts]
        order = list(range(len(self.rows)))
        for step in range(1, _RAISES + 1):
            for r in order:
                rows, saving, boxes = self.rows[r], self.savings[r], self.block.reach[r].boxes
                if not len(rows):
                    continue
                left = slack[rows[:, None], boxes]
                old = discounts[r]
                left += np.maximum(saving - old[:, None], 0.0)
                new = np.maximum((saving - left).max(1), most[r] * (1 - step / _RAISES))
                new = np.clip(new, 0.0, old)
                left -= np.maximum(saving - new[:, None], 0.0)
                slack[rows[:, None], boxes] = np.maximum(left, 0.0)
                discounts[r] = new
            order.reverse()
        self.slack = slack
        total = -sum(float(d @ self.weights[rows]) for d, rows in zip(discounts, self.rows, strict=True))
        rest = slack + least
        free = np.where(self.pinned, np.inf, rest)
        sums = np.where(self.pinned, rest, 0.0).sum(1) + np.where(free < 0, free, 0.0).sum(1)
        sums += self._forced(free)
        return total + float(sums @ self.weights)

    def _forced(self, free: Floats) -> Floats:
        """What the copies that replicas demand cost at least, of those that would cost something."""
        found = np.zeros(len(self.live))
        need = self.replicas - self.pinned.sum(1) - (free < 0).sum(1)
        for row in np.flatnonzero(need > 0):
            positive = np.sort(free[row][free[row] >= 0])
            found[row] = positive[: need[row]].sum()
        return found

    def add(self, tilt: float, chosen: Bools) -> float:
        """Choose copies; what that changes in cost.

        From those whose price the bids have used up, the least useful go while one costs more than it saves; then
        others come in while one saves more than it costs, and what that made useless goes.
        """
        holding = self.holding
        if tilt:
            number = self.block.rows[self.live, None] * 7919 + np.arange(holding.shape[1]) * 104729
            holding = holding * (1 + tilt * ((number * 2654435761 % 4294967296) / 2147483648 - 1))
        open_ = (self.slack <= 1e-6 * np.abs(self.holding)) | self.pinned
        self._drop(open_, holding)
        self._serve(open_)
        gains = self._gains(holding)
        for _ in range(_ADDITIONS + int(self.replicas.max(initial=0))):
            ranked = np.where(open_, -np.inf, gains)
            box = ranked.argmax(1)
            value = ranked[np.arange(len(box)), box]
            short = open_.sum(1) < self.replicas
            rows = np.flatnonzero((value > 0) | (short & (value > -np.inf)))
            if not len(rows):
                break
            open_[rows, box[rows]] = True
            self._open(rows, box, gains)
        self._drop(open_, holding)
        self._serve(open_)
        chosen[self.live] = open_
        saved = sum(float(best @ self.weights[rows]) for best, rows in zip(self.best, self.rows, strict=True))
        return float(np.where(open_, self.holding, 0.0).sum(1) @ self.weights) - saved

    def _serve(self, open_: Bools) -> None:
        """Who serves each region best of what is open, and what that saves."""
        self.best, self.at = [], []
        for r, rows in enumerate(self.rows):
            boxes = self.block.reach[r].boxes
            saving = self.savings[r] * open_[rows[:, None], boxes]
            best = saving.argmax(1) if len(boxes) else np.zeros(len(rows), np.int64)
            value = saving[np.arange(len(rows)), best] if len(boxes) else np.zeros(len(rows))
            self.best.append(value)
            self.at.append(np.where(value > 0, boxes[best], -1) if len(boxes) else np.full(len(rows), -1))

    def _gains(self, holding: Floats) -> Floats:
        """What each further copy would save beyond its price, given who serves now."""
        gains = -holding
        for r, rows in enumerate(self.rows):
            if len(rows):
                more = np.maximum(self.savings[r] - self.best[r][:, None], 0.0)
                gains[rows[:, None], self.block.reach[r].boxes] += more
        return gains

    def _drop(self, open_: Bools, holding: Floats) -> None:
        """Close copies, of each file the least useful first, while one costs more than it saves."""
        active = np.flatnonzero(open_.any(1))
        while len(active):
            mark = np.zeros(len(open_), bool)
            mark[active] = True
            worth = np.where(open_, -holding, np.inf)
            for r, rows in enumerate(self.rows):
                some = np.flatnonzero(mark[rows])
                boxes = self.block.reach[r].boxes
                if not len(some) or not len(boxes):
                    continue
                saving = self.savings[r][some] * open_[rows[some][:, None], boxes]
                lines, best = np.arange(len(some)), saving.argmax(1)
                value = saving[lines, best]
                saving[lines, best] = 0.0
                worth[rows[some], boxes[best]] += value - saving.max(1)
            worth[self.pinned] = np.inf
            box = worth[active].argmin(1)
            least = worth[active, box]
            gone = (least < 0) & (open_[active].sum(1) > self.replicas[active])
            active, box = active[gone], box[gone]
            open_[active, box] = False

    def _open(self, rows: Ints, box: Ints, gains: Floats) -> None:
        """Give each of the files `rows` a copy on its `box`, and correct what others would still gain."""
        fresh = np.zeros(len(self.live), bool)
        fresh[rows] = True
        for r, mine in enumerate(self.rows):
            reach = self.block.reach[r]
            place = reach.place[box[mine]]
            some = np.flatnonzero(fresh[mine] & (place >= 0))
            if not len(some):
                continue
            saving = self.savings[r][some]
            new = saving[np.arange(len(some)), place[some]]
            better = new > self.best[r][some]
            some, saving, new = some[better], saving[better], new[better]
            old = self.best[r][some]
            gains[mine[some][:, None], reach.boxes] -= np.maximum(saving - old[:, None], 0) - np.maximum(
                saving - new[:, None], 0
            )
            self.best[r][some] = new
            self.at[r][some] = box[mine[some]]

    def throughput(self) -> Floats:
        """Bytes that each appliance serves by the choice."""
        total = np.zeros(len(self.block.problem.appliances))
        for r, rows in enumerate(self.rows):
            here = self.at[r] >= 0
            total += np.bincount(self.at[r][here], (self.bytes[r] * self.weights[rows])[here], len(total))
        return total
