"""Rates: how often one client, or one operator's token, may ask a controller (`oca.http.rates`)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from oca.http.census import client_of, packed
from oca.http.limits import Prefixes, prefix_of
from oca.http.rates import Buckets

Kind = Literal["viewer", "appliance", "api", "token"]
KINDS: tuple[Kind, ...] = ("viewer", "appliance", "api", "token")
Rate = Annotated[float, Meta(ge=0, le=1e6, description="requests a second in the long run; 0 sets no limit")]
Burst = Annotated[int, Meta(ge=1, le=1_000_000, description="requests that may come at once")]


class RateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[rates]: what one client may ask, an IPv4 address or an IPv6 /64; `token`: what one operator's token may."""

    viewer_per_s: Rate = 100.0
    viewer_burst: Burst = 2000
    appliance_per_s: Rate = 200.0
    appliance_burst: Burst = 2000
    api_per_s: Rate = 20.0
    api_burst: Burst = 200
    token_per_s: Rate = 20.0
    token_burst: Burst = 200
    clients: Annotated[
        int, Meta(ge=1, le=10_000_000, description="clients remembered of each kind, some 200 bytes each")
    ] = 100_000
    exempt: Annotated[
        tuple[str, ...], Meta(max_length=10_000, description="prefixes whose clients have no limit; tokens do")
    ] = ("127.0.0.0/8", "::1/128")

    def __post_init__(self) -> None:
        """ValueError if a prefix is none."""
        for text in self.exempt:
            prefix_of(text)


def _bits(address: str) -> bytes:
    """The address as `oca.http.census` packs it, nothing if it is none: all of those are one client."""
    try:
        return packed(address)
    except (OSError, ValueError):
        return b""


def client_key(address: str) -> bytes:
    """What stands for the client at `address`: an IPv4 address, or an IPv6 /64."""
    return client_of(_bits(address))


class Rates:
    """The buckets of a controller."""

    def __init__(self, settings: RateSettings) -> None:
        self._exempt = Prefixes(settings.exempt)
        self._buckets: dict[Kind, Buckets] = {
            kind: Buckets(getattr(settings, f"{kind}_per_s"), getattr(settings, f"{kind}_burst"), settings.clients)
            for kind in KINDS
        }

    def client(self, kind: Kind, address: str, now: float) -> float:
        """Seconds that a client's request is too early, 0 if it may pass."""
        bits = _bits(address)
        return 0.0 if self._exempt.cover(bits) else self._buckets[kind].take(client_of(bits), now)

    def token(self, name: str, now: float) -> float:
        """Seconds that a request with the token of this name is too early, 0 if it may pass."""
        return self._buckets["token"].take(name, now)
