"""A placement: what each appliance stores, and who serves whom where that is not the cheapest. On disk, too."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from control.placement.files import FORMAT, Names, arrays_of, parse
from control.placement.problem import ORIGIN, Floats, Ints, Problem, ProblemError, sorted_pairs


@dataclass(frozen=True, eq=False)
class Placement:
    """`stored` are pairs (file, appliance), sorted.

    Demand of a file in a region is served by the cheapest of those that store it and the origin, unless rows of
    `served`, (file, region, appliance or ORIGIN), share it out: their `shares` then sum to 1.
    """

    stored: Ints
    served: Ints = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    shares: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, eq=False)
class Prices:
    """What a byte of storage, of throughput and of filling costs on each appliance, beyond what the problem says."""

    storage: Floats
    throughput: Floats
    fill: Floats


@dataclass(frozen=True, eq=False)
class Solution:
    """A placement, what it costs, and the least that any could cost; gap is (objective − bound) ÷ |objective|.

    `notes` are sentences for whoever asked; `prices` start the next search, where the method knows them.
    """

    placement: Placement
    objective: float
    bound: float
    seconds: float
    method: str
    prices: Prices | None = None
    notes: tuple[str, ...] = ()

    @property
    def gap(self) -> float:
        """How far from the best the placement may be, relatively; infinite for an objective of 0 below its bound."""
        missing = self.objective - self.bound
        if not self.objective:
            return 0.0 if missing <= 0 else float("inf")
        return missing / abs(self.objective)


class _Route(msgspec.Struct, forbid_unknown_fields=True):
    file: str
    region: str
    source: str | None
    share: float


class _Price(msgspec.Struct, forbid_unknown_fields=True):
    storage: float
    throughput: float
    fill: float


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    placement: dict[str, list[str]]
    served: list[_Route] = []
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    seconds: float | None = None
    method: str = ""
    prices: dict[str, _Price] = {}
    notes: list[str] = []


_ARRAYS = {"stored_file": ("iu", "N"), "stored_appliance": ("iu", "N")}
_OPTIONAL = {
    **dict.fromkeys(("served_file", "served_region", "served_appliance"), ("iu", "M")),
    "served_share": ("f", "M"),
    **dict.fromkeys(("objective", "bound", "gap", "seconds"), ("f", "")),
    "method": ("U", ""),
    "notes": ("U", "K"),
    **dict.fromkeys(("price_storage", "price_throughput", "price_fill"), ("f", "A")),
}


@dataclass(frozen=True, eq=False)
class Found:
    """A placement as a file has it, with the objective and the prices that it states, if it does."""

    placement: Placement
    objective: float | None
    prices: Prices | None


def read(path: Path, problem: Problem) -> Found:
    """The placement at `path` for this problem, JSON or npz; ProblemError says what is wrong and where."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"PK"
        return _from_arrays(path, problem) if packed else _from_document(path, problem)
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from None


def _from_document(path: Path, problem: Problem) -> Found:
    found = parse(path, _Document)
    files, regions = Names("file", problem.files), Names("region", problem.regions)
    boxes = Names("appliance", problem.appliances)
    stored = [
        (files.number(name, f"placement of {box!r}"), boxes.number(box, "placement"))
        for box, names in found.placement.items()
        for name in names
    ]
    served = [
        (
            files.number(route.file, f"served[{k}]"),
            regions.number(route.region, f"served[{k}]"),
            ORIGIN if route.source is None else boxes.number(route.source, f"served[{k}]"),
        )
        for k, route in enumerate(found.served)
    ]
    prices = None
    if found.prices:
        none = _Price(0, 0, 0)
        for name in found.prices:
            boxes.number(name, "prices")
        rows = [found.prices.get(box, none) for box in problem.appliances]
        prices = Prices(*(np.array([getattr(row, name) for row in rows]) for name in _Price.__struct_fields__))
    placement = Placement(
        _pairs(stored, path), np.array(served, np.int64).reshape(-1, 3), np.array([r.share for r in found.served])
    )
    return Found(placement, found.objective, _positive(prices, path))


def _positive(prices: Prices | None, path: Path) -> Prices | None:
    if prices is not None and not all(((p >= 0) & (p < 1e300)).all() for p in vars(prices).values()):
        raise ProblemError(f"{path} has a price that is no number from 0: leave its prices out")
    return prices


def _pairs(stored: Any, path: Path) -> Ints:
    found = sorted_pairs(stored)
    if len(found) < len(stored):
        raise ProblemError(f"{path} stores a file twice on one appliance: list it once")
    return found


def _from_arrays(path: Path, problem: Problem) -> Found:
    found = arrays_of(path, _ARRAYS, _OPTIONAL)
    routes = ("served_file", "served_region", "served_appliance", "served_share")
    if len(found.keys() & set(routes)) not in (0, len(routes)):
        raise ProblemError(f"{path} has some of {', '.join(routes)}: give all of them or none")
    files, regions, boxes = len(problem.files), len(problem.regions), len(problem.appliances)
    for name, least, most in (
        ("stored_file", 0, files),
        ("stored_appliance", 0, boxes),
        ("served_file", 0, files),
        ("served_region", 0, regions),
        ("served_appliance", ORIGIN, boxes),
    ):
        values = found.get(name, ())
        if len(values) and not (values.min() >= least and values.max() < most):
            raise ProblemError(f"{path}: {name} holds a number that is not from {least} to {most - 1}")
    placement = Placement(_pairs(np.column_stack([found["stored_file"], found["stored_appliance"]]), path))
    if routes[0] in found:
        served = np.column_stack([found[name].astype(np.int64) for name in routes[:3]])
        placement = Placement(placement.stored, served, found[routes[3]].astype(float))
    names = ("price_storage", "price_throughput", "price_fill")
    prices = None
    if all(name in found for name in names):
        prices = Prices(*(found[name].astype(float) for name in names))
        if len(prices.storage) != boxes:
            raise ProblemError(f"{path} has prices of {len(prices.storage)} appliances, and the problem has {boxes}")
    objective = float(found["objective"]) if "objective" in found else None
    return Found(placement, objective, _positive(prices, path))


def document(solution: Solution, problem: Problem) -> dict[str, Any]:
    """The solution as JSON has it; the same that `read` reads."""
    placement, boxes = solution.placement, problem.appliances
    stored: dict[str, list[str]] = {box: [] for box in boxes}
    for f, a in placement.stored.tolist():
        stored[boxes[a]].append(problem.files[f])
    found: dict[str, Any] = {
        "format": FORMAT,
        "objective": solution.objective,
        "bound": solution.bound,
        "gap": solution.gap if np.isfinite(solution.gap) else None,
        "seconds": round(solution.seconds, 3),
        "method": solution.method,
        "notes": list(solution.notes),
        "placement": stored,
        "served": [
            {
                "file": problem.files[f],
                "region": problem.regions[r],
                "source": None if a == ORIGIN else boxes[a],
                "share": share,
            }
            for (f, r, a), share in zip(placement.served.tolist(), placement.shares.tolist(), strict=True)
        ],
    }
    if solution.prices is not None:
        of = solution.prices
        rows = zip(boxes, of.storage.tolist(), of.throughput.tolist(), of.fill.tolist(), strict=True)
        found["prices"] = {box: {"storage": s, "throughput": t, "fill": b} for box, s, t, b in rows}
    return found


def write(solution: Solution, problem: Problem, path: Path) -> None:
    """The solution as npz if the name ends so, else as JSON."""
    try:
        if path.suffix != ".npz":
            path.write_text(json.dumps(document(solution, problem)) + "\n")
            return
        placement = solution.placement
        arrays: dict[str, Any] = {
            "format": FORMAT,
            "stored_file": placement.stored[:, 0],
            "stored_appliance": placement.stored[:, 1],
            "served_file": placement.served[:, 0],
            "served_region": placement.served[:, 1],
            "served_appliance": placement.served[:, 2],
            "served_share": placement.shares,
            "method": solution.method,
            "notes": np.array(solution.notes, str),
            **{name: getattr(solution, name) for name in ("objective", "bound", "gap", "seconds")},
        }
        if solution.prices is not None:
            arrays |= {f"price_{name}": getattr(solution.prices, name) for name in ("storage", "throughput", "fill")}
        with path.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise ProblemError(f"cannot write {path}: {error.strerror or error}") from None
