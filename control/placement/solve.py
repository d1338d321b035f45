"""One way to ask for a placement, whatever method finds it: `solve`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Literal, get_args

import numpy as np

from control.placement import exact
from control.placement.pack import Packing
from control.placement.placement import Placement, Prices, Solution
from control.placement.prices import Proof, Search
from control.placement.problem import Bools, Ints, Problem, ProblemError, check
from control.placement.routing import Routed, by_region, route, settle
from control.placement.verdict import judge

Method = Literal["auto", "exact", "core", "prices"]
METHODS: tuple[str, ...] = get_args(Method)
# Variables up to which a problem goes to the exact method, and to the fractional core, by itself.
_EXACT, _CORE = 4_000, 40_000
# Sweeps over all appliances, tolls moved between them.
_SWEEPS = 16


def solve(
    problem: Problem,
    time_limit_s: float = 60.0,
    method: Method = "auto",
    cbc: bool = False,
    warm: tuple[Placement, Prices | None] | None = None,
    workers: int = 0,
    tell: Callable[[str], None] = lambda _words: None,
) -> Solution:
    """The best placement found in about `time_limit_s` seconds, and a bound that none goes below.

    Never worse than what is stored now, or than `warm`, if that keeps the constraints. ProblemError for a problem
    that is none or for which no placement is found.
    """
    started = time.monotonic()
    until = started + time_limit_s
    notes = check(problem)
    if method == "auto":
        method = _choose(problem)
    found: list[tuple[Routed, str]] = []
    held = np.zeros((len(problem.files), len(problem.appliances)), bool)
    held[problem.stored[:, 0], problem.stored[:, 1]] = True
    if _keeps(problem, held):
        routed = route(problem, held)
        if routed.possible:
            found.append((routed, "what is stored now"))
    if warm is not None:
        verdict = judge(problem, warm[0])
        if not verdict.broken:
            found.append((Routed(warm[0], verdict.objective, True), "the placement to start from"))
    prices = None
    if method == "prices":
        count = workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(count) as pool:
            routed_, bound, prices = _by_prices(problem, pool, count, until, warm, tell)
        words = "prices"
    else:
        tell("solving the mixed integer program")
        routed_, bound, words = (exact.whole if method == "exact" else exact.core)(problem, until, cbc)
        if not np.isfinite(bound):
            # The solver had no time to prove anything: without any prices there is a bound at once.
            with ThreadPoolExecutor(1) as pool:
                bound = Search(problem, pool, 1, until, tell).freely()
    if routed_ is not None and routed_.possible:
        found.insert(0, (routed_, words))
    if not found:
        raise ProblemError(
            f"no placement that keeps all constraints was found in {time_limit_s:g} s: give more time, or relax "
            "pins, replicas, fill, storage or throughput"
        )
    best, how = min(found, key=lambda pair: pair[0].objective)
    if best.objective < bound <= best.objective + 1e-7 * abs(best.objective):
        bound = best.objective  # a solver's tolerance
    name = words if how == words else f"{how}, which {words} did not better"
    seconds = time.monotonic() - started
    return Solution(best.placement, best.objective, bound, seconds, name, prices, tuple(notes))


def _choose(problem: Problem) -> Method:
    """By the number of variables that a program would have."""
    reach = np.isfinite(problem.cost).sum(1)
    size = len(problem.files) * len(problem.appliances) + int(reach[problem.region].sum())
    return "exact" if size <= _EXACT else "core" if size <= _CORE else "prices"


def _keeps(problem: Problem, held: Bools) -> bool:
    """Whether copies keep everything but throughput, which routing looks after."""
    size = problem.size.astype(float)
    if (size @ held > problem.storage).any() or (held.sum(1) < problem.replicas).any():
        return False
    stored = np.zeros_like(held)
    stored[problem.stored[:, 0], problem.stored[:, 1]] = True
    if (size @ (held & ~stored) > problem.fill).any():
        return False
    rows = np.arange(len(held))
    return not (held & ~problem.allowed(rows)).any() and bool(held[problem.pins[:, 0], problem.pins[:, 1]].all())


def _by_prices(
    problem: Problem,
    pool: Executor,
    count: int,
    until: float,
    warm: tuple[Placement, Prices | None] | None,
    tell: Callable[[str], None],
) -> tuple[Routed | None, float, Prices]:
    """Prices from a sample, polished on all files; then a placement by what they choose, improved in sweeps."""
    search = Search(problem, pool, count, until, tell)
    proof = search.find(warm[1] if warm is not None else None)
    best = _pack(problem, search, proof, until, tell)
    return best, proof.bound, proof.prices


def _pack(problem: Problem, search: Search, proof: Proof, until: float, tell: Callable[[str], None]) -> Routed | None:
    """Sweeps over the appliances from what the proof chose."""
    held, live = search.chosen(proof)
    rows: Ints = np.flatnonzero(live | held.any(1))
    packing = Packing(problem, rows, held, search.reach, search.unserved, proof.prices)
    regions = by_region(problem)
    best: Routed | None = None
    for number in range(_SWEEPS):
        packing.sweep(until, tell)
        if not packing.mend():
            break
        now = np.zeros_like(held)
        now[rows] = packing.held
        routed, toll = settle(problem, now, regions, packing.toll)
        if routed.possible and (best is None or routed.objective < best.objective):
            best = routed
        tell(f"sweep {number + 1} over the appliances: objective {routed.objective:.6g}")
        if time.monotonic() > until:
            break
        # Tolls that served what is packed now, in part: all of them would empty what was full, and fill the rest.
        packing.charge_throughput(packing.toll + (toll - packing.toll) * 0.3 / (1 + number / 2))
    return best
