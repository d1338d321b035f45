"""How often one may ask, on an appliance: over real sockets, in clear, on the long way and on the short one."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.http.gate import Gate, TokenSettings
from oca.http.rates import Buckets, retry_after, take
from tests.conftest import MakeTitle
from tests.oca.conftest import Client, Start
from tests.oca.test_token import hmac, key_file, made


@given(
    rate=st.floats(0.1, 100),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 2), max_size=60),
)
def test_it_is_a_token_bucket(rate: float, burst: int, pauses: list[float]) -> None:
    """One number says the same as a bucket that is filled and emptied."""
    now = full_at = 1000.0
    level, at = float(burst), now
    for pause in pauses:
        now += pause
        level, at = min(burst, level + (now - at) * rate), now
        full_at, late = take(full_at, now, rate, burst)
        if abs(level - 1) < 1e-6:
            return  # rounding decides
        assert (late == 0) is (level >= 1)
        if late:
            assert late == pytest.approx((1 - level) / rate, abs=1e-6)
        else:
            level -= 1


def test_who_is_early_is_told_when_to_come() -> None:
    assert [retry_after(late) for late in (0.001, 1.0, 1.2)] == ["1", "1", "2"]


def test_memory_is_bounded() -> None:
    buckets = Buckets(1.0, 2, 10)
    for number in range(100):
        assert buckets.take(str(number), 0.0) == 0
    assert len(buckets) == 10
    assert Buckets(0.0, 1, 10).take("anybody", 0.0) == 0


async def ask(client: Client, target: str, count: int, *fields: str) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(count):
        response = await client.ask(target, "GET", *fields)
        found[response.status] += 1
        if response.status == 429:
            assert 1 <= int(response["Retry-After"]) <= math.ceil(1 / 0.01)
            assert response["Cache-Control"] == "no-store"
    return found


async def test_a_client_that_asks_too_often_is_told_so(start: Start, make_title: MakeTitle) -> None:
    """Over all of its connections; they stay open, since new ones would cost more."""
    running = await start(requests_per_client=0.01, requests_burst=5, exempt=[])
    title = make_title(running.root)
    first, second = await running.connect(), await running.connect()
    assert await ask(first, f"{title.url}/v1/1.m4s", 3) == {200: 3}
    assert await ask(second, f"{title.url}/v1/1.m4s", 4, "X-Other: 1") == {200: 2, 429: 2}
    assert await ask(first, f"{title.url}/v1/1.m4s", 2) == {429: 2}
    other = await running.connect(local_addr=("127.0.0.2", 0))
    assert await ask(other, f"{title.url}/v1/1.m4s", 2) == {200: 2}


async def test_a_request_counts_once(start: Start, make_title: MakeTitle) -> None:
    """Also where it had a good chance of being answered the short way, and has to be looked at after all."""
    running = await start(requests_per_client=0.01, requests_burst=5, exempt=[])
    title = make_title(running.root)
    client = await running.connect()
    found: Counter[int] = Counter()
    for _ in range(7):
        found += await ask(client, f"{title.url}/v1/1.m4s", 1)
        for known in running.server.slices.asked.values():
            known.warm = 0.0
    assert found == {200: 5, 429: 2}


async def test_it_may_ask_again_in_time(start: Start, make_title: MakeTitle) -> None:
    running = await start(requests_per_client=2.0, requests_burst=1, exempt=[])
    title = make_title(running.root)
    client = await running.connect()
    assert (await client.ask(f"{title.url}/v1/1.m4s")).status == 200
    async with asyncio.timeout(60):
        while (await client.ask(f"{title.url}/v1/1.m4s")).status != 200:
            await asyncio.sleep(0.1)


async def test_exempt_clients_have_no_rate(start: Start, make_title: MakeTitle) -> None:
    running = await start(requests_per_client=0.01, requests_burst=1)
    title = make_title(running.root)
    assert await ask(await running.connect(), f"{title.url}/v1/1.m4s", 9) == {200: 9}


async def test_a_token_that_was_passed_on_is_shared(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """Whoever has it, from wherever: it is good for so many requests."""
    gate = Gate(TokenSettings(keys=str(key_file(tmp_path / "keys.toml", hmac()))))
    running = await start(requests_per_token=0.01, requests_burst=4, gate=gate)
    title = make_title(running.root)
    passed, own = made({2: "passed on"}), made({2: "own"})
    path = f"{title.url}/v1/1.m4s"
    found: Counter[int] = Counter()
    for number in range(3):
        client = await running.connect(local_addr=(f"127.0.0.{number + 1}", 0))
        found += await ask(client, f"/c/{passed}{path}", 2)
    assert found == {200: 4, 429: 2}
    client = await running.connect()
    assert await ask(client, f"{path}?CAT={passed}", 1) == {429: 1}
    assert await ask(client, f"/c/{own}{path}", 4) == {200: 4}
    assert await ask(client, path, 2) == {403: 2}
