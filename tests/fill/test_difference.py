"""The difference: nothing that is wanted is ever let go, and nothing at all without a plan."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fill.difference import HeldTrack, difference, make_room
from oca.wire import FillItem, FillManifest

A, B = "a" * 32, "b" * 32


def item(title: str, version: str, *tracks: str) -> FillItem:
    return FillItem(title=title, version=version, published=1, tracks=list(tracks), bytes=1)


def plan(*items: FillItem, number: int = 1) -> FillManifest:
    return FillManifest(appliance="north-1", plan=number, items=list(items))


def held(title: str, version: str, track: str, size: int = 10, used: float = 0) -> HeldTrack:
    return HeldTrack(title, version, track, size, used)


def test_missing_in_the_order_of_value() -> None:
    """The manifest's order is kept, what is here is not fetched again, a track named twice is fetched once."""
    found = difference(plan(item("hot", A, "v1", "a1"), item("warm", A, "v1"), item("hot", A, "v1")), [])
    assert [track.key for track in found.missing] == [("hot", A, "v1"), ("hot", A, "a1"), ("warm", A, "v1")]
    found = difference(plan(item("hot", A, "v1", "a1")), [held("hot", A, "v1")])
    assert [track.track for track in found.missing] == ["a1"]
    assert [track.track for track in found.present] == ["v1"]


def test_surplus_is_least_recently_used_first() -> None:
    """What the plan does not want may go: longest idle first, of equals the largest."""
    here = [held("x", A, "v1", 5, 9), held("y", A, "v1", 5, 1), held("z", A, "v1", 7, 1), held("hot", A, "v1")]
    found = difference(plan(item("hot", A, "v1")), here)
    assert [track.title for track in found.surplus] == ["z", "y", "x"]


def test_other_version_is_surplus() -> None:
    """A version that the plan no longer names may go, the one it names may not."""
    found = difference(plan(item("hot", B, "v1")), [held("hot", A, "v1"), held("hot", B, "v1")])
    assert [track.version for track in found.surplus] == [A]


def test_version_without_tracks() -> None:
    """What a given-up fill left behind is surplus, unless the version is just arriving."""
    remnant = held("hot", A, "")
    assert difference(plan(item("warm", A, "v1")), [remnant]).surplus == (remnant,)
    assert difference(plan(item("hot", A, "v1")), [remnant]).surplus == ()


def test_wanted_without_a_plan() -> None:
    """What an upstream CDN prepositioned comes all the same; nothing goes for it."""
    found = difference(plan(item("hot", A, "v1"), number=0), [held("warm", A, "v1")])
    assert ([track.title for track in found.missing], found.surplus) == (["hot"], ())


def test_no_plan() -> None:
    """Without a plan and with an empty manifest nothing is wanted, and nothing removed."""
    here = [held("hot", A, "v1")]
    for manifest in (plan(), plan(number=0)):
        found = difference(manifest, here)
        assert (found.missing, found.surplus) == ((), ())


tracks = st.builds(held, st.sampled_from("abc"), st.sampled_from([A, B]), st.sampled_from(["v1", "v2"]))
items = st.builds(item, st.sampled_from("abc"), st.sampled_from([A, B]), st.sampled_from(["v1", "v2"]))


@given(st.lists(items, min_size=1), st.lists(tracks, unique_by=lambda track: track.key))
def test_properties(wanted: list[FillItem], here: list[HeldTrack]) -> None:
    """Wanted is missing or present, held is present or surplus, and none is two of these."""
    found = difference(plan(*wanted), here)
    keys = {(each.title, each.version, track) for each in wanted for track in each.tracks}
    missing, present = {track.key for track in found.missing}, {track.key for track in found.present}
    surplus = {track.key for track in found.surplus}
    assert missing | present == keys
    assert present | surplus == {track.key for track in here}
    assert not missing & present
    assert not surplus & keys


@given(st.lists(st.integers(0, 50)), st.integers(0, 200), st.integers(-50, 200))
def test_room(sizes: list[int], need: int, free: int) -> None:
    """Room is made by as few of the first as needed, and only if it will be enough."""
    surplus = [held(f"t{number}", A, "v1", size) for number, size in enumerate(sizes)]
    leaving = make_room(surplus, need, free)
    if leaving is None:
        assert free + sum(sizes) < need
    else:
        assert leaving == surplus[: len(leaving)]
        assert free + sum(track.bytes for track in leaving) >= need
        assert not leaving or free + sum(track.bytes for track in leaving[:-1]) < need
