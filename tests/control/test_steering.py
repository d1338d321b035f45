"""Steering: the nearest box that holds it, health permitting; every candidate is answered for, with a reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.steering.coverage import Coverage, Match, parse
from control.steering.ranking import Candidate, Choice, pathways, rank, steering_document

COVERAGE = parse(
    json.dumps(
        {
            "coverageZones": {
                "north": {"network": ["10.1.0.0/16"], "coordinates": {"latitude": 54, "longitude": 10}},
                "middle": {"network": ["10.2.0.0/16"], "coordinates": {"latitude": 50, "longitude": 10}},
                "south": {"network": ["10.3.0.0/16"], "coordinates": {"latitude": 48, "longitude": 10}},
                "nowhere": {"network": ["10.4.0.0/16"]},
            }
        }
    ).encode(),
    "zones.json",
)
NORTH = COVERAGE.match("10.1.0.1")


def box(name: str) -> Candidate:
    """A healthy edge that holds all; its name starts with its site."""
    return Candidate(name, name.split("-")[0], "edge", f"http://{name}:8080", True, False, 3, 3, 0.1)


def names(choices: list[Choice], *, chosen: bool = True) -> list[str]:
    return [choice.candidate.appliance for choice in choices if (choice.rank is not None) == chosen]


def reason(choices: list[Choice], name: str) -> str:
    return next(choice.reason for choice in choices if choice.candidate.appliance == name)


FLEET = [
    replace(box("core-9"), role="origin"),
    replace(box("north-9"), role="origin"),
    replace(box("core-8"), role="tier"),
    replace(box("middle-8"), role="tier"),
    box("core-1"),
    box("nowhere-1"),
    box("south-1"),
    box("middle-1"),
    box("north-1"),
]


@pytest.mark.parametrize(
    ("address", "first", "proximities"),
    [
        (
            "10.1.0.1",
            ["north-1", "middle-1", "south-1", {"core-1", "nowhere-1"}, "middle-8", "core-8", "north-9", "core-9"],
            [0, 1, 2, 3, 3, 4, 5, 6, 7],
        ),
        (
            "10.3.0.1",
            ["south-1", "middle-1", "north-1", {"core-1", "nowhere-1"}, "middle-8", "core-8", "north-9", "core-9"],
            [0, 1, 2, 3, 3, 4, 5, 6, 7],
        ),
        (
            "10.4.0.1",
            [
                "nowhere-1",
                {"core-1", "north-1", "middle-1", "south-1"},
                {"middle-8", "core-8"},
                {"north-9", "core-9"},
            ],
            [0, 1, 1, 1, 1, 2, 2, 3, 3],
        ),
        (
            "8.8.8.8",
            [
                {"nowhere-1", "core-1", "north-1", "middle-1", "south-1"},
                {"middle-8", "core-8"},
                {"north-9", "core-9"},
            ],
            [0, 0, 0, 0, 0, 1, 1, 2, 2],
        ),
    ],
)
def test_order(address: str, first: list[str | set[str]], proximities: list[int]) -> None:
    """Own site, other sites by distance, unknown distance, tiers, origins; equally near ones in any order."""
    choices = rank(FLEET, COVERAGE.match(address), COVERAGE, "sintel")
    found = names(choices)
    for expected in first:
        group = {expected} if isinstance(expected, str) else expected
        assert {found.pop(0) for _ in group} == group
    assert [choice.proximity for choice in choices] == proximities
    assert [choice.rank for choice in choices] == list(range(len(FLEET)))


def test_reasons() -> None:
    """A network engineer reads prefix, source, distance and state."""
    choices = rank([*FLEET, replace(box("north-2"), load=0.93)], NORTH, COVERAGE)
    assert reason(choices, "north-1") == "site north, the viewer's own by 10.1.0.0/16 (coverage)"
    assert reason(choices, "north-2").endswith("load 93%: behind its site mates below 80%")
    assert reason(choices, "middle-1") == "site middle, 445 km from the viewer's zone north"
    assert reason(choices, "core-1") == "site core, at unknown distance from the viewer's zone north"
    assert reason(choices, "core-8").startswith("tier in site core, ")
    assert reason(choices, "north-9").startswith("origin in site north, ")
    assert reason(rank(FLEET, None, COVERAGE), "north-1") == "site north, the viewer's zone is unknown"


@pytest.mark.parametrize(
    ("near", "said"),
    [
        (replace(box("north-1"), alive=False), "passed over: not heard of in time; site north"),
        (replace(box("north-1"), draining=True), "passed over: draining; site north"),
        (replace(box("north-1"), held=2), "passed over: holds 2 of 3 tracks; site north"),
        (
            replace(box("north-1"), held=0, alive=False, draining=True),
            "0 of 3 tracks, not heard of in time, draining",
        ),
    ],
)
def test_passed_over(near: Candidate, said: str) -> None:
    """Near is not enough; the proximity of a box does not depend on its state."""
    choices = rank([near, box("middle-1")], NORTH, COVERAGE)
    assert names(choices) == ["middle-1"]
    assert names(choices, chosen=False) == ["north-1"]
    assert said in choices[1].reason
    assert [choice.proximity for choice in choices] == [1, 0]


def test_a_busy_box_goes_behind_its_site_mates_only() -> None:
    """It is still nearer than another site."""
    candidates = [replace(box("north-1"), load=0.9), box("north-2"), box("north-3"), box("middle-1")]
    for key in map(str, range(20)):
        assert names(rank(candidates, NORTH, COVERAGE, key))[2:] == ["north-1", "middle-1"]


def test_when_all_look_sick_holders_are_trusted() -> None:
    """The living before the dead, whatever their distance; those that lack the content never."""
    candidates = [
        replace(box("north-1"), alive=False),
        replace(box("middle-1"), draining=True),
        replace(box("south-1"), held=0),
        replace(box("core-9"), role="origin", alive=False),
    ]
    choices = rank(candidates, NORTH, COVERAGE)
    assert names(choices) == ["middle-1", "north-1", "core-9"]
    assert names(choices, chosen=False) == ["south-1"]
    assert choices[0].reason.endswith("; draining, but no box that holds it is fit: trusted as a last resort")
    assert "trusted" not in choices[3].reason


@pytest.mark.parametrize("candidates", [[], [replace(box("north-1"), held=0)]])
def test_nobody_holds_it(candidates: list[Candidate]) -> None:
    """Then nobody is chosen."""
    assert names(rank(candidates, NORTH, COVERAGE)) == []


def test_titles_spread_over_a_site() -> None:
    """Each title has its own order, evenly; when a box dies only its own titles go elsewhere."""
    candidates = [box(f"north-{number}") for number in range(4)]
    keys = [f"title-{number}/0" for number in range(2000)]
    before = {key: names(rank(candidates, NORTH, COVERAGE, key))[0] for key in keys}
    assert all(430 < count < 570 for count in Counter(before.values()).values())
    candidates[2] = replace(candidates[2], alive=False)
    for key in keys:
        after = names(rank(candidates, NORTH, COVERAGE, key))[0]
        assert after != "north-2"
        assert after == before[key] or before[key] == "north-2"


fleets = st.lists(
    st.builds(
        Candidate,
        appliance=st.sampled_from([f"box-{number}" for number in range(20)]),
        site=st.sampled_from(["north", "middle", "south", "nowhere", "core"]),
        role=st.sampled_from(["edge", "tier", "origin"]),
        url=st.just("http://box:8080"),
        alive=st.booleans(),
        draining=st.booleans(),
        held=st.integers(0, 3),
        wanted=st.just(3),
        load=st.floats(0, 1),
    ),
    max_size=12,
    unique_by=lambda each: each.appliance,
)
clients = st.sampled_from(["10.1.0.1", "10.3.0.1", "10.4.0.1", "8.8.8.8"]).map(COVERAGE.match)


@given(fleets, clients, st.text(max_size=5))
def test_any_fleet(fleet: list[Candidate], viewer: Match | None, key: str) -> None:
    """Everybody once; the dead never before the living; state never moves proximity; deterministic."""
    choices = rank(fleet, viewer, COVERAGE, key)
    assert Counter(id(choice.candidate) for choice in choices) == Counter(map(id, fleet))
    chosen = [choice for choice in choices if choice.rank is not None]
    assert choices[: len(chosen)] == chosen
    assert [choice.rank for choice in chosen] == list(range(len(chosen)))
    assert [each.candidate.alive for each in chosen] == sorted(
        (each.candidate.alive for each in chosen), reverse=True
    )
    assert all(choice.candidate.held == choice.candidate.wanted for choice in chosen)
    assert bool(chosen) == any(each.held == each.wanted for each in fleet)
    assert all(choice.reason for choice in choices)
    assert rank(fleet[::-1], viewer, COVERAGE, key) == choices
    healthy = rank([replace(each, alive=True, draining=False, held=3) for each in fleet], viewer, COVERAGE, key)
    assert {each.candidate.appliance: each.proximity for each in healthy} == {
        each.candidate.appliance: each.proximity for each in choices
    }
    assert [each.proximity for each in healthy] == sorted(each.proximity for each in healthy)


def test_steering_document() -> None:
    """One document for DASH and HLS, as the specifications spell it."""
    assert json.loads(steering_document(["north-1", "middle-1"], 30, "/steer/sintel/0?s=1")) == {
        "VERSION": 1,
        "TTL": 30,
        "RELOAD-URI": "/steer/sintel/0?s=1",
        "PATHWAY-PRIORITY": ["north-1", "middle-1"],
    }


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", []),
        ('""', []),
        ("north-1", ["north-1"]),
        ('"north-1"', ["north-1"]),
        ('"north-1,middle-1"', ["north-1", "middle-1"]),
        ("north-1, middle-1,north-1", ["north-1", "middle-1"]),
        ("a/b,,A.b_c,<script>,x" + "y" * 64, ["A.b_c"]),
        (",".join(map(str, range(1000))), [str(number) for number in range(64)]),
    ],
)
def test_pathways(value: str, found: list[str]) -> None:
    """Quoted as dash.js sends them or not; junk is ignored."""
    assert pathways(value) == found


def test_empty_coverage() -> None:
    """Without a coverage file everybody is equally near, and still served."""
    assert set(names(rank(FLEET[4:], None, Coverage.empty()))) == {each.appliance for each in FLEET[4:]}
