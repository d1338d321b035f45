"""The knapsack: as good as brute force where that is possible, within its capacity and its bound always."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.placement.knapsack import Item, Selection, fractional_bound, greedy, solve
from oca.errors import OcaError

# A box of 200 TB, the size of which solvers' tolerances are made of.
TERABYTE = 10**12


def best(items: list[Item], capacity: int) -> float:
    """The value of the best selection, found by trying all."""
    return max(
        math.fsum(item.value for item in chosen)
        for number in range(len(items) + 1)
        for chosen in itertools.combinations(items, number)
        if sum(item.bytes for item in chosen) <= capacity
    )


def check(items: list[Item], capacity: int, found: Selection) -> None:
    """What must hold of any answer."""
    chosen = [item for item in items if item.key in found.keys]
    assert len(chosen) == len(found.keys)
    assert sum(item.bytes for item in chosen) <= capacity
    assert found.value == pytest.approx(math.fsum(item.value for item in chosen))
    assert found.value <= found.bound


def items_of(sizes: st.SearchStrategy[int], most: int) -> st.SearchStrategy[list[Item]]:
    pairs = st.lists(st.tuples(sizes, st.floats(0, 1000) | st.integers(0, 20).map(float)), max_size=most)
    return pairs.map(lambda pairs: [Item(f"k{number}", *pair) for number, pair in enumerate(pairs)])


@settings(max_examples=150, deadline=None)
@given(items_of(st.integers(0, 30), 9), st.integers(0, 120))
def test_brute_force(items: list[Item], capacity: int) -> None:
    """Small problems are solved exactly, and their bound is one."""
    found = solve(items, capacity)
    check(items, capacity, found)
    truth = best(items, capacity)
    assert found.value == pytest.approx(truth, rel=1e-8)
    assert found.bound >= truth * (1 - 1e-8)
    assert fractional_bound(items, capacity) >= truth * (1 - 1e-12)


@settings(max_examples=50, deadline=None)
@given(items_of(st.integers(1, 40 * TERABYTE), 9), st.integers(0, 200 * TERABYTE))
def test_brute_force_at_the_size_of_disks(items: list[Item], capacity: int) -> None:
    """Not one byte too much among 200 TB."""
    found = solve(items, capacity)
    check(items, capacity, found)
    assert found.value == pytest.approx(best(items, capacity), rel=1e-8)


@pytest.mark.parametrize(
    ("items", "capacity", "keys", "method"),
    [
        ([], 10, "", "none fits"),
        ([Item("a", 11, 5.0)], 10, "", "none fits"),
        ([Item("a", 1, 0.0), Item("b", 1, -1.0)], 10, "", "none fits"),
        ([Item("a", 4, 1.0), Item("b", 6, 1.0), Item("c", 11, 99.0)], 10, "ab", "all that fit alone fit together"),
        ([Item("a", 0, 1.0)], 0, "a", "all that fit alone fit together"),
        ([Item("a", 5, 9.0), Item("b", 5, 8.0), Item("c", 5, 7.0)], 10, "ab", "greedy, which its bound proves best"),
        ([Item("a", 6, 9.0), Item("b", 5, 7.0), Item("c", 5, 7.0)], 10, "bc", "HiGHS"),
        ([Item("a", 1, 2.0), Item("b", 10, 10.0)], 10, "b", "HiGHS"),
    ],
)
def test_method(items: list[Item], capacity: int, keys: str, method: str) -> None:
    """The solver is asked only where there is a question."""
    found = solve(items, capacity)
    assert (found.keys, found.method) == (frozenset(keys), method)


def catalog(count: int, seed: int) -> list[Item]:
    """Titles of 0.1 to 10 GB whose value has nothing to do with their size."""
    lots = random.Random(seed)
    return [
        Item(f"k{number}", lots.randint(10**8, 10**10), lots.paretovariate(1.2) * 10**9) for number in range(count)
    ]


@pytest.mark.long
def test_large() -> None:
    """A box's catalog of 5,000 titles is solved to the optimum, in seconds."""
    items = catalog(5000, 1)
    capacity = sum(item.bytes for item in items) // 10
    found = solve(items, capacity, 60.0)
    check(items, capacity, found)
    assert found.method == "HiGHS"
    assert (found.bound - found.value) / found.value < 1e-8
    assert solve(items, capacity, 60.0).keys == found.keys


def test_no_time() -> None:
    """A solver that gets no time leaves the greedy selection and its own bound, and the method says so."""
    items = catalog(2000, 2)
    capacity = sum(item.bytes for item in items) // 10
    found = solve(items, capacity, 0.0)
    check(items, capacity, found)
    assert "HiGHS" in found.method
    assert found.method != "HiGHS"
    assert (found.bound - found.value) / found.value < 1e-3


def test_the_most_valuable_single_item_is_never_lost() -> None:
    """Greedy by density alone could be arbitrarily bad."""
    assert [item.key for item in greedy([Item("a", 1, 2.0), Item("b", 10, 10.0)], 10)] == ["b"]


@pytest.mark.parametrize(
    ("items", "capacity", "said"),
    [
        ([], -1, "capacity of -1"),
        ([Item("a", -1, 1.0)], 1, "'a' has -1 bytes"),
        ([Item("a", 1, math.nan)], 1, "'a' has .* value nan"),
        ([Item("a", 1, math.inf)], 1, "'a' has .* value inf"),
        ([Item("a", 1, 1.0), Item("a", 2, 1.0)], 1, "'a' is given twice"),
    ],
)
def test_no_problem(items: list[Item], capacity: int, said: str) -> None:
    """What is no knapsack is refused, with its key."""
    with pytest.raises(OcaError, match=said):
        solve(items, capacity)
