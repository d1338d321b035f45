"""Placement as a mixed integer program in PuLP: whole, or with whatever its linear relaxation settles fixed first.

The bound is HiGHS's: of the program it solves, or of the linear relaxation. CBC's is not to be had through PuLP.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pulp

from control.placement.placement import Placement
from control.placement.problem import ORIGIN, Bools, Floats, Ints, Problem, ProblemError
from control.placement.routing import Routed, cheapest, storing

# The largest numbers of a row or of the objective, as in control.placement.knapsack: a tolerance of 1e-6 is a part in
# 1e12.
_SCALE = 1e6
# HiGHS stops this close to its bound, relatively.
_GAP = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What a program gave: copies and the share of each route, or nothing in the time; the bound, if it is one."""

    held: Floats | None
    routed: Routed | None
    bound: float


@dataclass(frozen=True)
class _Route:
    """Shares of one demand: of `file`, by each source (ORIGIN among them) at `cost` in all, `bytes` if it serves."""

    entry: int
    file: int
    region: int
    source: int
    cost: float
    bytes: float


class Program:
    """The variables of a problem: copies where they may be, and routes where they can help."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        rows = np.arange(len(problem.files))
        self.allowed = problem.allowed(rows)
        self.pinned = problem.pairs(problem.pins, rows)
        self.stored = problem.pairs(problem.stored, rows)
        self.routes: list[list[_Route]] = []
        file = problem.file_of_demand()
        for k in np.flatnonzero(problem.requests > 0):
            self.routes.append(self._routes(int(k), int(file[k])))

    def _routes(self, k: int, f: int) -> list[_Route]:
        """The ways of one demand that may be worth going; ProblemError if there is none."""
        problem, r = self.problem, int(self.problem.region[k])
        bytes_, weight = problem.request_bytes[f], problem.requests[k] * problem.boost[f]
        served = float(problem.requests[k] * bytes_)
        origin = np.inf
        found = []
        if np.isfinite(problem.origin_cost[r]):
            origin = bytes_ * problem.origin_cost[r] + problem.origin_latency[r]
            found.append(_Route(k, f, r, ORIGIN, float(weight * origin), served))
        for a in np.flatnonzero(np.isfinite(problem.cost[r]) & self.allowed[f]):
            price = bytes_ * problem.cost[r, a] + problem.latency[r, a]
            if price < origin:
                found.append(_Route(k, f, r, int(a), float(weight * price), served))
        if not found:
            raise ProblemError(
                f"nothing can serve file {problem.files[f]!r} to region {problem.regions[r]!r}: no appliance "
                "that may hold it and no origin reach it"
            )
        return found

    def solve(
        self, time_limit_s: float, fixed: Floats | None = None, relaxed: bool = False, cbc: bool = False
    ) -> Outcome:
        """The best copies and routes; where `fixed` is not NaN, copies are given. `relaxed` lets copies be parts."""
        problem, boxes = self.problem, len(self.problem.appliances)
        size = problem.size.astype(float)
        program = pulp.LpProblem("placement", pulp.LpMinimize)
        worth = max([abs(route.cost) for routes in self.routes for route in routes], default=1.0)
        charge = size[:, None] * problem.storage_price + np.where(
            self.stored, 0.0, size[:, None] * problem.churn_price
        )
        worth = max(worth, float(np.abs(charge).max()), 1e-300) / _SCALE
        copies: dict[tuple[int, int], pulp.LpVariable] = {}
        for f, a in np.argwhere(self.allowed).tolist():
            given = None if fixed is None or np.isnan(fixed[f, a]) else float(fixed[f, a])
            low, high = (given, given) if given is not None else (float(self.pinned[f, a]), 1.0)
            kind = pulp.LpContinuous if relaxed or given is not None else pulp.LpInteger
            copies[f, a] = program.add_variable(f"x{f}_{a}", low, high, kind)
        shares = [
            [program.add_variable(f"y{n}_{m}", 0.0, 1.0) for m in range(len(routes))]
            for n, routes in enumerate(self.routes)
        ]
        terms = [(x, charge[f, a] / worth) for (f, a), x in copies.items()]
        for routes, ys in zip(self.routes, shares, strict=True):
            terms += [(y, route.cost / worth) for route, y in zip(routes, ys, strict=True)]
        program += pulp.LpAffineExpression(terms)
        load: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in range(boxes)]
        for routes, ys in zip(self.routes, shares, strict=True):
            program += pulp.LpAffineExpression((y, 1.0) for y in ys) == 1
            for route, y in zip(routes, ys, strict=True):
                if route.source != ORIGIN:
                    program += y <= copies[route.file, route.source]
                    load[route.source].append((y, route.bytes))
        for a in range(boxes):
            mine = [(f, x) for (f, box), x in copies.items() if box == a]
            _limit(program, [(x, size[f]) for f, x in mine], problem.storage[a])
            _limit(program, [(x, size[f]) for f, x in mine if not self.stored[f, a]], problem.fill[a])
            _limit(program, load[a], problem.throughput[a])
        for f in np.flatnonzero(problem.replicas > 0).tolist():
            program += pulp.lpSum(x for (g, _), x in copies.items() if g == f) >= int(problem.replicas[f])
        return self._run(program, copies, shares, worth, time_limit_s, relaxed, cbc)

    def _run(
        self,
        program: pulp.LpProblem,
        copies: dict[tuple[int, int], pulp.LpVariable],
        shares: list[list[pulp.LpVariable]],
        worth: float,
        time_limit_s: float,
        relaxed: bool,
        cbc: bool,
    ) -> Outcome:
        """Hand the program to the solver."""
        limit = max(0.1, time_limit_s)
        solver = (
            pulp.PULP_CBC_CMD(msg=False, timeLimit=limit, gapRel=_GAP)
            if cbc
            else pulp.HiGHS(msg=False, timeLimit=limit, gapRel=_GAP)
        )
        try:
            program.solve(solver)
        except pulp.PulpSolverError:
            return Outcome(None, None, -np.inf)
        if program.status == pulp.LpStatusInfeasible:
            raise ProblemError(
                "no placement keeps all constraints: pins, replicas, fill, storage and throughput leave no way to "
                "serve every region; relax one of them"
            )
        bound = -np.inf
        if not cbc:
            info = program.solverModel.getInfo()
            # Without an integer variable HiGHS solves a linear program, and its dual bound is not set.
            linear = not any(x.cat == pulp.LpInteger for x in copies.values())
            bound = float(info.objective_function_value if linear else info.mip_dual_bound) * worth
            if linear and program.sol_status != pulp.LpSolutionOptimal:
                bound = -np.inf
        if program.status != pulp.LpStatusOptimal:
            return Outcome(None, None, bound)
        held = np.zeros(self.allowed.shape)
        for (f, a), x in copies.items():
            held[f, a] = x.value() or 0.0
        values = [[float(y.value() or 0.0) for y in ys] for ys in shares]
        return Outcome(held, None if relaxed else self._routed(held > 0.5, values), bound)

    def _routed(self, held: Bools, values: list[list[float]]) -> Routed:
        """The placement of a solution, its shares made clean and its objective summed anew."""
        problem = self.problem
        total, rows, parts = 0.0, [], []
        load = np.zeros(len(problem.appliances))
        possible = bool((problem.size @ held <= problem.storage).all())
        fresh = held & ~self.stored
        possible &= bool((problem.size @ fresh <= problem.fill).all())
        for routes, shares in zip(self.routes, values, strict=True):
            kept = [
                (route, share)
                for route, share in zip(routes, shares, strict=True)
                if share > 1e-9 and (route.source == ORIGIN or held[route.file, route.source])
            ]
            whole = sum(share for _, share in kept)
            possible &= whole > 0.5
            for route, share in kept:
                part = share / whole
                total += part * route.cost
                if route.source != ORIGIN:
                    load[route.source] += part * route.bytes
            first = routes[0]
            usual, _ = cheapest(problem, first.region, np.array([first.file]), held)
            if [route.source for route, _ in kept] != [int(usual[0])]:
                rows += [(first.file, first.region, route.source) for route, _ in kept]
                parts += [share / whole for _, share in kept]
        possible &= bool((load <= problem.throughput * (1 + 1e-9)).all())
        served: Ints = np.array(rows, np.int64).reshape(-1, 3)
        placement = Placement(np.argwhere(held), served, np.array(parts, float))
        return Routed(placement, total + storing(problem, held), possible)


def _limit(program: pulp.LpProblem, terms: list[tuple[pulp.LpVariable, float]], limit: float) -> None:
    """The terms sum to at most the limit, if it is one."""
    if not terms or sum(factor for _, factor in terms) <= limit:
        return
    scale = max(limit, *(factor for _, factor in terms)) / _SCALE
    program += pulp.LpAffineExpression((x, factor / scale) for x, factor in terms) <= limit / scale


def whole(problem: Problem, until: float, cbc: bool = False) -> tuple[Routed | None, float, str]:
    """The problem as one mixed integer program; the best placement found, the bound, and how it ended."""
    program = Program(problem)
    if cbc:
        bound = program.solve((until - time.monotonic()) / 2, relaxed=True).bound
        found = program.solve(until - time.monotonic(), cbc=True)
        return found.routed, bound, "MIP by CBC, bound by HiGHS's linear relaxation"
    found = program.solve(until - time.monotonic())
    return found.routed, found.bound, "MIP by HiGHS"


def core(problem: Problem, until: float, cbc: bool = False) -> tuple[Routed | None, float, str]:
    """The linear relaxation, whatever it settles fixed, and a mixed integer program on the rest."""
    program = Program(problem)
    relaxation = program.solve((until - time.monotonic()) * 0.6, relaxed=True)
    if relaxation.held is None:
        return None, relaxation.bound, "linear relaxation, stopped by the time limit"
    part = relaxation.held
    fixed = np.where(part < 1e-6, 0.0, np.where(part > 1 - 1e-6, 1.0, np.nan))
    fractional = int(np.isnan(fixed).sum())
    fixed[_loosened(problem, program, fixed)] = np.nan
    words = f"linear relaxation, then a MIP on {fractional} fractional copies"
    found = program.solve(until - time.monotonic(), fixed=fixed, cbc=cbc)
    return found.routed, relaxation.bound, words


def _loosened(problem: Problem, program: Program, fixed: Floats) -> Bools:
    """Every copy of a file that has a fractional one: only then can the file lie elsewhere as a whole."""
    touched = np.any(np.isnan(fixed), axis=1)
    loose: Bools = touched[:, None] & program.allowed & (problem.size[:, None] > 0)
    return loose
