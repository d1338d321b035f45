"""The search for prices: what a byte of storage, throughput and filling is worth on each appliance.

Each price goes up while more is wanted than there is, and down while less (a dual of Lagrange); what all files
together cost at least, less what the capacities fetch at these prices, is a bound that no placement goes below.
Prices are found on a sample of the files, since a few hundred numbers can be learnt from it, and proved on all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from control.placement.placement import Prices
from control.placement.problem import Bools, Floats, Ints, Problem
from control.placement.shares import Answer, Block, Near, near

# Elements of a block's tables files × appliances: what stays in the caches.
_BLOCK = 250_000
_SAMPLE = 6_000
_LEAST_BLOCKS = 16


@dataclass(frozen=True)
class _Plan:
    """How prices settle: passes; how far choices are blurred at first and at last; how far prices move in a pass for
    a ratio of use to limit, at first beside at last; after how many passes the bound is looked at."""

    name: str
    passes: int
    blur: float
    tilt: float
    step: float
    least: float
    every: int


# Found by trial on instances of `oca-bench place`.
_LEARN = _Plan("learning prices on a sample", 60, 0.3, 0.03, 1.0, 0.1, 10)
_PROVE = _Plan("proving prices on all files", 40, 0.0, 0.03, 0.3, 0.05, 4)


@dataclass(frozen=True)
class Proof:
    """Prices, the bound that they prove, and what each block of files chose at them."""

    prices: Prices
    bound: float
    answers: list[Answer]


def unserved(problem: Problem) -> Floats:
    """What a byte costs that a region without origin is not served: more than any serving, yet no infinity."""
    finite = problem.cost[np.isfinite(problem.cost)]
    bytes_ = problem.request_bytes[problem.request_bytes > 0]
    delay = float(np.abs(problem.latency).max(initial=0.0)) / float(bytes_.min(initial=1.0) or 1.0)
    most = float(np.abs(finite).max(initial=0.0)) + delay + float(np.abs(problem.storage_price).max())
    boost = float(problem.boost.max(initial=1.0))
    return np.full(len(problem.regions), 10 * (most + abs(problem.churn_price) + 1e-9) * max(boost, 1.0))


class Search:
    """Prices on a problem. `pool` runs blocks side by side; `until` is when to stop, by time.monotonic()."""

    def __init__(
        self, problem: Problem, pool: Executor, workers: int, until: float, tell: Callable[[str], None]
    ) -> None:
        self.problem, self.pool, self.until, self.tell = problem, pool, until, tell
        self.reach: list[Near] = near(problem)
        self.unserved = unserved(problem)
        self.limits = Prices(problem.storage, problem.throughput, problem.fill)
        self.step = max(64, _BLOCK // len(problem.appliances))
        self.workers = workers

    def blocks(self, rows: Ints, weights: Floats | None = None) -> list[Block]:
        """The files `rows` in blocks."""
        count = max(min(_LEAST_BLOCKS, -(-len(rows) // 64)), -(-len(rows) // self.step))
        # Every so-manieth file, so that blocks are alike.
        parts = [(rows[i::count], None if weights is None else weights[i::count]) for i in range(count)]
        of = self.problem, self.reach, self.unserved
        return list(self.pool.map(lambda part: Block(of[0], part[0], of[1], of[2], part[1]), parts))

    def ask(self, blocks: Iterable[Block], prices: Prices, tilt: float) -> Proof:
        """What all blocks answer, and the bound if they are all files."""
        answers = list(self.pool.map(lambda block: block.ask(prices, tilt), blocks))
        fetched = sum(
            float(price[price > 0] @ limit[price > 0])
            for price, limit in zip(_parts(prices), _parts(self.limits), strict=True)
        )
        return Proof(prices, sum(answer.bound for answer in answers) - fetched, answers)

    def chosen(self, proof: Proof) -> tuple[Bools, Bools]:
        """What a proof of all files chose, files × appliances, and the files for which a copy may pay."""
        count = len(proof.answers)
        held = np.zeros((len(self.problem.files), len(self.problem.appliances)), bool)
        live = np.zeros(len(held), bool)
        for n, answer in enumerate(proof.answers):
            held[n::count] = answer.chosen
            live[n::count] = answer.live
        return held, live

    def sample(self) -> tuple[Ints, Floats, Prices]:
        """Files that stand for all, how many each stands for, and prices to begin with.

        What could save much is taken surely, the rest by chance, in proportion to what it could save and its size.
        """
        problem = self.problem
        nothing = np.zeros(len(problem.appliances))
        most = np.zeros(len(problem.files))
        for first in range(0, len(most), 1 << 16):
            rows = np.arange(first, min(len(most), first + (1 << 16)))
            most[rows] = _saving(problem, rows)
        weight = 0.7 * most / (most.sum() or 1.0) + 0.3 * (most > 0) * problem.size / float(problem.size.sum())
        weight[problem.replicas > 0] = np.maximum(weight[problem.replicas > 0], 1e-3)
        chance = np.minimum(1.0, weight * _SAMPLE)
        drawn = np.random.default_rng(0).random(len(chance)) < chance
        rows = np.flatnonzero(drawn)
        weights = 1 / chance[rows]
        return rows, weights, Prices(self._first(rows, weights), nothing, nothing)

    def _first(self, rows: Ints, weights: Floats) -> Floats:
        """Prices of storage as if each appliance were alone, halved: others will take part of its work."""
        problem = self.problem
        found = np.zeros(len(problem.appliances))
        blocks = self.blocks(rows, weights)
        if not len(rows):
            return found
        nothing = np.zeros(len(found))
        potential = np.concatenate(list(self.pool.map(lambda block: block.potential(nothing), blocks)))
        size = problem.size[np.concatenate([block.rows for block in blocks])]
        weights = np.concatenate([block.weights for block in blocks])
        density = potential / size[:, None]
        for a in range(len(found)):
            order = np.argsort(-density[:, a])
            full = np.searchsorted(np.cumsum((size * weights)[order]), problem.storage[a])
            found[a] = 0.3 * density[order[min(full, len(order) - 1)], a]
        return found

    def find(self, warm: Prices | None) -> Proof:
        """The best proof in the time: prices learnt on a sample, or those given, then some passes over all files."""
        rows, weights, prices = self.sample()
        begun = time.monotonic()
        left = self.until - begun
        if len(rows) and warm is None:
            prices = self._settle(self.blocks(rows, weights), self._some(prices), _LEARN, begun + left * 0.25)[0]
        prices = self._bounded(warm or prices)
        return self._settle(self.blocks(np.arange(len(self.problem.files))), prices, _PROVE, begun + left * 0.7)[1]

    def freely(self) -> float:
        """The bound without any prices: every file as if it were the only one."""
        nothing = np.zeros(len(self.problem.appliances))
        blocks = self.blocks(np.arange(len(self.problem.files)))
        return self.ask(blocks, Prices(nothing, nothing, nothing), 0.0).bound

    def _some(self, prices: Prices) -> Prices:
        """Prices that are not 0, so that they can move."""
        scale = float(prices.storage.mean())
        some = np.full(len(prices.storage), scale)
        return self._bounded(Prices(prices.storage + scale * 1e-3, some * 0.01, some * 0.1))

    def _bounded(self, prices: Prices) -> Prices:
        """The prices, none for what is without limit."""
        limited = [np.isfinite(limit) for limit in _parts(self.limits)]
        return Prices(*(np.where(some, price, 0.0) for some, price in zip(limited, _parts(prices), strict=True)))

    def _settle(self, blocks: list[Block], prices: Prices, plan: _Plan, stop: float) -> tuple[Prices, Proof]:
        """Ask block after block, and move prices by what all have chosen so far: the choices then balance as a whole.

        The bound is that of the mean of a pass's prices. Of all passes the best counts.
        """
        names = ("storage", "throughput", "fill")
        found = self.ask(blocks, prices, plan.tilt)
        best, answers = found, found.answers
        used = [sum((getattr(a, name) for a in answers), np.zeros(len(prices.storage))) for name in names]
        logs = [np.log(np.maximum(price, 1e-300)) for price in _parts(prices)]
        limits = _parts(self.limits)
        for number in range(plan.passes):
            left = 1 - number / plan.passes
            means = [np.zeros(len(log)) for log in logs]
            for first in range(0, len(blocks), self.workers):
                some = blocks[first : first + self.workers]
                now = self._bounded(Prices(*(np.exp(log) for log in logs)))
                tilt = plan.blur * left**2 + plan.tilt
                fresh = list(self.pool.map(lambda block, now=now, tilt=tilt: block.ask(now, tilt), some))
                for n, answer in enumerate(fresh, first):
                    for use, name in zip(used, names, strict=True):
                        use += getattr(answer, name) - getattr(answers[n], name)
                    answers[n] = answer
                step = (plan.step * left + plan.least) * len(some) / len(blocks)
                for log, use, limit, mean in zip(logs, used, limits, means, strict=True):
                    ratio = np.divide(use, limit, out=np.where(use > 0, np.inf, 0.0), where=limit > 0)
                    log += step * np.log(np.clip(ratio, 0.1, 10))
                    np.maximum(log, -600, out=log)
                    mean += log * len(some) / len(blocks)
            last = time.monotonic() > stop or number == plan.passes - 1
            if last or number % plan.every == plan.every - 1:
                found = self.ask(blocks, self._bounded(Prices(*(np.exp(mean) for mean in means))), 0.0)
                self.tell(f"{plan.name}, pass {number + 1} of {plan.passes}, bound {found.bound:.6g}")
                if found.bound > best.bound:
                    best = found
            if last:
                break
        return best.prices, Proof(best.prices, best.bound, answers)


def _parts(prices: Prices) -> tuple[Floats, Floats, Floats]:
    return prices.storage, prices.throughput, prices.fill


def _saving(problem: Problem, rows: Ints) -> Floats:
    """What files could save if everything lay where it is cheapest, with no regard to room."""
    start, end = problem.start[rows[0]], problem.start[rows[-1] + 1]
    region = problem.region[start:end]
    of = np.repeat(np.arange(len(rows)), np.diff(problem.start[rows[0] : rows[-1] + 2]))
    best = problem.cost.min(1, initial=np.inf)
    origin = np.where(np.isfinite(problem.origin_cost), problem.origin_cost, unserved(problem))
    per_byte = np.maximum(origin - np.where(np.isfinite(best), best, origin), 0)
    delay = np.maximum(problem.origin_latency - problem.latency.min(1), 0)
    size = problem.request_bytes[rows[of]]
    saved = problem.requests[start:end] * problem.boost[rows[of]] * (size * per_byte[region] + delay[region])
    found: Floats = np.bincount(of, saved, len(rows)).astype(float)
    return found
