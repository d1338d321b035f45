"""Rates: a bucket is what its definition says, memory is bounded, and who is too early is told when to come back."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.operators.rates import Rates, RateSettings, client_key
from oca.http.rates import Buckets, retry_after, take
from tests.conftest import MakeTitle
from tests.control.conftest import NORTH, SOUTH, Start

# All of these are exact in binary, so the rule and its definition must agree to the last bit.
TIMES = st.lists(st.integers(0, 640).map(lambda n: n / 64), max_size=60).map(sorted)
RATES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0, 64.0])


@given(times=TIMES, rate=RATES, burst=st.integers(1, 8))
def test_the_rule_is_a_token_bucket(times: list[float], rate: float, burst: int) -> None:
    """A bucket that starts full, gains `rate` a second up to `burst`, and gives a whole token or nothing."""
    tokens, last, full_at = Fraction(burst), Fraction(0), 0.0
    for now in times:
        tokens = min(Fraction(burst), tokens + (Fraction(now) - last) * Fraction(rate))
        last = Fraction(now)
        full_at, late = take(full_at, now, rate, burst)
        if tokens >= 1:
            tokens -= 1
            assert late == 0
        else:
            assert late == (1 - tokens) / Fraction(rate)


@given(
    steps=st.lists(st.floats(0, 100), max_size=80),
    rate=st.floats(0.01, 1000),
    burst=st.integers(1, 20),
)
def test_no_span_lets_more_through_than_burst_and_rate(steps: list[float], rate: float, burst: int) -> None:
    """Whatever comes whenever; and who waits as long as they were told is let in."""
    now, full_at, passed = 0.0, 0.0, []
    for step in steps:
        now += step
        full_at, late = take(full_at, now, rate, burst)
        if late:
            assert take(full_at, now + late + 1e-6, rate, burst)[1] == 0
        else:
            passed.append(now)
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - begin) * rate + 1e-3


@given(st.floats(0, 1e9))
def test_retry_after_is_never_too_soon(late: float) -> None:
    assert int(retry_after(late)) >= max(1, late)
    assert int(retry_after(late)) < late + 2


def test_clients_are_addresses_or_subnets() -> None:
    """IPv4 in IPv6 is IPv4, one /64 is one client, and what is no address is one client too."""
    assert client_key("192.0.2.1") == client_key("::ffff:192.0.2.1") != client_key("192.0.2.2")
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff:1") != client_key("2001:db8:0:1::1")
    assert client_key("") == client_key("nobody") == client_key("\0") == client_key("ä:") == b""


def test_memory_is_bounded() -> None:
    """The client that was not seen for longest is forgotten first, and with it what it used up."""
    buckets = Buckets(1.0, 1, 3)
    for key in "abc":
        assert buckets.take(key, 0.0) == 0
    assert buckets.take("a", 0.0) > 0
    for number in range(1000):
        buckets.take(str(number), 0.0)
        assert len(buckets) <= 3
    assert buckets.take("a", 0.0) == 0


def test_zero_sets_no_limit_and_remembers_nobody() -> None:
    buckets = Buckets(0.0, 1, 3)
    assert {buckets.take("a", 0.0) for _ in range(1000)} == {0.0}
    assert len(buckets) == 0


def test_kinds_and_clients_do_not_pay_for_each_other() -> None:
    rates = Rates(
        RateSettings(viewer_per_s=1, viewer_burst=1, api_per_s=1, api_burst=1, token_per_s=1, token_burst=1)
    )
    assert rates.client("viewer", NORTH, 0.0) == 0
    assert rates.client("viewer", NORTH, 0.0) == 1.0
    assert rates.client("viewer", SOUTH, 0.0) == rates.client("api", NORTH, 0.0) == rates.token("me", 0.0) == 0
    assert rates.token("me", 0.0) == 1.0
    assert rates.token("you", 0.0) == 0


def test_who_is_exempt_is_never_late() -> None:
    """Loopback unless told otherwise."""
    strict = {"viewer_per_s": 1.0, "viewer_burst": 1}
    for settings, spared, not_spared in (
        (RateSettings(**strict), ["127.0.0.9", "::1"], [NORTH]),
        (RateSettings(**strict, exempt=("192.0.2.0/24",)), [NORTH], ["127.0.0.9", "::1"]),
    ):
        rates = Rates(settings)
        for address in spared:
            assert {rates.client("viewer", address, 0.0) for _ in range(5)} == {0.0}
        for address in not_spared:
            assert [rates.client("viewer", address, 0.0) for _ in range(2)] == [0.0, 1.0]


@pytest.mark.parametrize("bad", [{"viewer_per_s": -1}, {"api_burst": 0}, {"clients": 0}, {"exempt": ["x"]}, {"x": 1}])
def test_settings_that_cannot_be(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, RateSettings)


ONE = RateSettings(
    viewer_per_s=1e-3, viewer_burst=1, api_per_s=1e-3, api_burst=1, appliance_per_s=1e-3, appliance_burst=1
)


async def test_the_api_tells_when_to_come_back(start: Start) -> None:
    """429 with a sentence; another address is not affected, and a peer that is no proxy cannot pose as another."""
    desk = await start(trusted_proxies=["127.0.0.1"], rates=ONE)
    for path in ("/api/v1/titles", "/api/v1/appliances/x/fill"):
        assert (await desk.answer("GET", path, viewer=NORTH))[0] in (200, 404)
        status, body, fields = await desk.answer("GET", path, viewer=NORTH)
        assert (status, json.loads(body)) == (429, {"error": f"GET {path}: too many requests from this address"})
        assert 900 <= int(fields["Retry-After"]) <= 1000
        assert (await desk.answer("GET", path, viewer=SOUTH))[0] in (200, 404)
    direct = await start(rates=msgspec.structs.replace(ONE, exempt=()))
    assert [(await direct.answer("GET", "/api/v1/titles", viewer=f"192.0.2.{n}"))[0] for n in (1, 2)] == [200, 429]


async def test_viewers_are_told_too_but_steering_goes_on(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """Pages, manifests and redirects get 429 that no cache keeps and every page may read.

    Steering is never refused, since hls.js gives it up after 429: the same order, and a longer pause before the next.
    """
    quick = RateSettings(viewer_per_s=1e-3, viewer_burst=1)
    desk = await start(trusted_proxies=["127.0.0.1"], rates=quick, steer_ttl_s=10)
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.cover()
    await desk.box("north-1")
    await desk.box("south-1", site="south")
    for box in ("north-1", "south-1"):
        await desk.tell(box, (made, "v1 a1"))
    steer = f"/steer/clip/{made.version}"
    _, first, _ = await desk.answer("GET", steer, viewer=NORTH)
    for path in ("/play/clip", "/play/clip/manifest.mpd", "/play/clip/master.m3u8", f"{made.url}/v1/1.m4s"):
        status, body, fields = await desk.answer("GET", path, viewer=NORTH)
        assert status == 429, path
        assert list(json.loads(body)) == ["error"]
        assert int(fields["Retry-After"]) >= 1
        assert (fields["Cache-Control"], fields["Access-Control-Allow-Origin"]) == ("no-store", "*")
        assert (await desk.answer("OPTIONS", path, viewer=NORTH))[0] == 204
    assert (await desk.answer("GET", "/healthz", viewer=NORTH))[0] == 200
    before = json.loads(first)
    assert (before["TTL"], before["PATHWAY-PRIORITY"]) == (10, ["north-1", "south-1"])
    for _ in range(3):
        status, body, _ = await desk.answer("GET", steer, viewer=NORTH)
        assert status == 200
        late = json.loads(body)
        assert 40 < late.pop("TTL") <= 3600
        assert late == {name: value for name, value in before.items() if name != "TTL"}
    # Somebody else's zone has an order of its own, and they are in no hurry.
    status, body, _ = await desk.answer("GET", steer, viewer=SOUTH)
    assert json.loads(body)["PATHWAY-PRIORITY"] == ["south-1", "north-1"]
    status, body, _ = await desk.answer("GET", steer, viewer=SOUTH)
    assert json.loads(body)["PATHWAY-PRIORITY"] == ["south-1", "north-1"]
