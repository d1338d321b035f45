"""The first revision: all tables of the catalog, the fleet, placement, fills, operators and triggers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """From an empty database."""
    op.create_table(
        "appliances",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("url", sa.String(length=256), nullable=False),
        sa.Column("capacity_bps", sa.BigInteger(), nullable=False),
        sa.Column("storage_bytes", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("added_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("method", sa.String(length=16), nullable=False),
        sa.Column("path", sa.String(length=256), nullable=False),
        sa.Column("what", sa.String(length=512), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("request", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_at", "audit", ["at"], unique=False)
    op.create_index("audit_who", "audit", ["who", "id"], unique=False)
    op.create_table(
        "changes",
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "coverage",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "demand",
        sa.Column("hour", sa.BigInteger(), nullable=False),
        sa.Column("region", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=64), nullable=False),
        sa.Column("views", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "region", "title"),
    )
    op.create_table(
        "doomed",
        sa.Column("title", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("title", "version"),
    )
    op.create_table(
        "listening",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "operators",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("made", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=True),
        sa.Column("used", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("hash"),
    )
    op.create_table(
        "plans",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("objective", sa.Float(), nullable=False),
        sa.Column("bound", sa.Float(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("notes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sites",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("fill_bps", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "titles",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("active", sa.String(length=32), nullable=False),
        sa.Column("added_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "triggers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("account", sa.String(length=64), nullable=False),
        sa.Column("trigger", sa.LargeBinary(), nullable=False),
        sa.Column("versions", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("ctime", sa.Float(), nullable=False),
        sa.Column("mtime", sa.Float(), nullable=False),
        sa.Column("etime", sa.Float(), nullable=True),
        sa.Column("errors", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("issued", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("revoked", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_index("certificates_appliance", "certificates", ["appliance"], unique=False)
    op.create_index("certificates_revoked", "certificates", ["revoked"], unique=False)
    op.create_table(
        "enrolments",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("made", sa.Float(), nullable=False),
        sa.Column("expires", sa.Float(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=True),
        sa.Column("revoked", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance"),
    )
    op.create_table(
        "fill_tracks",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("track", sa.String(length=64), nullable=False),
        sa.Column("progress", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance", "title", "version", "track"),
    )
    op.create_table(
        "fills",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("batch", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("plan", sa.Integer(), nullable=False),
        sa.Column("finished", sa.Boolean(), nullable=False),
        sa.Column("outside_window", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance"),
    )
    op.create_table(
        "heartbeats",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance"),
    )
    op.create_table(
        "inventory",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Text(), nullable=False),
        sa.Column("tracks", sa.LargeBinary(), nullable=False),
        sa.Column("unknown", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "paused",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance"),
    )
    op.create_table(
        "pins",
        sa.Column("trigger", sa.Integer(), nullable=False),
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=64), server_default="default", nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.ForeignKeyConstraint(
            ["trigger"],
            ["triggers.id"],
        ),
        sa.PrimaryKeyConstraint("trigger", "appliance", "title", "version"),
    )
    op.create_table(
        "sent_marks",
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("started", sa.Float(), nullable=False),
        sa.Column("sent", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("appliance"),
    )
    op.create_table(
        "tracks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("title", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("idx", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["title"],
            ["titles.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("title", "version", "name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "traffic",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("sent", sa.BigInteger(), nullable=False),
        sa.Column("filled", sa.BigInteger(), nullable=False),
        sa.Column("uplink", sa.BigInteger(), nullable=False),
        sa.Column("given", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.PrimaryKeyConstraint("day", "appliance"),
    )
    op.create_table(
        "versions",
        sa.Column("title", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("published", sa.BigInteger(), nullable=False),
        sa.Column("title_json", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["title"],
            ["titles.id"],
        ),
        sa.PrimaryKeyConstraint("title", "version"),
    )
    op.create_table(
        "plan_rows",
        sa.Column("plan", sa.Integer(), nullable=False),
        sa.Column("appliance", sa.String(length=64), nullable=False),
        sa.Column("track", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["appliance"],
            ["appliances.id"],
        ),
        sa.ForeignKeyConstraint(
            ["plan"],
            ["plans.id"],
        ),
        sa.ForeignKeyConstraint(
            ["track"],
            ["tracks.id"],
        ),
        sa.PrimaryKeyConstraint("plan", "appliance", "track"),
    )
