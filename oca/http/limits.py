"""What clients may take of a box: the settings, who is spared, and whether one more is refused.

Every limit exists because somebody who is broken or hostile would otherwise take what others need. Each has a reason
in `oca.http.reasons`, under which log and metrics show it.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from oca.http import reasons
from oca.http.reasons import Reason

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
# Seconds after which a refused client may come back: spread, or all of them would come at once.
_SOONEST_S, _LATEST_S = 2, 6


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[limits]: what clients may take of this box. Each field says its effect; `danger` what a wrong value does."""

    header_s: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="seconds from the first byte of a request head to its last, and from the connection to its "
            "first head; then 408, or nothing if nothing was sent, and the connection ends",
            extra={
                "danger": "too low: viewers on bad mobile networks lose their requests. "
                "Too high: whoever sends heads byte by byte holds connections for as long"
            },
        ),
    ] = 10.0
    idle_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="seconds that a connection may stay open between two requests",
            extra={
                "danger": "too low, below the pause of a player whose buffer is full: every segment costs a new "
                "connection. Too high: viewers who left hold connections and memory"
            },
        ),
    ] = 75.0
    grace_s: Annotated[
        float,
        Meta(
            gt=0,
            le=86400,
            description="seconds that an answer may take whatever its rate; the minimum rate counts after them",
            extra={
                "danger": "too low: players that stop reading while their buffer is full are cut off. "
                "Too high: clients that never read hold their connections and socket memory for as long"
            },
        ),
    ] = 30.0
    min_bytes_per_s: Annotated[
        float,
        Meta(
            gt=0,
            description="bytes a second, on average over an answer, that a client must take; slower ones are cut off",
            extra={
                "danger": "too high, near the rate of the lowest rung: viewers on slow lines are cut off for good. "
                "Too low: an attacker who reads a byte now and then stays"
            },
        ),
    ] = 2000.0
    connections: Annotated[
        int,
        Meta(
            ge=1,
            description="connections open on this box, over all workers; further ones get 503",
            extra={
                "danger": "too low: viewers are refused on a box that has room. "
                "Too high: descriptors (LimitNOFILE, per worker, must be above its share) or socket memory "
                "(net.ipv4.tcp_mem) run out, for everybody"
            },
        ),
    ] = 20_000
    connections_per_client: Annotated[
        int,
        Meta(
            ge=0,
            description="connections open on this box from one IPv4 address or one IPv6 /64; further ones get 503; "
            "0 sets no limit",
            extra={
                "danger": "too low: offices, hotels and CGNAT, where many viewers share an address, are refused. "
                "Too high: a few addresses can take all connections"
            },
        ),
    ] = 256
    in_flight_bytes: Annotated[
        int,
        Meta(
            ge=0,
            description="bytes of answers that are begun and wait for their readers, over all workers; while there "
            "are more, connections and requests get 503; 0 sets no limit",
            extra={
                "danger": "too low, below a segment for every viewer who is loading one: viewers are refused on a "
                "box that has room. Too high: a box whose line is full keeps everybody waiting instead of sending "
                "some elsewhere"
            },
        ),
    ] = 32 << 30
    unsent_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 30,
            description="bytes of an answer that the kernel takes before it can send them, per connection "
            "(TCP_NOTSENT_LOWAT); 0 leaves it to the system",
            extra={
                "danger": "too low: single connections do not reach the rate of a fast line. "
                "Too high: clients who do not read use up the kernel's memory for TCP (net.ipv4.tcp_mem), "
                "and everybody waits"
            },
        ),
    ] = 128 << 10
    requests_per_client: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="requests a second in the long run from one IPv4 address or one IPv6 /64, in each worker; "
            "further ones get 429; 0 sets no limit",
            extra={
                "danger": "too low: many viewers behind one address are refused as one. "
                "0: a script may ask as often as the processor allows"
            },
        ),
    ] = 0.0
    requests_per_token: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="requests a second in the long run with one access token, in each worker; "
            "further ones get 429; 0 sets no limit",
            extra={
                "danger": "too low, below what a player asks when it starts or seeks: it stalls. "
                "0: a token that was passed on plays for as many as have it"
            },
        ),
    ] = 0.0
    requests_burst: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="requests that may come at once before those two count",
            extra={"danger": "too low: players that start are refused. Too high: the two come late"},
        ),
    ] = 200
    exempt: Annotated[
        tuple[str, ...],
        Meta(
            max_length=10_000,
            description="prefixes whose clients have no limit of their own; the other limits count for them too",
            extra={
                "danger": "too few: many viewers behind one CGNAT address are refused as one. "
                "Too many: whoever is in a listed prefix can take all connections"
            },
        ),
    ] = ("127.0.0.0/8", "::1/128")

    def __post_init__(self) -> None:
        """ValueError if a prefix is none."""
        for text in self.exempt:
            prefix_of(text)


def prefix_of(text: str) -> IPNetwork:
    """The network that a prefix such as 192.0.2.0/24 or 2001:db8::/32 names; IPv4 in IPv6 is IPv4.

    ValueError says what is wrong with it and what may have been meant.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
        base = ipaddress.ip_interface(text).ip
    except ValueError:
        raise ValueError(
            f"exempt has {text!r}, which is no prefix: write an address and a length, such as 192.0.2.0/24"
        ) from None
    if base != network.network_address:
        raise ValueError(f"exempt has {text!r}, with address bits beyond its length: {network} may be meant")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        lower = int(network.network_address) & 0xFFFFFFFF
        return ipaddress.IPv4Network((lower, network.prefixlen - 96))
    return network


class Prefixes:
    """A set of prefixes; asking takes as long for ten thousand as for one of each length."""

    def __init__(self, listed: Iterable[str]) -> None:
        """ValueError if one is no prefix."""
        found: dict[tuple[int, int], set[int]] = {}
        for network in map(prefix_of, listed):
            shift = network.max_prefixlen - network.prefixlen
            found.setdefault((network.max_prefixlen // 8, shift), set()).add(int(network.network_address) >> shift)
        self._groups = [(size, shift, frozenset(values)) for (size, shift), values in found.items()]

    def cover(self, address: bytes) -> bool:
        """Whether one of them holds an address (`oca.http.census.packed`)."""
        value = int.from_bytes(address, "big")
        return any(size == len(address) and value >> shift in values for size, shift, values in self._groups)


def refusal(
    limits: LimitSettings, *, connections: int = 0, from_client: int = 0, in_flight: int = 0
) -> Reason | None:
    """Why one more is refused while there are so many on this box; None if it is not.

    For a connection all three count. A request on an open connection is only asked for the bytes in flight.
    A client's own limit comes first: it says most about who is at fault.
    """
    if 0 < limits.connections_per_client <= from_client:
        return reasons.TOO_MANY_FROM_CLIENT
    if connections >= limits.connections:
        return reasons.TOO_MANY_CONNECTIONS
    if 0 < limits.in_flight_bytes < in_flight:
        return reasons.TOO_MANY_BYTES
    return None


def retry_after() -> str:
    """The line Retry-After (RFC 9110 10.2.3) of a refusal, with its end of line."""
    return f"Retry-After: {random.randint(_SOONEST_S, _LATEST_S)}\r\n"
