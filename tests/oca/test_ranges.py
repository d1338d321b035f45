"""Range headers against a reference that works on sets of bytes."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from oca.http.ranges import MAX_RANGES, parse

SIZES = st.integers(0, 300)
NUMBER = st.integers(0, 400)
SPEC = st.one_of(
    st.tuples(NUMBER, NUMBER).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    NUMBER.map(lambda first: f"{first}-"),
    NUMBER.map(lambda suffix: f"-{suffix}"),
)


def bytes_of(spec: str, size: int) -> set[int]:
    """The positions that one range-spec selects (RFC 9110 14.1.2)."""
    first, last = spec.split("-")
    if not first:
        return set(range(max(0, size - int(last)), size))
    return set(range(int(first), min(int(last) if last else size, size - 1) + 1))


@given(st.lists(SPEC, min_size=1, max_size=MAX_RANGES), SIZES)
def test_exactly_the_bytes_asked_for_are_selected_once(specs: list[str], size: int) -> None:
    """The spans cover what the specs select, without overlap, each inside the representation."""
    wanted = set().union(*(bytes_of(spec, size) for spec in specs))
    spans = parse("bytes=" + ",".join(specs), size)
    if not wanted:
        assert spans == "unsatisfiable"
        return
    assert isinstance(spans, list)
    covered = [position for offset, length in spans for position in range(offset, offset + length)]
    assert sorted(covered) == sorted(wanted)
    assert all(length > 0 and offset >= 0 and offset + length <= size for offset, length in spans)
    ordered = sorted(spans)
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(ordered)), "adjoining spans are merged"


@given(st.text(max_size=60), SIZES)
def test_no_header_makes_it_fail_or_reach_outside(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        spans = parse(header, size)
        if isinstance(spans, list):
            assert 0 < len(spans) <= MAX_RANGES
            assert all(length > 0 and offset >= 0 and offset + length <= size for offset, length in spans)


def test_the_first_span_asked_for_comes_first() -> None:
    """Order is the client's, as RFC 9110 14.2 recommends."""
    assert parse("bytes=50-59,0-9,55-69", 100) == [(50, 20), (0, 10)]
