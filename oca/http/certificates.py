"""The certificates of an appliance: a TLS context for each, chosen by the name that a client asks for.

Files that change on disk are taken up within a second; connections that are open keep what they have agreed. Nothing
is stapled: certificates that live for weeks, replaced by an ACME client, have taken the place of OCSP, which the
largest authority ended in 2025.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cryptography import x509
from msgspec import Meta

from oca.errors import ConfigError
from oca.http import openssl
from oca.http.secure import kernel_can_encrypt
from oca.trust.fleet import Entrance
from oca.trust.identity import Identity

# Python 3.12 has it as ssl.OP_ENABLE_KTLS.
_ENABLE_KTLS = 1 << 3
# Forward secrecy and authenticated encryption only (RFC 9325 4.2). All that TLS 1.3 has are.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_TICKET_S = 6 * 3600.0


class CertificateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[[tls.certificates]]: a certificate."""

    chain: Annotated[str, Meta(min_length=1, description="PEM file of the certificate and its intermediates")]
    key: Annotated[str, Meta(min_length=1, description="PEM file of its private key, without a passphrase")]


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tls]: with certificates, the content listener speaks HTTPS and nothing else. `danger` as in [limits]."""

    certificates: Annotated[
        list[CertificateSettings],
        Meta(description="the first is for clients that name no host, or one that none of them covers"),
    ] = []
    minimum: Annotated[
        Literal["1.2", "1.3"],
        Meta(
            description="oldest version of TLS that is spoken",
            extra={"danger": "1.3: televisions from before about 2019 cannot connect"},
        ),
    ] = "1.2"
    kernel: Annotated[
        bool,
        Meta(
            description="whether the kernel encrypts where it can (kTLS), which costs less",
            extra={"danger": "false: files are read and encrypted in this program, for more processor time"},
        ),
    ] = True
    handshake_s: Annotated[
        float,
        Meta(
            gt=0,
            le=600,
            description="seconds that a handshake may take",
            extra={
                "danger": "too low: viewers on bad mobile networks cannot connect. "
                "Too high: whoever connects and says nothing holds connections for as long"
            },
        ),
    ] = 10.0


class Certificates:
    """The contexts that connections are accepted with. ConfigError says which file is wrong and why.

    Workers that are given the same `secret` resume each other's sessions.
    """

    def __init__(self, settings: TlsSettings, secret: bytes = b"", identity: Identity | None = None) -> None:
        """With an `identity`, boxes of its fleet may prove who they are."""
        self.settings = settings
        self.entrance = Entrance(identity) if identity is not None else None
        self.kernel = settings.kernel and kernel_can_encrypt()
        """Whether connections may find that the kernel encrypts."""
        self._secret = secret
        self._epoch = -1
        self._marks = self._look()
        self._load()

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Take over a viewer's non-blocking socket; its handshake has yet to be done."""
        return self._first.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def refresh(self) -> bool:
        """Take up files that have changed; whether any had. ConfigError: they are no good, and the old ones stay."""
        entrance = self.entrance is not None and self.entrance.refresh()
        marks = self._look()
        if marks != self._marks:
            # Also if they are no good: they are complained of once, and looked at again when they change again.
            self._marks = marks
            self._load()
            return True
        self._turn_tickets()
        return entrance

    def _load(self) -> None:
        """Read everything anew, then replace what was there at once."""
        grouped: dict[frozenset[str], ssl.SSLContext] = {}
        for one in self.settings.certificates:
            leaf = _read(one)
            names = frozenset(_names(leaf))
            # A certificate with RSA beside one with ECDSA for the same names: the client gets what it can verify.
            context = grouped.get(names) or self._context()
            _give(context, one)
            grouped[names] = context
        if not grouped:
            raise ConfigError("[tls] has no certificates: name one in [[tls.certificates]]")
        named: dict[str, ssl.SSLContext] = {}
        for names, context in grouped.items():
            for name in names:
                named.setdefault(name, context)
        self._first, self._named = next(iter(grouped.values())), named
        self._first.sni_callback = self._choose
        self._epoch = -1
        self._turn_tickets()

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if self.settings.minimum == "1.3" else ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_CIPHERS)
        context.set_alpn_protocols(["http/1.1"])
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # The client knows whether it has instructions for AES; nothing that is left is weak.
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        if self.kernel:
            context.options |= _ENABLE_KTLS
        return context

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """The context for the name that a client asks for (RFC 6066 3), by exact name or wildcard (RFC 9525 6.3)."""
        if name is not None:
            name = name.lower()
            found = self._named.get(name) or self._named.get("*." + name.partition(".")[2])
            if found is not None and found is not self._first:
                connection.context = found

    def _turn_tickets(self) -> None:
        """Seal session tickets with the key of these six hours; all processes with the secret arrive at the same."""
        epoch = int(time.time() // _TICKET_S)
        if self._secret and epoch != self._epoch:
            self._epoch = epoch
            key = hashlib.shake_256(self._secret + epoch.to_bytes(8, "big")).digest(openssl.TICKET_KEY_BYTES)
            openssl.share_tickets(self._first, key)

    def _look(self) -> list[tuple[int, int, int]]:
        return [_mark(path) for one in self.settings.certificates for path in (one.chain, one.key)]


def valid_until(settings: TlsSettings) -> dict[str, float]:
    """Until when (seconds since the epoch) the certificate in each file is valid; of files that are any good."""
    found = {}
    for one in settings.certificates:
        with contextlib.suppress(ConfigError):
            found[one.chain] = _read(one).not_valid_after_utc.timestamp()
    return found


def _mark(path: str) -> tuple[int, int, int]:
    """Changes when a file is written or replaced."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(one: CertificateSettings) -> x509.Certificate:
    """The first certificate of a chain."""
    try:
        return x509.load_pem_x509_certificates(Path(one.chain).read_bytes())[0]
    except OSError as error:
        raise ConfigError(f"cannot read the certificate {one.chain}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{one.chain} is not a certificate in PEM form: {error}") from None


def _give(context: ssl.SSLContext, one: CertificateSettings) -> None:
    """Give a context a certificate with its key."""

    def passphrase() -> str:
        raise ConfigError(f"the key {one.key} has a passphrase, and nobody to type it: remove it with `openssl pkey`")

    try:
        context.load_cert_chain(one.chain, one.key, passphrase)
    except ssl.SSLError as error:
        why = "is not the key of" if error.reason == "KEY_VALUES_MISMATCH" else "cannot be used with"
        raise ConfigError(f"the key {one.key} {why} the certificate {one.chain}: {error.reason or error}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the key {one.key}: {error.strerror}") from None


def _names(leaf: x509.Certificate) -> Sequence[str]:
    """The host names that a certificate covers, in lower case, and its addresses."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    hosts = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return [*hosts, *map(str, names.get_values_for_type(x509.IPAddress))]
