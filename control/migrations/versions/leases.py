"""Leases of sites' lines, which several controllers on one database share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One more table."""
    op.create_table(
        "leases",
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.Column("rate_bps", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("site", "appliance"),
    )
