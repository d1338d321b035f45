"""From prices to a placement: each appliance in turn takes what is worth most there, given what the others hold.

A sweep over all appliances never loses by its own reckoning (throughput counted at its price), and after the first
all of them keep storage and fill. What a copy is worth is what its regions save by it against their next best source.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from control.placement.placement import Prices
from control.placement.problem import Bools, Floats, Ints, Problem
from control.placement.shares import Block, Near

# Files tried one by one for the room that is left behind the first that does not fit.
_TRIES = 400


class Packing:
    """Copies of the files `rows`, all that may be worth one; `held` is files × appliances and changes in place."""

    def __init__(
        self, problem: Problem, rows: Ints, held: Bools, reach: list[Near], unserved: Floats, prices: Prices
    ) -> None:
        self.problem, self.rows, self.reach = problem, rows, reach
        self.block = Block(problem, rows, reach, unserved)
        self.held = held[rows]
        self.charge_throughput(prices.throughput)
        charge = problem.storage_price[None, :] + np.where(self.block.stored, 0.0, problem.churn_price)
        self.charge = self.block.size[:, None] * charge
        self.near: list[list[int]] = [
            [r for r, each in enumerate(reach) if each.place[a] >= 0] for a in range(len(problem.appliances))
        ]

    def charge_throughput(self, toll: Floats) -> None:
        """Reckon with this price of a byte served from each appliance."""
        self.toll = toll
        self.savings = [self.block.savings(r, toll) for r in range(len(self.reach))]
        self.first = [np.zeros(len(s)) for s in self.savings]
        self.place = [np.full(len(s), -1) for s in self.savings]
        self.second = [np.zeros(len(s)) for s in self.savings]
        for r in range(len(self.reach)):
            self._rank(r, np.arange(len(self.savings[r])))

    def load(self) -> Floats:
        """Bytes that each appliance would serve, everything going where it is cheapest with the toll."""
        total = np.zeros(len(self.problem.appliances))
        for r, want in enumerate(self.block.wanted):
            here = self.place[r] >= 0
            total += np.bincount(self.reach[r].boxes[self.place[r][here]], want.bytes[here], len(total))
        return total

    def _rank(self, r: int, some: Ints) -> None:
        """The best and the second best that rows of a region have."""
        if not len(some) or not self.savings[r].shape[1]:
            return
        rows = self.block.wanted[r].rows[some]
        saving = self.savings[r][some] * self.held[rows[:, None], self.reach[r].boxes]
        at = saving.argmax(1)
        lines = np.arange(len(some))
        best = saving[lines, at]
        saving[lines, at] = 0.0
        self.first[r][some], self.place[r][some] = best, np.where(best > 0, at, -1)
        self.second[r][some] = saving.max(1)

    def sweep(self, until: float, tell: Callable[[str], None]) -> float:
        """Let each appliance choose anew; what that gained by its own reckoning."""
        gained = 0.0
        boxes = len(self.problem.appliances)
        for a in range(boxes):
            if time.monotonic() > until and bool(self._fits(a)):
                continue
            value = self.worth(a)
            before = float(value[self.held[:, a]].sum())
            self._take(a, self.choose(a, value))
            gained += float(value[self.held[:, a]].sum()) - before
            if a % 50 == 49:
                tell(f"packing appliance {a + 1} of {boxes}")
        return gained

    def _fits(self, a: int) -> bool:
        """Whether what an appliance holds keeps its storage and its fill."""
        mine = self.held[:, a]
        size = self.block.size
        return bool(
            size[mine].sum() <= self.problem.storage[a]
            and size[mine & ~self.block.stored[:, a]].sum() <= self.problem.fill[a]
        )

    def worth(self, a: int) -> Floats:
        """What a copy of each file on an appliance saves beyond its own cost, given all other copies."""
        value = -self.charge[:, a]
        for r in self.near[a]:
            place = self.reach[r].place[a]
            other = np.where(self.place[r] == place, self.second[r], self.first[r])
            value[self.block.wanted[r].rows] += np.maximum(self.savings[r][:, place] - other, 0.0)
        return value

    def choose(self, a: int, value: Floats) -> Bools:
        """What the appliance is best to hold: within storage and fill, and with all that it must hold."""
        size, stored = self.block.size, self.block.stored[:, a]
        room, fill = float(self.problem.storage[a]), float(self.problem.fill[a])
        others = self.held.sum(1) - self.held[:, a]
        must = self.block.pinned[:, a] | (self.held[:, a] & (others < self.block.replicas))
        taken = np.zeros(len(value), bool)
        candidates = np.flatnonzero(((value > 0) | must) & self.block.allowed[:, a])
        rank = np.where(self.block.pinned[candidates, a], np.inf, value[candidates] / size[candidates])
        rank[must[candidates] & ~np.isposinf(rank)] += 1e200
        order = candidates[np.argsort(-rank, kind="stable")]
        new = np.where(stored[order], 0.0, size[order])
        order = order[(np.cumsum(new) <= fill) | (new == 0)]
        whole = int(np.searchsorted(np.cumsum(size[order]), room, "right"))
        taken[order[:whole]] = True
        room -= float(size[order[:whole]].sum())
        fill -= float(size[order[:whole]][~stored[order[:whole]]].sum())
        if whole == len(order):
            order = candidates[np.argsort(-rank, kind="stable")]
            whole = 0
        for f in order[whole : whole + _TRIES] if whole else order[~taken[order]][:_TRIES]:
            if size[f] <= room and (stored[f] or size[f] <= fill):
                taken[f] = True
                room -= size[f]
                fill -= 0.0 if stored[f] else size[f]
        return taken

    def _take(self, a: int, taken: Bools) -> None:
        changed = self.held[:, a] != taken
        self.held[:, a] = taken
        for r in self.near[a]:
            self._rank(r, np.flatnonzero(changed[self.block.wanted[r].rows]))

    def mend(self) -> bool:
        """Give files that lack copies some, at the least loss; False if there is no room."""
        short = np.flatnonzero(self.held.sum(1) < self.block.replicas)
        for f in short:
            while self.held[f].sum() < self.block.replicas[f]:
                boxes = [
                    a for a in np.flatnonzero(self.block.allowed[f] & ~self.held[f]) if self._admit(int(f), int(a))
                ]
                if not boxes:
                    return False
        return True

    def _admit(self, f: int, a: int) -> bool:
        """Make room for a file that lacks copies on an appliance, by giving up what is worth least there."""
        if self.held[f].sum() >= self.block.replicas[f]:
            return False
        size, stored = self.block.size, self.block.stored[:, a]
        must = self.block.pinned[:, a] | (self.held[:, a] & (self.held.sum(1) <= self.block.replicas))
        value = self.worth(a)
        taken = self.held[:, a].copy()
        for g in [-1, *np.flatnonzero(taken & ~must)[np.argsort((value / size)[taken & ~must])].tolist()]:
            if g >= 0:
                taken[g] = False
            room = self.problem.storage[a] - size[taken].sum()
            fill = self.problem.fill[a] - size[taken & ~stored].sum()
            if size[f] <= room and (stored[f] or size[f] <= fill):
                taken[f] = True
                self._take(a, taken)
                return True
        return False
