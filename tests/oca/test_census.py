"""The count of connections that all workers share: who is one client, and that the sum is never too low."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oca.errors import OcaError
from oca.http.census import PLACES, Census, Ledger, alone, client_of, packed


@pytest.fixture
def census() -> Iterator[Census]:
    made = Census()
    yield made
    made.close()


def join(census: Census) -> Ledger:
    return Ledger(census.fd, census.admit())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("2001:db8:1:2::7", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::7", "2001:db8:1:3::7", False),
        ("2001:db8:1:2::7", "2001:DB8:1:2::7", True),
        ("::ffff:192.0.2.7", "192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:c000:207", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.8", False),
        # Not IPv4 in IPv6 as a listening socket reports it: a /64 like any other.
        ("::192.0.2.7", "::192.0.2.8", True),
        ("::1", "::2", True),
        ("::1", "127.0.0.1", False),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_64(one: str, other: str, same: bool) -> None:
    assert (client_of(packed(one)) == client_of(packed(other))) is same


@pytest.mark.parametrize("text", ["", "localhost", "192.0.2", "192.0.2.256", "2001:db8::1::2", "::ffff:1.2.3.4.5"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(OSError, match="illegal IP address"):
        packed(text)


def test_workers_count_together(census: Census) -> None:
    """Each sees what all have; a connection that ends is counted no more."""
    first, second = join(census), join(census)
    viewer, other = (first.buckets(client_of(packed(text))) for text in ("192.0.2.7", "192.0.2.8"))
    assert second.buckets(client_of(packed("192.0.2.7"))) == viewer
    first.enter(viewer)
    second.enter(viewer)
    second.enter(())
    first.publish(1000)
    second.publish(1 << 40)
    for ledger in (first, second):
        assert [ledger.of_client(viewer), ledger.of_client(other), ledger.connections] == [2, 0, 3]
        assert ledger.of_client(()) == 0
        assert ledger.in_flight == (1 << 40) + 1000
    first.leave(viewer)
    second.leave(())
    assert [second.of_client(viewer), second.connections] == [1, 1]


def test_what_a_dead_worker_had_is_no_more(census: Census) -> None:
    """Its place is cleared and given to the next; the others keep theirs."""
    dying, living = join(census), join(census)
    viewer = dying.buckets(b"viewer..")
    for ledger in (dying, living):
        ledger.enter(viewer)
        ledger.publish(7)
    census.strike(0)
    assert [living.of_client(viewer), living.connections, living.in_flight] == [1, 1, 7]
    assert census.admit() == 0
    fresh = Ledger(census.fd, 0)
    fresh.enter(viewer)
    assert living.of_client(viewer) == 2
    living.leave(viewer)
    assert [fresh.of_client(viewer), fresh.connections] == [1, 1]


def test_the_next_program_image_counts_on(census: Census) -> None:
    """Workers that drain count beside new ones; their places are not given away before they have ended."""
    old = join(census)
    viewer = old.buckets(b"viewer..")
    old.enter(viewer)
    after = Census(os.dup(census.fd), census.taken)
    try:
        new = join(after)
        assert after.taken == {0, 1}
        assert new.buckets(b"viewer..") == viewer
        new.enter(viewer)
        assert [new.of_client(viewer), old.of_client(viewer), new.connections] == [2, 2, 2]
        after.strike(0)
        assert new.of_client(viewer) == 1
    finally:
        after.close()


@pytest.mark.parametrize("damage", ["magic", "size", "none"])
def test_memory_of_another_version_is_replaced(census: Census, damage: str) -> None:
    """The supervisor starts afresh; a worker says so and does not serve with wrong counts."""
    fd = os.dup(census.fd)
    if damage == "magic":
        os.pwrite(fd, b"ocacens9", 0)
    elif damage == "size":
        os.ftruncate(fd, 1 << 20)
    else:
        os.close(fd)
        fd = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(OcaError, match="another version: restart"):
        Ledger(fd, 0)
    after = Census(fd, {0, 5})
    assert after.taken == set()
    assert join(after).connections == 0
    after.close()


def test_nobody_can_choose_whose_bucket_to_fill() -> None:
    """Every start has a key of its own, so addresses that collide on one box do not on another."""
    one, other = alone(), alone()
    clients = [number.to_bytes(4, "big") for number in range(100)]
    assert sum(one.buckets(client) == other.buckets(client) for client in clients) < 5


def test_more_workers_than_places_is_one_sentence(census: Census) -> None:
    places = [census.admit() for _ in range(PLACES)]
    assert places == list(range(PLACES))
    with pytest.raises(OcaError, match=r"more than 512 workers at once.*set fewer"):
        census.admit()
    census.strike(100)
    assert census.admit() == 100


def test_memory_is_used_for_workers_that_are_there_alone(census: Census) -> None:
    """Two busy workers take half a megabyte; what a dead one had goes back to the system."""
    one, other = join(census), join(census)
    for number in range(20_000):
        client = one.buckets(number.to_bytes(4, "big"))
        one.enter(client)
        other.enter(client)
    used = os.fstat(census.fd).st_blocks * 512
    assert used <= 640 << 10
    census.strike(1)
    assert os.fstat(census.fd).st_blocks * 512 <= used - (200 << 10)


def test_hardly_anybody_is_counted_too_high() -> None:
    """With as many clients as a full box has, one in twenty at most is taken for more than it is."""
    ledger = alone()
    clients = [ledger.buckets(number.to_bytes(4, "big")) for number in range(5000)]
    for client in clients:
        for _ in range(4):
            ledger.enter(client)
    wrong = [ledger.of_client(client) for client in clients if ledger.of_client(client) != 4]
    assert len(wrong) < 0.05 * len(clients)
    assert max(wrong, default=0) <= 24


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=60),
    st.lists(st.integers(0, 59), max_size=60, unique=True),
)
def test_a_client_is_never_counted_too_low(entered: list[tuple[int, int]], left: list[int]) -> None:
    """Whatever comes and goes in whichever worker, the sum is at least the truth; the total is the truth."""
    census = Census()
    try:
        ledgers = [join(census) for _ in range(3)]
        for worker, client in entered:
            ledgers[worker].enter(ledgers[worker].buckets(bytes([client]) * 4))
        gone = {number for number in left if number < len(entered)}
        for number in gone:
            worker, client = entered[number]
            ledgers[worker].leave(ledgers[worker].buckets(bytes([client]) * 4))
        truth = Counter(client for number, (_, client) in enumerate(entered) if number not in gone)
        assert ledgers[0].connections == truth.total()
        for client in range(10):
            assert ledgers[1].of_client(ledgers[1].buckets(bytes([client]) * 4)) >= truth[client]
    finally:
        census.close()
