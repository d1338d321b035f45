"""Long work goes piece by piece, and comes to the same as all of it at once."""

from __future__ import annotations

import os

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from oca.pieces import PIECE, give_way, pieces
from oca.title.digest import digest


@given(
    length=st.one_of(st.integers(0, 5 * PIECE), st.sampled_from([0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])),
    kind=st.sampled_from([bytes, bytearray, memoryview]),
)
def test_pieces_are_all_of_it_in_order(length: int, kind: type) -> None:
    data = os.urandom(length)
    found = list(pieces(kind(data)))
    assert b"".join(found) == data
    assert all(len(piece) == PIECE for piece in found[:-1])
    assert all(0 < len(piece) <= PIECE for piece in found)
    assert digest(kind(data)) == blake3(data).hexdigest()


def test_others_have_the_processor_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that gives way; one that viewers wait for goes on."""
    given = []
    monkeypatch.setattr(os, "sched_yield", lambda: given.append(True))
    monkeypatch.setattr("oca.pieces._stepping", False)
    digest(bytes(4 * PIECE))
    assert not given
    give_way()
    for length, times in ((0, 0), (PIECE, 0), (PIECE + 1, 1), (4 * PIECE, 3)):
        given.clear()
        digest(bytes(length))
        assert len(given) == times
