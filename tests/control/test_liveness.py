"""Liveness: a site's viewers are sent there once enough of its boxes hold enough of a title, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.titles.liveness import Holding, LiveSettings, enough, gates
from tests.conftest import MakeTitle
from tests.control.conftest import NORTH, SOUTH, Start


def edge(name: str, held: int, serving: bool = True) -> Holding:
    return Holding(name, name.partition("-")[0], serving, held)


@pytest.mark.parametrize(
    ("held", "boxes", "share", "live"),
    [
        ([9], 1, 1.0, True),
        ([8], 1, 1.0, False),
        ([9, 0], 2, 1.0, False),
        ([9, 9], 2, 1.0, True),
        ([9], 2, 1.0, True),  # the site has no more
        ([8, 0, 8], 2, 0.8, True),
        ([8, 0, 7], 2, 0.8, False),
    ],
)
def test_a_site_is_live(held: list[int], boxes: int, share: float, live: bool) -> None:
    """Of nine tracks, eight are the least that is four fifths."""
    found = gates(
        [edge(f"north-{n}", count) for n, count in enumerate(held)], 9, LiveSettings(boxes=boxes, share=share)
    )
    assert (found["north"] == "") is live
    if not live:
        assert found["north"].startswith("not live in north: ")


def test_boxes_that_do_not_serve_neither_help_nor_are_needed() -> None:
    two = LiveSettings(boxes=2)
    assert gates([edge("north-1", 9), edge("north-2", 9, serving=False)], 9, two) == {"north": ""}
    assert gates([edge("north-1", 0), edge("north-2", 9, serving=False)], 9, two)["north"]


def test_a_share_is_not_rounded_up_by_a_computer_s_tenths() -> None:
    assert [enough(30, LiveSettings(share=0.1)), enough(3, LiveSettings(share=0.1)), enough(9, LiveSettings())] == [
        3,
        1,
        9,
    ]


async def test_until_a_title_is_live_its_viewers_go_elsewhere(
    start: Start, make_title: MakeTitle, tmp_path: Path
) -> None:
    """Of two boxes one holds it: viewers get the origin, and the operator is told what is missing."""
    desk = await start(trusted_proxies=["127.0.0.1"], live=LiveSettings(boxes=2))
    clip = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(clip)
    for name in ("north-1", "north-2"):
        await desk.box(name)
        await desk.beat(name)
    await desk.box("origin", "south", role="origin")
    await desk.beat("origin")
    await desk.tell("origin", (clip, "v1 a1"))
    await desk.tell("north-1", (clip, "v1 a1"))
    await desk.tell("north-2", (clip, "v1"))

    async def order(client: str) -> list[tuple[str, str]]:
        rows = (await desk.ask("GET", f"steer/explain?client={client}&title=clip"))["candidates"]
        return [(row["appliance"], row["reason"]) for row in rows if row["rank"] is not None]

    assert [box for box, _ in await order(NORTH)] == ["origin"]
    (site,) = (await desk.ask("GET", "titles/clip"))["sites"]
    assert (site["live"], site["missing"]) == (False, {"north-2": ["a1"]})
    assert site["gate"] == "not live in north: 1 of 2 appliances hold it"
    await desk.tell("north-2", (clip, "v1 a1"), generation="2")
    assert [box for box, _ in await order(NORTH)][:2] in (["north-1", "north-2"], ["north-2", "north-1"])
    assert (await desk.ask("GET", "titles/clip"))["sites"][0]["live"]
    await desk.tell("north-2", (clip, "v1"), generation="3")
    await desk.tell("origin", generation="2")
    ((box, reason),) = await order(SOUTH)
    assert box == "north-1"
    assert "but nobody else can serve" in reason
