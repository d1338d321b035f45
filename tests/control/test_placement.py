"""Placement: whole titles where most of their bytes are served, within the storage, and a reason for each row."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.placement.plan import (
    COPY_SHARE,
    MAX_PASSED_OVER,
    Box,
    PlacedTitle,
    PlacedTrack,
    Plan,
    density,
    make,
    track_shares,
    view_bytes,
)
from oca.errors import OcaError

GB = 10**9


def title(name: str, *sizes: int, boost: float = 1.0, shared: int = 0) -> PlacedTitle:
    tracks = tuple(PlacedTrack(number, f"v{number}", size) for number, size in enumerate(sizes))
    return PlacedTitle(name, "0" * 32, shared, tracks, boost)


def held(plan: Plan) -> dict[str, set[str]]:
    """Titles by appliance."""
    found = defaultdict(set)
    for row in plan.rows:
        found[row.appliance].add(row.title)
    return dict(found)


def test_what_a_view_streams() -> None:
    """Every rung is as likely as any other, audio comes on top; the parts add up to the whole."""
    tracks = (PlacedTrack(1, "v1", 100), PlacedTrack(2, "v2", 300), PlacedTrack(3, "a1", 20, "audio"))
    assert track_shares(PlacedTitle("t", "0" * 32, 7, tracks)) == [50, 150, 20]
    assert view_bytes(PlacedTitle("t", "0" * 32, 7, tracks)) == 220


@pytest.mark.parametrize(
    ("requests", "boost", "size", "storage", "value"),
    [(10, 1.0, 5, 100, 200), (10, 1.5, 5, 100, 300), (10, 1.0, 0, 100, 0), (10, 1.0, 5, 0, 0)],
)
def test_density(requests: float, boost: float, size: int, storage: int, value: float) -> None:
    """Requests times boost by the share of the storage."""
    assert density(requests, boost, size, storage) == value


def test_one_box_holds_what_serves_most() -> None:
    """A plan of one box, in full."""
    titles = [title("big", 6 * GB), title("dense", GB, GB), title("cold", GB), title("huge", 99 * GB)]
    demand = {("north", "big"): 412.0, ("north", "dense"): 1000.0, ("north", "huge"): 5.0, ("north", "gone"): 9.0}
    plan = make(titles, [Box("north-1", "north", 7 * GB)], demand)
    assert [(row.appliance, row.title, row.track, row.bytes) for row in plan.rows] == [("north-1", "big", 0, 6 * GB)]
    assert plan.rows[0].value == pytest.approx(412 * 6 * GB)
    assert plan.rows[0].reason == (
        "412 views a day expected in north; 6 GB; density rank 2 of 3; first copy in its site"
    )
    assert [(passed.title, passed.reason.split("; ", 2)[-1]) for passed in plan.passed_over] == [
        ("dense", "density rank 1 of 3; other titles are worth more in the 7 GB of this box"),
        ("huge", "density rank 3 of 3; larger than the whole box, which may hold 7 GB"),
        ("cold", "no views are expected in north"),
    ]
    assert plan.objective == pytest.approx(412 * 6 * GB)
    assert plan.gap == pytest.approx(0, abs=1e-8)
    assert plan.unserved == ()
    assert plan.methods[0][0] == "north-1"


def test_boost_decides_between_equals() -> None:
    """A title that viewers like more goes first; one of boost 0 nowhere."""
    titles = [title("a", GB), title("b", GB, boost=1.2), title("c", GB, boost=0.0)]
    plan = make(titles, [Box("box", "north", GB)], {("north", name): 10.0 for name in "abc"})
    assert held(plan) == {"box": {"b"}}
    assert plan.passed_over[-1].reason == "its boost is 0"


def test_shared_files_take_room() -> None:
    """Manifests and captions are stored with the tracks, or the title does not fit."""
    demand = {("north", "a"): 10.0}
    assert held(make([title("a", 9, shared=1)], [Box("box", "north", 10)], demand)) == {"box": {"a"}}
    assert held(make([title("a", 9, shared=2)], [Box("box", "north", 10)], demand)) == {}


def test_small_boxes_of_a_site_share_the_work() -> None:
    """Where not all fits on one box, the second holds other titles."""
    plan = make(
        [title("hot", GB), title("warm", GB)],
        [Box("box-2", "north", GB), Box("box-1", "north", GB)],
        {("north", "hot"): 100.0, ("north", "warm"): 10.0},
    )
    assert held(plan) == {"box-1": {"hot"}, "box-2": {"warm"}}
    assert plan.gap == pytest.approx(0, abs=1e-9)


def test_large_boxes_of_a_site_replicate() -> None:
    """Where all fits everywhere, each box holds all, and a further copy is worth its share."""
    plan = make([title("hot", GB)], [Box("box-1", "north", GB), Box("box-2", "north", GB)], {("north", "hot"): 100.0})
    assert held(plan) == {"box-1": {"hot"}, "box-2": {"hot"}}
    assert [row.value for row in plan.rows] == [pytest.approx(100 * GB), pytest.approx(100 * GB * COPY_SHARE)]
    assert plan.rows[1].reason.endswith("copy 2 in its site")


def test_the_second_box_says_that_its_site_has_the_title() -> None:
    """Passed over for another reason than on the first."""
    plan = make(
        [title("hot", GB), title("warm", GB)],
        [Box("box-1", "north", GB), Box("box-2", "north", GB)],
        {("north", "hot"): 100.0, ("north", "warm"): 90.0},
    )
    reasons = [passed.reason for passed in plan.passed_over if passed.appliance == "box-2"]
    assert reasons[0].endswith("its site has 1 already, and other titles are worth more here")


DISTANCES = {
    ("islands", "north"): 300.0,
    ("islands", "south"): 200.0,
    ("west", "south"): 50.0,
    ("east", "south"): 9.0,
}


def test_demand_of_a_region_without_boxes_goes_to_the_nearest_site() -> None:
    """And is named in the reason; demand that nobody is known to be near is reported."""
    plan = make(
        [title("a", GB), title("b", GB)],
        [Box("north-1", "north", GB), Box("south-1", "south", GB)],
        {
            ("north", "a"): 5.0,
            ("south", "a"): 5.0,
            ("islands", "b"): 9.5,
            ("east", "b"): 1.0,
            ("moon", "a"): 3.0,
            ("mars", "a"): 0.0,
        },
        lambda a, b: DISTANCES.get((a, b)),
    )
    assert held(plan) == {"north-1": {"a"}, "south-1": {"b"}}
    assert plan.rows[1].reason.startswith("10 views a day expected in south and nearest to it (east, islands); 1 GB;")
    assert [(region.region, region.views) for region in plan.unserved] == [("moon", 3.0)]
    assert "distance" in plan.unserved[0].reason


def test_many_regions_are_counted() -> None:
    """A reason stays a sentence."""
    demand = {(f"r{number}", "a"): 0.25 for number in range(9)}
    plan = make([title("a", GB)], [Box("box", "north", GB)], demand, lambda _a, _b: 1.0)
    assert plan.rows[0].reason.startswith("2.2 views a day expected in north and nearest to it (9 regions)")


def test_what_is_passed_over_is_bounded() -> None:
    """The densest are named, not all of a catalog."""
    titles = [title(f"t{number}", GB) for number in range(3 * MAX_PASSED_OVER)]
    plan = make(titles, [Box("box", "north", GB)], {("north", each.title): 5.0 for each in titles})
    assert len(plan.passed_over) == MAX_PASSED_OVER


def test_a_box_without_room() -> None:
    """Nothing is placed, nothing fails."""
    plan = make([title("a", 20 * 10**12)], [Box("box", "north", 0)], {("north", "a"): 1.0})
    assert (plan.rows, plan.objective, plan.bound, plan.gap) == ((), 0.0, 0.0, 0.0)
    assert "20.0 TB" in plan.passed_over[0].reason
    assert plan.passed_over[0].reason.endswith("which may hold 0 B")


A, BOX, WANTED = title("a", GB), Box("box", "north", GB), {("north", "a"): 1.0}


@pytest.mark.parametrize(
    ("titles", "boxes", "demand", "said"),
    [
        ([A], [], WANTED, "no appliances .* `ocactl appliance add`"),
        ([], [BOX], WANTED, "catalog is empty: .* `ocactl title add`"),
        ([A], [BOX], {}, "no demand .* `ocactl demand import`"),
        ([A], [BOX], {("north", "a"): 0.0, ("north", "b"): 5.0}, "no demand"),
        ([A], [BOX], {("north", "a"): math.nan}, "demand for 'a' in 'north' is nan"),
        ([A], [BOX], {("north", "a"): -1.0}, "demand for 'a' in 'north' is -1"),
        ([A, A], [BOX], WANTED, "title 'a' is given twice"),
        ([A], [BOX, BOX], WANTED, "appliance 'box' is given twice"),
        ([A], [Box("box", "north", -1)], WANTED, "'box' has -1 bytes"),
        ([title("a", GB, boost=math.inf)], [BOX], WANTED, "boost of inf"),
        ([title("a", -1)], [BOX], WANTED, "less than 0 bytes"),
    ],
)
def test_no_plan(
    titles: list[PlacedTitle], boxes: list[Box], demand: dict[tuple[str, str], float], said: str
) -> None:
    """What cannot be planned is a sentence that says what to do."""
    with pytest.raises(OcaError, match=said):
        make(titles, boxes, demand)


small_titles = st.lists(
    st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 20), st.sampled_from([1.0, 1.5])),
    min_size=1,
    max_size=4,
).map(
    lambda rows: (
        [title(f"t{number}", *sizes, boost=boost) for number, (sizes, _, boost) in enumerate(rows)],
        {("north", f"t{number}"): float(views) for number, (_, views, _) in enumerate(rows)} | {("north", "x"): 1.0},
    )
)
small_boxes = st.lists(st.integers(0, 30), min_size=1, max_size=3).map(
    lambda sizes: [Box(f"box-{number}", "north", size) for number, size in enumerate(sizes)]
)


@settings(max_examples=150, deadline=None)
@given(small_titles, small_boxes)
def test_brute_force(catalog: tuple[list[PlacedTitle], dict[tuple[str, str], float]], boxes: list[Box]) -> None:
    """One box is filled as well as possible; several never beyond a bound that no placement exceeds."""
    titles, demand = catalog
    if not any(demand[("north", each.title)] for each in titles):
        demand[("north", titles[0].title)] = 1.0
    plan = make(titles, boxes, demand)
    room = {box.appliance: box.storage_bytes for box in boxes}
    sizes = {each.title: each.bytes for each in titles}
    for appliance, names in held(plan).items():
        assert sum(sizes[name] for name in names) <= room[appliance]
        rows = {(row.title, row.track) for row in plan.rows if row.appliance == appliance}
        assert rows == {(each.title, track.id) for each in titles if each.title in names for track in each.tracks}
    best = 0.0
    subsets = [
        names
        for number in range(len(titles) + 1)
        for names in itertools.combinations([t.title for t in titles], number)
    ]
    for choice in itertools.product(subsets, repeat=len(boxes)):
        if all(
            sum(sizes[name] for name in names) <= box.storage_bytes for names, box in zip(choice, boxes, strict=True)
        ):
            best = max(best, worth(titles, demand, [name for names in choice for name in names]))
    assert plan.bound >= best * (1 - 1e-9)
    assert plan.objective == pytest.approx(worth(titles, demand, [n for names in held(plan).values() for n in names]))
    assert plan.gap >= 0
    if len(boxes) == 1:
        assert plan.objective == pytest.approx(best, rel=1e-8)


def worth(titles: list[PlacedTitle], demand: dict[tuple[str, str], float], copies: list[str]) -> float:
    """The objective of a placement in one site, from its definition."""
    return math.fsum(
        demand[("north", each.title)] * each.boost * view_bytes(each) * COPY_SHARE**copy
        for each in titles
        for copy in range(copies.count(each.title))
    )
