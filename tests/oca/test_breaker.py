"""The circuit breaker: tables of what must hold, and a model that it never leaves."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from oca.breaker import Breaker, Terms

TERMS = Terms()


def tell(breaker: Breaker, outcomes: str, now: float) -> None:
    """Let a request through for each letter: f fails, s succeeds."""
    for outcome in outcomes:
        assert breaker.allow(now)
        (breaker.fail if outcome == "f" else breaker.succeed)(now)


def test_the_numbers_of_the_source() -> None:
    """At least 20 requests in 10 s, 50 % failures, half-open after 5 s."""
    assert (TERMS.requests, TERMS.window_s, TERMS.percent, TERMS.rest_s) == (20, 10.0, 50.0, 5.0)


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("f" * 19, "closed"),
        ("f" * 20, "open"),
        ("s" * 10 + "f" * 9, "closed"),
        ("s" * 10 + "f" * 10, "open"),
        ("s" * 11 + "f" * 10, "closed"),
        ("s" * 100, "closed"),
    ],
)
def test_it_opens_at_the_share_and_not_before_enough_requests(outcomes: str, state: str) -> None:
    breaker = Breaker()
    tell(breaker, outcomes, 100.0)
    assert breaker.state(100.0) == state
    assert breaker.allow(100.0) is (state == "closed")


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    tell(breaker, "f" * 19, 100.0)
    assert breaker.error_percent(109.0) == 100
    assert breaker.error_percent(110.5) == 0
    tell(breaker, "f", 110.5)
    assert breaker.state(110.5) == "closed"


def test_one_request_tries_and_decides() -> None:
    """After the rest exactly one is let through; if it fails the rest begins anew, if not all is forgotten."""
    breaker = Breaker()
    tell(breaker, "f" * 20, 100.0)
    assert not breaker.allow(104.9)
    assert breaker.state(105.0) == "half-open"
    assert breaker.allow(105.0)
    assert not breaker.allow(105.0)
    breaker.fail(106.0)
    assert breaker.state(110.9) == "open"
    assert breaker.allow(111.0)
    breaker.succeed(111.1)
    assert breaker.state(111.1) == "closed"
    tell(breaker, "f" * 19, 111.2)
    assert breaker.state(111.2) == "closed"
    assert breaker.changes == {"opened": 2, "half-opened": 2, "closed": 1}


def test_a_try_that_was_given_up_lets_another_try() -> None:
    breaker = Breaker()
    tell(breaker, "f" * 20, 0.0)
    assert breaker.allow(5.0)
    breaker.forgo()
    assert breaker.allow(5.0)


def test_requests_from_before_the_opening_do_not_keep_it_open_longer() -> None:
    breaker = Breaker()
    for _ in range(25):
        assert breaker.allow(0.0)
    for _ in range(25):
        breaker.fail(1.0)
    assert breaker.changes["opened"] == 1
    breaker.fail(5.9)
    assert breaker.allow(6.0)


class Machine(RuleBasedStateMachine):
    """Any order of requests, outcomes and pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.terms = Terms(requests=4, window_s=10.0, percent=50.0, rest_s=5.0)
        self.breaker = Breaker(self.terms)
        self.under_way = 0
        self.outcomes: list[tuple[float, bool]] = []

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        state, would = self.breaker.state(self.now), self.breaker.would_allow(self.now)
        allowed = self.breaker.allow(self.now)
        assert allowed == would
        self.under_way += allowed
        assert allowed or state != "closed"
        if state == "half-open" and allowed:
            assert not self.breaker.allow(self.now)

    @precondition(lambda self: self.under_way)
    @rule(good=st.booleans())
    def finish(self, good: bool) -> None:
        self.under_way -= 1
        before = self.breaker.state(self.now)
        (self.breaker.succeed if good else self.breaker.fail)(self.now)
        after = self.breaker.state(self.now)
        if before == "closed" and after == "open":
            assert not good
            assert self.breaker.error_percent(self.now) >= self.terms.percent
        if before == "open":
            assert after == "open"

    @precondition(lambda self: self.under_way)
    @rule()
    def give_up(self) -> None:
        self.under_way -= 1
        self.breaker.forgo()

    @invariant()
    def it_recovers(self) -> None:
        """With nothing under way and the rest over, a request is let through."""
        if not self.under_way:
            assert self.breaker.would_allow(self.now + self.terms.rest_s)

    @invariant()
    def it_counts_in_step(self) -> None:
        changes = self.breaker.changes
        assert changes["closed"] <= changes["half-opened"]
        assert changes["closed"] <= changes["opened"] <= changes["closed"] + changes["half-opened"] + 1
        assert 0 <= self.breaker.error_percent(self.now) <= 100


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
