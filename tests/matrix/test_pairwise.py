"""The rows of the matrix leave no pair out, and are few."""

from __future__ import annotations

from itertools import product

import pytest

from tests.matrix.pairwise import every_pair, pairs, pairwise


@pytest.mark.parametrize("sizes", [(2, 2), (4, 4, 3, 3, 2), (1, 3, 2), (5, 2, 2, 2), (7, 6, 3, 3, 2), (3, 3, 3, 3)])
def test_every_pair_meets_in_far_fewer_rows_than_there_are_combinations(sizes: tuple[int, ...]) -> None:
    """Each row has one value of each dimension; nothing is covered twice over for long."""
    dimensions = {f"d{n}": [f"v{value}" for value in range(size)] for n, size in enumerate(sizes)}
    rows = pairwise(dimensions)
    assert all(list(row) == list(dimensions) for row in rows)
    assert all(row[name] in values for row in rows for name, values in dimensions.items())
    met = set().union(*map(pairs, rows))
    assert met == every_pair(dimensions)
    # Counted apart from the generator: which pairs there are.
    wanted = {
        frozenset({(a, x), (b, y)})
        for a, b in product(dimensions, repeat=2)
        if a < b
        for x in dimensions[a]
        for y in dimensions[b]
    }
    assert met == wanted
    least = max(x * y for n, x in enumerate(sizes) for y in sizes[n + 1 :])
    assert least <= len(rows) <= 1.6 * least
    assert rows == pairwise(dimensions)
