"""Ranking: near before far, one fill master per site and track, the dead never."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from fill.ranking import AT_WORK_S, Escalation, Holder, explain, fill_masters, sources

Role = Literal["edge", "tier", "origin"]


def box(name: str, site: str, role: Role = "edge", alive: bool = True) -> Holder:
    return Holder(name, site, role, f"http://{name}:8080", alive)


ME = box("north-1", "north")
boxes = st.builds(
    lambda number, site, role, alive: box(f"{site}-{number}", site, role, alive),
    st.integers(1, 5),
    st.sampled_from(["north", "south", "core"]),
    st.sampled_from(["edge", "tier", "origin"]),
    st.booleans(),
)
several = st.lists(boxes, max_size=12, unique_by=lambda holder: holder.appliance)


def test_order() -> None:
    """Peers, then tiers, then origins; edges of other sites are never asked."""
    holders = [
        box("origin-1", "core", "origin"),
        box("tier-1", "core", "tier"),
        box("south-1", "south"),
        box("north-2", "north"),
        box("north-3", "north", "tier"),
        box("north-4", "north", alive=False),
        ME,
    ]
    found = sources(ME, holders, [], "clip/v1")
    assert {source.appliance for source in found[:2]} == {"north-2", "north-3"}
    assert [(source.appliance, source.rank) for source in found[2:]] == [("tier-1", "tier"), ("origin-1", "origin")]
    assert [source.rank for source in found[:2]] == ["peer", "peer"]


def test_nobody_waits_alone() -> None:
    """Who alone wants a track at its site goes up at once."""
    wanting = [ME, box("south-1", "south"), box("north-2", "north", alive=False)]
    (origin,) = sources(ME, [box("origin-1", "core", "origin")], wanting, "clip/v1")
    assert origin.wait_s == 0


@given(several, several, st.text("abc/1", max_size=8))
def test_properties(holders: list[Holder], wanting: list[Holder], track: str) -> None:
    """Each live holder at most once, never myself, sorted by rank, peers without a wait; the same every time."""
    found = sources(ME, holders, wanting, track, Escalation(wait_s=7.0))
    names = [source.appliance for source in found]
    assert len(set(names)) == len(names)
    assert ME.appliance not in names
    assert set(names) <= {holder.appliance for holder in holders if holder.alive}
    ranks = [["peer", "tier", "origin"].index(source.rank) for source in found]
    assert ranks == sorted(ranks)
    assert all(source.wait_s == 0 for source in found if source.rank == "peer")
    assert len({source.wait_s for source in found if source.rank != "peer"}) <= 1
    assert found == sources(ME, holders[::-1], wanting[::-1], track, Escalation(wait_s=7.0))


@given(st.integers(2, 6), st.text("abcdef/1", min_size=1, max_size=8))
def test_one_master(count: int, track: str) -> None:
    """Of several that want a track at a site exactly one goes up at once; if it dies, one of the others does."""
    wanting = [box(f"north-{number}", "north") for number in range(count)]
    origin = [box("origin-1", "core", "origin")]
    waits = {me.appliance: sources(me, origin, wanting, track)[0].wait_s for me in wanting}
    assert sorted(waits.values()) == [0.0] + [60.0] * (count - 1)
    master = next(name for name, wait in waits.items() if wait == 0)
    left = [me for me in wanting if me.appliance != master]
    assert [sources(me, origin, left, track)[0].wait_s for me in left].count(0.0) == 1


@given(st.integers(1, 6), st.integers(1, 6), st.text("abcdef/1", min_size=1, max_size=8))
def test_as_many_masters_as_are_allowed(count: int, masters: int, track: str) -> None:
    """So many go up at once, the others wait for as long as is said, and are told for whom."""
    wanting = [box(f"north-{number}", "north") for number in range(count)]
    origin, rule = [box("origin-1", "core", "origin")], Escalation(masters=masters, wait_s=9.0)
    waits = {me.appliance: sources(me, origin, wanting, track, rule)[0].wait_s for me in wanting}
    assert sorted(waits.values()) == [0.0] * min(count, masters) + [9.0] * (count - masters)
    up = {name for name, wait in waits.items() if wait == 0}
    for me in wanting:
        (verdict,) = explain(me, origin, wanting, track, [], rule)
        assert all(name in verdict.reason for name in ([me.appliance] if me.appliance in up else up))


def test_a_master_at_work_is_waited_for() -> None:
    """However much it has to fetch before this track; once its fill has ended the others wait no longer than said."""
    origin, idle = [box("origin-1", "core", "origin")], [box(f"north-{number}", "north") for number in range(3)]
    (master,) = fill_masters(idle[0], idle, "clip/v1")
    for at_work, wait in ((master, AT_WORK_S), ("north-9", 60.0)):
        wanting = [replace(each, filling=each.appliance == at_work) for each in idle]
        waits = {me.appliance: sources(me, origin, wanting, "clip/v1")[0].wait_s for me in wanting}
        assert waits == {each.appliance: 0.0 if each.appliance == master else wait for each in idle}


def test_masters_share_the_tracks() -> None:
    """Over many tracks the appliances of a site take turns."""
    wanting = [box(f"north-{number}", "north") for number in range(4)]
    counts = Counter(fill_masters(wanting[0], wanting, f"clip/v{number}")[0] for number in range(400))
    assert len(counts) == 4
    assert min(counts.values()) > 60


def test_peers_share_the_load() -> None:
    """Different tracks are fetched from different peers."""
    holders = [box(f"north-{number}", "north") for number in range(2, 6)]
    first = Counter(sources(ME, holders, [], f"clip/v{number}")[0].appliance for number in range(200))
    assert len(first) == 4
