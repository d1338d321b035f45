"""The roll of the fleet: codes, certificates and revocations in the database, each change one transaction."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from control import schema
from control.database import writing
from control.fleet import codes
from control.fleet.authority import Authority, Issued
from control.fleet.codes import SENTENCES, Code
from control.operators import audit
from control.state import State
from oca.errors import OcaError
from oca.trust import codeword, peers
from oca.trust.peers import Peer

# Certificates that ran out so long ago are forgotten when their box gets another one.
_KEPT_S = 7 * 86_400.0
# A box takes one in three weeks; one that went wild does not fill the disk.
_MOST_A_DAY = 50
_COLUMNS = (schema.enrolments.c.hash, schema.enrolments.c.expires, schema.enrolments.c.tries, schema.enrolments.c.key)


class RefusedError(OcaError):
    """A box that gets no certificate."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What revoking a box ends: certificates that have not run out, and whether it has a code that can be used."""

    certificates: int
    code: bool


class Roll:
    """Reads and writes the roll, then brings `state` up to date. `now` in UTC seconds."""

    def __init__(self, state: State) -> None:
        self._writing = writing(state.engine)
        self._state = state

    async def make_code(self, appliance: str, now: float) -> tuple[str, float]:
        """A new code for a registered appliance, and when it expires; the code before it is good no longer."""
        code, expires = codeword.new(), now + codes.LIFE_S
        values = {"hash": codes.hashed(appliance, code), "made": now, "expires": expires, "tries": 0, "key": None}
        async with self._writing.begin() as connection:
            await _put(connection, appliance, values)
            until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(expires))
            await _changed(connection, appliance, f"a code to enrol with, good until {until}")
        await self._state.catch_up()
        return code, expires

    async def enrol(self, appliance: str, code: str, csr: str, authority: Authority, now: float) -> Issued:
        """A certificate against a code. FormatError if the request is bad, RefusedError if the code is not good.

        A box that was revoked is trusted again, since an operator has made the code; the key it had then is not.
        """
        box = self._state.appliances.get(appliance)
        # Signed first: a bad request costs no attempt, and what is not handed out is worth nothing.
        issued = authority.issue(csr, appliance, box.url if box is not None else "", now)
        refusal = ""
        async with self._writing.begin() as connection:
            kept = await _code(connection, appliance)
            verdict = codes.judge(kept if box is not None else None, appliance, code, issued.key, now)
            if verdict in SENTENCES:
                refusal = SENTENCES[verdict].format(box=appliance)
                if verdict == "wrong" and kept is not None and kept.hash:
                    await _put(connection, appliance, {"tries": kept.tries + 1})
            elif await _is_revoked(connection, appliance, issued.key):
                refusal = f"the key of appliance {appliance} was revoked: run `oca enrol` again with --new-key"
            else:
                await _put(connection, appliance, {"key": issued.key, "revoked": None})
                await _note(connection, issued, now)
                await _changed(connection, appliance, f"enrolled, {_described(issued)}")
        if refusal:
            raise RefusedError(refusal)
        await self._state.catch_up()
        return issued

    async def renew(self, peer: Peer, csr: str, authority: Authority, now: float) -> Issued:
        """Another certificate for an appliance that has proved who it is by `peer`.

        RefusedError if that has been revoked meanwhile, or is of a box that is no longer registered.
        """
        box = self._state.appliance(peer.id)
        issued = authority.issue(csr, box.id, box.url, now)
        async with self._writing.begin() as connection:
            of = schema.certificates.c
            known = await connection.execute(select(of.revoked).where(of.serial == _hex(peer.serial)))
            revoked = known.scalar()
            enrolled = select(schema.enrolments.c.revoked).where(schema.enrolments.c.appliance == box.id)
            gone = (await connection.execute(enrolled)).scalar() is not None
            if revoked is not None or gone or await _is_revoked(connection, box.id, issued.key):
                raise RefusedError(peers.refusal(peer, ("appliance",), now, lambda _: True))
            await _note(connection, issued, now)
            await _changed(connection, box.id, f"renewed, {_described(issued)}")
        await self._state.catch_up()
        return issued

    async def revoke(self, appliance: str, now: float, *, dry_run: bool = False) -> Standing:
        """Trust no certificate of an appliance any more, and take its code back; what that ends, or would end."""
        box = self._state.appliance(appliance)
        of = schema.certificates.c
        live = (of.appliance == box.id, of.revoked.is_(None), of.expires > now)
        async with self._writing.begin() as connection:
            kept = await _code(connection, box.id)
            counted = select(func.count()).select_from(schema.certificates).where(*live)
            standing = Standing(
                int((await connection.execute(counted)).scalar_one()), kept is not None and kept.open(now)
            )
            if not dry_run:
                mine = (of.appliance == box.id, of.revoked.is_(None))
                await connection.execute(update(schema.certificates).where(*mine).values(revoked=now))
                empty = {"hash": "", "made": now, "expires": 0.0, "tries": 0, "key": None, "revoked": now}
                await _put(connection, box.id, empty)
                ended = f"{standing.certificates} certificates" + (", and its code" if standing.code else "")
                await _changed(connection, box.id, f"revoked: {ended}")
        await self._state.catch_up()
        return standing


def _hex(serial: int) -> str:
    return f"{serial:x}"


def _described(issued: Issued) -> str:
    until = time.strftime("%Y-%m-%d", time.gmtime(issued.peer.ends))
    return f"certificate {_hex(issued.peer.serial)} until {until}"


async def _code(connection: AsyncConnection, appliance: str) -> Code | None:
    row = (await connection.execute(select(*_COLUMNS).where(schema.enrolments.c.appliance == appliance))).first()
    return None if row is None else Code(row.hash, row.expires, row.tries, row.key)


async def _put(connection: AsyncConnection, appliance: str, values: dict[str, Any]) -> None:
    """Change the row of an appliance, or make it."""
    table = schema.enrolments
    done = await connection.execute(update(table).where(table.c.appliance == appliance).values(**values))
    if not done.rowcount:
        await connection.execute(insert(table).values(appliance=appliance, **values))


async def _is_revoked(connection: AsyncConnection, appliance: str, key: str) -> bool:
    """Whether a certificate of this key was revoked."""
    of = schema.certificates.c
    query = select(of.serial).where(of.appliance == appliance, of.key == key, of.revoked.is_not(None)).limit(1)
    return (await connection.execute(query)).first() is not None


async def _note(connection: AsyncConnection, issued: Issued, now: float) -> None:
    """Write a certificate down before anybody gets it."""
    table, peer = schema.certificates, issued.peer
    lately = (table.c.appliance == peer.id, table.c.issued > now - 86_400)
    counted = select(func.count()).select_from(table).where(*lately)
    if (await connection.execute(counted)).scalar_one() >= _MOST_A_DAY:
        raise RefusedError(f"appliance {peer.id} was given {_MOST_A_DAY} certificates within a day: try tomorrow")
    old = (table.c.appliance == peer.id, table.c.expires < now - _KEPT_S, table.c.revoked.is_(None))
    await connection.execute(delete(table).where(*old))
    values = {"serial": _hex(peer.serial), "appliance": peer.id, "key": issued.key}
    await connection.execute(insert(table).values(issued=now, expires=peer.ends, **values))


async def _changed(connection: AsyncConnection, appliance: str, detail: str) -> None:
    values = {"at": time.time(), "actor": audit.actor("local")[:64], "kind": "certificate"}
    await connection.execute(insert(schema.changes).values(subject=appliance, detail=detail, **values))
    await audit.record(connection, f"appliance {appliance}: {detail}")
