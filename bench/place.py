"""Placement of a made-up catalog: how long it takes, how far from its bound it ends, and what memory it takes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bench import instance
from control.placement import files as problems
from control.placement.solve import METHODS, Method, solve
from control.placement.verdict import judge
from oca.errors import OcaError


def run(
    files: int,
    appliances: int,
    regions: int,
    seed: int,
    zipf: float,
    time_limit_s: float,
    method: str,
    out: Path | None,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Make the problem, solve it, have the placement judged; seconds are those of solving alone."""
    if method not in METHODS:
        raise OcaError(f"there is no method {method!r}: use one of {', '.join(METHODS)}")
    step("making the problem")
    regions = regions or max(1, appliances // 5)
    problem = instance.make(files, appliances, regions, seed, zipf)
    if out is not None:
        problems.write(problem, out)
    found = solve(problem, time_limit_s, cast(Method, method), tell=step)
    step("checking the placement")
    verdict = judge(problem, found.placement)
    if verdict.broken or abs(verdict.objective - found.objective) > 1e-9 * abs(found.objective):
        raise OcaError(f"the placement is wrong: {(*verdict.broken, 'its objective is not what was said')[0]}")
    return {
        "files": files,
        "appliances": appliances,
        "regions": regions,
        "demands": len(problem.requests),
        "seed": seed,
        "zipf": zipf,
        "method": found.method,
        "seconds": round(found.seconds, 1),
        "gap": found.gap,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "objective": found.objective,
        "bound": found.bound,
    }
