"""Who may do what on the controller: every route, every kind of caller; and tokens from their making to their end."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from control.operators import accounts, credential
from control.operators.accounts import Account, AccountError
from control.operators.callers import AUDIENCES
from control.operators.rates import RateSettings
from control.settings import ApiSettings
from oca.title.digest import digest
from tests.control.conftest import Desk, Start

CLOSED = ApiSettings(open=False)
# What each route takes: nothing (anybody), a token to read, a token to act, one of an upstream CDN, or being an
# appliance.
TAKES = {
    "anybody": [
        f"{method} {token}{path}"
        for method in ("GET", "OPTIONS")
        for token in ("", "/c/{token}")
        for path in (
            "/play/{title}",
            "/play/{title}/{manifest}",
            "/steer/{title}/{version}",
            "/t/{title}/{version}/{rest}",
        )
    ]
    + [f"{method} {path}" for method in ("GET", "OPTIONS") for path in ("/assets/{name}", "/healthz")]
    + ["POST /api/v1/enrol", "POST /api/v1/renew", "GET /api/v1/authorities"],
    "read": [
        "GET /api/v1/titles",
        "GET /api/v1/titles/{title}",
        "GET /api/v1/appliances",
        "GET /api/v1/appliances/{appliance}",
        "GET /api/v1/coverage",
        "GET /api/v1/demand",
        "GET /api/v1/plans",
        "GET /api/v1/plans/{plan}",
        "GET /api/v1/fills",
        "GET /api/v1/fills/sources",
        "GET /api/v1/reports/fill",
        "GET /api/v1/sites",
        "GET /api/v1/steer/explain",
        "GET /api/v1/changes",
        "GET /api/v1/audit",
        "GET /api/v1/triggers",
        "GET /api/v1/origins",
        "GET /api/v1/origins/{origin}",
    ],
    "act": [
        "POST /api/v1/titles",
        "PUT /api/v1/titles/{title}/active",
        "POST /api/v1/appliances",
        "PUT /api/v1/appliances/{appliance}/drain",
        "PUT /api/v1/coverage",
        "POST /api/v1/demand",
        "POST /api/v1/plans",
        "POST /api/v1/fills",
        "POST /api/v1/fills/cancel",
        "POST /api/v1/fills/pause",
        "POST /api/v1/fills/resume",
        "PUT /api/v1/sites/{site}",
        "DELETE /api/v1/titles/{title}",
        "POST /api/v1/origins/{origin}/titles",
        "POST /api/v1/appliances/{appliance}/code",
        "POST /api/v1/appliances/{appliance}/revoke",
    ],
    "upstream to read": ["GET /api/v1/cdni/triggers", "GET /api/v1/cdni/triggers/{trigger}"],
    "upstream to act": ["POST /api/v1/cdni/triggers", "DELETE /api/v1/cdni/triggers/{trigger}"],
    "appliance": [
        "POST /api/v1/appliances/{appliance}/heartbeat",
        "PUT /api/v1/appliances/{appliance}/inventory",
        "GET /api/v1/appliances/{appliance}/fill",
        "POST /api/v1/appliances/{appliance}/sources",
        "GET /api/v1/appliances/{appliance}/neighbours",
        "GET /api/v1/appliances/{appliance}/revocations",
        "POST /api/v1/appliances/{appliance}/fill-report",
        "POST /api/v1/appliances/{appliance}/fill-lease",
    ],
}
ROUTES = [(takes, *route.split()) for takes, routes in TAKES.items() for route in routes]
# Who is let in, by what a route takes; "nobody" sends no token, "stranger" one that is not known.
LET_IN = {
    "anybody": {"nobody", "stranger", "reader", "actor", "other-cdn"},
    "read": {"reader", "actor"},
    "act": {"actor"},
    "upstream to read": {"reader", "actor", "other-cdn"},
    "upstream to act": {"actor", "other-cdn"},
    "appliance": {"nobody", "actor"},
}


async def staffed(desk: Desk, **lasts: float) -> dict[str, str]:
    """Tokens by name of operators: one who may read, one who may act."""
    engine = desk.parts.state.engine
    made = {}
    for name, role in (("reader", "read"), ("actor", "act")):
        _, made[name] = await accounts.add(engine, name, role, lasts.get(name))  # type: ignore[arg-type]
    return made


async def test_every_route_and_every_caller(start: Start) -> None:
    """Nothing but what stands in the table is there, and each is for exactly those whom the table lets in."""
    desk = await start(api=CLOSED)
    there = {(r.method, r.resource.canonical) for r in desk.app.router.routes() if r.resource and r.method != "HEAD"}
    assert there == {(method, path) for _, method, path in ROUTES}
    assert set(desk.app[AUDIENCES]) == set(desk.app.router.routes())
    _, upstream = await accounts.add(desk.parts.state.engine, "other-cdn", "upstream")
    callers = {"nobody": None, "stranger": credential.new(), "other-cdn": upstream, **await staffed(desk)}
    for takes, method, path in ROUTES:
        target = path.replace("{rest}", "title.json")
        for name in ("title", "version", "appliance", "plan", "name", "token", "site", "trigger", "origin"):
            target = target.replace(f"{{{name}}}", "x")
        for caller, token in callers.items():
            status, body, fields = await desk.answer(method, target, token=token)
            what = (method, path, caller, status, body)
            if caller in LET_IN[takes]:
                assert status not in (401, 403), what
                continue
            assert list(json.loads(body)) == ["error"], what
            if caller in ("nobody", "stranger"):
                assert status == 401, what
                assert fields["WWW-Authenticate"].startswith("Bearer"), what
                assert ("not known" in json.loads(body)["error"]) == (caller == "stranger"), what
            else:
                assert (status, 'error="insufficient_scope"' in fields["WWW-Authenticate"]) == (403, True), what
                words = "reader may only read" if caller == "reader" else "may only use /api/v1/cdni"
                assert words in json.loads(body)["error"], what


async def test_what_is_refused_changes_nothing(start: Start) -> None:
    """The body is not even looked at, and HEAD is as closed as GET."""
    desk = await start(api=CLOSED)
    tokens = await staffed(desk)
    box = json.dumps({"id": "north-1", "site": "north", "url": "http://x.example"}).encode()
    for token, status in ((None, 401), (tokens["reader"], 403), (tokens["actor"], 201)):
        for data in (b"no json", box):
            assert (await desk.answer("POST", "/api/v1/appliances", data, token=token))[0] == (
                400 if (status, data) == (201, b"no json") else status
            )
        assert ("north-1" in desk.parts.state.appliances) == (status == 201)
    assert (await desk.answer("HEAD", "/api/v1/titles"))[0] == 401
    assert (await desk.answer("HEAD", "/api/v1/titles", token=tokens["reader"]))[0] == 200


async def test_closed_is_the_default_and_open_asks_nothing(start: Start) -> None:
    """An open controller lets anybody act, takes no notice of a wrong token, and knows the right ones by name."""
    assert ApiSettings().open is False
    desk = await start()
    tokens = await staffed(desk)
    for token in (None, credential.new(), "x"):
        assert (await desk.answer("GET", "/api/v1/titles", token=token))[0] == 200
        assert (await desk.answer("POST", "/api/v1/demand", b"", token=token))[0] == 400
    assert (await desk.answer("POST", "/api/v1/demand", b"", token=tokens["reader"]))[0] == 403


@pytest.mark.parametrize(
    "fields",
    [
        [("Authorization", "Basic {token}")],
        [("Authorization", "{token}")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer {token}x")],
        [("Authorization", "Bearer {token},")],
        [("Authorization", "Bearer {token} {token}")],
        [("Authorization", "Bearer " + "x" * 4000)],
        [("Authorization", "Bearer {token}"), ("Authorization", "Bearer {token}")],
        [("Cookie", "token={token}")],
        [("X-Token", "{token}")],
    ],
)
async def test_only_one_way_to_show_a_token(start: Start, fields: list[tuple[str, str]]) -> None:
    """One Authorization field, the scheme in any case (RFC 9110 11.1), nothing after the token."""
    desk = await start(api=CLOSED)
    token = (await staffed(desk))["actor"]
    url = f"http://{desk.server.host}:{desk.server.port}/api/v1/titles"
    sent = CIMultiDict([(name, value.replace("{token}", token)) for name, value in fields])
    async with desk.session.get(url, headers=sent) as answer:
        assert answer.status == 401
    async with desk.session.get(url, headers={"Authorization": f"bEARER  {token}"}) as answer:
        assert answer.status == 200
    async with desk.session.get(f"{url}?access_token={token}") as answer:
        assert answer.status == 401


async def test_a_token_from_its_making_to_its_end(start: Start) -> None:
    """Good at once, even if another process made it; no longer when it has expired or is removed."""
    desk = await start(api=CLOSED)
    engine = desk.parts.state.engine
    account, token = await accounts.add(engine, "me", "act", 3600.0)
    assert await _status(desk, token) == 200
    assert account.expires is not None
    assert not account.expired(account.expires - 1)
    assert account.expired(account.expires)

    late, over = await accounts.add(engine, "late", "act", -1.0)
    assert late.expired(time.time())
    status, body, _ = await desk.answer("GET", "/api/v1/titles", token=over)
    assert (status, "the token of late has expired" in json.loads(body)["error"]) == (401, True)

    assert (await accounts.remove(engine, "me", dry_run=True)).name == "me"
    assert await _status(desk, token) == 200
    await accounts.remove(engine, "me")
    async with asyncio.timeout(60):
        while await _status(desk, token) == 200:
            await asyncio.sleep(0.05)
    assert await _status(desk, token) == 401
    _, again = await accounts.add(engine, "me", "read")
    assert again != token
    assert await _status(desk, again) == 200
    assert await _status(desk, token) == 401


async def _status(desk: Desk, token: str) -> int:
    return (await desk.answer("GET", "/api/v1/titles", token=token))[0]


async def test_what_is_kept_is_no_token(start: Start) -> None:
    """The database, and all that the API tells, hold its digest at most."""
    desk = await start(api=CLOSED)
    tokens = await staffed(desk)
    await _status(desk, tokens["actor"])
    stored = await accounts.read(desk.parts.state.engine)
    assert {name: account.hash for name, account in stored.items()} == {
        name: digest(token.encode()) for name, token in tokens.items()
    }
    database = desk.settings.database.partition("///")[2]
    for end in ("", "-wal"):
        data = Path(database + end).read_bytes()
        assert not any(token.encode() in data for token in tokens.values())
    for path in ("changes", "audit"):
        _, body, _ = await desk.answer("GET", f"/api/v1/{path}", token=tokens["actor"])
        assert b"operator actor" in body or b'"subject":"actor"' in body
        assert not any(t.encode() in body or digest(t.encode()).encode() in body for t in tokens.values())


async def test_use_is_written_down_to_the_hour(start: Start) -> None:
    """Once, however often a token is used, and no change of the catalog comes of it."""
    desk = await start(api=CLOSED)
    engine = desk.parts.state.engine
    tokens = await staffed(desk)
    uses, known = accounts.Uses(), await accounts.read(engine)
    now = known["actor"].made + 10
    for later in (0, 5, 3000):
        uses.note(known["actor"], now + later)
    await uses.write(engine)
    assert (await accounts.read(engine))["actor"].used == now
    uses.note(known["actor"], now + 3601)
    await uses.write(engine)
    found = await accounts.read(engine)
    assert (found["actor"].used, found["reader"].used) == (now + 3601, None)
    changed = json.loads((await desk.answer("GET", "/api/v1/changes", token=tokens["reader"]))[1])
    assert [change["detail"] for change in changed] == ["added, role act", "added, role read"]


async def test_a_controller_writes_use_down_when_it_ends(start: Start) -> None:
    desk, other = await start(api=CLOSED), await start(api=CLOSED)
    tokens = await staffed(desk)
    before = time.time()
    assert await _status(desk, tokens["reader"]) == 200
    await desk.server.close()
    found = await accounts.read(other.parts.state.engine)
    assert found["actor"].used is None
    assert found["reader"].used is not None
    assert before <= found["reader"].used <= time.time()


async def test_names_that_cannot_be(start: Start) -> None:
    engine = (await start()).parts.state.engine
    await accounts.add(engine, "me", "act")
    for name, said in (
        ("me", "there is an operator me already"),
        ("local", "calls somebody else"),
        ("anybody", "calls somebody else"),
    ):
        with pytest.raises(AccountError, match=said):
            await accounts.add(engine, name, "read")
    for name in ("", "Me", "a b", "../x", "x" * 65):
        with pytest.raises(Exception, match="name of an operator"):
            await accounts.add(engine, name, "read")
    with pytest.raises(AccountError, match="there is no operator 'you'"):
        await accounts.remove(engine, "you")
    assert (await accounts.read(engine)).keys() == {"me"}


async def test_a_token_has_a_rate_wherever_it_is_used(start: Start) -> None:
    """On loopback too, and apart from the next operator's."""
    desk = await start(api=CLOSED, rates=RateSettings(token_per_s=1e-3, token_burst=2))
    tokens = await staffed(desk)
    assert [await _status(desk, tokens["actor"]) for _ in range(3)] == [200, 200, 429]
    status, body, fields = await desk.answer("GET", "/api/v1/titles", token=tokens["actor"])
    assert (status, "operator actor asks too often" in json.loads(body)["error"]) == (429, True)
    assert int(fields["Retry-After"]) >= 1
    assert await _status(desk, tokens["reader"]) == 200


async def test_tokens_work_while_the_database_is_away(start: Start) -> None:
    """Those that are known are known by heart; an unknown one is refused, with no look at what is not there."""
    desk = await start(api=CLOSED)
    tokens = await staffed(desk)
    assert await _status(desk, tokens["reader"]) == 200
    await desk.parts.state.engine.dispose()
    database = desk.settings.database.partition("///")[2]
    with sqlite3.connect(database) as holder:
        holder.execute("drop table changes")
    holder.close()
    assert await _status(desk, tokens["reader"]) == 200
    assert await _status(desk, credential.new()) == 401


@given(st.text(max_size=60) | st.from_regex(r"ocak_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_nothing_but_the_token_finds_an_account(said: str) -> None:
    token = "ocak_" + "A" * 43
    account = Account("me", "default", "act", digest(token.encode()), 0.0, None, None)
    assert accounts.find([account], token) is account
    assert (accounts.find([account], said) is account) == (said == token)


def test_new_tokens_are_tokens_and_differ() -> None:
    made = {credential.new() for _ in range(100)}
    assert len(made) == 100
    assert all(map(credential.is_token, made))
