"""Every method against brute force, its bound against the truth, and its placement against the judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import instance
from control.placement import files, placement
from control.placement.problem import Problem, ProblemError, sorted_pairs
from control.placement.solve import Method, solve
from control.placement.verdict import judge
from tests.control.placing import brute

DATA = Path(__file__).parents[2] / "data"


def check(problem: Problem, found: placement.Solution) -> None:
    """What must hold of any solution: the judge agrees, and the bound is below."""
    verdict = judge(problem, found.placement)
    assert not verdict.broken
    assert found.objective == pytest.approx(verdict.objective, rel=1e-9, abs=1e-6)
    assert found.bound <= found.objective + 1e-9 * abs(found.objective)


@pytest.mark.parametrize("method", ["auto", "core", "prices"])
@pytest.mark.parametrize("name", ["placement-small", "placement-no-origin"])
def test_small_files(name: str, method: Method) -> None:
    """The exact method is as good as brute force; no method is better, and no bound above it."""
    problem = files.read(DATA / f"{name}.json")
    found = solve(problem, method=method)
    check(problem, found)
    truth = brute.best(problem)
    assert found.bound <= truth * (1 + 1e-8)
    assert found.objective >= truth * (1 - 1e-8)
    if method == "auto":
        assert found.objective == pytest.approx(truth, rel=1e-8)
        assert found.gap <= 1e-6


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Tiny problems with every kind of constraint; some cannot be solved."""
    count, regions, boxes = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))

    def numbers(size: Any, low: float, high: float) -> Any:
        flat = draw(st.lists(st.integers(0, 20), min_size=int(np.prod(size)), max_size=int(np.prod(size))))
        return low + (high - low) * np.array(flat, float).reshape(size) / 20

    def pairs(most: int) -> Any:
        pair = st.tuples(st.integers(0, count - 1), st.integers(0, boxes - 1))
        return sorted_pairs(draw(st.lists(pair, max_size=most)))

    def sometimes(values: Any) -> Any:
        lost = np.array(draw(st.lists(st.integers(0, 4), min_size=values.size, max_size=values.size)))
        return np.where(lost.reshape(values.shape) == 0, math.inf, values)

    table = numbers((count, regions), 0, 5).round()
    file, region = np.nonzero(table)
    return Problem(
        files=[f"f{n}" for n in range(count)],
        size=numbers(count, 1, 21).astype(np.int64),
        request_bytes=numbers(count, 0, 10),
        boost=numbers(count, 0, 2),
        replicas=(numbers(count, 0, 1.2)).astype(np.int64),
        classes=(numbers(count, 0, 3) * 0.6).astype(np.int64),
        regions=[f"r{n}" for n in range(regions)],
        origin_cost=sometimes(numbers(regions, -2, 10)),
        origin_latency=numbers(regions, 0, 4),
        appliances=[f"a{n}" for n in range(boxes)],
        storage=numbers(boxes, 0, 60).round(),
        throughput=sometimes(numbers(boxes, 0, 80)),
        fill=sometimes(numbers(boxes, 0, 60).round()),
        media=np.arange(boxes, dtype=np.int64) % 2,
        storage_price=numbers(boxes, -0.5, 2),
        cost=sometimes(numbers((regions, boxes), -3, 8)),
        latency=numbers((regions, boxes), -1, 4),
        **files.sparse(count, file, region, table[file, region]),
        pins=pairs(1),
        exclusions=pairs(2),
        stored=pairs(3),
        churn_price=float(numbers(1, 0, 1)[0]),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_tiny_problems(problem: Problem) -> None:
    """Exact equals brute force; every method keeps the constraints, and no bound is above the optimum."""
    truth = brute.best(problem)
    slack = 1e-6 + 1e-7 * abs(truth)
    for method in ("exact", "core", "prices"):
        try:
            found = solve(problem, 20, method)
        except ProblemError:
            assert method != "exact" or math.isinf(truth) or not _valid(problem)
            continue
        check(problem, found)
        assert found.bound <= truth + slack
        assert found.objective >= truth - slack
        if method == "exact":
            assert found.objective <= truth + slack


def _valid(problem: Problem) -> bool:
    """Whether some region is not left without anything that reaches it, which is refused even if it asks nothing."""
    return bool((np.isfinite(problem.origin_cost) | np.isfinite(problem.cost).any(1)).all())


@pytest.mark.long
def test_prices_at_some_size(tmp_path: Path) -> None:
    """A problem too large for a program: better than what is stored, and never worse when it goes on from there."""
    problem = instance.make(3000, 20, 4, 1, 0.8)
    held = placement.Placement(problem.stored)
    found = solve(problem, 10, "prices")
    check(problem, found)
    assert found.objective < judge(problem, held).objective
    placement.write(found, problem, tmp_path / "found.npz")
    files.write(problem, tmp_path / "problem.npz")
    again = files.read(tmp_path / "problem.npz")
    known = placement.read(tmp_path / "found.npz", again)
    assert known.objective == found.objective
    warmed = solve(again, 1, "prices", warm=(known.placement, known.prices))
    check(again, warmed)
    assert warmed.objective <= found.objective
