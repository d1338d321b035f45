"""The tables of enrolment: who may have a certificate, and which certificates there are. Times in UTC seconds."""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, MetaData, String, Table


def define(metadata: MetaData) -> tuple[Table, Table]:
    """Add both tables to a controller's metadata: enrolments and certificates."""
    # One row per appliance: its newest code, and whether it is revoked. `key` is the fingerprint of the public key
    # that the code was used for, None until it is used.
    enrolments = Table(
        "enrolments",
        metadata,
        Column("appliance", ForeignKey("appliances.id"), primary_key=True),
        Column("owner", String(64), nullable=False, server_default="default"),
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
        Column("owner", String(64), nullable=False, server_default="default"),
        Column("key", String(64), nullable=False),
        Column("issued", Float, nullable=False),
        Column("expires", Float, nullable=False),
        Column("revoked", Float, nullable=True),
        Index("certificates_appliance", "appliance"),
        Index("certificates_revoked", "revoked"),
    )
    return enrolments, certificates
