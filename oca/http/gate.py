"""Who may play: the token of a request is found, verified once, and held against each request from then on."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated, Generic, TypeVar
from urllib.parse import unquote

import maxminddb
import msgspec
from msgspec import Meta

from oca.errors import ConfigError
from oca.http import census
from oca.http.limits import Prefixes
from oca.http.token import Asked, Grant, TokenError, evaluate
from oca.http.tokenkeys import MOST_TOKEN, Keys, open_token

PREFIX = "/c/"
PARAMETER = "CAT"
FIELD = "CTA-Common-Access-Token"
# Tokens that are remembered, in each of two generations; a token with its grant is about 1 KB.
_MOST_GOOD, _MOST_BAD = 32_768, 8_192
# How long a refusal is remembered: what refused it may pass.
_BAD_S = 10.0
_COOKIE = re.compile(rf"(?:^|;)[ \t]*{FIELD}=([^;]*)", re.IGNORECASE)
T = TypeVar("T")


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tokens]: who may play. Without keys everybody may. `danger` as in [limits]."""

    keys: Annotated[str, Meta(description="file of the keys that tokens are verified with; '' lets everybody in")] = (
        ""
    )
    issuer: Annotated[str, Meta(description="issuer (iss) that tokens must name, '' for any")] = ""
    audience: Annotated[
        str, Meta(description="audience (aud) that tokens must name; '' admits only tokens that name none")
    ] = ""
    countries: Annotated[
        str, Meta(description="MaxMind database (.mmdb) of countries; without it tokens that name some are refused")
    ] = ""
    exempt: Annotated[
        tuple[str, ...],
        Meta(
            description="prefixes of clients that need no token: your other boxes, which fill from this one",
            extra={"danger": "too many: whoever is in a listed prefix may fetch everything"},
        ),
    ] = ()

    def __post_init__(self) -> None:
        """ValueError if a prefix is none."""
        Prefixes(self.exempt)


class _Recent(Generic[T]):
    """A bounded memory; when one generation is full, what was not asked for since the one before is forgotten."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._young: dict[str, T] = {}
        self._old: dict[str, T] = {}

    def get(self, key: str) -> T | None:
        found = self._young.get(key)
        if found is None and self._old:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: str, value: T) -> None:
        if len(self._young) >= self._most:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


class Gate:
    """Holds tokens against requests. ConfigError if the keys or the database of countries cannot be used."""

    def __init__(self, settings: TokenSettings) -> None:
        self._settings = settings
        self._keys = Keys(Path(settings.keys))
        self._exempt = Prefixes(settings.exempt)
        self._good: _Recent[Grant] = _Recent(_MOST_GOOD)
        self._bad: _Recent[str] = _Recent(_MOST_BAD)
        self._cleared = 0.0
        self._map: maxminddb.Reader | None = None
        self._map_mark: tuple[int, int] | None = None
        self._look_at_map()

    def admit(self, token: str, asked: Asked, now: float, *, brief: bool = False) -> str:
        """Why the request may not be served, for the log, or nothing. `now` is in seconds since the epoch.

        `brief`: nothing but path, client and method is known; a token that says more is refused.
        """
        good = self._good
        grant = good.get(token)
        if grant is None:
            if not token:
                return "" if self._spares(asked.client) else "the request has no token"
            if len(token) > MOST_TOKEN:
                return "the token is too long"  # and too long to be remembered
            bad = self._bad
            why = bad.get(token)
            if why is not None:
                return why
            # Verified with keys that go meanwhile, it is remembered in what goes with them.
            try:
                grant = self._verify(token, now)
            except TokenError as error:
                bad.put(token, str(error))
                return str(error)
            good.put(token, grant)
        if brief and grant.others:
            return "the token says more"
        return grant.refusal(asked, now, self.country)

    def _spares(self, client: str) -> bool:
        try:
            return self._exempt.cover(census.packed(client))
        except (OSError, ValueError):  # no address
            return False

    def _verify(self, token: str, now: float) -> Grant:
        claims, kid = open_token(token, self._keys, now)
        settings = self._settings
        grant = evaluate(
            claims, kid, issuer=settings.issuer, audience=settings.audience, geography=self._map is not None
        )
        key = self._keys.find(kid)
        if key is not None:
            grant.limit(key.begins, key.until)
        return grant

    def country(self, address: str) -> str:
        """The country (ISO 3166-1) of an address as the database has it, "" if it is not there."""
        if self._map is None:
            return ""
        found = self._map.get(address)
        country = found.get("country") if isinstance(found, dict) else None
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code if isinstance(code, str) else ""

    def refresh(self) -> bool:
        """Take up keys and countries that have changed on disk; whether any had. ConfigError: the old ones stay.

        May run in a thread of its own. One file that is no good does not keep the other from being taken up.
        """
        changed, wrong = False, []
        for look in (self._keys.refresh, self._look_at_map):
            try:
                changed |= look()
            except ConfigError as error:
                wrong.append(str(error))
        # New memories, not emptied ones: a request may be using the old.
        if changed:
            self._good = _Recent(_MOST_GOOD)
        now = time.monotonic()
        if changed or now - self._cleared >= _BAD_S:
            self._bad = _Recent(_MOST_BAD)
            self._cleared = now
        if wrong:
            raise ConfigError("; ".join(wrong))
        return changed

    def _look_at_map(self) -> bool:
        name = self._settings.countries
        if not name:
            return False
        try:
            found = Path(name).stat()
            mark = (found.st_ino, found.st_mtime_ns)
            if mark == self._map_mark:
                return False
            self._map_mark = mark
            # Read whole: a file that is cut short under a mapping would kill this process.
            self._map = maxminddb.open_database(name, maxminddb.MODE_MEMORY)
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
            raise ConfigError(f"cannot use the map of countries {name}: {error}") from None
        return True


def split(target: str) -> tuple[str, str]:
    """The token in front of a path, unpadded, "" if there is none, and the target without it."""
    if target.startswith(PREFIX):
        token, slash, rest = target[len(PREFIX) :].partition("/")
        if token and slash:
            return token.rstrip("="), f"/{rest}"
    return "", target


def find(target: str, fields: list[str], cookies: list[str]) -> tuple[str, str]:
    """The token that a request carries, and its target without it.

    In front of the path, where relative URLs keep it, in the query, in the header field, or in a cookie (CTA-5007).
    Of several the first of these counts, unless they differ: then none does. Padding goes: one token, one text.
    """
    token, target = split(target)
    found = {token} if token else set()
    path, mark, query = target.partition("?")
    if mark and PARAMETER in query:
        kept = []
        for part in query.split("&"):
            name, _, value = part.partition("=")
            if name == PARAMETER:
                found.add(unquote(value).rstrip("="))
            else:
                kept.append(part)
        target = f"{path}?{'&'.join(kept)}" if kept else path
    found.update(field.strip().rstrip("=") for field in fields)
    found.update(match[1].strip().rstrip("=") for cookie in cookies for match in _COOKIE.finditer(cookie))
    if len(found) > 1:
        return "several", target
    return (found.pop() if found else ""), target
