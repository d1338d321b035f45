"""What the database knows of revocations; they are asked at every request, so they are kept in memory."""

from __future__ import annotations

import time

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from control import schema
from oca.trust.revocations import Revocations

# Certificates that have run out need no revocation; clocks may differ by as much.
_LATER_S = 86400


async def load(connection: AsyncConnection) -> Revocations:
    """All revocations in the database that still mean something."""
    revoked = schema.certificates.c.revoked.is_not(None)
    serials = select(schema.certificates.c.serial).where(
        revoked, schema.certificates.c.expires > time.time() - _LATER_S
    )
    boxes = select(schema.enrolments.c.appliance).where(schema.enrolments.c.revoked.is_not(None))
    return Revocations(
        frozenset(int(serial, 16) for serial in (await connection.execute(serials)).scalars()),
        frozenset((await connection.execute(boxes)).scalars()),
    )
