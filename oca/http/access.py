"""Whether a request is answered at all: how often its client asks, and whether its token allows it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aiohttp.http import RawRequestMessage

from oca.http import census
from oca.http.gate import FIELD, Gate, find, split
from oca.http.limits import LimitSettings, Prefixes
from oca.http.rates import Buckets
from oca.http.token import Asked

# Clients and tokens whose rates are remembered, some 200 bytes each.
_MOST = 65_536


@dataclass(slots=True)
class Verdict:
    """`target`: what is asked for, without a token; `late`: seconds that it comes too early; `why` it is refused."""

    target: str
    late: float = 0.0
    why: str = ""
    again: bool = True
    """Whether the next request with the same header fields can be judged by its path alone."""


class Access:
    """What `Server` asks about each request; `scheme` is the one that clients use."""

    def __init__(self, limits: LimitSettings, gate: Gate | None = None, scheme: str = "http") -> None:
        self.gate = gate
        self._scheme = scheme
        self._exempt = Prefixes(limits.exempt)
        self._clients = Buckets(limits.requests_per_client, limits.requests_burst, _MOST)
        self._tokens = Buckets(limits.requests_per_token, limits.requests_burst, _MOST)
        self._rated = bool(limits.requests_per_client or limits.requests_per_token)
        # What stands for a client in its bucket, nothing if it has no limit.
        self._keys: dict[str, bytes] = {}
        self.open = gate is None and not self._rated
        """Whether everything is answered."""

    def judge(self, message: RawRequestMessage, target: str, client: str) -> Verdict:
        """A whole request for `target`, path and query."""
        token, bare = split(target)
        if self.open:
            return Verdict(bare)
        late = self._late(client)
        if late or self.gate is None:
            return Verdict(bare, late)
        headers = message.headers
        prefixed = token
        token, bare = find(target, headers.getall(FIELD, []), headers.getall("Cookie", []))
        path, _, query = bare.partition("?")
        asked = Asked(path, client, message.method, self._scheme, headers.get("Host", ""), query)
        why = self.gate.admit(token, asked, time.time())
        if not why and token:
            late = self._tokens.take(token, time.monotonic())
        return Verdict(bare, late, why, token == prefixed)

    def admits(self, token: str, path: str, client: str) -> bool:
        """Whether a plain GET of `path` with a token in front may be answered at once."""
        if self.gate is not None and self.gate.admit(token, Asked(path, client), time.time(), brief=True):
            return False
        return not self._rated or not (self._late(client) or (token and self._tokens.take(token, time.monotonic())))

    def _late(self, client: str) -> float:
        """Seconds that a request of a client comes too early."""
        if not self._rated:
            return 0.0
        key = self._keys.get(client)
        if key is None:
            if len(self._keys) >= _MOST:
                self._keys.clear()
            packed = census.packed(client)
            key = self._keys[client] = b"" if self._exempt.cover(packed) else census.client_of(packed)
        return self._clients.take(key, time.monotonic()) if key else 0.0
