"""Pairwise choice: few rows in which every value of every dimension meets every value of every other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

Row = dict[str, str]
Pair = frozenset[tuple[str, str]]


def pairs(row: Row) -> set[Pair]:
    """What meets in a row."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def every_pair(dimensions: Mapping[str, Sequence[str]]) -> set[Pair]:
    """What must meet: each two values of two dimensions."""
    return {
        frozenset({(one, a), (other, b)})
        for one, other in combinations(dimensions, 2)
        for a in dimensions[one]
        for b in dimensions[other]
    }


def pairwise(dimensions: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows that cover every pair, the same each time.

    Each begins with a pair that is still missing; the other dimensions, in order, take the value that covers most.
    """
    missing, rows = every_pair(dimensions), []
    while missing:
        row = dict(min(missing, key=sorted))
        for name, values in dimensions.items():
            if name not in row:
                row[name] = max(values, key=lambda value: len(missing & pairs({**row, name: value})))
        missing -= pairs(row)
        rows.append({name: row[name] for name in dimensions})
    return rows
