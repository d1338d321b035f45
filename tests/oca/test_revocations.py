"""Revocations as a box keeps them: a file that the controller fills and handshakes read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca import wire
from oca.errors import FormatError
from oca.trust.peers import Peer
from oca.trust.revocations import Revocations, RevocationsFile, decode

ids = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


def box(name: str = "north-1", serial: int = 7) -> Peer:
    return Peer("appliance", name, serial, 0, 1)


@given(st.frozensets(st.integers(0, 2**159)), st.frozensets(ids))
def test_what_is_told_is_what_is_known(serials: frozenset[int], appliances: frozenset[str]) -> None:
    """Also what generation it is, and another generation is something else."""
    told = Revocations(serials, appliances)
    assert decode(wire.encode(told.message), "list") == (told, told.generation)
    assert Revocations(serials ^ {1}, appliances).generation != told.generation
    assert Revocations(serials, appliances ^ {"berlin-1"}).generation != told.generation


def test_who_is_revoked() -> None:
    """A certificate whosever it is, and every certificate of a box; a controller is not called as boxes are."""
    told = Revocations(frozenset({7}), frozenset({"south-1", ""}))
    assert [told(box()), told(box(serial=8)), told(box("south-1", 8))] == [True, False, True]
    assert not told(Peer("controller", "", 8, 0, 1))
    assert told(Peer("controller", "", 7, 0, 1))


def test_a_file_that_comes_changes_and_goes(tmp_path: Path) -> None:
    file = RevocationsFile(tmp_path / "revoked.json")
    assert (file(box()), file.generation) == (False, "")
    first = Revocations(frozenset({7}))
    file.write(wire.encode(first.message))
    before = file.known
    assert (file(box()), file.generation) == (True, first.generation)
    assert file.known is before, "it is read only when it has changed"
    # Another process of the same box reads what this one has written, and after a restart.
    assert RevocationsFile(tmp_path / "revoked.json")(box())
    RevocationsFile(tmp_path / "revoked.json").write(wire.encode(Revocations().message))
    assert (file(box()), file.generation) == (False, Revocations().generation)
    file.path.unlink()
    assert (file(box()), file.generation) == (False, "")


@pytest.mark.parametrize(
    "bad", [b"", b"[]", b'{"format":1}', b'{"format":2,"generation":"","serials":[],"appliances":[]}']
)
def test_a_damaged_file_is_fetched_again(tmp_path: Path, bad: bytes) -> None:
    """What was known stays known meanwhile."""
    file = RevocationsFile(tmp_path / "revoked.json")
    file.write(wire.encode(Revocations(frozenset({7})).message))
    file.path.unlink()
    file.path.write_bytes(bad)
    assert (file(box()), file.generation) == (True, "")
    with pytest.raises(FormatError, match="list of revocations"):
        file.write(bad)
    assert file.path.read_bytes() == bad, "what is no good is not written"


@pytest.mark.parametrize(
    ("field", "value"), [("serials", ["g"]), ("serials", [""]), ("serials", ["1" * 41]), ("appliances", ["../x"])]
)
def test_lists_that_are_no_good(field: str, value: list[str]) -> None:
    message = {"format": 1, "generation": "1", "serials": [], "appliances": []} | {field: value}
    with pytest.raises(FormatError, match="list of revocations is corrupt"):
        decode(json.dumps(message).encode(), "list of revocations")
