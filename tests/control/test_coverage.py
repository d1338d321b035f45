"""The coverage zone file: the longest prefix wins in both families, and a bad file is refused by zone and field."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.steering.coverage import Coverage, Match, parse
from oca.errors import FormatError

ZONES = {
    "north": {
        "network": ["192.0.2.0/24", "10.0.0.0/8", "203.0.113.7/31"],
        "network6": ["2001:db8::/32", "::ffff:198.51.100.0/120"],
        "coordinates": {"latitude": 52.52, "longitude": 13.405},
        "backupZones": {"list": ["south"], "fallbackToClosestGroup": False},
    },
    "south": {"network": ["10.1.0.0/16", "192.0.2.128/25"], "network6": ["2001:db8:1::/48"]},
    "West Coast": {"network": ["10.1.2.3"], "coordinates": {"latitude": 48.137, "longitude": 11.575}},
}


def file(zones: object) -> bytes:
    return json.dumps({"revision": "1", "customerName": "x", "coverageZones": zones}).encode()


COVERAGE = parse(file(ZONES), "zones.json")


@pytest.mark.parametrize(
    ("address", "zone", "prefix"),
    [
        ("192.0.2.1", "north", "192.0.2.0/24"),
        ("192.0.2.200", "south", "192.0.2.128/25"),
        ("10.9.9.9", "north", "10.0.0.0/8"),
        ("10.1.9.9", "south", "10.1.0.0/16"),
        ("10.1.2.3", "West Coast", "10.1.2.3/32"),
        ("203.0.113.6", "north", "203.0.113.6/31"),
        ("2001:db8:ffff::1", "north", "2001:db8::/32"),
        ("2001:DB8:1::1", "south", "2001:db8:1::/48"),
        ("::ffff:10.1.2.3", "West Coast", "10.1.2.3/32"),
        ("198.51.100.9", "north", "198.51.100.0/24"),
        ("::ffff:198.51.100.9", "north", "198.51.100.0/24"),
    ],
)
def test_longest_prefix(address: str, zone: str, prefix: str) -> None:
    """The most specific prefix decides, an IPv4-mapped address is the IPv4 address that it maps."""
    assert COVERAGE.match(address) == Match(zone, prefix, "coverage")


@pytest.mark.parametrize(
    "address",
    ["", "garbage", "8.8.8.8", "2001:db9::1", "10.1.2", "10.1.2.3/32", "10.1.2.3:80", "2001:db8::1%eth0", "1", "\0"],
)
def test_no_match(address: str) -> None:
    """Nobody's address and what is no address match nothing."""
    assert COVERAGE.match(address) is None


def test_distance() -> None:
    """Berlin to Munich is 504 km; a zone without coordinates is nowhere, but at no distance from itself."""
    assert COVERAGE.distance_km("north", "West Coast") == pytest.approx(504, abs=1)
    assert COVERAGE.distance_km("north", "south") is None
    assert COVERAGE.distance_km("nowhere", "north") is None
    assert COVERAGE.distance_km("south", "south") == 0


def test_antipodes() -> None:
    """Rounding at the far side of the earth is no error: half its girth."""
    ends = {
        "a": {"coordinates": {"latitude": 45, "longitude": -90}},
        "b": {"coordinates": {"latitude": -45, "longitude": 90}},
    }
    assert parse(file(ends), "f").distance_km("a", "b") == pytest.approx(20015, abs=1)


@pytest.mark.parametrize("coverage", [Coverage.empty(), parse(file({}), "f"), parse(file({"a": {}}), "f")])
def test_empty(coverage: Coverage) -> None:
    """A coverage without prefixes is one, and matches nobody."""
    assert coverage.match("10.1.2.3") is None


def test_a_prefix_twice_in_one_zone_is_one() -> None:
    """Repetition and host bits within a zone harm nobody."""
    coverage = parse(file({"a": {"network": ["10.0.0.0/8", "10.1.2.3/8"]}}), "f")
    assert coverage.match("10.0.0.1") == Match("a", "10.0.0.0/8", "coverage")


@pytest.mark.parametrize(
    ("zones", "said"),
    [
        ({"a": {"network": ["10.0.0.0/33"]}}, ["zone 'a'", "network", '"10.0.0.0/33"', "not an IPv4 prefix"]),
        ({"a": {"network": ["2001:db8::/32"]}}, ["zone 'a'", "network", "not an IPv4 prefix but an IPv6 one"]),
        ({"a": {"network6": ["10.0.0.0/8"]}}, ["zone 'a'", "network6", "not an IPv6 prefix but an IPv4 one"]),
        ({"a": {"network6": ["fe80::%eth0/64"]}}, ["zone 'a'", "network6", "fe80::%eth0/64"]),
        ({"a": {"network": [167772160]}}, ["zone 'a'", "network", "167772160"]),
        ({"a": {"network": "10.0.0.0/8"}}, ["zone 'a'", "network", "not a list", '"10.0.0.0/8"']),
        ({"a": {"network": ["x" * 500]}}, ["zone 'a'", "xxx…"]),
        ({"a": {"network": ["ä\x9b2J\ud800"]}}, ["zone 'a'", r'"\u00e4\u009b2J\ud800"']),
        ({"a": []}, ["zone 'a'", "not an object", "[]"]),
        ({"a": {"coordinates": [1, 2]}}, ["zone 'a'", "coordinates", "[1, 2]"]),
        ({"a": {"coordinates": {"latitude": 91, "longitude": 0}}}, ["zone 'a'", "latitude 91", "-90 to 90"]),
        ({"a": {"coordinates": {"latitude": 1, "longitude": "0"}}}, ["zone 'a'", 'longitude "0"', "-180 to 180"]),
        ({"a": {"coordinates": {"latitude": True, "longitude": 0}}}, ["zone 'a'", "latitude true"]),
        ({"a": {"coordinates": {"latitude": 1}}}, ["zone 'a'", "longitude null"]),
        ({"a": {"network": ["10.0.0.0/8"]}, "b": {"network": ["10.1.1.1/8"]}}, ["'b'", "10.0.0.0/8", "zone 'a'"]),
        ({" a": {}}, ["zone name ' a'"]),
        ({"": {}}, ["zone name ''"]),
        ({"a\n": {}}, ["zone name"]),
        ({"a" * 65: {}}, ["zone name", "64"]),
        ([], ["no object named coverageZones"]),
    ],
)
def test_bad_zone(zones: object, said: list[str]) -> None:
    """The sentence names file, zone, field and value."""
    with pytest.raises(FormatError) as caught:
        parse(file(zones), "zones.json")
    for part in ["zones.json", *said]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "line 1"),
        (b'{"coverageZones": {\n"a": {},\n}}', "line 3"),
        (b"[]", "no object named coverageZones"),
        (b'{"coverageZones": {"a": {}, "a": {}}}', "'a' is given twice"),
        (b'{"coverageZones": {"a": {"coordinates": {"latitude": NaN}}}}', "NaN"),
        (b"\xff\xfe{", "not a coverage zone file"),
        (b"[" * 100_000, "not a coverage zone file"),
        (b"9" * 10_000, "not a coverage zone file"),
    ],
)
def test_bad_file(data: bytes, said: str) -> None:
    """What is not such a JSON file is refused, with the line where there is one."""
    with pytest.raises(FormatError, match=said):
        parse(data, "zones.json")


def test_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beyond the limit is not even read as JSON."""
    monkeypatch.setattr("control.steering.coverage.MAX_BYTES", 10)
    with pytest.raises(FormatError, match="more than the 10 allowed"):
        parse(file({}), "zones.json")


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=30), st.integers(0, 2**32 - 1))
def test_match_is_the_longest_of_all(prefixes: list[tuple[int, int]], address: int) -> None:
    """Against a search through all prefixes."""
    networks = {ipaddress.ip_network(prefix, strict=False) for prefix in prefixes}
    coverage = parse(file({"a": {"network": [str(network) for network in networks]}}), "f")
    client = ipaddress.ip_address(address)
    around = [network for network in networks if client in network]
    longest = max(around, key=lambda network: network.prefixlen, default=None)
    found = coverage.match(str(client))
    assert (found and found.prefix) == (longest and str(longest))
