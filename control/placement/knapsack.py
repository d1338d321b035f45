"""The knapsack: which items are worth most within a capacity, and how far from the best that may be. Pure.

It knows nothing of titles, tracks or boxes: whoever asks decides what an item is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pulp

from oca.errors import OcaError

# A selection this close to its bound, relatively, counts as the best: demand is never known that well.
TOLERANCE = 1e-9
# HiGHS takes a row for satisfied within 1e-6, absolutely. In bytes against 200 TB, or in shares of 1, that is nothing
# or far too much; with the largest numbers of a model at a million it is one part in 1e12.
_SCALE = 1e6


@dataclass(frozen=True, slots=True)
class Item:
    """Something of a size in bytes and a value in any unit; `key` is unique among the items of one problem."""

    key: str
    bytes: int
    value: float


@dataclass(frozen=True, slots=True)
class Selection:
    """The keys to take and their value; no selection is worth more than `bound`. `method` says how it was found."""

    keys: frozenset[str]
    value: float
    bound: float
    seconds: float
    method: str


def solve(items: Sequence[Item], capacity: int, time_limit_s: float = 10.0) -> Selection:
    """The items of the greatest value in `capacity` bytes, or the best found within `time_limit_s` seconds.

    Whatever the linear relaxation decides beyond doubt is fixed; the rest is a mixed integer program in PuLP, solved
    by HiGHS. The bound is the lesser of HiGHS's dual bound and the relaxation's. If HiGHS fails or finds nothing,
    the answer is the greedy selection, which for large problems is within 4e-7 of the best.
    """
    started = time.perf_counter()
    _check(items, capacity)
    wanted = [item for item in items if item.value > 0 and item.bytes <= capacity]

    def selection(chosen: Sequence[Item], bound: float, method: str) -> Selection:
        value = _worth(chosen)
        keys = frozenset(item.key for item in chosen)
        return Selection(keys, value, max(value, bound), time.perf_counter() - started, method)

    if sum(item.bytes for item in wanted) <= capacity:
        return selection(wanted, 0.0, "all that fit alone fit together" if wanted else "none fits")
    bound, price = _relaxed(wanted, capacity)
    best = greedy(wanted, capacity)
    if _worth(best) >= bound * (1 - TOLERANCE):
        return selection(best, bound, "greedy, which its bound proves best")
    fixed, core = _core(wanted, bound, price, _worth(best))
    room = capacity - sum(item.bytes for item in fixed)
    try:
        found, dual, method = _highs(core, room, time_limit_s)
    except pulp.PulpSolverError as error:
        return selection(best, bound, f"greedy, because {error}")
    found = fixed + _within(found, core, room)
    return selection(max(found, best, key=_worth), min(bound, _worth(fixed) + dual), method)


def fractional_bound(items: Iterable[Item], capacity: int) -> float:
    """The value if items could be cut: what no selection exceeds (Dantzig, 1957)."""
    return _relaxed(items, capacity)[0]


def _relaxed(items: Iterable[Item], capacity: int) -> tuple[float, float]:
    """Value of the linear relaxation, and its price of a byte: the density of the item that is cut, 0 if none is."""
    room, total = capacity, 0.0
    for item in _by_density(items):
        if item.bytes > room:
            return total + item.value * room / item.bytes, item.value / item.bytes
        room -= item.bytes
        total += item.value
    return total, 0.0


def _core(items: Iterable[Item], bound: float, price: float, known: float) -> tuple[list[Item], list[Item]]:
    """Items that are in every selection worth more than `known`, and those that may be (Dembo and Hammer, 1980).

    To leave out an item, or to take it in, against the relaxation's will costs the bound its value less what its
    bytes cost at the relaxation's price.
    """
    doubt = bound - known + bound * 1e-12
    fixed, core = [], []
    for item in items:
        gain = item.value - price * item.bytes
        if gain > doubt:
            fixed.append(item)
        elif gain >= -doubt:
            core.append(item)
    return fixed, core


def greedy(items: Iterable[Item], capacity: int) -> list[Item]:
    """Items by value per byte as long as they fit, or the most valuable single one: at least half of the best."""
    items = [item for item in items if item.bytes <= capacity]
    packed, room = [], capacity
    for item in _by_density(items):
        if item.bytes <= room:
            packed.append(item)
            room -= item.bytes
    single = max(items, key=lambda item: item.value, default=None)
    return [single] if single is not None and single.value > _worth(packed) else packed


def _by_density(items: Iterable[Item]) -> list[Item]:
    """Most value per byte first, equal ones by key, so that the same problem has the same answer always."""
    return sorted(items, key=lambda item: (-item.value / item.bytes if item.bytes else -math.inf, item.key))


def _worth(items: Iterable[Item]) -> float:
    return math.fsum(item.value for item in items)


def _highs(items: Sequence[Item], capacity: int, time_limit_s: float) -> tuple[list[Item], float, str]:
    """What HiGHS takes, within its tolerances; its dual bound; how it ended. PulpSolverError if it gives nothing."""
    size = max(1.0, capacity / _SCALE, *(item.bytes / _SCALE for item in items))
    worth = max(item.value for item in items) / _SCALE
    problem = pulp.LpProblem("knapsack", pulp.LpMaximize)
    pairs = [(item, problem.add_variable(f"x{number}", cat=pulp.LpBinary)) for number, item in enumerate(items)]
    problem += pulp.LpAffineExpression((x, item.value / worth) for item, x in pairs)
    problem += pulp.LpAffineExpression((x, item.bytes / size) for item, x in pairs) <= capacity / size
    problem.solve(pulp.HiGHS(msg=False, timeLimit=time_limit_s, gapRel=TOLERANCE))
    if problem.status != pulp.LpStatusOptimal:
        raise pulp.PulpSolverError(f"HiGHS found nothing in {time_limit_s:g} s")
    found = [item for item, x in pairs if x.value() > 0.5]
    # PuLP hands the solver the negated objective to minimise, and calls a solution found before a time-out optimal.
    dual = -problem.solverModel.getInfo().mip_dual_bound * worth
    proved = problem.sol_status == pulp.LpSolutionOptimal
    return found, dual, "HiGHS" if proved else f"HiGHS, stopped after {time_limit_s:g} s"


def _within(found: Sequence[Item], items: Iterable[Item], capacity: int) -> list[Item]:
    """`found` to the byte: whatever a tolerance let in beyond the capacity goes, and what then fits comes in."""
    kept = greedy(found, capacity)
    keys = {item.key for item in kept}
    room = capacity - sum(item.bytes for item in kept)
    return kept + greedy([item for item in items if item.key not in keys], room)


def _check(items: Sequence[Item], capacity: int) -> None:
    """OcaError for a problem that is none."""
    if capacity < 0:
        raise OcaError(f"a capacity of {capacity} bytes is negative")
    keys = set()
    for item in items:
        if item.bytes < 0 or not math.isfinite(item.value):
            raise OcaError(f"item {item.key!r} has {item.bytes} bytes and value {item.value}: neither may be that")
        if item.key in keys:
            raise OcaError(f"item {item.key!r} is given twice")
        keys.add(item.key)
