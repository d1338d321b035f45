"""`ocactl plan solve` and `plan check`: placement problems from files; needs no controller."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from control.ctl.client import Json, show, size
from oca.errors import OcaError

if TYPE_CHECKING:
    from control.placement.placement import Solution
    from control.placement.problem import Problem
    from control.placement.solve import Method

ProblemFile = Annotated[Path, typer.Argument(metavar="FILE", help="The problem, JSON or npz (docs/placement.md).")]


def solve_file(
    file: ProblemFile,
    method: Annotated[str, typer.Option(help="auto, exact, core or prices; auto goes by size.")] = "auto",
    time_limit: Annotated[float, typer.Option(min=0.1, help="Seconds to search.")] = 60.0,
    solver: Annotated[str, typer.Option(help="highs, or cbc for the integer programs.")] = "highs",
    warm: Annotated[Path | None, typer.Option(help="An earlier solution of this problem or one like it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the placement there, as npz if its name ends so.")] = None,
    as_json: Json = False,
) -> None:
    """Solve a placement problem from FILE, and say how far from the best the placement may be."""
    # Not at the top: numpy and PuLP take a fifth of a second, for which every other command would wait.
    from control.placement import files, placement
    from control.placement.problem import check
    from control.placement.solve import METHODS, solve

    if method not in METHODS:
        raise OcaError(f"there is no method {method!r}: use one of {', '.join(METHODS)}")
    if solver not in ("highs", "cbc"):
        raise OcaError(f"there is no solver {solver!r}: use highs or cbc")
    if out is not None and not out.absolute().parent.is_dir():
        raise OcaError(f"there is no directory {out.parent} to write {out.name} to: make it first")
    with Console(stderr=True).status("reading the problem") as status:
        problem = files.read(file)
        known = None
        if warm is not None:
            check(problem)
            found = placement.read(warm, problem)
            known = (found.placement, found.prices)
        solution = solve(problem, time_limit, cast("Method", method), solver == "cbc", known, tell=status.update)
    if out is not None:
        placement.write(solution, problem, out)
    if as_json:
        sys.stdout.write(json.dumps(placement.document(solution, problem)) + "\n")
        return
    for note in solution.notes:
        Console(stderr=True).print(note, highlight=False, style="yellow")
    sys.stdout.write(
        f"objective {solution.objective:.10g}, bound {solution.bound:.10g}, gap {solution.gap:.3%}, "
        f"{solution.seconds:.2f} s, by {solution.method}\n"
    )
    show(
        None,
        False,
        {"appliance": "", "files": "right", "bytes": "right", "storage": "right"},
        _rows(problem, solution),
    )


def _rows(problem: Problem, solution: Solution) -> list[tuple[str, str, str, str]]:
    """What each appliance stores, in words."""
    rows = []
    for a, box in enumerate(problem.appliances):
        mine = solution.placement.stored[solution.placement.stored[:, 1] == a, 0]
        stored, room = float(problem.size[mine].sum()), float(problem.storage[a])
        rows.append((box, str(len(mine)), size(stored), f"{stored / room:.1%}" if room else ""))
    return rows


def check_file(
    file: ProblemFile,
    placed: Annotated[Path, typer.Argument(metavar="PLACEMENT", help="What `plan solve` wrote, JSON or npz.")],
    as_json: Json = False,
) -> None:
    """Recompute what a placement costs and whether it keeps every constraint, from the two files alone."""
    from control.placement import files, placement
    from control.placement.problem import check
    from control.placement.verdict import judge

    with Console(stderr=True).status("checking the placement"):
        problem = files.read(file)
        check(problem)
        found = placement.read(placed, problem)
        verdict = judge(problem, found.placement)
    broken = list(verdict.broken)
    stated = found.objective
    if stated is not None and not abs(stated - verdict.objective) <= 1e-9 * max(abs(stated), abs(verdict.objective)):
        broken.append(f"{placed} states an objective of {stated:.15g}, and it is {verdict.objective:.15g}")
    parts = {name: getattr(verdict, name) for name in ("objective", "serving", "latency", "storage", "churn")}
    if as_json:
        sys.stdout.write(json.dumps({**parts, "broken": broken}) + "\n")
    else:
        sys.stdout.write(", ".join(f"{name} {value:.10g}" for name, value in parts.items()) + "\n")
    if broken:
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise OcaError(f"the placement is not valid: {broken[0]}{more}")
