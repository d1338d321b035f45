"""The controller's tables; `control.migrations` leads to them.

Every write appends to `changes` in its own transaction; memory is kept current by reading that table on.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()


def _owner() -> Column[str]:
    return Column("owner", String(64), nullable=False, server_default="default")


titles = Table(
    "titles",
    metadata,
    Column("id", String(64), primary_key=True),
    _owner(),
    Column("name", Text, nullable=False),
    Column("active", String(32), nullable=False),
    Column("added_at", Float, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("title", ForeignKey("titles.id"), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("published", BigInteger, nullable=False),
    Column("title_json", LargeBinary, nullable=False),
)
# Ids are dense and never used again: they are the bit positions of inventories.
tracks = Table(
    "tracks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("title", ForeignKey("titles.id"), nullable=False),
    Column("version", String(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("idx", LargeBinary, nullable=False),
    UniqueConstraint("title", "version", "name"),
    sqlite_autoincrement=True,
)
appliances = Table(
    "appliances",
    metadata,
    Column("id", String(64), primary_key=True),
    _owner(),
    Column("site", String(64), nullable=False),
    Column("role", String(8), nullable=False),
    Column("url", String(256), nullable=False),
    Column("capacity_bps", BigInteger, nullable=False),
    Column("storage_bytes", BigInteger, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("added_at", Float, nullable=False),
)
inventory = Table(
    "inventory",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("generation", Text, nullable=False),
    Column("tracks", LargeBinary, nullable=False),
    # What it holds of versions that are not registered yet: they may be, later.
    Column("unknown", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)
coverage = Table(
    "coverage",
    metadata,
    Column("id", Integer, primary_key=True),
    _owner(),
    Column("body", LargeBinary, nullable=False),
    Column("at", Float, nullable=False),
)
demand = Table(
    "demand",
    metadata,
    Column("hour", BigInteger, primary_key=True),
    Column("region", String(64), primary_key=True),
    Column("title", String(64), primary_key=True),
    Column("views", Float, nullable=False),
)
plans = Table(
    "plans",
    metadata,
    Column("id", Integer, primary_key=True),
    _owner(),
    Column("at", Float, nullable=False),
    Column("objective", Float, nullable=False),
    Column("bound", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("notes", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
plan_rows = Table(
    "plan_rows",
    metadata,
    Column("plan", ForeignKey("plans.id"), primary_key=True),
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("track", ForeignKey("tracks.id"), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("value", Float, nullable=False),
    Column("reason", Text, nullable=False),
)
# An operator's order to fill now; its number is what the appliance reports back.
orders = Table(
    "orders",
    metadata,
    Column("id", Integer, primary_key=True),
    _owner(),
    Column("at", Float, nullable=False),
    Column("appliance", ForeignKey("appliances.id"), nullable=False),
    Column("done", Boolean, nullable=False),
    sqlite_autoincrement=True,
)
# The run that an appliance reported last, and where it is with each track.
fills = Table(
    "fills",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("batch", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Column("plan", Integer, nullable=False),
    Column("finished", Boolean, nullable=False),
    Column("outside_window", Boolean, nullable=False),
)
fill_tracks = Table(
    "fill_tracks",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("title", String(64), primary_key=True),
    Column("version", String(32), primary_key=True),
    Column("track", String(64), primary_key=True),
    Column("progress", LargeBinary, nullable=False),
)
changes = Table(
    "changes",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    _owner(),
    Column("actor", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("subject", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    sqlite_autoincrement=True,
)
# Who may act through the API: a name, and the BLAKE3 of the token that proves it. Times in UTC seconds.
operators = Table(
    "operators",
    metadata,
    Column("name", String(64), primary_key=True),
    _owner(),
    Column("role", String(8), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("made", Float, nullable=False),
    Column("expires", Float, nullable=True),
    Column("used", Float, nullable=True),
)
# What was done or refused. Status is that of the answer over HTTP, 0 for what was done on the controller's machine.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    _owner(),
    Column("kind", String(16), nullable=False),
    Column("who", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("method", String(16), nullable=False),
    Column("path", String(256), nullable=False),
    Column("what", String(512), nullable=False),
    Column("status", Integer, nullable=False),
    Column("request", String(16), nullable=False),
    Index("audit_at", "at"),
    Index("audit_who", "who", "id"),
    sqlite_autoincrement=True,
)

# Enrolment: who may have a certificate, and which certificates there are. Times in UTC seconds.
# One row per appliance: its newest code, and whether it is revoked. `key` is the fingerprint of the public key
# that the code was used for, None until it is used.
enrolments = Table(
    "enrolments",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    _owner(),
    Column("hash", String(64), nullable=False),
    Column("made", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("key", String(64), nullable=True),
    Column("revoked", Float, nullable=True),
)
# Serial numbers in hexadecimal: they have up to 159 bits.
certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(40), primary_key=True),
    Column("appliance", ForeignKey("appliances.id"), nullable=False),
    _owner(),
    Column("key", String(64), nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Float, nullable=True),
    Index("certificates_appliance", "appliance"),
    Index("certificates_revoked", "revoked"),
)
# Appliances that are to fetch nothing for now.
paused = Table(
    "paused",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    _owner(),
    Column("at", Float, nullable=False),
)
# What boxes of a site may fetch together over its line, bit/s.
sites = Table(
    "sites",
    metadata,
    Column("id", String(64), primary_key=True),
    _owner(),
    Column("fill_bps", BigInteger, nullable=False),
)
# Versions that were removed from the catalog: no box is to hold them.
doomed = Table(
    "doomed",
    metadata,
    Column("title", String(64), primary_key=True),
    Column("version", String(32), primary_key=True),
    _owner(),
    Column("at", Float, nullable=False),
)
# What each box sent, and what was filled on it, on a day (days since the epoch, UTC); `uplink` of that from
# outside its site. Bytes.
traffic = Table(
    "traffic",
    metadata,
    Column("day", Integer, primary_key=True),
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("sent", BigInteger, nullable=False),
    Column("filled", BigInteger, nullable=False),
    Column("uplink", BigInteger, nullable=False),
    Column("given", BigInteger, nullable=False),
)
# Up to where a box's counter of bytes sent, which began at `started`, is in `traffic`.
sent_marks = Table(
    "sent_marks",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("started", Float, nullable=False),
    Column("sent", BigInteger, nullable=False),
)
# What upstream CDNs asked for (RFC 8007), and which versions that is to be done to: JSON.
triggers = Table(
    "triggers",
    metadata,
    Column("id", Integer, primary_key=True),
    _owner(),
    Column("account", String(64), nullable=False),
    Column("trigger", LargeBinary, nullable=False),
    Column("versions", LargeBinary, nullable=False),
    Column("status", String(16), nullable=False),
    Column("ctime", Float, nullable=False),
    Column("mtime", Float, nullable=False),
    Column("etime", Float),
    Column("errors", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
# Versions that an appliance is to hold whatever the plan says, until `until` (UTC seconds).
pins = Table(
    "pins",
    metadata,
    Column("trigger", ForeignKey("triggers.id"), primary_key=True),
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("title", String(64), primary_key=True),
    Column("version", String(32), primary_key=True),
    _owner(),
    Column("until", Float, nullable=False),
)
# When each box was last heard, and until when somebody listened (one row, 1): written in batches. UTC seconds.
heartbeats = Table(
    "heartbeats",
    metadata,
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("at", Float, nullable=False),
)
listening = Table(
    "listening",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("until", Float, nullable=False),
)
# What each box that fills may take of its site's line (bit/s) until `until`, UTC seconds of the database's clock.
# Empty where one controller alone uses the database.
leases = Table(
    "leases",
    metadata,
    Column("site", String(64), primary_key=True),
    Column("appliance", ForeignKey("appliances.id"), primary_key=True),
    Column("until", Float, nullable=False),
    Column("rate_bps", BigInteger, nullable=False),
)
