"""What operators learn and say of fills over the API: lines, outlooks, sources, reports; and titles that go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from oca import wire
from oca.wire import FillLease, FillManifest, FillProgress, FillReport, FillTerms
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import Desk, Start

NIGHT = FillTerms(windows=["02:00-06:00"], timezone="Europe/Berlin", rate_bps=8_000_000)


@pytest.fixture
async def fleet(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> MadeTitle:
    """Two boxes in the north that want a title, which an origin in the south holds."""
    clip = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(clip)
    for name in ("north-1", "north-2"):
        await desk.box(name)
        await desk.beat(name, fill=NIGHT)
    await desk.box("south-1", "south")
    await desk.box("origin", "south", role="origin")
    await desk.beat("origin")
    await desk.tell("origin", (clip, "v1 a1"))
    await desk.plan(("north", "clip", 100))
    return clip


async def manifest(desk: Desk, box: str) -> FillManifest:
    _, data, _ = await desk.answer("GET", f"/api/v1/appliances/{box}/fill")
    return wire.decode(data, FillManifest, "manifest")


async def lease(desk: Desk, box: str) -> int | None:
    _, data, _ = await desk.answer("POST", f"/api/v1/appliances/{box}/fill-lease")
    return wire.decode(data, FillLease, "lease").rate_bps


async def test_boxes_share_the_line_of_their_site(
    desk: Desk, fleet: MadeTitle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk.parts.fleet.leases, "_clock", lambda: 0.0)
    assert await lease(desk, "north-1") is None
    assert (await manifest(desk, "north-1")).uplink_bps is None
    assert await desk.ask("PUT", "sites/north", {"fill_bps": 1000}) == {"site": "north", "fill_bps": 1000}
    assert await lease(desk, "north-1") == 1000
    assert await lease(desk, "north-2") == 0
    assert await lease(desk, "north-1") == 500
    assert await lease(desk, "north-2") == 500
    assert await lease(desk, "south-1") is None
    assert (await manifest(desk, "north-1")).uplink_bps == 500, "safe without anybody to share it out"
    assert [(s["site"], s["fill_bps"]) for s in await desk.ask("GET", "sites")] == [("north", 1000), ("south", 0)]
    await desk.ask("PUT", "sites/north", {"fill_bps": 0})
    assert await lease(desk, "north-2") is None
    assert "is not the name of a site" in await desk.ask("PUT", "sites/NORTH", {"fill_bps": 1}, 400)


async def test_overruns_are_said_before_they_happen(desk: Desk, fleet: MadeTitle) -> None:
    """By the plan, in force or not: what is missing, how long it takes, in how many windows, and until when."""
    rows = {row["appliance"]: row for row in (await desk.ask("GET", "plans/latest"))["outlook"]}
    assert rows["north-1"]["fits"]
    size = rows["north-1"]["bytes"]
    assert size == sum(fleet.title.track_bytes(track) for track in fleet.title.tracks)
    # A line on which it takes six hours.
    await desk.ask("PUT", "sites/north", {"fill_bps": max(1, 8 * size // (6 * 3600))})
    dry = await desk.ask("POST", "plans", {"dry_run": True})
    for told in (dry["outlook"], [box["outlook"] for box in (await desk.ask("GET", "fills"))["appliances"][:2]]):
        row = told[0]
        assert not row["fits"]
        assert row["windows"] in (2, 3)
        assert row["ends"] > time.time() + 6 * 3600
    await desk.tell("north-1", (fleet, "v1 a1"))
    await desk.tell("north-2", (fleet, "v1 a1"))
    assert all(row["fits"] for row in (await desk.ask("GET", "plans/latest"))["outlook"])


async def test_a_box_that_has_not_told_of_its_windows(desk: Desk, fleet: MadeTitle) -> None:
    for terms in (None, FillTerms(windows=["02:00-06:00"], timezone="Mars/Olympus", rate_bps=1)):
        await desk.beat("north-1", fill=terms)
        row = (await desk.ask("GET", "plans/latest"))["outlook"][0]
        assert (row["rate_bps"], row["ends"], row["fits"]) == (None, None, False)


async def test_sources_and_why(desk: Desk, fleet: MadeTitle) -> None:
    """One of the two goes upstream at once, the other is told to wait for it; everybody else has a reason."""
    await desk.tell("south-1", (fleet, "v1"))
    waits = {}
    for me, mate in (("north-1", "north-2"), ("north-2", "north-1")):
        found = await desk.ask("GET", f"fills/sources?appliance={me}&title=clip&track=v1")
        ((track, rows),) = [(each["track"], each["sources"]) for each in found["tracks"]]
        assert track == "v1"
        reasons = {row["appliance"]: row["reason"] for row in rows}
        assert [row["appliance"] for row in rows if row["rank"] is not None] == ["origin"]
        assert reasons["origin"].startswith("origin, 612 km away; ")
        assert reasons[mate] == "does not hold it"
        assert reasons[me] == "the one that asks"
        assert "edge of site south" in reasons["south-1"]
        waits[me] = rows[0]["wait_s"]
    assert sorted(waits.values()) == [0, 60]
    master, other = sorted(waits, key=lambda box: waits[box])
    await lease(desk, master)
    ask = f"fills/sources?appliance={other}&title=clip&track=v1"
    first = (await desk.ask("GET", ask))["tracks"][0]["sources"][0]
    assert first["wait_s"] == 86_400
    assert f"{master} goes upstream for site north: wait while its fill goes on" in first["reason"]
    for state, wait in (("failed", 0), ("fetching", 86_400)):
        row = FillProgress(title="clip", version=fleet.version, track="v1", state=state, bytes=0, total=9)
        told = FillReport(appliance=master, batch=state, plan=1, at=time.time(), progress=[row])
        await desk.ask("POST", f"appliances/{master}/fill-report", wire.encode(told), 204)
        found = (await desk.ask("GET", ask))["tracks"][0]["sources"][0]["wait_s"]
        assert found == wait, "who has failed is waited for no longer, until it tries again"
    desk.parts.fleet.filling[master] -= 11
    assert (await desk.ask("GET", ask))["tracks"][0]["sources"][0]["wait_s"] == 60
    await desk.tell("north-2", (fleet, "v1"))
    (rows,) = [
        each["sources"] for each in (await desk.ask("GET", "fills/sources?appliance=north-1&title=clip"))["tracks"]
    ][:1]
    assert (rows[0]["appliance"], rows[0]["reason"]) == ("north-2", "a peer in site north")
    for query in ("appliance=x&title=clip", "appliance=north-1&title=x", "appliance=north-1&title=clip&track=x"):
        await desk.ask("GET", f"fills/sources?{query}", status=404)


async def report(desk: Desk, made: MadeTitle, batch: str, fetched: dict[str, int], track: str = "v1") -> None:
    total = sum(fetched.values())
    row = FillProgress(
        title=made.id, version=made.version, track=track, state="fetching", bytes=total, total=9999, fetched=fetched
    )
    told = FillReport(appliance="north-1", batch=batch, plan=1, at=time.time(), progress=[row])
    await desk.ask("POST", "appliances/north-1/fill-report", wire.encode(told), 204)


async def test_what_was_filled_against_what_was_sent(desk: Desk, fleet: MadeTitle) -> None:
    """Counted once, whatever is said twice, or by a box that started anew."""
    await report(desk, fleet, "run-1", {"origin": 100})
    await report(desk, fleet, "run-1", {"origin": 100})
    await report(desk, fleet, "run-2", {"origin": 150, "north-2": 30})
    await report(desk, fleet, "other-1", {"origin": 70})
    await report(desk, fleet, "other-2", {"origin": 75})
    await report(desk, fleet, "other-3", {"north-2": 5}, "a1")
    for started, sent in ((1.0, 1000), (1.0, 1500), (2.0, 40)):
        await desk.beat("north-1", started=started, sent_bytes=sent)
        await desk.beat("north-2", started=started, sent_bytes=10)
        for _ in range(2):
            row, mate = await desk.ask("GET", "reports/fill?days=2")
    filled = {"filled": 260, "uplink": 225, "given": 0}
    assert row == {"appliance": "north-1", "site": "north", "sent": 1540, "viewers": 1540, **filled}
    assert (mate["sent"], mate["given"], mate["viewers"]) == (20, 35, 0)
    for days in ("0", "-1", "x", "9999"):
        assert "is no number of days" in await desk.ask("GET", f"reports/fill?days={days}", status=400)


async def test_a_title_that_is_removed(desk: Desk, fleet: MadeTitle) -> None:
    """It is played no longer; boxes are told to remove it until none holds it; origins keep their files."""
    await desk.tell("north-1", (fleet, "v1 a1"))
    dry = await desk.ask("DELETE", "titles/clip?dry_run=1")
    assert dry == {"title": "clip", "versions": [fleet.version], "appliances": ["north-1"]}
    assert (await desk.answer("GET", "/play/clip/manifest.mpd"))[0] == 200
    assert await desk.ask("DELETE", "titles/clip") == dry
    assert (await desk.answer("GET", "/play/clip/manifest.mpd"))[0] == 404
    await desk.ask("GET", "titles/clip", status=404)
    assert [(d.title, d.version) for d in (await manifest(desk, "north-1")).doomed] == [("clip", fleet.version)]
    assert (await manifest(desk, "origin")).doomed == []
    assert (await manifest(desk, "north-2")).doomed == []
    assert (await desk.ask("GET", "plans/latest"))["rows"] == []
    await desk.tell("north-1", generation="2")
    assert (await manifest(desk, "north-1")).doomed == []
    await desk.ask("DELETE", "titles/clip", status=404)


async def test_a_removed_title_may_come_back(desk: Desk, fleet: MadeTitle) -> None:
    """What boxes still hold counts again at once."""
    await desk.tell("north-1", (fleet, "v1 a1"))
    await desk.ask("DELETE", "titles/clip")
    await desk.register(fleet)
    assert (await manifest(desk, "north-1")).doomed == []
    holders = (await desk.ask("GET", "titles/clip"))["holders"]
    assert [(h["appliance"], h["complete"]) for h in holders] == [("north-1", True), ("origin", True)]


async def test_the_version_that_viewers_get_stays(
    start: Start, desk: Desk, fleet: MadeTitle, make_title: MakeTitle, tmp_path: Path
) -> None:
    """One version goes, but not from under those who watch it; a restart knows all that too."""
    newer = make_title(tmp_path / "newer", seed=5)
    await desk.register(newer)
    assert "activate another one first" in await desk.ask(
        "DELETE", f"titles/clip?version={newer.version}", status=409
    )
    assert (await desk.ask("DELETE", f"titles/clip?version={fleet.version}"))["versions"] == [fleet.version]
    assert (await desk.ask("GET", "titles/clip"))["versions"] == [newer.version]
    await desk.ask("DELETE", f"titles/clip?version={'0' * 32}", status=404)
    again = await start()
    assert again.parts.state.doomed == {("clip", fleet.version)}
