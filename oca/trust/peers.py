"""Who is at the other end of a connection: what a certificate of the fleet says, and whether that is acceptable.

The fleet's authority writes one URI into the subjectAltName (RFC 5280 4.2.1.6): `urn:oca:appliance:<id>`, or
`urn:oca:controller`. Nothing else in a certificate says who it is of.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from oca.errors import FormatError
from oca.ids import is_id

Role = Literal["appliance", "controller"]
CONTROLLER = "urn:oca:controller"
_APPLIANCE = "urn:oca:appliance:"
# Renewal is due at some time between these parts of a certificate's life, so that boxes do not come all at once.
_FIRST, _LAST = 0.62, 0.70


@dataclass(frozen=True, slots=True)
class Peer:
    """What a certificate says: role, id of an appliance ('' of a controller), serial, validity (UTC seconds)."""

    role: Role
    id: str
    serial: int
    begins: float
    ends: float


def urn(appliance: str) -> str:
    """The URI of an appliance."""
    return _APPLIANCE + appliance


def fingerprint(key: PublicKeyTypes) -> str:
    """SHA-256 of a public key (SubjectPublicKeyInfo in DER form, RFC 7469 2.4), 64 hexadecimal digits."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _peer(uris: Sequence[str], serial: int, begins: float, ends: float) -> Peer | None:
    """Two names of the fleet in one certificate are none: it never issues such."""
    named = [uri for uri in uris if uri.startswith("urn:oca:")]
    if named == [CONTROLLER]:
        return Peer("controller", "", serial, begins, ends)
    if len(named) == 1 and is_id(name := named[0].removeprefix(_APPLIANCE)) and named[0] == urn(name):
        return Peer("appliance", name, serial, begins, ends)
    return None


def of_fields(fields: Mapping[str, Any] | None) -> Peer | None:
    """Who a verified certificate is of, from `ssl.SSLSocket.getpeercert()`; None if it is of nobody in a fleet."""
    if not fields:
        return None
    uris = [value for kind, value in fields.get("subjectAltName", ()) if kind == "URI"]
    begins, ends = (ssl.cert_time_to_seconds(fields[name]) for name in ("notBefore", "notAfter"))
    return _peer(uris, int(fields["serialNumber"], 16), begins, ends)


def of_certificate(certificate: x509.Certificate) -> Peer | None:
    """Who a certificate is of, None if of nobody in a fleet. Whether it is genuine `chained` says."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return _peer(uris, certificate.serial_number, begins, ends)


def chained(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    """Whether one of the authorities has signed the certificate. Time and role are `refusal`'s matter."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            continue
        return True
    return False


def refusal(
    seen: Peer | None, roles: Sequence[Role], now: float, revoked: Callable[[Peer], bool] = lambda _: False
) -> str:
    """Why somebody whose certificate an authority of the fleet has signed is not let in; '' if they are.

    `now` in UTC seconds.
    """
    if seen is None:
        return "its certificate is of nobody in the fleet"
    who = f"appliance {seen.id}" if seen.role == "appliance" else "a controller"
    if seen.role not in roles:
        return f"its certificate is of {who}, which has no business here"
    if now < seen.begins:
        return f"the certificate of {who} is not valid yet: compare the clocks"
    if now >= seen.ends:
        return f"the certificate of {who} has expired: enrol it again with a new code"
    if revoked(seen):
        return f"the certificate of {who} is revoked: enrol it again with a new code, if that is meant"
    return ""


def renew_at(begins: float, ends: float, serial: int) -> float:
    """When a certificate is to be renewed: about two thirds through its life, at a moment of its own.

    Times in UTC seconds. The moment follows from the serial number, so that whoever asks again gets the same.
    """
    spread = int.from_bytes(hashlib.sha256(serial.to_bytes(20, "big")).digest()[:8], "big") / 2**64
    return begins + (ends - begins) * (_FIRST + (_LAST - _FIRST) * spread)


def certificates(pem: bytes, where: str) -> list[x509.Certificate]:
    """The certificates in PEM form; FormatError naming `where` if there is none or one is damaged."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise FormatError(f"{where} holds no certificates in PEM form") from None
