"""Placement by trying everything, from the words of docs/placement.md: what the solvers are held against."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pulp

from control.placement.problem import Problem


def best(problem: Problem) -> float:
    """The least that any placement costs; infinite if none keeps the constraints."""
    files, boxes = len(problem.files), len(problem.appliances)
    pairs = list(itertools.product(range(files), range(boxes)))
    pins = {(int(f), int(a)) for f, a in problem.pins}
    barred = {(int(f), int(a)) for f, a in problem.exclusions}
    stored = {(int(f), int(a)) for f, a in problem.stored}
    found = math.inf
    for chosen in _subsets(pairs):
        held = set(chosen)
        if not pins <= held or held & barred or not _keeps(problem, held, stored):
            continue
        size = problem.size.astype(float)
        fixed = sum(
            size[f] * (problem.storage_price[a] + problem.churn_price * ((f, a) not in stored)) for f, a in held
        )
        found = min(found, fixed + _serve(problem, held))
    return found


def _subsets(pairs: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], ...]]:
    return itertools.chain.from_iterable(itertools.combinations(pairs, n) for n in range(len(pairs) + 1))


def _keeps(problem: Problem, held: set[tuple[int, int]], stored: set[tuple[int, int]]) -> bool:
    for a in range(len(problem.appliances)):
        mine = [f for f, box in held if box == a]
        if sum(int(problem.size[f]) for f in mine) > problem.storage[a]:
            return False
        if sum(int(problem.size[f]) for f in mine if (f, a) not in stored) > problem.fill[a]:
            return False
    for f, a in held:
        if problem.classes[f] and not (int(problem.classes[f]) >> int(problem.media[a])) & 1:
            return False
    return all(sum(g == f for g, _ in held) >= problem.replicas[f] for f in range(len(problem.files)))


def _serve(problem: Problem, held: set[tuple[int, int]]) -> float:
    """The least that serving costs: each demand where it is cheapest, or a linear program where throughput binds."""
    ways: list[list[tuple[int, float, float]]] = []
    for k, f in enumerate(problem.file_of_demand().tolist()):
        r, requests = int(problem.region[k]), float(problem.requests[k])
        if not requests:
            continue
        size, boost = float(problem.request_bytes[f]), float(problem.boost[f])
        mine = []
        if math.isfinite(problem.origin_cost[r]):
            mine.append((-1, requests * boost * (size * problem.origin_cost[r] + problem.origin_latency[r]), 0.0))
        for a in range(len(problem.appliances)):
            if (f, a) in held and math.isfinite(problem.cost[r, a]):
                cost = requests * boost * (size * problem.cost[r, a] + problem.latency[r, a])
                mine.append((a, cost, requests * size))
        if not mine:
            return math.inf
        ways.append(mine)
    cheapest = [min(mine, key=lambda way: (way[1], way[2])) for mine in ways]
    fits = all(
        sum(bytes_ for box, _, bytes_ in cheapest if box == a) <= problem.throughput[a]
        for a in range(len(problem.appliances))
    )
    return sum(cost for _, cost, _ in cheapest) if fits else _program(problem, ways)


def _program(problem: Problem, ways: list[list[tuple[int, float, float]]]) -> float:
    program = pulp.LpProblem("serve", pulp.LpMinimize)
    shares = [
        [(program.add_variable(f"y{n}_{m}", 0, 1), *way) for m, way in enumerate(mine)] for n, mine in enumerate(ways)
    ]
    worth = max(1.0, *(abs(cost) for mine in ways for _, cost, _ in mine))
    program += pulp.lpSum(y * (cost / worth) for mine in shares for y, _, cost, _ in mine)
    for mine in shares:
        program += pulp.lpSum(y for y, *_ in mine) == 1
    for a in range(len(problem.appliances)):
        if math.isfinite(problem.throughput[a]):
            load = [y * bytes_ for mine in shares for y, box, _, bytes_ in mine if box == a]
            program += pulp.lpSum(load) <= float(problem.throughput[a])
    program.solve(pulp.HiGHS(msg=False))
    return float(program.objective.value() * worth) if program.sol_status == pulp.LpSolutionOptimal else math.inf
