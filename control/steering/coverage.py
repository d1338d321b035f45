"""The coverage zone file: which zone a viewer's address belongs to, and how far zones are from each other. Pure.

The format is Apache Traffic Control's, as it is:
`{"coverageZones": {"north": {"network": ["192.0.2.0/24"], "network6": ["2001:db8::/32"],
"coordinates": {"latitude": 52.5, "longitude": 13.4}}}}`; other fields are ignored. A zone is named like the site
that serves it.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from pytricia import PyTricia

from oca.errors import FormatError

# A full table is 1.2 million prefixes, some 30 MB of JSON.
MAX_BYTES = 256 << 20
MAX_NAME = 64
EARTH_KM = 6371.0088
"""Mean radius of the earth (IUGG)."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Zone:
    """A group of prefixes; latitude and longitude in degrees, None if the file gives none."""

    name: str
    latitude: float | None
    longitude: float | None


@dataclass(frozen=True, slots=True)
class Match:
    """The zone of an address, the prefix that says so, and where that prefix came from."""

    zone: str
    prefix: str
    source: str


class Coverage:
    """Zones by name, and the prefixes that lead to them."""

    def __init__(self, zones: Mapping[str, Zone], prefixes: Mapping[Network, str]) -> None:
        """`prefixes` gives the name of the zone of each."""
        self.zones = dict(zones)
        # One trie per family. The answer itself is the value, so that a look-up builds nothing.
        self._tries = {4: PyTricia(32), 6: PyTricia(128)}
        for network, zone in prefixes.items():
            prefix = str(network)
            self._tries[network.version].insert(prefix, Match(zone, prefix, "coverage"))

    @classmethod
    def empty(cls) -> Coverage:
        """A coverage that knows nobody."""
        return cls({}, {})

    def match(self, address: str) -> Match | None:
        """The zone with the longest prefix that holds `address`; None if none does, or if it is no address."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return None
        if isinstance(parsed, ipaddress.IPv6Address):
            if parsed.scope_id is not None:
                return None  # link-local: it says nothing about where the viewer is
            parsed = parsed.ipv4_mapped or parsed
        found: Match | None = self._tries[parsed.version].get(str(parsed))
        return found

    def distance_km(self, a: str, b: str) -> float | None:
        """Great-circle distance between two zones, None if either is unknown or without coordinates."""
        if a == b:
            return 0.0
        start, end = self.zones.get(a), self.zones.get(b)
        if start is None or end is None:
            return None
        if start.latitude is None or start.longitude is None or end.latitude is None or end.longitude is None:
            return None
        return _great_circle_km(start.latitude, start.longitude, end.latitude, end.longitude)


def _great_circle_km(latitude: float, longitude: float, latitude2: float, longitude2: float) -> float:
    """The haversine formula, degrees to km; well conditioned for small distances."""
    phi, phi2 = math.radians(latitude), math.radians(latitude2)
    half = math.sin((phi2 - phi) / 2) ** 2
    half += math.cos(phi) * math.cos(phi2) * math.sin(math.radians(longitude2 - longitude) / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(half)))


def is_zone_name(name: str) -> bool:
    """Whether `name` can be a zone or region: 1 to 64 printable characters, no space at either end."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()


def parse(data: bytes, where: str) -> Coverage:
    """Read and check a coverage zone file; a FormatError names `where`, zone, field and value.

    Host bits in a prefix are ignored, as Traffic Control does. No prefix may be in two zones.
    """
    if len(data) > MAX_BYTES:
        raise FormatError(f"{where} is {len(data)} bytes long, more than the {MAX_BYTES} allowed")
    try:
        top = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is not a coverage zone file: {error}") from None
    groups = top.get("coverageZones") if isinstance(top, dict) else None
    if not isinstance(groups, dict):
        raise FormatError(f"{where} is not a coverage zone file: it has no object named coverageZones")
    zones: dict[str, Zone] = {}
    prefixes: dict[Network, str] = {}
    for name, group in groups.items():
        if not is_zone_name(name):
            raise FormatError(
                f"{where}: zone name {name[:80]!r} is not 1 to {MAX_NAME} printable characters without space around"
            )
        zone = f"{where}: zone {name!r}"
        if not isinstance(group, dict):
            raise FormatError(f"{zone} is not an object but {_shown(group)}")
        zones[name] = Zone(name, *_coordinates(group.get("coordinates"), zone))
        for field, version in (("network", 4), ("network6", 6)):
            for network in _networks(group.get(field), version, f"{zone}: {field}"):
                owner = prefixes.setdefault(network, name)
                if owner != name:
                    raise FormatError(f"{zone}: {field}: {network} is in zone {owner!r} already: remove one of them")
    return Coverage(zones, prefixes)


def _networks(values: object, version: int, field: str) -> list[Network]:
    """The prefixes of one field, IPv4-mapped ones as IPv4; the field may be missing."""
    if values is None:
        return []
    if not isinstance(values, list):
        raise FormatError(f"{field} is not a list but {_shown(values)}")
    networks: list[Network] = []
    for value in values:
        try:
            # Neither a number (an address to ipaddress) nor an address with a scope is a prefix.
            if not isinstance(value, str) or "%" in value:
                raise ValueError
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise FormatError(f"{field}: {_shown(value)} is not an IPv{version} prefix") from None
        if network.version != version:
            raise FormatError(
                f"{field}: {_shown(value)} is not an IPv{version} prefix but an IPv{network.version} one"
            )
        networks.append(_unmapped(network))
    return networks


def _unmapped(network: Network) -> Network:
    """The IPv4 prefix that an IPv4-mapped one (RFC 4291 2.5.5.2) stands for; others as they are."""
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _coordinates(value: object, zone: str) -> tuple[float | None, float | None]:
    """Latitude and longitude, or two None where the file gives none."""
    if value is None:
        return None, None
    if not isinstance(value, dict):
        raise FormatError(f"{zone}: coordinates is not an object but {_shown(value)}")
    degrees = []
    for field, most in (("latitude", 90), ("longitude", 180)):
        number = value.get(field)
        if isinstance(number, bool) or not isinstance(number, int | float) or not -most <= number <= most:
            raise FormatError(f"{zone}: coordinates: {field} {_shown(number)} is not a number from -{most} to {most}")
        degrees.append(float(number))
    return degrees[0], degrees[1]


def _shown(value: object) -> str:
    """A value as the file has it, cut to what fits a sentence; escaped if a terminal or UTF-8 would not take it."""
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable():
        text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse a name given twice: the first of two zones of one name would silently be lost."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is given twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number of JSON")
