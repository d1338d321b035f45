"""The fleet's own certificate authority: a key that signs what every box and controller proves itself with.

Files in the controller's state directory: `authority.key` signs; `authority.pem` lists all authorities that are
trusted; `authority.key.next` is a key that will sign. Changing over takes three steps, so that at any time both ends
trust the one that signs: `prepare` makes the next one trusted, `activate` makes it sign, `forget` ends the trust in
those before it. Each is one rename. Which one signs is told by the key, not by the order in the list.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from oca.errors import ConfigError, FormatError, OcaError
from oca.store import keyfile
from oca.store.keyfile import PrivateKey
from oca.trust import peers
from oca.trust.identity import Identity, Mark
from oca.trust.peers import Peer

LIFE_S = 30 * 86_400.0
"""How long certificates of boxes and controllers are valid, in seconds."""
_AUTHORITY_S = 3650 * 86_400.0
# Boxes whose clocks are behind would not take a certificate that begins now.
_BACKDATED_S = 3600.0
# Boxes ask for the authorities daily; who missed two of these days is found by its certificate before it runs out.
OVERLAP_S = 3 * 86_400.0
_MOST_CSR = 16 << 10
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_PEM = serialization.Encoding.PEM


class AuthorityError(OcaError):
    """A step in changing the authority that cannot be taken now."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was just made: PEM, who it is of, and the fingerprint of its key."""

    pem: str
    peer: Peer
    key: str


@dataclass(frozen=True, slots=True)
class _Signing:
    """The key that signs, its certificate, and all authorities that are trusted, that one first."""

    key: PrivateKey
    own: x509.Certificate
    trusted: tuple[x509.Certificate, ...]


class Authority:
    """The authority in a state directory, made if there is none. ConfigError says which file is missing or wrong.

    `now` in UTC seconds, here and everywhere below.
    """

    def __init__(self, state: Path, now: float | None = None) -> None:
        self._files = Identity(state / "authority.key", state / "authority.pem", state / "authority.pem")
        self._mark: Mark = ()
        made = time.time() if now is None else now
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._establish(made)
        except OSError as error:
            raise ConfigError(f"cannot keep the fleet's authority in {state}: {error.strerror or error}") from None
        self._load()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key that signs, 64 hexadecimal digits: what an operator carries to a new box."""
        return peers.fingerprint(self._now.key.public_key())

    @property
    def trusted(self) -> Sequence[x509.Certificate]:
        """All authorities that are trusted, the one that signs first."""
        return self._now.trusted

    @property
    def bundle(self) -> str:
        """Those in PEM form."""
        return "".join(one.public_bytes(_PEM).decode() for one in self._now.trusted)

    @property
    def ends(self) -> float:
        """When the authority that signs ends."""
        return self._now.own.not_valid_after_utc.timestamp()

    @property
    def waiting(self) -> str:
        """Fingerprint of the one that is to sign next, '' if there is none. ConfigError: its key cannot be read."""
        key = keyfile.load(self._files.next_key)
        return "" if key is None else peers.fingerprint(key.public_key())

    def refresh(self) -> bool:
        """Take up files that have changed; whether any had. ConfigError: they are no good, and the old ones stay."""
        mark = self._files.mark()
        if mark == self._mark:
            return False
        self._load()
        return True

    def issue(self, csr: str, appliance: str, url: str, now: float) -> Issued:
        """A certificate for an appliance, 30 days from now. Nothing but the public key is taken from the request.

        FormatError if the request (PKCS #10, PEM) was not signed by its key, or its key is of a kind that is not
        taken. `url` is where others reach the box.
        """
        return self._sign(requested(csr), peers.urn(appliance), appliance, [url], now)

    def issue_controller(self, key: CertificatePublicKeyTypes, urls: Sequence[str], now: float) -> Issued:
        """A certificate for a controller that is reached at these URLs."""
        return self._sign(key, peers.CONTROLLER, "controller", urls, now)

    def _sign(self, key: CertificatePublicKeyTypes, urn: str, name: str, urls: Iterable[str], now: float) -> Issued:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(urn)]
        for url in urls:
            host = host_name(url)
            if host is not None and host not in names:
                names.append(host)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        by = self._now
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
        ends = min(now + LIFE_S, by.own.not_valid_after_utc.timestamp())
        certificate = (
            _builder(key, name, by.own.subject, now - _BACKDATED_S, ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(by.key, _algorithm(by.key))
        )
        peer = peers.of_certificate(certificate)
        assert peer is not None
        return Issued(certificate.public_bytes(_PEM).decode(), peer, peers.fingerprint(key))

    def prepare(self, now: float) -> str:
        """Make the next authority and trust it; its fingerprint. The same again finishes what was interrupted."""
        if keyfile.load(self._files.next_key) is None:
            keyfile.write_once(self._files.next_key, keyfile.pem(keyfile.new()), 0o600)
        key = keyfile.load(self._files.next_key)
        assert key is not None
        if not _of_key(self._now.trusted, key):
            self._list([*self._now.trusted, _root(key, now)])
        return peers.fingerprint(key.public_key())

    def activate(self, now: float, *, force: bool = False, dry_run: bool = False) -> str:
        """Let the next authority sign from now on; its fingerprint.

        AuthorityError if there is none, or boxes have not had the time to hear of it, unless `force`.
        """
        key = keyfile.load(self._files.next_key)
        found = _of_key(self._now.trusted, key) if key is not None else None
        if key is None or found is None:
            raise AuthorityError("there is no next authority: make one with `oca-control authority prepare`")
        since = found.not_valid_before_utc.timestamp() + _BACKDATED_S
        if now < since + OVERLAP_S and not force:
            raise AuthorityError(
                f"the next authority was made {(now - since) / 86_400:.1f} days ago: boxes hear of it daily, so wait "
                f"until it is {OVERLAP_S / 86_400:.0f}, or say --force and enrol anew those that did not"
            )
        if dry_run:
            return peers.fingerprint(key.public_key())
        # By its time the file tells when it began to sign.
        os.utime(self._files.next_key, (now, now))
        self._files.next_key.rename(self._files.key)
        self._load()
        return self.fingerprint

    def forget(self, now: float, *, force: bool = False, dry_run: bool = False) -> list[str]:
        """Trust no authority but the one that signs, and the next; the fingerprints of those forgotten.

        AuthorityError if certificates of theirs may still be in use, unless `force`.
        """
        keep = (self.fingerprint, self.waiting)
        stay = [one for one in self._now.trusted if peers.fingerprint(one.public_key()) in keep]
        gone = [peers.fingerprint(one.public_key()) for one in self._now.trusted if one not in stay]
        signs_since = self._files.key.stat().st_mtime
        if gone and now < signs_since + LIFE_S and not force:
            days = (signs_since + LIFE_S - now) / 86_400
            raise AuthorityError(
                f"certificates of the former authority run for up to {days:.1f} more days: wait, or say --force and "
                "enrol anew the boxes that still have one"
            )
        if gone and not dry_run:
            self._list(stay)
        return gone

    def _establish(self, now: float) -> None:
        """Make key and certificate if they are missing; of several processes at once one does."""
        if keyfile.load(self._files.key) is None:
            if self._files.certificate.exists():
                raise ConfigError(
                    f"{self._files.certificate} is there, but its key {self._files.key} is missing: bring it back "
                    "from a backup; or move the certificate away for a new authority, and enrol every box again"
                )
            keyfile.write_once(self._files.key, keyfile.pem(keyfile.new()), 0o600)
        key = keyfile.load(self._files.key)
        assert key is not None
        if not self._files.certificate.exists():
            keyfile.write_once(self._files.certificate, _root(key, now).public_bytes(_PEM), 0o644)

    def _load(self) -> None:
        mark = self._files.mark()
        key = keyfile.load(self._files.key)
        if key is None:
            raise ConfigError(f"the authority's key {self._files.key} is missing: bring it back from a backup")
        try:
            found = peers.certificates(self._files.certificate.read_bytes(), str(self._files.certificate))
        except OSError as error:
            raise ConfigError(f"cannot read the authorities {self._files.certificate}: {error.strerror}") from None
        except FormatError as error:
            raise ConfigError(str(error)) from None
        own = _of_key(found, key)
        if own is None:
            raise ConfigError(f"{self._files.key} is the key of no authority in {self._files.certificate}")
        # Replaced at once: another thread may be signing.
        self._now = _Signing(key, own, (own, *(one for one in found if one != own)))
        self._mark = mark

    def _list(self, trusted: Sequence[x509.Certificate]) -> None:
        keyfile.write(self._files.certificate, b"".join(one.public_bytes(_PEM) for one in trusted), 0o644)
        self._load()


def requested(csr: str) -> CertificatePublicKeyTypes:
    """The public key of a certificate request (PKCS #10, PEM) that it has signed; FormatError if it is bad."""
    if len(csr) > _MOST_CSR:
        raise FormatError(f"the certificate request is longer than the {_MOST_CSR} bytes allowed")
    try:
        read = x509.load_pem_x509_csr(csr.encode())
        key = read.public_key()
        why = keyfile.objection(key)
        # Asked last: verifying costs more the larger the key.
        genuine = not why and read.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FormatError(
            "this is not a certificate request (PKCS #10) in PEM form with a key of a known kind"
        ) from None
    if why:
        raise FormatError(f"the key of the certificate request is of a kind that is not taken: {why}")
    if not genuine:
        raise FormatError("the certificate request is not signed by its own key")
    return key


def host_name(url: str) -> x509.DNSName | x509.IPAddress | None:
    """The name that a certificate has for the host of a URL; None if it is no name that a certificate can have."""
    with contextlib.suppress(ValueError):
        host = urlsplit(url).hostname or ""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return x509.DNSName(host) if _NAME.fullmatch(host) else None
        # An address that means something on one link only names nothing elsewhere.
        return None if "%" in host else x509.IPAddress(address)
    return None


def _of_key(certificates: Iterable[x509.Certificate], key: PrivateKey) -> x509.Certificate | None:
    """The newest certificate of a key."""
    wanted = peers.fingerprint(key.public_key())
    found = [one for one in certificates if peers.fingerprint(one.public_key()) == wanted]
    return max(found, key=lambda one: one.not_valid_after_utc, default=None)


def _root(key: PrivateKey, now: float) -> x509.Certificate:
    """An authority's own certificate, ten years from now. Its subject tells it from those before and after it."""
    name = f"oca fleet authority {peers.fingerprint(key.public_key())[:16]}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        _builder(key.public_key(), name, subject, now - _BACKDATED_S, now + _AUTHORITY_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, _algorithm(key))
    )


def _builder(
    key: CertificatePublicKeyTypes, name: str, issuer: x509.Name, begins: float, ends: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.fromtimestamp(int(begins), datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(int(ends), datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _algorithm(key: PrivateKey) -> hashes.SHA256 | None:
    """Ed25519 brings its own hash."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
