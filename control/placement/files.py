"""Placement problems on disk: JSON for small ones, npz for large. All that is read is checked (docs/placement.md)."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from control.placement.problem import Ints, Problem, ProblemError, check_names, sorted_pairs

FORMAT = 1
_T = TypeVar("_T")


class _File(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    bytes: int
    request_bytes: float | None = None
    title: str | None = None
    replicas: int = 0
    media: list[str] = []


class _Title(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    boost: float = 1.0


class _Region(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    origin_cost: float | None = None
    origin_latency: float = 0.0
    reach: list[str] | None = None


class _Appliance(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    storage: int
    throughput: float | None = None
    fill: float | None = None
    media: str = ""
    storage_price: float = 0.0


class _Demand(msgspec.Struct, forbid_unknown_fields=True):
    file: str
    region: str
    requests: float


class _Pair(msgspec.Struct, forbid_unknown_fields=True):
    file: str
    appliance: str


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    files: list[_File]
    regions: list[_Region]
    appliances: list[_Appliance]
    cost: list[list[float | None]]
    demand: list[_Demand]
    titles: list[_Title] = []
    latency: list[list[float]] | None = None
    pins: list[_Pair] = []
    exclusions: list[_Pair] = []
    stored: list[_Pair] = []
    churn_price: float = 0.0


def read(path: Path) -> Problem:
    """The problem at `path`, by its content JSON or npz; ProblemError says what is wrong and where.

    What the numbers mean together is for `problem.check`.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"PK"
        return _from_arrays(path) if packed else _from_document(parse(path, _Document), path)
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from None


def parse(path: Path, kind: type[_T]) -> _T:
    """The JSON document of the wanted kind and of a format that is known."""
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ProblemError(f"{path} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}") from None
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ProblemError(f"{path} is no JSON that can be read: {error}") from None
    check_format(found.get("format") if isinstance(found, dict) else None, path)
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise ProblemError(f"{path}: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {next(n for n in names if names.count(n) > 1)!r} is there twice in one object")
    return found


def check_format(number: object, path: Path) -> None:
    """ProblemError unless it is a format number that this version reads."""
    if type(number) is not int:
        raise ProblemError(f'{path} has no format number: it is no file for `ocactl plan`, or write "format": 1')
    if number != FORMAT:
        raise ProblemError(f"{path} has format {number}, and this version reads {FORMAT}: upgrade, or write it anew")


class Names:
    """Numbers for the names of one kind; `what` says of which, when one is not known."""

    def __init__(self, what: str, names: Sequence[str]) -> None:
        self.what = what
        self._numbers = {name: number for number, name in enumerate(names)}

    def number(self, name: str, where: str) -> int:
        """ProblemError, which says where, if there is no such thing."""
        found = self._numbers.get(name)
        if found is None:
            raise ProblemError(
                f"{where} names {self.what} {name!r}, which is not listed: list it, or correct the name"
            )
        return found


def _from_document(found: _Document, path: Path) -> Problem:
    ids = [[each.id for each in kind] for kind in (found.files, found.regions, found.appliances)]
    check_names(*ids)
    files, regions, boxes = (Names(w, of) for w, of in zip(("file", "region", "appliance"), ids, strict=True))
    boosts = {title.id: title.boost for title in found.titles}
    if len(boosts) < len(found.titles):
        names = [title.id for title in found.titles]
        raise ProblemError(f"title {next(i for i in names if names.count(i) > 1)!r} is listed twice: list it once")
    shape = (len(found.regions), len(found.appliances))
    cost = _table(found.cost, shape, "cost", path)
    for r, region in enumerate(found.regions):
        if region.reach is not None:
            near = {boxes.number(name, f"reach of region {region.id!r}") for name in region.reach}
            cost[r, [a for a in range(shape[1]) if a not in near]] = math.inf
    media = sorted({box.media for box in found.appliances} | {name for file in found.files for name in file.media})
    pairs: dict[str, Any] = {
        name: sorted_pairs(
            [
                (files.number(pair.file, f"{name}[{k}]"), boxes.number(pair.appliance, f"{name}[{k}]"))
                for k, pair in enumerate(getattr(found, name))
            ]
        )
        for name in ("pins", "exclusions", "stored")
    }
    wanted = np.array([files.number(d.file, f"demand[{k}]") for k, d in enumerate(found.demand)], np.int64)
    return Problem(
        files=[file.id for file in found.files],
        size=np.array([_whole(file.bytes, f"bytes of file {file.id!r}") for file in found.files], np.int64),
        request_bytes=np.array(
            [float(file.bytes if file.request_bytes is None else file.request_bytes) for file in found.files]
        ),
        boost=np.array([boosts.get(file.title or file.id, 1.0) for file in found.files], float),
        replicas=np.array([_whole(file.replicas, f"replicas of file {file.id!r}") for file in found.files], np.int64),
        classes=_classes([file.media for file in found.files], media, path),
        regions=[region.id for region in found.regions],
        origin_cost=np.array([_or_infinite(region.origin_cost) for region in found.regions], float),
        origin_latency=np.array([region.origin_latency for region in found.regions], float),
        appliances=[box.id for box in found.appliances],
        storage=np.array([_whole(box.storage, f"storage of {box.id!r}") for box in found.appliances], float),
        throughput=np.array([_or_infinite(box.throughput) for box in found.appliances], float),
        fill=np.array([_or_infinite(box.fill) for box in found.appliances], float),
        media=np.array([media.index(box.media) for box in found.appliances], np.int64),
        storage_price=np.array([box.storage_price for box in found.appliances], float),
        cost=cost,
        latency=np.zeros(shape) if found.latency is None else _table(found.latency, shape, "latency", path),
        **sparse(
            len(found.files),
            wanted,
            np.array([regions.number(d.region, f"demand[{k}]") for k, d in enumerate(found.demand)], np.int64),
            np.array([d.requests for d in found.demand], float),
        ),
        **pairs,
        churn_price=found.churn_price,
    )


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _whole(value: int, what: str) -> int:
    if not -(2**63) <= value < 2**63:
        raise ProblemError(f"{what} is {value}: a number of more than 64 bits")
    return value


def _classes(wanted: Sequence[Sequence[str]], media: Sequence[str], path: Path) -> Ints:
    if len(media) > 63:
        raise ProblemError(f"{path} names {len(media)} media classes: 63 are the most")
    return np.array([sum(1 << media.index(name) for name in set(names)) for names in wanted], np.int64)


def _table(rows: Sequence[Sequence[float | None]], shape: tuple[int, int], name: str, path: Path) -> Any:
    if len(rows) != shape[0]:
        raise ProblemError(f"{path}: {name} has {len(rows)} rows for {shape[0]} regions: give one for each")
    for r, row in enumerate(rows):
        if len(row) != shape[1]:
            raise ProblemError(
                f"{path}: {name}[{r}] has {len(row)} numbers for {shape[1]} appliances: give one for each"
            )
    return np.array([[_or_infinite(value) for value in row] for row in rows], float).reshape(shape)


def sparse(count: int, file: Ints, region: Ints, requests: Any) -> dict[str, Any]:
    """Demand in the order that `Problem` wants, whatever order it comes in."""
    order = np.lexsort((region, file))
    start = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(file, minlength=count), out=start[1:])
    return {"start": start, "region": region[order], "requests": requests[order]}


# Arrays of a problem in npz: name, kinds of dtype, shape by letters (F, R, A files, regions, appliances; else free).
_ARRAYS: dict[str, tuple[str, str]] = {
    "file_bytes": ("iu", "F"),
    "origin_cost": ("f", "R"),
    "storage": ("iuf", "A"),
    "cost": ("f", "RA"),
    "demand_file": ("iu", "D"),
    "demand_region": ("iu", "D"),
    "demand_requests": ("fiu", "D"),
}
_OPTIONAL: dict[str, tuple[str, str]] = {
    "files": ("U", "F"),
    "regions": ("U", "R"),
    "appliances": ("U", "A"),
    "request_bytes": ("fiu", "F"),
    "boost": ("fiu", "F"),
    "replicas": ("iu", "F"),
    "classes": ("iu", "F"),
    "origin_latency": ("fiu", "R"),
    "throughput": ("fiu", "A"),
    "fill": ("fiu", "A"),
    "media": ("iu", "A"),
    "storage_price": ("fiu", "A"),
    "latency": ("fiu", "RA"),
    "reach": ("b", "RA"),
    "pins": ("iu", "P2"),
    "exclusions": ("iu", "E2"),
    "stored": ("iu", "S2"),
    "churn_price": ("fiu", ""),
}


def arrays_of(path: Path, needed: Mapping[str, tuple[str, str]], optional: Mapping[str, tuple[str, str]]) -> Any:
    """The arrays of an npz file, each of its kind and shape; letters that stand for a size agree."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError, KeyError, NotImplementedError) as error:
        raise ProblemError(f"{path} is no npz file of plain arrays: {error}") from None
    number = found.pop("format", None)
    check_format(
        int(number) if number is not None and number.shape == () and number.dtype.kind in "iu" else None, path
    )
    missing, unknown = needed.keys() - found.keys(), found.keys() - needed.keys() - optional.keys()
    if missing or unknown:
        what = f"lacks the array {min(missing)!r}" if missing else f"has an unknown array {min(unknown)!r}"
        raise ProblemError(f"{path} {what}")
    sizes: dict[str, int] = {"2": 2}
    for name, array in found.items():
        kinds, shape = needed.get(name) or optional[name]
        if array.dtype.kind not in kinds:
            raise ProblemError(f"{path}: {name} is of type {array.dtype}, which it cannot be")
        if array.ndim != len(shape) or any(
            sizes.setdefault(s, n) != n for s, n in zip(shape, array.shape, strict=True)
        ):
            raise ProblemError(f"{path}: {name} has the shape {array.shape}, which does not fit the other arrays")
    return found


def _from_arrays(path: Path) -> Problem:
    found = arrays_of(path, _ARRAYS, _OPTIONAL)
    count, (regions, boxes) = len(found["file_bytes"]), found["cost"].shape
    for name, most, columns in (
        ("demand_file", count, slice(None)),
        ("demand_region", regions, slice(None)),
        *((n, m, (slice(None), c)) for n in ("pins", "exclusions", "stored") for c, m in ((0, count), (1, boxes))),
    ):
        values = found[name][columns] if name in found else np.zeros(0)
        if len(values) and not (values.min() >= 0 and values.max() < most):
            raise ProblemError(f"{path}: {name} holds a number that is not from 0 to {most - 1}")
    if "media" in found and len(found["media"]) and not (found["media"].min() >= 0 and found["media"].max() < 63):
        raise ProblemError(f"{path}: media holds a number that is not from 0 to 62")
    cost = found["cost"].astype(float)
    if "reach" in found:
        cost[~found["reach"]] = math.inf

    def of(name: str, shape: int | tuple[int, int], default: float, kind: type = float) -> Any:
        return found[name].astype(kind) if name in found else np.full(shape, default, kind)

    pairs: dict[str, Any] = {name: sorted_pairs(found.get(name, ())) for name in ("pins", "exclusions", "stored")}
    return Problem(
        files=_names(found, "files", count),
        size=found["file_bytes"].astype(np.int64),
        request_bytes=of("request_bytes", 0, 0) if "request_bytes" in found else found["file_bytes"].astype(float),
        boost=of("boost", count, 1),
        replicas=of("replicas", count, 0, np.int64),
        classes=of("classes", count, 0, np.int64),
        regions=_names(found, "regions", regions),
        origin_cost=found["origin_cost"].astype(float),
        origin_latency=of("origin_latency", regions, 0),
        appliances=_names(found, "appliances", boxes),
        storage=found["storage"].astype(float),
        throughput=of("throughput", boxes, math.inf),
        fill=of("fill", boxes, math.inf),
        media=of("media", boxes, 0, np.int64),
        storage_price=of("storage_price", boxes, 0),
        cost=cost,
        latency=of("latency", (regions, boxes), 0),
        **sparse(
            count,
            found["demand_file"].astype(np.int64),
            found["demand_region"].astype(np.int64),
            found["demand_requests"].astype(float),
        ),
        **pairs,
        churn_price=float(found.get("churn_price", 0)),
    )


def _names(found: Mapping[str, Any], name: str, count: int) -> Sequence[str]:
    return [str(each) for each in found[name]] if name in found else [str(number) for number in range(count)]


def write(problem: Problem, path: Path) -> None:
    """The problem as npz."""
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "files": np.array(problem.files),
        "regions": np.array(problem.regions),
        "appliances": np.array(problem.appliances),
        "file_bytes": problem.size,
        "demand_file": problem.file_of_demand(),
        "demand_region": problem.region,
        "demand_requests": problem.requests,
    }
    for name in ("origin_cost", "storage", "cost", *(_OPTIONAL.keys() - arrays.keys() - {"reach"})):
        arrays[name] = getattr(problem, name)
    with path.open("wb") as file:
        np.savez(file, **arrays)
