"""What a box knows of others, from a file that may be anything; and redirects among boxes, which always end."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca import wire
from oca.errors import FormatError
from oca.miss import hops
from oca.miss.neighbours import FILE, Known, NeighboursFile, decode
from oca.wire import HeldElsewhere, Neighbours, Source

V = "0" * 32


def box(name: str, rank: Any = "peer") -> Source:
    return Source(appliance=name, url=f"http://{name}.example", rank=rank)


def told(**more: Any) -> Neighbours:
    boxes = [box("p1"), box("t1", "tier"), box("o1", "origin")]
    tracks = {"v1": [0, 2], "a1": [1, 2], "v1.mp4": [1]}
    held = [HeldElsewhere(title="clip", version=V, published=7, tracks=tracks)]
    return Neighbours(**{"appliance": "me", "generation": "g", "boxes": boxes, "held": held} | more)


@pytest.mark.parametrize(
    ("name", "holders"),
    [
        ("v1", ["p1", "o1"]),
        ("v1.idx", ["p1", "o1"]),
        ("v1.mp4", ["t1"]),
        ("a1.mp4", ["t1", "o1"]),
        ("a1.vtt", ["p1", "t1", "o1"]),
        ("title.json", ["p1", "t1", "o1"]),
        ("v9", ["p1", "t1", "o1"]),
    ],
)
def test_who_holds_what(name: str, holders: list[str]) -> None:
    """A track, its files, a track that is named like a file; files of no track are with whoever holds any."""
    known = Known(told())
    assert [source.appliance for source in known.holders("clip", V, name)] == holders
    assert known.holders("other", V, name) == known.holders("clip", "1" * 32, name) == []
    assert (known.published("clip", V), known.published("other", V)) == (7, 0)


def test_the_file_survives(tmp_path: Path) -> None:
    """What was written is read by the next process; a change is seen once."""
    NeighboursFile(tmp_path, "me").write(wire.pack(told()))
    reader = NeighboursFile(tmp_path, "me")
    assert reader.changed()
    assert reader.read().generation == "g"
    assert not reader.changed()
    NeighboursFile(tmp_path, "me").write(wire.pack(told(generation="h")))
    assert reader.changed()
    assert reader.read().generation == "h"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"rubbish",
        wire.pack(told())[:-9],
        wire.encode(told()),
        wire.pack(told(boxes=[])),
        wire.pack(told(appliance="other")),
        wire.pack(wire.Inventory(appliance="me", generation="1", held=[])),
    ],
)
def test_a_damaged_file_means_nobody_is_known(tmp_path: Path, data: bytes) -> None:
    """Also one that speaks of boxes it does not list, or to another box; over the wire the same is refused."""
    with pytest.raises(FormatError):
        NeighboursFile(tmp_path, "me").write(data)
    (tmp_path / FILE).write_bytes(data)
    known = NeighboursFile(tmp_path, "me").read()
    assert (known.generation, known.boxes) == ("", [])
    with pytest.raises(FormatError, match="list"):
        decode(data, "me", "list")


def test_no_file_at_all(tmp_path: Path) -> None:
    file = NeighboursFile(tmp_path / "missing", "me")
    assert file.read().generation == ""
    assert not file.changed()


def test_old_messages_still_decode() -> None:
    """A heartbeat of an older box, and the reply of an older controller."""
    reply = wire.decode(b'{"format":1,"time":1.0,"fill":"","interval_s":30.0}', wire.HeartbeatReply, "reply")
    assert reply.neighbours == ""
    beat = (
        b'{"format":1,"appliance":"n1","at":0.0,"started":0.0,"url":"http://x",'
        b'"inventory":"1","storage_bytes":1,"used_bytes":0}'
    )
    assert wire.decode(beat, wire.Heartbeat, "heartbeat").neighbours == ""


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/t/x", "http://p1.example/t/x?oca-hops=me"),
        ("/t/x?", "http://p1.example/t/x?oca-hops=me"),
        ("/t/x?a=b&c", "http://p1.example/t/x?a=b&c&oca-hops=me"),
        ("/t/x?oca-hops=p1", "http://t1.example/t/x?oca-hops=p1,me"),
        ("/t/x?oca-hops=p1&a=b&oca-hops=t1", "http://o1.example/t/x?a=b&oca-hops=p1,t1,me"),
        ("/t/x?oca-hops=p1,t1,o1", None),
        ("/t/x?oca-hops=z1,z2,z3", None),
        ("/t/x?oca-hops=%0d%0a,UP,../x", "http://p1.example/t/x?oca-hops=me"),
        (
            "/t/x?a=\r\nSet-Cookie:b\x7fé\udcff#c",
            "http://p1.example/t/x?a=%0D%0ASet-Cookie:b%7F%C3%A9%FF%23c&oca-hops=me",
        ),
        ("/t/x?a=%20%3F", "http://p1.example/t/x?a=%20%3F&oca-hops=me"),
    ],
)
def test_where_a_redirect_leads(target: str, location: str | None) -> None:
    """To the best box it has not been to, at most three times; nothing in a query can leave its line."""
    holders = [box("p1"), box("t1", "tier"), box("o1", "origin")]
    assert hops.redirect(target, "me", holders) == location


def test_a_box_never_sends_to_itself() -> None:
    assert hops.redirect("/t/x", "me", [box("me")]) is None
    assert hops.redirect("/t/x", "me", []) is None


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=6), min_size=1), st.text()
)
def test_redirects_end(known: dict[str, list[str]], query: str) -> None:
    """Whatever boxes believe of each other, no request is sent anywhere twice, and soon it ends."""
    target, here, seen = f"/t/x?{query}", next(iter(known)), []
    for _ in range(hops.MOST + 1):
        seen.append(here)
        location = hops.redirect(target, here, [box(name) for name in known.get(here, [])])
        if location is None:
            return
        assert location.isascii()
        assert location.isprintable()
        parts = urlsplit(location)
        here, target = (parts.hostname or "").partition(".")[0], f"{parts.path}?{parts.query}"
        assert here not in seen
    raise AssertionError(f"still going after {seen}")
