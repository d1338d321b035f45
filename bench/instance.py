"""Placement problems made up for the bench, as docs/placement.md describes them: the same seed, the same problem."""

from __future__ import annotations

from typing import Any

import numpy as np

from control.placement.files import sparse
from control.placement.problem import Floats, Ints, Problem, sorted_pairs

# Requests a day below this are no forecast worth carrying along.
_LEAST_REQUESTS = 0.05
_ORIGIN_COST = 10.0
# The regions beside its own that a region reaches.
_NEIGHBOURS = 3
_FLASH, _DISK = 0, 1


def make(files: int, appliances: int, regions: int, seed: int, zipf: float) -> Problem:
    """A catalog with a Zipf body, regions of unlike size and taste, flash and disk boxes; costs by distance."""
    chance = np.random.default_rng(seed)
    size = (chance.lognormal(np.log(1.2e9), 0.8, files) + 1).astype(np.int64)
    home = np.arange(appliances) % regions
    places = chance.random((regions, 2))
    distance = np.hypot(*(places[:, None] - places[None, :]).transpose(2, 0, 1))
    near = np.argsort(distance, axis=1)[:, : _NEIGHBOURS + 1]
    reached = np.zeros((regions, regions), bool)
    reached[np.arange(regions)[:, None], near] = True
    # An own box costs 0 to 0.5 a byte, a neighbour's 2 and more by distance, the origin 10.
    cost = np.where(home == np.arange(regions)[:, None], 0.0, 2 + 4 * distance[:, home])
    cost = cost + chance.uniform(0, 0.5, appliances)
    cost[~reached[:, home]] = np.inf
    demand = _demand(files, regions, zipf, chance)
    served = demand["requests"] * size[np.repeat(np.arange(files), np.diff(demand["start"]))]
    region_bytes = np.bincount(demand["region"], served, regions)
    flash = chance.random(appliances) < 0.3
    share = np.where(flash, 0.004, 0.03) * chance.lognormal(0, 0.5, appliances)
    storage = np.floor(share * size.sum())
    peers = np.bincount(home, minlength=regions)[home]
    throughput = region_bytes[home] / peers * np.where(flash, 4.0, 1.5) * chance.lognormal(0, 0.3, appliances)
    stored = _yesterday(size, demand, storage, home, chance)
    hot = np.zeros(files, np.int64)
    hot[: max(1, files // 1000)] = min(2, appliances)
    return Problem(
        files=[f"f{number}" for number in range(files)],
        size=size,
        request_bytes=size.astype(float) * 0.4,
        boost=np.where(chance.random(files) < 0.05, 1.2, 1.0),
        replicas=np.where(size <= np.sort(storage)[-min(2, appliances)], hot, 0),
        classes=np.zeros(files, np.int64),
        regions=[f"r{number}" for number in range(regions)],
        origin_cost=np.full(regions, _ORIGIN_COST),
        origin_latency=np.full(regions, 1e8),
        appliances=[f"a{number}" for number in range(appliances)],
        storage=storage,
        throughput=throughput * 0.4,
        fill=np.floor(storage * 0.25),
        media=np.where(flash, _FLASH, _DISK),
        storage_price=chance.uniform(0, 0.02, appliances),
        cost=cost,
        latency=np.where(home == np.arange(regions)[:, None], 0.0, 2e7),
        **demand,
        pins=sorted_pairs([]),
        exclusions=sorted_pairs(
            np.column_stack([chance.integers(0, files, files // 50), chance.integers(0, appliances, files // 50)])
        ),
        stored=stored,
        churn_price=0.05,
    )


def _demand(files: int, regions: int, zipf: float, chance: np.random.Generator) -> dict[str, Any]:
    """Requests a day: Zipf by rank, times what a region is large, times its own taste for each file."""
    popularity = (np.arange(files) + 10.0) ** -zipf
    popularity *= files * 2 / popularity.sum()
    people = chance.lognormal(0, 0.8, regions)
    file, region, requests = [], [], []
    for r in range(regions):
        wanted = popularity * people[r] * chance.lognormal(-0.5, 1.0, files)
        some = np.flatnonzero(wanted >= _LEAST_REQUESTS)
        file.append(some)
        region.append(np.full(len(some), r))
        requests.append(wanted[some])
    return sparse(files, np.concatenate(file), np.concatenate(region), np.concatenate(requests))


def _yesterday(size: Ints, demand: dict[str, Any], storage: Floats, home: Ints, chance: np.random.Generator) -> Ints:
    """What is stored now: in each box what its region asked for most by a forecast that erred, to 95 %."""
    file = np.repeat(np.arange(len(size)), np.diff(demand["start"]))
    pairs = []
    order = np.argsort(demand["region"], kind="stable")
    ends = np.searchsorted(demand["region"][order], np.arange(home.max() + 2))
    for a, r in enumerate(home):
        some = order[ends[r] : ends[r + 1]]
        guess = demand["requests"][some] * chance.lognormal(0, 0.7, len(some))
        ranked = file[some[np.argsort(-guess)]]
        kept = ranked[np.cumsum(size[ranked]) <= 0.95 * storage[a]]
        pairs.append(np.column_stack([kept, np.full(len(kept), a)]))
    return sorted_pairs(np.concatenate(pairs))
