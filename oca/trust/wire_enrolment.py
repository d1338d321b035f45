"""The messages by which a box gets its certificate: enrolment, renewal, the fleet's authorities.

JSON bodies under the rules of `oca.wire`. Certificates and requests for them are PEM (RFC 7468), times UTC seconds.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from oca.wire import Id, Message, Url

Pem = Annotated[str, Meta(max_length=64 << 10)]
Csr = Annotated[str, Meta(max_length=16 << 10)]
# SHA-256 of a public key (its SubjectPublicKeyInfo in DER form).
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]

# Of a certificate (RFC 5280 4.1.2.2: up to 20 octets), in hexadecimal.
Serial = Annotated[str, Meta(pattern=r"^[0-9a-f]{1,40}\Z")]


class Enrolment(Message, frozen=True, kw_only=True):
    """POST /api/v1/enrol: a certificate for the key that signed `csr` (PKCS #10), against a code that is used once.

    The same code with the same key again, while it lasts, gets a certificate again: the answer may have been lost.
    """

    appliance: Id
    code: Annotated[str, Meta(max_length=64)]
    csr: Csr


class Renewal(Message, frozen=True, kw_only=True):
    """POST /api/v1/renew: another certificate, for this key or another; the one of the connection says for whom."""

    csr: Csr


class Certified(Message, frozen=True, kw_only=True):
    """The answer to both: the certificate, all authorities to trust, where to reach the controllers over TLS."""

    appliance: Id
    certificate: Pem
    authorities: Pem
    controllers: tuple[Url, ...] = ()


class Authorities(Message, frozen=True, kw_only=True):
    """GET /api/v1/authorities: those that the fleet trusts; nothing of it is secret.

    `fingerprint` is of the one that signs now, '' if this controller does not speak TLS.
    """

    authorities: Pem = ""
    fingerprint: str = ""
    controllers: tuple[Url, ...] = ()


class CodeMade(Message, frozen=True, kw_only=True):
    """POST /api/v1/appliances/{appliance}/code: a new code, shown once; the one before it is good no longer."""

    appliance: Id
    code: str
    expires: float
    fingerprint: Fingerprint
    controllers: tuple[Url, ...]


class RevocationOrder(Message, frozen=True, kw_only=True):
    """POST /api/v1/appliances/{appliance}/revoke: trust no certificate of this box; a dry run only counts them."""

    dry_run: bool = False


class Revoked(Message, frozen=True, kw_only=True):
    """The answer: how many certificates that have not run out were revoked, or would be; whether a code was open."""

    appliance: Id
    certificates: int
    code: bool
    dry_run: bool


class RevocationList(Message, frozen=True, kw_only=True):
    """GET /api/v1/appliances/{appliance}/revocations: certificates, and boxes of whose certificates none is good."""

    generation: Annotated[str, Meta(max_length=64)]
    serials: list[Serial]
    appliances: list[Id]
