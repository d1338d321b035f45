"""The judge: what a placement costs and what it breaks, from problem and placement alone. Pure.

It shares the arrays with the solvers and nothing else: every sum is made anew here, as docs/placement.md has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from control.placement.placement import Placement
from control.placement.problem import ORIGIN, Bools, Floats, Ints, Problem

# Shares are fractions in floating point: their sums, and what is served by them, are right to this part.
TOLERANCE = 1e-9
# Sentences about one constraint; the rest is counted.
_MOST = 5


@dataclass(frozen=True)
class Verdict:
    """The four sums of the objective, and a sentence for each constraint that is broken."""

    serving: float
    latency: float
    storage: float
    churn: float
    broken: tuple[str, ...]

    @property
    def objective(self) -> float:
        """What the placement costs, in the problem's own units."""
        return self.serving + self.latency + self.storage + self.churn


def judge(problem: Problem, placement: Placement) -> Verdict:
    """Recompute everything."""
    boxes = len(problem.appliances)
    held = np.zeros((len(problem.files), boxes), bool)
    file, box = placement.stored[:, 0], placement.stored[:, 1]
    held[file, box] = True
    old = np.zeros_like(held)
    old[problem.stored[:, 0], problem.stored[:, 1]] = True
    size = problem.size[file].astype(float)
    new = ~old[file, box]
    broken = [
        *_over(problem, "stores", np.bincount(box, size, boxes), problem.storage),
        *_over(problem, "is filled with", np.bincount(box[new], size[new], boxes), problem.fill),
        *_wrong_places(problem, placement, held),
    ]
    serving, latency, load, unserved = _serve(problem, placement, held)
    broken += unserved
    broken += _over(problem, "serves", load, problem.throughput * (1 + TOLERANCE))
    storage = float(size @ problem.storage_price[box])
    return Verdict(serving, latency, storage, float(size[new].sum()) * problem.churn_price, tuple(broken))


def _over(problem: Problem, does: str, used: Any, limit: Floats) -> list[str]:
    return [
        f"appliance {problem.appliances[a]!r} {does} {used[a]:.15g} bytes, {used[a] - limit[a]:.6g} more than it may"
        for a in np.flatnonzero(used > limit).tolist()
    ]


def _few(sentences: list[str]) -> list[str]:
    more = len(sentences) - _MOST
    return [*sentences[:_MOST], f"and {more} more like the last one"] if more > 0 else sentences


def _wrong_places(problem: Problem, placement: Placement, held: Bools) -> list[str]:
    """Pins, exclusions, media classes, replicas."""
    files, boxes = problem.files, problem.appliances
    file, box = placement.stored[:, 0], placement.stored[:, 1]
    pins = [(f, a) for f, a in problem.pins if not held[f, a]]
    barred = [(f, a) for f, a in problem.exclusions if held[f, a]]
    classes = problem.classes[file]
    wrong = (classes != 0) & ((classes >> problem.media[box]) & 1 == 0)
    few = np.flatnonzero(held.sum(1) < problem.replicas).tolist()
    return [
        *_few([f"file {files[f]!r} is pinned to appliance {boxes[a]!r} and not stored there" for f, a in pins]),
        *_few([f"file {files[f]!r} is excluded from appliance {boxes[a]!r} and stored there" for f, a in barred]),
        *_few(
            [
                f"file {files[f]!r} is stored on appliance {boxes[a]!r}, whose media class may not hold it"
                for f, a in placement.stored[wrong]
            ]
        ),
        *_few([f"file {files[f]!r} is stored {held[f].sum()} times, not {problem.replicas[f]}" for f in few]),
    ]


def _serve(problem: Problem, placement: Placement, held: Bools) -> tuple[float, float, Floats, list[str]]:
    """Serving cost, latency penalty, bytes that each appliance serves, and what is not served as it must be."""
    regions = len(problem.regions)
    file = problem.file_of_demand()
    bytes_ = problem.requests * problem.request_bytes[file]
    weighed = problem.requests * problem.boost[file]
    load = np.zeros(len(problem.appliances))
    serving = latency = 0.0
    broken: list[str] = []
    key = placement.served[:, 0] * regions + placement.served[:, 1]
    shared = np.isin(file * regions + problem.region, key)
    for r in range(regions):
        mine = np.flatnonzero((problem.region == r) & ~shared)
        if not len(mine):
            continue
        source, price = _cheapest(problem, r, file[mine], held)
        lost = np.isinf(price) & (problem.requests[mine] > 0)
        broken += [_nobody(problem, file[k], r) for k in mine[lost]]
        mine, source = mine[~lost], source[~lost]
        here = source != ORIGIN
        cost = np.where(here, problem.cost[r, source], problem.origin_cost[r])
        delay = np.where(here, problem.latency[r, source], problem.origin_latency[r])
        cost[np.isinf(cost)] = 0.0  # reached by nobody, and nothing was asked
        serving += float(weighed[mine] @ (problem.request_bytes[file[mine]] * cost))
        latency += float(weighed[mine] @ delay)
        load += np.bincount(source[here], bytes_[mine[here]], len(load))
    found = _share(problem, placement, held, load, broken)
    return serving + found[0], latency + found[1], load, _few(broken)


def _cheapest(problem: Problem, r: int, files: Ints, held: Bools) -> tuple[Ints, Floats]:
    """Where demand of a region goes that is not shared out; what a request costs there, infinite if nobody serves."""
    bytes_ = problem.request_bytes[files, None]
    near = np.flatnonzero(np.isfinite(problem.cost[r]))
    price = bytes_ * problem.cost[r, near] + problem.latency[r, near]
    price[~held[np.ix_(files, near)]] = np.inf
    origin = np.full(len(files), np.inf)
    if np.isfinite(problem.origin_cost[r]):
        origin = bytes_[:, 0] * problem.origin_cost[r] + problem.origin_latency[r]
    if not len(near):
        return np.full(len(files), ORIGIN), origin
    best = price.argmin(1)
    cheapest = price[np.arange(len(files)), best]
    return np.where(cheapest < origin, near[best], ORIGIN), np.minimum(cheapest, origin)


def _share(
    problem: Problem, placement: Placement, held: Bools, load: Floats, broken: list[str]
) -> tuple[float, float]:
    """Add what is shared out row by row to `load` and `broken`; its serving cost and latency penalty."""
    regions, boxes = len(problem.regions), problem.appliances
    key = problem.file_of_demand() * regions + problem.region
    serving = latency = 0.0
    total = np.zeros(len(key))
    for (f, r, a), share in zip(placement.served.tolist(), placement.shares.tolist(), strict=True):
        of = f"demand for file {problem.files[f]!r} in region {problem.regions[r]!r}"
        at = int(np.searchsorted(key, f * regions + r))
        cost, delay = problem.origin_cost[r], problem.origin_latency[r]
        if a != ORIGIN:
            cost, delay = problem.cost[r, a], problem.latency[r, a]
        if at == len(key) or key[at] != f * regions + r:
            broken.append(f"{of} is shared out, and there is none")
        elif not 0 <= share <= 1 + TOLERANCE:
            broken.append(f"{of} has a share of {share}")
        elif a != ORIGIN and not held[f, a]:
            broken.append(f"{of} is served by appliance {boxes[a]!r}, which does not store it")
        elif np.isinf(cost):
            broken.append(f"{of} is served by {'the origin' if a == ORIGIN else boxes[a]}, which does not reach it")
        else:
            total[at] += share
            requests, size = share * problem.requests[at], problem.request_bytes[f]
            serving += float(requests * problem.boost[f] * size * cost)
            latency += float(requests * problem.boost[f] * delay)
            if a != ORIGIN:
                load[a] += requests * size
    named = np.unique(placement.served[:, 0] * regions + placement.served[:, 1])
    odd = np.isin(key, named) & (np.abs(total - 1) > TOLERANCE)
    for k in np.flatnonzero(odd).tolist():
        f, r = divmod(int(key[k]), regions)
        name, region = problem.files[f], problem.regions[r]
        broken.append(f"the shares of demand for file {name!r} in region {region!r} sum to {total[k]:.15g}, not 1")
    return serving, latency


def _nobody(problem: Problem, f: int, r: int) -> str:
    return (
        f"nobody serves file {problem.files[f]!r} to region {problem.regions[r]!r}: no holder and no origin reach it"
    )
