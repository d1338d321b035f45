"""The placement problem in arrays, and the checks that make it one. docs/placement.md defines every term. Pure.

Files, regions and appliances are numbers here, in the order in which the problem lists them; names are for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oca.errors import OcaError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ORIGIN = -1
# Beyond this a float no longer knows every byte.
MOST_BYTES = 2**53


class ProblemError(OcaError):
    """A placement problem, or a placement, that is none: one sentence."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything that a placement is judged by.

    What is infinite in `cost` (region × appliance) or `origin_cost` cannot be reached; in `throughput` and `fill`
    it is without limit. Demand is sparse: file f wants `requests[k]` in `region[k]` for k from `start[f]`
    up to `start[f + 1]`. `pins`, `exclusions` and `stored` are pairs (file, appliance), sorted. `classes` has a bit
    per media class that may hold the file, 0 for any; `media` is the number of each appliance's class.
    """

    files: Sequence[str]
    size: Ints
    request_bytes: Floats
    boost: Floats
    replicas: Ints
    classes: Ints
    regions: Sequence[str]
    origin_cost: Floats
    origin_latency: Floats
    appliances: Sequence[str]
    storage: Floats
    throughput: Floats
    fill: Floats
    media: Ints
    storage_price: Floats
    cost: Floats
    latency: Floats
    start: Ints
    region: Ints
    requests: Floats
    pins: Ints
    exclusions: Ints
    stored: Ints
    churn_price: float = 0.0

    def allowed(self, rows: Ints) -> Bools:
        """Which of the files `rows` (ascending) each appliance may hold: by exclusion, class and size."""
        classes = self.classes[rows, None]
        ok: Bools = (classes == 0) | ((classes >> self.media[None, :]) & 1 == 1)
        ok &= self.size[rows, None] <= self.storage[None, :]
        ok &= ~self.pairs(self.exclusions, rows)
        return ok

    def pairs(self, pairs: Ints, rows: Ints) -> Bools:
        """The sorted `pairs` that concern the files `rows` (ascending), as a table files × appliances."""
        table = np.zeros((len(rows), len(self.appliances)), bool)
        if len(pairs) and len(rows):
            low, high = np.searchsorted(pairs[:, 0], [rows[0], rows[-1] + 1])
            some = pairs[low:high]
            at = np.searchsorted(rows, some[:, 0])
            here = rows[np.minimum(at, len(rows) - 1)] == some[:, 0]
            table[at[here], some[here, 1]] = True
        return table

    def file_of_demand(self) -> Ints:
        """The file that each demand is for."""
        return np.repeat(np.arange(len(self.files)), np.diff(self.start))


def sorted_pairs(pairs: Any) -> Ints:
    """Pairs of numbers, each once, in the order that `Problem` wants."""
    found = np.asarray(pairs, np.int64).reshape(-1, 2)
    return np.unique(found, axis=0) if len(found) else found


def check(problem: Problem) -> list[str]:
    """What is odd but allowed, a sentence each; ProblemError for what makes the problem none."""
    check_names(problem.files, problem.regions, problem.appliances)
    _numbers(problem)
    rows = np.arange(len(problem.files))
    homeless = _room(problem, rows)
    _pins(problem)
    _reached(problem)
    return homeless


def _first(bad: NDArray[np.bool_]) -> int | None:
    found = np.flatnonzero(bad)
    return int(found[0]) if len(found) else None


def check_names(files: Sequence[str], regions: Sequence[str], appliances: Sequence[str]) -> None:
    """ProblemError if there is none of a kind, or one twice."""
    for what, names, empty in (
        ("file", files, "the catalog is empty: list files to place"),
        ("region", regions, "there are no regions: list those that watch"),
        ("appliance", appliances, "there are no appliances: list those that may store"),
    ):
        if not len(names):
            raise ProblemError(empty)
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise ProblemError(f"{what} {name!r} is listed twice: list it once")
            seen.add(name)


def _numbers(problem: Problem) -> None:
    """Each number is in its range; the first that is not is named."""
    files, boxes, regions = problem.files, problem.appliances, problem.regions
    for what, names, values, least, most in (
        ("bytes of file", files, problem.size, 1, MOST_BYTES),
        ("request_bytes of file", files, problem.request_bytes, 0, MOST_BYTES),
        ("boost of the title of file", files, problem.boost, 0, 1e12),
        ("replicas of file", files, problem.replicas, 0, MOST_BYTES),
        ("storage of appliance", boxes, problem.storage, 0, MOST_BYTES),
        ("throughput of appliance", boxes, problem.throughput, 0, np.inf),
        ("fill of appliance", boxes, problem.fill, 0, np.inf),
        ("storage_price of appliance", boxes, problem.storage_price, -1e15, 1e15),
        ("origin_latency of region", regions, problem.origin_latency, -1e15, 1e15),
    ):
        at = _first(~((values >= least) & (values <= most)))
        if at is not None:
            raise ProblemError(f"{what} {names[at]!r} is {values[at]:.15g}: give a number from {least:g} to {most:g}")
    if not abs(problem.churn_price) <= 1e15:
        raise ProblemError(f"churn_price is {problem.churn_price}: give a number")
    if (at := _first(~((problem.requests >= 0) & (problem.requests <= 1e15)))) is not None:
        file = int(np.searchsorted(problem.start, at, "right")) - 1
        raise ProblemError(
            f"the demand for file {files[file]!r} in region {regions[problem.region[at]]!r} is "
            f"{problem.requests[at]:.15g} requests: give a number from 0"
        )
    for name, table in (("cost", problem.cost), ("latency", problem.latency)):
        at = _first(~((np.abs(table) <= 1e15) | np.isposinf(problem.cost)).ravel())
        if at is not None:
            r, a = divmod(at, len(boxes))
            raise ProblemError(
                f"the {name} of region {regions[r]!r} from appliance {boxes[a]!r} is {table[r, a]}: give a number, "
                "or null in cost if it cannot be reached"
            )
    at = _first(~((np.abs(problem.origin_cost) <= 1e15) | np.isposinf(problem.origin_cost)))
    if at is not None:
        raise ProblemError(
            f"origin_cost of region {regions[at]!r} is {problem.origin_cost[at]}: give a number, or null"
        )
    key = problem.file_of_demand() * len(regions) + problem.region
    if len(key) > 1 and (np.diff(key) <= 0).any():
        key.sort()
        twice = _first(np.diff(key) == 0)
        if twice is not None:
            f, r = divmod(int(key[twice]), len(regions))
            raise ProblemError(f"demand for file {files[f]!r} in region {regions[r]!r} is given twice: add it up")


def _room(problem: Problem, rows: Ints) -> list[str]:
    """Enough appliances may hold each file that needs some. What no box can hold is told."""
    largest = float(problem.storage.max())
    big = np.flatnonzero(problem.size > largest)
    wanted = big[problem.replicas[big] > 0]
    if len(wanted):
        f = int(wanted[0])
        raise ProblemError(
            f"file {problem.files[f]!r} of {problem.size[f]} bytes must be stored {problem.replicas[f]} times, but "
            f"the largest appliance stores {largest:.0f}: drop its replicas, or give an appliance more storage"
        )
    for f in np.flatnonzero(problem.replicas > 0).tolist():
        may = int(problem.allowed(rows[f : f + 1]).sum())
        if may < problem.replicas[f]:
            raise ProblemError(
                f"file {problem.files[f]!r} must be stored {problem.replicas[f]} times, but only {may} appliances "
                "may hold it by their storage, media class and exclusions: lower its replicas or allow more"
            )
    if not len(big):
        return []
    few = ", ".join(str(problem.files[f]) for f in big[:5]) + (", …" if len(big) > 5 else "")
    return [f"{len(big)} files are larger than every appliance and are left to the origin: {few}"]


def _pins(problem: Problem) -> None:
    """What is pinned may be held and has room."""
    if not len(problem.pins):
        return
    file, box = problem.pins[:, 0], problem.pins[:, 1]
    held = {(int(f), int(a)) for f, a in problem.stored}
    for f, a in problem.pins:
        size, storage = problem.size[f], problem.storage[a]
        if size <= storage and not problem.allowed(np.array([f]))[0, a]:
            raise ProblemError(
                f"file {problem.files[f]!r} is pinned to appliance {problem.appliances[a]!r}, which may not hold it "
                "by its exclusions or media class: drop one of the two"
            )
    new = np.array([(int(f), int(a)) not in held for f, a in problem.pins])
    for what, limit, some in (
        ("stores", problem.storage, np.ones(len(new), bool)),
        ("may fill", problem.fill, new),
    ):
        total = np.bincount(box[some], problem.size[file[some]], len(problem.appliances))
        at = _first(total > limit)
        if at is not None:
            raise ProblemError(
                f"the files pinned to appliance {problem.appliances[at]!r} take {total[at]:.0f} bytes, and it {what} "
                f"{limit[at]:.0f}: that is {total[at] - limit[at]:.0f} too much, so unpin some"
            )


def _reached(problem: Problem) -> None:
    """Every region has something that serves it."""
    lost = _first(np.isinf(problem.origin_cost) & np.isinf(problem.cost).all(1))
    if lost is not None:
        raise ProblemError(
            f"nothing reaches region {problem.regions[lost]!r}: give it an origin_cost, or a cost from an appliance"
        )
