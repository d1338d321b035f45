"""Accounts of operators: a name, a role, and a token of which only the digest is kept.

A token is 256 random bits, so its plain BLAKE3 is as hard to turn back as any slow hash.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable
from typing import Literal

import msgspec
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from control import schema
from control.database import writing
from control.operators import audit, credential
from oca.errors import OcaError
from oca.ids import check_id
from oca.title.digest import digest

Role = Literal["read", "act", "upstream"]
"""What an account may do: look at all, change it, or as an upstream CDN make triggers and look at its own."""
# Who the log says acted when it was no operator.
RESERVED = frozenset({"local", "anybody"})
# The use of a token is written down when the one known is older than this.
USED_S = 3600.0


class AccountError(OcaError):
    """An account that cannot be made or removed as asked."""


class Account(msgspec.Struct, frozen=True):
    """An operator. Times in UTC seconds; `expires` and `used` are None for never. `used` is right to an hour."""

    name: str
    owner: str
    role: Role
    hash: str
    made: float
    expires: float | None
    used: float | None

    def expired(self, now: float) -> bool:
        """Whether its token is no longer good."""
        return self.expires is not None and now >= self.expires


def find(accounts: Iterable[Account], token: str) -> Account | None:
    """The account that a token belongs to, expired or not. How long it takes says nothing of the token."""
    if not credential.is_token(token):
        return None
    mine = digest(token.encode())
    found = None
    for account in accounts:
        if hmac.compare_digest(account.hash, mine):
            found = account
    return found


async def load(connection: AsyncConnection) -> dict[str, Account]:
    """All accounts by name."""
    rows = (await connection.execute(select(schema.operators).order_by(schema.operators.c.name))).mappings()
    return {row["name"]: Account(**row) for row in rows}


async def read(engine: AsyncEngine) -> dict[str, Account]:
    """All accounts by name, from the database."""
    async with engine.connect() as connection:
        return await load(connection)


async def add(engine: AsyncEngine, name: str, role: Role, lasts_s: float | None = None) -> tuple[Account, str]:
    """Make an account; it and its token, which nobody can be told again. Done on the controller's own machine."""
    if check_id(name, "name of an operator") in RESERVED:
        raise AccountError(f"{name} is what the audit log calls somebody else: choose another name")
    token, now = credential.new(), time.time()
    expires = None if lasts_s is None else now + lasts_s
    account = Account(name, "default", role, digest(token.encode()), now, expires, None)
    try:
        async with writing(engine).begin() as connection:
            await connection.execute(insert(schema.operators).values(**msgspec.structs.asdict(account)))
            await _changed(connection, name, f"added, role {role}{_until(account)}")
    except IntegrityError:
        raise AccountError(
            f"there is an operator {name} already: remove it first, or choose another name for a second token"
        ) from None
    return account, token


async def remove(engine: AsyncEngine, name: str, *, dry_run: bool = False) -> Account:
    """Remove an account, with which its token is good for nothing; AccountError if there is none."""
    table = schema.operators
    async with writing(engine).begin() as connection:
        account = (await load(connection)).get(name)
        if account is None:
            raise AccountError(f"there is no operator {name[:64]!r}: `oca-control operator list` shows them all")
        if not dry_run:
            await connection.execute(delete(table).where(table.c.name == name))
            await _changed(connection, name, "removed")
    return account


class Uses:
    """When tokens were used last. Written down now and then, and told to no other process: it is no change."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._unwritten: dict[str, float] = {}

    def note(self, account: Account, now: float) -> None:
        """A token was used at `now` (UTC seconds)."""
        last = max(account.used or 0.0, self._seen.get(account.name, 0.0))
        if last < account.made or now - last > USED_S:
            self._seen[account.name] = self._unwritten[account.name] = now

    async def write(self, engine: AsyncEngine) -> None:
        """Put what is new into the database."""
        if self._unwritten:
            table = schema.operators
            async with writing(engine).begin() as connection:
                for name, at in self._unwritten.items():
                    await connection.execute(update(table).where(table.c.name == name).values(used=at))
            self._unwritten.clear()


def _until(account: Account) -> str:
    if account.expires is None:
        return ""
    return time.strftime(", expires %Y-%m-%d %H:%M UTC", time.gmtime(account.expires))


async def _changed(connection: AsyncConnection, name: str, detail: str) -> None:
    values = {"at": time.time(), "actor": "local", "kind": "operator", "subject": name, "detail": detail}
    await connection.execute(insert(schema.changes).values(**values))
    await audit.record(connection, f"operator {name}: {detail}")
