"""Who may play: tokens found in requests, remembered, rotated; and every URL of an appliance held against them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import maxminddb
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oca.errors import ConfigError
from oca.http import gate as gates
from oca.http.gate import FIELD, Gate, TokenSettings, find, split
from oca.http.token import Asked
from tests.conftest import MadeTitle, MakeTitle
from tests.oca.conftest import Client, Running, Start
from tests.oca.test_serving import until
from tests.oca.test_token import NOW, PATH, SECRET, base64url, hmac, key_file, made

ASKED = Asked(PATH, "192.0.2.1")
OLD, NEW = hmac("old", SECRET), hmac("new", SECRET[::-1])


@pytest.mark.parametrize(
    ("target", "fields", "cookies", "token", "rest"),
    [
        ("/t/x", [], [], "", "/t/x"),
        ("/c/abc/t/x?q=1", [], [], "abc", "/t/x?q=1"),
        ("/c/abc", [], [], "", "/c/abc"),
        ("/c//t/x", [], [], "", "/c//t/x"),
        ("/t/x?CAT=abc", [], [], "abc", "/t/x"),
        ("/t/x?a=1&CAT=abc&b=2", [], [], "abc", "/t/x?a=1&b=2"),
        ("/t/x?CATS=1", [], [], "", "/t/x?CATS=1"),
        ("/t/x?CAT=a%2Db", [], [], "a-b", "/t/x"),
        ("/c/abc==/t/x?CAT=abc%3D", ["abc="], [f"{FIELD}=abc=="], "abc", "/t/x"),
        ("/c/=/t/x", [], [], "", "/t/x"),
        ("/t/x", [" abc "], [], "abc", "/t/x"),
        ("/t/x", [], [f"a=b; {FIELD}=abc; c=d"], "abc", "/t/x"),
        ("/t/x", [], [f"x{FIELD}=abc"], "", "/t/x"),
        ("/c/abc/t/x?CAT=abc", ["abc"], [f"{FIELD}=abc"], "abc", "/t/x"),
        ("/c/abc/t/x?CAT=other", [], [], "several", "/t/x"),
        ("/t/x?CAT=a&CAT=b", [], [], "several", "/t/x"),
        ("/t/x", ["a", "b"], [], "several", "/t/x"),
    ],
)
def test_where_a_token_is_looked_for(
    target: str, fields: list[str], cookies: list[str], token: str, rest: str
) -> None:
    assert find(target, fields, cookies) == (token, rest)
    if not fields and not cookies and "CAT=" not in target:
        assert split(target) == (token, rest)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return key_file(tmp_path / "keys.toml", OLD)


def test_a_token_is_verified_once(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on only its claims are looked at; and what is refused is not verified again and again either."""
    gate = Gate(TokenSettings(keys=str(keys)))
    times = []
    really: Callable[..., Any] = gates.open_token

    def counted(*words: Any) -> Any:
        times.append(words[0])
        return really(*words)

    monkeypatch.setattr(gates, "open_token", counted)
    token = made({4: int(NOW) + 60}, OLD)
    assert [gate.admit(token, ASKED, NOW + second) for second in (0, 59, 60)] == ["", "", "the token has expired"]
    assert [gate.admit("rubbishy", ASKED, NOW) for _ in range(3)] == [
        "the token is neither COSE_Mac0 nor COSE_Sign1"
    ] * 3
    assert times == [token, "rubbishy"]
    assert gate.admit("", ASKED, NOW) == "the request has no token"


def test_memory_is_bounded(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come, good ones in use stay; a flood of bad ones pushes out none of them."""
    monkeypatch.setattr(gates, "_MOST_GOOD", 10)
    monkeypatch.setattr(gates, "_MOST_BAD", 5)
    gate = Gate(TokenSettings(keys=str(keys)))
    mine = made({2: "me"}, OLD)
    for number in range(100):
        assert gate.admit(made({2: str(number)}, OLD), ASKED, NOW) == ""
        assert gate.admit(f"bad{number}", ASKED, NOW) != ""
        assert gate.admit(mine, ASKED, NOW) == ""
    assert len(gate._good) <= 20
    assert len(gate._bad) <= 10
    assert gate._good.get(mine) is not None


def test_keys_are_rotated_with_overlap(keys: Path) -> None:
    """First the new one is added, then tokens are made with it, then the old one is taken away."""
    gate = Gate(TokenSettings(keys=str(keys)))
    old, new = made({}, OLD), made({}, NEW)
    assert gate.admit(old, ASKED, NOW) == ""
    assert gate.admit(new, ASKED, NOW) == "the token's key is not known here"
    assert not gate.refresh()
    key_file(keys, OLD, NEW)
    assert gate.refresh()
    assert [gate.admit(token, ASKED, NOW) for token in (old, new)] == ["", ""]
    key_file(keys, NEW)
    assert gate.refresh()
    assert gate.admit(old, ASKED, NOW) == "the token's key is not known here"
    assert gate.admit(new, ASKED, NOW) == ""
    keys.write_text("rubbish")
    with pytest.raises(ConfigError):
        gate.refresh()
    assert not gate.refresh(), "said once"
    assert gate.admit(new, ASKED, NOW) == ""


def test_keys_are_taken_up_while_the_map_is_missing(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is taken away ends its tokens, whatever else is wrong, those that are remembered too."""
    monkeypatch.setattr(maxminddb, "open_database", lambda *_: None)
    countries = tmp_path / "countries.mmdb"
    countries.touch()
    gate = Gate(TokenSettings(keys=str(keys), countries=str(countries)))
    old, new = made({}, OLD), made({}, NEW)
    assert gate.admit(old, ASKED, NOW) == ""
    countries.unlink()
    key_file(keys, NEW)
    with pytest.raises(ConfigError, match="cannot use the map of countries"):
        gate.refresh()
    assert gate.admit(old, ASKED, NOW) == "the token's key is not known here"
    assert gate.admit(new, ASKED, NOW) == ""
    keys.unlink()
    with pytest.raises(ConfigError, match=r"cannot read token keys .*; cannot use the map of countries"):
        gate.refresh()
    assert gate.admit(new, ASKED, NOW) == ""


def test_keys_that_change_while_a_token_is_verified(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read in another thread: what was verified with a key that goes at that moment is not remembered."""
    gate = Gate(TokenSettings(keys=str(keys)))
    really: Callable[..., Any] = gates.open_token

    def meanwhile(*words: Any) -> Any:
        found = really(*words)
        key_file(keys, NEW)
        assert gate.refresh()
        return found

    monkeypatch.setattr(gates, "open_token", meanwhile)
    token = made({}, OLD)
    gate.admit(token, ASKED, NOW)
    monkeypatch.setattr(gates, "open_token", really)
    assert gate.admit(token, ASKED, NOW) == "the token's key is not known here"


def test_a_chmod_mends_a_key_file(keys: Path) -> None:
    """The sentence asks for one, and nothing else of the file changes."""
    gate = Gate(TokenSettings(keys=str(keys)))
    key_file(keys, OLD, NEW).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod o="):
        gate.refresh()
    keys.chmod(0o640)
    assert gate.refresh()
    assert gate.admit(made({}, NEW), ASKED, NOW) == ""


def test_what_is_too_long_is_not_remembered(keys: Path) -> None:
    gate = Gate(TokenSettings(keys=str(keys)))
    assert gate.admit("A" * 4097, ASKED, NOW) == "the token is too long"
    assert len(gate._bad) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.text() | st.binary().map(base64url), st.text(), st.text())
def test_whatever_is_shown_is_refused_in_a_sentence(keys: Path, token: str, path: str, client: str) -> None:
    gate = Gate(TokenSettings(keys=str(keys)))
    assert gate.admit(token, Asked(path, client), NOW) != ""


def test_a_token_holds_no_longer_than_its_key(tmp_path: Path) -> None:
    import datetime

    ends = datetime.datetime.fromtimestamp(NOW + 10, datetime.UTC)
    gate = Gate(TokenSettings(keys=str(key_file(tmp_path / "k.toml", hmac("old", until=ends)))))
    token = made({4: int(NOW) + 3600}, OLD)
    assert gate.admit(token, ASKED, NOW) == ""
    assert gate.admit(token, ASKED, NOW + 10) == "the token has expired"


def test_own_boxes_need_no_token(keys: Path) -> None:
    gate = Gate(TokenSettings(keys=str(keys), exempt=("192.0.2.0/28", "2001:db8::/32")))
    assert gate.admit("", Asked(PATH, "192.0.2.15"), NOW) == ""
    assert gate.admit("", Asked(PATH, "2001:db8::1"), NOW) == ""
    assert gate.admit("", Asked(PATH, "192.0.2.16"), NOW) == "the request has no token"
    assert gate.admit("rubbish", Asked(PATH, "192.0.2.15"), NOW) != ""
    with pytest.raises(msgspec.ValidationError, match="which is no prefix"):
        msgspec.convert({"exempt": ["192.0.2"]}, TokenSettings)


def test_the_map_of_countries_must_be_one(keys: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none.mmdb", keys):
        with pytest.raises(ConfigError, match="cannot use the map of countries"):
            Gate(TokenSettings(keys=str(keys), countries=str(path)))


def test_countries_come_from_the_map(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it holds: an answer of another shape is no country."""

    class Map:
        def get(self, address: str) -> object:
            return {"192.0.2.1": {"country": {"iso_code": "DE"}}, "192.0.2.2": {"country": "DE"}}.get(address)

    path = tmp_path / "countries.mmdb"
    path.touch()
    monkeypatch.setattr(maxminddb, "open_database", lambda *_: Map())
    gate = Gate(TokenSettings(keys=str(keys), countries=str(path)))
    assert [gate.country(f"192.0.2.{number}") for number in (1, 2, 3)] == ["DE", "", ""]
    token = made({316: ["DE"]}, OLD)
    assert gate.admit(token, ASKED, NOW) == ""
    assert gate.admit(token, Asked(PATH, "192.0.2.3"), NOW) == "the token is for other countries"


# Over real sockets


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def secured(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture
async def guarded(start: Start, make_title: MakeTitle, keys: Path) -> tuple[Running, MadeTitle]:
    running = await start(gate=Gate(TokenSettings(keys=str(keys))), sweep_s=0.05)
    return running, make_title(running.root)


async def statuses(client: Client, target: str, *fields: str) -> list[int]:
    """Asked three times on one connection: the second and third may go the short way."""
    return [(await client.ask(target, "GET", *fields)).status for _ in range(3)]


async def test_every_url_needs_a_token_that_allows_it(guarded: tuple[Running, MadeTitle]) -> None:
    running, title = guarded
    client = await running.connect()
    now = int(time.time())
    good, expired = made({4: now + 600}, OLD), made({4: now - 1}, OLD)
    other = made({312: {3: {1: "/t/other/"}}}, OLD)
    names = ("v1/1.m4s", "v1/init.mp4", "v1.mp4", "v1.idx", "title.json", "manifest.mpd", "master.m3u8")
    for path in [f"{title.url}/{name}" for name in names]:
        assert await statuses(client, path) == [403] * 3
        assert await statuses(client, f"/c/{good}{path}") == [200] * 3
        assert await statuses(client, f"/c/{expired}{path}") == [403] * 3
        assert await statuses(client, f"/c/{other}{path}") == [403] * 3
        assert await statuses(client, f"/c/{good[:-2]}{path}") == [403] * 3
        assert await statuses(client, f"{path}?CAT={good}") == [200] * 3
        assert await statuses(client, path, f"{FIELD}: {good}") == [200] * 3
        assert await statuses(client, path, f"Cookie: a=b; {FIELD}={good}") == [200] * 3
        assert await statuses(client, path) == [403] * 3
    assert await statuses(client, "/anything") == [403] * 3
    refused = await client.ask(f"{title.url}/v1/1.m4s")
    assert refused.body == b"a token is needed that allows this\n"
    assert refused["Cache-Control"] == "no-store"
    assert (await client.ask(f"/c/{good}{title.url}/v1/1.m4s")).body == title.segment("v1", 1)


@pytest.mark.long
async def test_a_token_expires_on_an_open_connection(guarded: tuple[Running, MadeTitle]) -> None:
    running, title = guarded
    client = await running.connect()
    target = f"/c/{made({4: time.time() + 1.5}, OLD)}{title.url}/v1/1.m4s"
    assert (await client.ask(target)).status == 200
    async with asyncio.timeout(60):
        while (await client.ask(target)).status == 200:
            await asyncio.sleep(0.05)
    assert (await client.ask(target)).status == 403


async def test_new_keys_are_taken_up(guarded: tuple[Running, MadeTitle], keys: Path) -> None:
    running, title = guarded
    client = await running.connect()
    target = f"/c/{made({}, NEW)}{title.url}/v1/1.m4s"
    assert (await client.ask(target)).status == 403
    key_file(keys, OLD, NEW)
    async with asyncio.timeout(60):
        while (await client.ask(target)).status == 403:
            await asyncio.sleep(0.05)
    keys.write_text("rubbish")
    await until(lambda: "tokens" in running.server._reported)
    assert (await client.ask(target)).status == 200


async def test_without_keys_a_token_means_nothing(start: Start, make_title: MakeTitle) -> None:
    """Whoever switches tokens off stops no viewer whose URLs still have one."""
    running = await start()
    title = make_title(running.root)
    client = await running.connect()
    assert await statuses(client, f"/c/whatever{title.url}/v1/1.m4s") == [200] * 3


async def test_restrictions_on_the_host_are_kept(guarded: tuple[Running, MadeTitle], secured: bool) -> None:
    running, title = guarded
    client = await running.connect()
    scheme, other = ("https", "http") if secured else ("http", "https")
    for claims, status in (
        ({312: {1: {0: "a.example"}, 2: {0: "8080"}}}, 200),
        ({312: {1: {0: "b.example"}}}, 403),
        ({312: {0: {0: scheme}}}, 200),
        ({312: {0: {0: other}}}, 403),
        ({313: ["HEAD"]}, 403),
        ({313: ["GET"]}, 200),
    ):
        assert await statuses(client, f"/c/{made(claims, OLD)}{title.url}/v1/1.m4s") == [status] * 3
