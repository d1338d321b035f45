"""Targets: files that operators write or import, and settings."""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import itertools
import json
import math
from datetime import UTC, datetime

import msgspec

from control import demand
from control.settings import ControlSettings
from control.steering import coverage
from oca import config
from oca.config import ApplianceSettings
from oca.errors import ConfigError, FormatError
from oca.http import tokenkeys
from oca.title.protection import system_of
from packager.encryption import cpix
from packager.encryption.keys import About
from tests.fuzz.check import refused
from tests.fuzz.content import as_file

_NOW = 1_800_000_000


def zones(data: bytes) -> None:
    """A coverage zone file: every address of a prefix leads to a zone by that prefix, or by a longer one."""
    try:
        found = coverage.parse(data, "zones.json")
    except FormatError as error:
        refused(error)
        return
    listed = [
        (name, ipaddress.ip_network(prefix, strict=False))
        for name, group in json.loads(data)["coverageZones"].items()
        for prefix in itertools.chain(group.get("network") or (), group.get("network6") or ())
    ]
    for name, network in listed:
        for address in (network[0], network[-1]):
            mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            if mapped is not None and network.prefixlen < 96:
                continue  # IPv4, of which an IPv6 prefix says nothing
            match = found.match(str(address))
            assert match is not None, f"{address} of {network} is nowhere"
            assert match.zone in found.zones
            by = ipaddress.ip_network(match.prefix)
            assert (mapped or address) in by, f"{address} matches {by}"
            if mapped is None:
                assert by.prefixlen > network.prefixlen or (by, match.zone) == (network, name)
    for a, b in itertools.product(list(found.zones)[:4], repeat=2):
        distance = found.distance_km(a, b)
        assert distance is None or 0 <= distance <= math.pi * coverage.EARTH_KM + 1, f"{distance} km"


def cpix_document(data: bytes) -> None:
    """A CPIX document: every key is whole, and what its rules and boxes name is one of them."""
    try:
        found = cpix.parse(data, "cbcs", "keys.xml")
    except ConfigError as error:
        refused(error)
        return
    assert found.keys
    assert all(len(bytes.fromhex(part)) == 16 for pair in found.keys.items() for part in pair)
    assert {*(rule.kid for rule in found.rules), *found.pssh, *found.skd} <= found.keys.keys()
    assert all(system_of(base64.b64decode(box)) for boxes in found.pssh.values() for box in boxes)
    assert all(uri.startswith("skd://") and '"' not in uri for uri in found.skd.values())
    for track in (About("v1", "video", 640 * 360, 25, bps=500_000), About("a1", "audio", channels=2, bps=128_000)):
        try:
            assert found.kid(track) in found.keys
        except ConfigError as error:
            refused(error)


def imported_demand(data: bytes) -> None:
    """A file of demand, CSV or JSON lines, and the forecast that is made of it."""
    try:
        rows = demand.parse(data, "demand.csv", _NOW)
    except FormatError as error:
        refused(error)
        return
    assert rows
    written = "".join(f"{json.dumps(_line(row))}\n" for row in rows).encode()
    timed = [dataclasses.replace(row, hours=1) for row in rows]
    assert demand.parse(written, "again", _NOW) == timed, "written and read, it is another"
    made = demand.forecast(rows, _NOW)
    wanted = {(row.region, row.title) for row in rows if row.hour <= _NOW}
    assert made.keys() <= wanted
    assert all(0 < views < math.inf for views in made.values()), made


def _line(row: demand.Observation) -> dict[str, object]:
    time = datetime.fromtimestamp(row.hour, UTC).isoformat()
    return {"time": time, "region": row.region, "title": row.title, "views": row.views}


def settings(data: bytes) -> None:
    """The first byte says whose settings they are: a box's or a controller's."""
    with as_file(data[1:]) as path:
        try:
            found = config.load(path, ControlSettings if data[:1] == b"1" else ApplianceSettings)
            for address in (found.listen, *([found.admin] if isinstance(found, ApplianceSettings) else [])):
                host, port = config.split_address(address)
                assert host
                assert 0 <= port <= 65535
        except ConfigError as error:
            refused(error)
            return
    again = msgspec.convert(msgspec.to_builtins(found), type(found))
    assert again == found, "written and read, they are others"


def token_keys(data: bytes) -> None:
    """The file of the keys that tokens are verified with."""
    with as_file(data) as path:
        path.chmod(0o600)
        try:
            found = tokenkeys.read(path)
        except ConfigError as error:
            refused(error)
            return
    assert found
    for kid, key in found.items():
        assert kid == key.kid
        assert key.kind in tokenkeys.ALGORITHMS
        if key.makes:
            assert key.verify(base64.urlsafe_b64decode(f"{key.make({})}==").removeprefix(b"\xd8\x3d")) == b"\xa0"
