"""The audit log: nothing that changed lacks its line, refusals have theirs, and a flood does not fill the disk."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, insert

from control import schema
from control.operators import accounts, audit
from control.operators.audit import TRAIL, Act
from control.operators.rates import RateSettings
from control.settings import ApiSettings
from control.state import State
from tests.conftest import MakeTitle
from tests.control.conftest import NORTH, SOUTH, Desk, Start, demand_csv

CLOSED = ApiSettings(open=False)


async def lines(desk: Desk, query: str = "limit=1000", token: str | None = None) -> list[dict[str, Any]]:
    """Lines of the log, newest first."""
    status, body, _ = await desk.answer("GET", f"/api/v1/audit?{query}", token=token)
    assert status == 200, body
    found: list[dict[str, Any]] = json.loads(body)["rows"]
    return found


async def test_an_act_tells_who_from_where_what_and_how_it_ended(start: Start) -> None:
    """One line per act, with the number that the answer carried; the log of changes has the same name in it."""
    desk = await start(api=CLOSED, trusted_proxies=["127.0.0.1"])
    _, token = await accounts.add(desk.parts.state.engine, "ann", "act")
    box = json.dumps({"id": "north-1", "site": "north", "url": "http://x.example"}).encode()
    before = time.time()
    status, _, fields = await desk.answer("POST", "/api/v1/appliances", box, viewer=NORTH, token=token)
    assert status == 201
    [line, made] = await lines(desk, token=token)
    assert before <= line.pop("at") <= time.time()
    assert line == {
        "id": 2,
        "owner": "default",
        "kind": "operator",
        "who": "ann",
        "address": NORTH,
        "method": "POST",
        "path": "/api/v1/appliances",
        "what": "appliance north-1: registered: site north, edge, http://x.example",
        "status": 201,
        "request": fields[audit.REQUEST_ID],
    }
    assert (made["kind"], made["who"], made["what"], made["status"]) == (
        "local",
        "local",
        "operator ann: added, role act",
        0,
    )
    changes = json.loads((await desk.answer("GET", "/api/v1/changes", token=token))[1])
    assert [(c["actor"], c["kind"], c["subject"]) for c in changes] == [
        ("ann", "appliance", "north-1"),
        ("local", "operator", "ann"),
    ]


async def test_every_change_has_its_line(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Whatever operators and appliances change; asking and heartbeats leave none."""
    made = make_title(tmp_path / "s")
    await desk.cover()
    await desk.box("north-1")
    await desk.box("north-2")
    await desk.tell("north-1", (made, "v1 a1"))
    await desk.register(made)
    await desk.plan(("north", "clip", 5))
    await desk.ask("POST", "fills", {}, 201)
    await desk.ask("PUT", "appliances/north-2/drain", {"draining": True})
    await desk.ask("PUT", "titles/clip/active", {"version": made.version})
    told = len(await lines(desk))
    for _ in range(3):
        await desk.beat("north-1")
        await desk.ask("GET", "titles")
    await desk.tell("north-1", (made, "v1 a1"))
    found = await lines(desk)
    assert len(found) == told
    changes = await desk.ask("GET", "changes?limit=1000")
    said = "; ".join(line["what"] for line in found)
    for change in changes:
        assert f"{change['kind']} {change['subject']}".strip() in said, change
        assert change["detail"] in said
    by = {(line["kind"], line["who"]) for line in found}
    assert by == {("anybody", "anybody"), ("appliance", "north-1")}
    assert {line["status"] for line in found if line["kind"] == "appliance"} == {204}
    assert {change["actor"] for change in changes} == {"anybody", "north-1"}
    # Two orders are one act, and so is a title that makes sense of an inventory.
    [orders] = [line for line in found if line["path"] == "/api/v1/fills"]
    assert orders["what"] == "order north-1: fill now, order 1; order north-2: fill now, order 2"
    [added] = [line for line in found if line["path"] == "/api/v1/titles"]
    assert added["what"] == f"title clip: version {made.version} added and active; inventory north-1: 2 tracks"


async def test_an_act_that_fails_or_changes_nothing_has_a_line_too(desk: Desk) -> None:
    """With the sentence that the operator got."""
    await desk.box("north-1")
    refused = await desk.ask("POST", "demand", b"no demand", 400)
    missing = await desk.ask("PUT", "appliances/nobody/drain", {"draining": True}, 404)
    broken = await desk.ask("POST", "plans", b"{", 400)
    found = await lines(desk)
    assert [(line["status"], line["what"]) for line in found[:3]] == [(400, broken), (404, missing), (400, refused)]


async def test_dry_runs_have_a_line(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    await desk.register(make_title(tmp_path / "s"))
    await desk.box("north-1")
    await desk.ask("POST", "demand", demand_csv(("north", "clip", 1)))
    await desk.ask("POST", "plans", {"dry_run": True})
    assert (await lines(desk))[0]["what"] == "nothing changed"


async def test_a_change_and_its_line_stand_or_fall_together(desk: Desk) -> None:
    """What cannot be logged is not done: the line that fails takes the change back, and memory never saw it."""
    database = desk.settings.database.partition("///")[2]
    with sqlite3.connect(database) as other:
        other.execute("create trigger full before insert on audit begin select raise(abort, 'disk is full'); end")
    box = {"id": "north-1", "site": "north", "url": "http://x.example"}
    assert "database is away" in await desk.ask("POST", "appliances", box, 503)
    other.execute("drop trigger full")
    other.close()
    assert await desk.ask("GET", "appliances") == []
    late = State(desk.parts.state.engine)
    await late.load()
    assert late.appliances == {}
    assert await lines(desk) == []
    await desk.ask("POST", "appliances", box, 201)
    assert len(await lines(desk)) == 1


async def test_a_change_that_is_taken_back_leaves_the_refusal(desk: Desk) -> None:
    """The line that went with the transaction is written again, as what it became."""
    engine = desk.parts.state.engine

    def fail(_: Any) -> None:
        event.remove(engine.sync_engine, "commit", fail)
        raise OSError(5, "Input/output error")

    event.listen(engine.sync_engine, "commit", fail)
    box = {"id": "north-1", "site": "north", "url": "http://x.example"}
    await desk.ask("POST", "appliances", box, 503)
    [line] = await lines(desk)
    assert (line["status"], line["what"]) == (503, "the controller's database is away: try again")
    assert await desk.ask("GET", "appliances") == []


async def test_a_change_whose_answer_fails_is_still_told(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes away right after the change: the line has both, what changed and how it ended."""

    async def away(_: State) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(State, "catch_up", away)
        await desk.ask("POST", "appliances", {"id": "north-1", "site": "north", "url": "http://x.example"}, 503)
    [line] = await lines(desk)
    assert line["status"] == 503
    assert line["what"] == (
        "appliance north-1: registered: site north, edge, http://x.example; "
        "then: the controller's database is away: try again"
    )


async def test_no_line_is_written_over_by_another_act(desk: Desk) -> None:
    """The number of a line that was taken back may be given to the next one."""
    await desk.box("north-1")
    [before] = await lines(desk)
    lost = Act(method="POST", path="/x", row=before["id"], changes=["order x: fill now"], always=True)
    await desk.app[TRAIL].finish(lost, 503, "away")
    after = await lines(desk)
    assert after[1] == before
    assert (after[0]["path"], after[0]["status"], after[0]["what"]) == ("/x", 503, "away")


async def test_refusals_are_listed_but_a_flood_is_not(start: Start) -> None:
    """Ten of one client, then one in five minutes; others still are; the next line tells how many are missing."""
    desk = await start(api=CLOSED, trusted_proxies=["127.0.0.1"])
    _, token = await accounts.add(desk.parts.state.engine, "ann", "read")
    for _ in range(40):
        assert (await desk.answer("POST", "/api/v1/plans", viewer=NORTH))[0] == 401
    assert (await desk.answer("POST", "/api/v1/plans", viewer=SOUTH, token=token))[0] == 403
    found = await lines(desk, token=token)
    assert [(line["status"], line["address"]) for line in found] == [
        (403, SOUTH),
        *[(401, NORTH)] * 10,
        (0, ""),
    ]
    assert (found[0]["who"], found[1]["who"]) == ("ann", "")
    assert found[0]["what"].endswith("with the role act (30 refusals before it are not listed)")
    assert "this takes a token" in found[1]["what"]


async def test_many_clients_cannot_flood_it_either(desk: Desk) -> None:
    trail = desk.app[TRAIL]
    for number in range(400):
        address = f"203.0.{number // 256}.{number % 256}"
        await trail.finish(Act(address=address, method="GET", path="/", refusals=True), 401, "no")
    assert len(await lines(desk)) <= 101


async def test_asking_too_often_is_listed_of_the_api_alone(start: Start) -> None:
    """What viewers are refused would only make the log long."""
    rates = RateSettings(api_per_s=1e-3, api_burst=3, viewer_per_s=1e-3, viewer_burst=1)
    desk = await start(trusted_proxies=["127.0.0.1"], rates=rates)
    for _ in range(4):
        await desk.answer("GET", "/play/clip", viewer=NORTH)
        await desk.answer("GET", "/api/v1/titles", viewer=NORTH)
    found = await lines(desk)
    assert [(line["status"], line["path"]) for line in found] == [(429, "/api/v1/titles")]


async def test_an_appliance_that_is_not_known_leaves_no_lines(desk: Desk) -> None:
    """It would report every few seconds for as long as nobody registers it."""
    for _ in range(3):
        await desk.beat("nobody", 404)
    assert await lines(desk) == []


async def test_nobody_can_draw_on_the_terminal_of_who_reads(start: Start) -> None:
    """Control characters of paths and names arrive as question marks, and long ones are cut."""
    desk = await start(api=CLOSED)
    _, token = await accounts.add(desk.parts.state.engine, "ann", "act")
    path = "/api/v1/titles/" + "%1b%5b2J%0a%c2%9b" + "x" * 3000
    await desk.answer("PUT", f"{path}/active", b'{"version": "0123456789abcdef0123456789abcdef"}', token=token)
    line = (await lines(desk, token=token))[0]
    assert line["status"] == 404
    assert all(part.isprintable() for part in map(str, line.values()))
    assert max(len(str(part)) for part in line.values()) <= 500


async def test_pages_follow_each_other(desk: Desk) -> None:
    """Every line once, newest first, however small the pages, and while more is written."""
    for number in range(7):
        await desk.box(f"north-{number}")
    everything = await lines(desk)
    assert [line["id"] for line in everything] == [7, 6, 5, 4, 3, 2, 1]
    got: list[int] = []
    before: int | None = 0
    while before is not None:
        page = await desk.ask("GET", f"audit?limit=3&before={before}")
        got += [line["id"] for line in page["rows"]]
        before = page["next"]
        await desk.box(f"south-{len(got)}")
    assert got == [7, 6, 5, 4, 3, 2, 1]
    assert (await desk.ask("GET", "audit?limit=1000"))["next"] is None
    assert await lines(desk, "who=nobody") == []
    assert len(await lines(desk, "who=anybody")) == 10
    assert await lines(desk, f"since={int(time.time()) + 60}") == []
    for query in ("limit=0", "limit=x&since=-1&before=%00", "since=1e9", "limit=99999999999999999999999"):
        assert len(await lines(desk, query)) >= 1


async def test_old_lines_are_forgotten(desk: Desk) -> None:
    """After as many days as the settings say, 400 unless told otherwise."""
    now = time.time()
    blank = dict.fromkeys(("kind", "who", "address", "method", "path", "what", "request"), "")
    async with desk.parts.state.engine.begin() as connection:
        for days in (399, 401, 4000):
            values = blank | {"at": now - days * 86_400, "status": 0}
            await connection.execute(insert(schema.audit).values(**values))
    assert await desk.app[TRAIL].forget(now) == 2
    assert len(await lines(desk)) == 1


async def test_acts_at_once_do_not_mix(desk: Desk) -> None:
    """Each line is of its own request, whatever else happens meanwhile."""
    await asyncio.gather(*(desk.box(f"north-{number}") for number in range(20)))
    found = await lines(desk)
    assert sorted(line["what"].split(":")[0] for line in found) == sorted(f"appliance north-{n}" for n in range(20))
    assert len({line["request"] for line in found}) == 20


def test_a_great_many_changes_are_one_short_line() -> None:
    act = Act()
    for number in range(1000):
        act.changed(f"order box-{number}: fill now")
    said = act.what()
    assert len(said) <= 500
    assert said.startswith("order box-0: fill now; order box-1")
    assert said.endswith(f" … and {1000 - len(act.changes)} more")


async def test_what_the_controller_does_by_itself_is_local(start: Start, tmp_path: Path) -> None:
    """Such as taking a coverage file at its first start."""
    (tmp_path / "coverage.json").write_text('{"coverageZones": {}}')
    desk = await start(coverage=str(tmp_path / "coverage.json"))
    assert audit.actor("local") == "local"
    [line] = await lines(desk)
    assert (line["who"], line["what"], line["status"]) == ("local", "coverage: 0 zones", 0)


@pytest.mark.parametrize("days", [0, -1, 10**9])
def test_days_that_cannot_be(days: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"days": days}, audit.AuditSettings)
