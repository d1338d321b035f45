"""What a Common Access Token (CTA-5007) allows: its claims, evaluated. No input or output, no signatures.

A claim is a restriction. One that is not understood here, or not evaluated, refuses the token: whoever made it meant
less than everything. What is restricted is content, so the URI that claims are held against is that of the content,
`/t/<title>/<version>/…`, wherever the token is shown.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeGuard

from cbor2 import CBORTag

from oca.errors import OcaError

ISS, SUB, AUD, EXP, NBF, IAT, CTI = range(1, 8)  # RFC 8392 3.1
CATREPLAY, CATPOR, CATV, CATNIP, CATU, CATM, CATALPN = range(308, 315)
CATGEOISO3166, CATIFDATA, CATIF, CATR = 316, 320, 322, 323
# Say who the token is of and for, or how it could be renewed, and restrict nothing.
_INFORMATION = frozenset((SUB, IAT, CTI, CATR, CATIFDATA, CATIF))
_SCHEME, _HOST, _PORT, _PATH, _QUERY, _PARENT, _FILENAME, _STEM, _EXTENSION = range(9)
_EXACT, _PREFIX, _SUFFIX, _CONTAINS = range(4)
_SHA256, _SHA512_256 = -1, -2
_IPV4, _IPV6 = 52, 54  # RFC 9164
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Test = Callable[[str], bool]


class TokenError(OcaError):
    """A token is no good; the sentence says why."""


@dataclass(slots=True)
class Asked:
    """What a request asks for, as far as claims may speak of it. `path` is that of the content, without a token."""

    # Not frozen: that would cost a microsecond for every request.

    path: str
    client: str
    method: str = "GET"
    scheme: str = "http"
    host: str = ""
    """As in the Host field, so perhaps with a port."""
    query: str = ""
    """Without a token."""


@dataclass(slots=True)
class Grant:
    """The restrictions of one token, ready to be held against requests. Times are seconds since the epoch."""

    kid: bytes
    begins: float = -math.inf
    ends: float = math.inf
    paths: tuple[Test, ...] = ()
    others: tuple[tuple[int, Test], ...] = ()
    """Tests of other parts of the URI."""
    networks: tuple[Network, ...] | None = None
    countries: frozenset[str] | None = None
    methods: frozenset[str] | None = None
    clients: dict[str, str] = field(default_factory=dict, compare=False)
    """What networks and countries said of clients seen before: few, since a token is mostly one viewer's."""

    def limit(self, begins: float, ends: float) -> None:
        """It holds for no longer than its key."""
        self.begins, self.ends = max(self.begins, begins), min(self.ends, ends)

    def refusal(self, asked: Asked, now: float, country: Callable[[str], str]) -> str:
        """Why not, in a sentence; "" if it may be served. `country` tells that of an address (ISO 3166-1), or ""."""
        if now >= self.ends:
            return "the token has expired"
        if now < self.begins:
            return "the token is not valid yet"
        for test in self.paths:
            if not test(asked.path):
                return "the token is for other content"
        if self.methods is not None and asked.method not in self.methods:
            return "the token is for other methods"
        for part, test in self.others:
            if not test(_part(part, asked)):
                return "the token is for other URLs"
        if self.networks is not None or self.countries is not None:
            said = self.clients.get(asked.client)
            if said is None:
                if len(self.clients) >= 64:
                    self.clients.clear()
                said = self.clients[asked.client] = self._place(asked.client, country)
            return said
        return ""

    def _place(self, client: str, country: Callable[[str], str]) -> str:
        try:
            address = ipaddress.ip_address(client.partition("%")[0])
        except ValueError:
            return "the client has no address"
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if self.networks is not None and not any(address in network for network in self.networks):
            return "the token is for other networks"
        if self.countries is not None and country(str(address)) not in self.countries:
            return "the token is for other countries"
        return ""


def evaluate(claims: object, kid: bytes, *, issuer: str = "", audience: str = "", geography: bool = False) -> Grant:
    """The grant of a token whose signature is good; TokenError if it has a claim that is wrong or not evaluated.

    `issuer` and `audience` are required if they are given; `geography`: whether countries can be told.
    """
    if not isinstance(claims, Mapping):
        raise TokenError("the token's claims are not a map")
    found = {label: value for label, value in claims.items() if label not in _INFORMATION}
    said = found.pop(ISS, "")
    if issuer and said != issuer:
        raise TokenError(f"the token's issuer is not {issuer}")
    meant = found.pop(AUD, None)
    everybody = meant if isinstance(meant, list) else [] if meant is None else [meant]
    if (audience or everybody) and audience not in everybody:
        raise TokenError("the token is for another audience")
    if found.pop(CATV, 1) != 1:
        raise TokenError("the token is of a version that is not known here")
    if found.pop(CATREPLAY, 0) != 0:
        raise TokenError("the token may not be used again, which is not watched here")
    ends, begins = _time(found.pop(EXP, None), math.inf), _time(found.pop(NBF, None), -math.inf)
    paths: list[Test] = []
    others: list[tuple[int, Test]] = []
    uri = found.pop(CATU, {})
    if not isinstance(uri, Mapping):
        raise TokenError("the token's URI claim is not a map")
    for part, matches in uri.items():
        if part not in range(9) or not isinstance(matches, Mapping) or not matches:
            raise TokenError("the token has a URI claim that is not evaluated here")
        tests = [_match(kind, value) for kind, value in matches.items()]
        if part == _PATH:
            paths += tests
        else:
            others += [(part, test) for test in tests]
    networks = _networks(found.pop(CATNIP)) if CATNIP in found else None
    methods = _words(found.pop(CATM), "methods") if CATM in found else None
    if CATALPN in found and "http/1.1" not in _words(found.pop(CATALPN), "protocols"):
        raise TokenError("the token is for other protocols")
    countries = _words(found.pop(CATGEOISO3166), "countries") if CATGEOISO3166 in found else None
    if countries is not None and not geography:
        raise TokenError("the token is for some countries, and there is no map of countries here")
    if countries is not None and any("-" in code for code in countries):
        raise TokenError("the token is for parts of countries, which cannot be told here")
    if found:
        raise TokenError(f"the token has claims that are not evaluated here: {', '.join(sorted(map(_shown, found)))}")
    return Grant(kid, begins, ends, tuple(paths), tuple(others), networks, countries, methods)


def _shown(label: object) -> str:
    if isinstance(label, str):
        return label[:40] if label.isprintable() else ascii(label[:40])
    # Python refuses to write long integers in decimal.
    return str(label) if isinstance(label, int) and label.bit_length() <= 64 else "one of no known kind"


def _time(value: object, otherwise: float) -> float:
    """Seconds since the epoch (RFC 8392 2, NumericDate)."""
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TokenError("a time in the token is not a number")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise TokenError("a time in the token is not a number")
    return seconds


def _words(value: object, what: str) -> frozenset[str]:
    words = value if isinstance(value, list) else [value]
    found = [word.decode("latin-1") if isinstance(word, bytes) else word for word in words]
    if not found or not all(isinstance(word, str) for word in found):
        raise TokenError(f"the token's {what} are not words")
    return frozenset(str(word) for word in found)


def _match(kind: object, value: object) -> Test:
    """One kind of match of CTA-5007's URI claim. Regular expressions are not evaluated: they can take for ever."""
    if kind in (_SHA256, _SHA512_256):
        name = "sha256" if kind == _SHA256 else "sha512_256"
        # The specification has bytes here, other makers of tokens write them in hexadecimal.
        digest = value if isinstance(value, bytes) else bytes.fromhex(value) if _hex(value) else b""
        return lambda text: hashlib.new(name, text.encode("utf-8", "surrogateescape")).digest() == digest
    if not isinstance(value, str):
        raise TokenError("the token has a URI claim that is not evaluated here")
    if kind == _EXACT:
        return lambda text: text == value
    if kind == _PREFIX:
        return lambda text: text.startswith(value)
    if kind == _SUFFIX:
        return lambda text: text.endswith(value)
    if kind == _CONTAINS:
        return lambda text: value in text
    raise TokenError("the token has a URI claim that is not evaluated here")


def _hex(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) == 64 and all(letter in "0123456789abcdef" for letter in value)


def _networks(value: object) -> tuple[Network, ...]:
    """Addresses and prefixes (RFC 9164). Autonomous systems cannot be told here, and so admit nobody."""
    found: list[Network] = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int):
            continue
        if isinstance(item, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
            found.append(ipaddress.ip_network(item))
        elif isinstance(item, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
            found.append(item)
        elif isinstance(item, CBORTag) and item.tag in (_IPV4, _IPV6):
            found.append(_network(item.tag, item.value))
        else:
            raise TokenError("the token's networks are not addresses or prefixes")
    return tuple(found)


def _network(tag: int, value: object) -> Network:
    size = 4 if tag == _IPV4 else 16
    length, data = value if isinstance(value, (list, tuple)) and len(value) == 2 else (8 * size, value)
    if not isinstance(data, bytes) or len(data) > size or not isinstance(length, int) or not 0 <= length <= 8 * size:
        raise TokenError("the token's networks are not addresses or prefixes")
    number = int.from_bytes(data.ljust(size, b"\0"), "big")
    if tag == _IPV4:
        return ipaddress.IPv4Network((number, length), strict=False)
    return ipaddress.IPv6Network((number, length), strict=False)


def _part(part: int, asked: Asked) -> str:
    """A part of the URI as CTA-5007 cuts it."""
    if part == _SCHEME:
        return asked.scheme
    if part in (_HOST, _PORT):
        host, colon, port = asked.host.rpartition(":")
        if not colon or not port.isdigit():
            host, port = asked.host, ""
        return host.strip("[]").lower() if part == _HOST else port
    if part == _QUERY:
        return asked.query
    parent, _, name = asked.path.rpartition("/")
    if part == _PARENT:
        return parent
    stem, dot, extension = name.partition(".")
    return {_FILENAME: name, _STEM: stem, _EXTENSION: dot + extension}[part]
