"""Getting a certificate from the fleet's controller: once against a code, then by the certificate itself.

Nothing secret leaves before the controller has proved, by a certificate of the authority whose fingerprint the
operator typed, that it is of the fleet. Files are written whole, the certificate last: a box that has one is
enrolled, and one that was interrupted before has its key, with which the same code gets the certificate again.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

from oca import wire
from oca.errors import ConfigError, FormatError, OcaError
from oca.store import keyfile
from oca.store.keyfile import Owner, PrivateKey
from oca.trust import codeword, identity, peers
from oca.trust.identity import Identity
from oca.trust.peers import Peer
from oca.trust.wire_enrolment import Authorities, Certified, Enrolment, Renewal
from oca.wire import Message

_TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=10.0)
_MOST = 1 << 20
_DAY_S = 86_400.0
_log = structlog.get_logger()
_PEM = serialization.Encoding.PEM
M = TypeVar("M", bound=Message)


class EnrolmentError(OcaError):
    """A box that could not get its certificate."""


class _Refusal(msgspec.Struct):
    error: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What a box has got: its certificate as `peer`, and where the controllers are."""

    peer: Peer
    controllers: tuple[str, ...]


def parse_fingerprint(text: str) -> str:
    """64 hexadecimal digits, however they are grouped; ConfigError if it is no fingerprint."""
    found = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise ConfigError("a fingerprint has 64 hexadecimal digits: copy it from `ocactl appliance code`")
    return found


def owner(user: str) -> Owner | None:
    """Who files are to belong to: `user` if root asks for it, else us (None). ConfigError if that cannot be."""
    if not user:
        return None
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(f"there is no user {user[:64]!r} on this machine") from None
    if os.geteuid() not in (0, found.pw_uid):
        raise ConfigError(f"only root can give files to {user}: run this with sudo, or without --user")
    return (found.pw_uid, found.pw_gid) if os.geteuid() == 0 else None


def request_for(key: PrivateKey, appliance: str) -> str:
    """A certificate request (PKCS #10, PEM), which proves that we have the key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, appliance)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm).public_bytes(_PEM).decode()
    )


async def authority_of(session: aiohttp.ClientSession, controller: str, fingerprint: str) -> str:
    """The authority (PEM) of this fingerprint, as whoever answers at `controller` shows it; EnrolmentError if not.

    Whoever answers has proved nothing yet, so it is told nothing. What it shows is believed for its fingerprint.
    """
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    shown = await _ask(session, "GET", controller, "authorities", blind, None, Authorities)
    try:
        found = peers.certificates(shown.authorities.encode(), f"the list of authorities of {controller}")
    except FormatError as error:
        raise EnrolmentError(f"{error}: has it an address for [tls] listen in its settings?") from None
    for one in found:
        if peers.fingerprint(one.public_key()) == fingerprint:
            try:
                one.verify_directly_issued_by(one)
            except (InvalidSignature, ValueError, TypeError):
                break
            return one.public_bytes(_PEM).decode()
    raise EnrolmentError(
        f"{controller} is not of the fleet with the authority {fingerprint}: nothing was sent to it. Compare the "
        "fingerprint with what `ocactl appliance code` shows; if it is the same, somebody stands between"
    )


async def enrol(
    own: Identity,
    appliance: str,
    controller: str,
    code: str,
    fingerprint: str,
    *,
    owner: Owner | None = None,
    new_key: bool = False,
    dry_run: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Enrolled | None:
    """Get a certificate for `appliance` and write it down; None after a dry run: it sends no code and writes nothing.

    The same again does the same again. `owner` is who is to own the files; `say` is told what is being done.
    """
    code, fingerprint = codeword.canonical(code), parse_fingerprint(fingerprint)
    if not controller.startswith("https://"):
        raise ConfigError(f"{controller[:100]!r} is not an https:// URL: enrolment takes TLS")
    keyfile.load(own.key)
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        say(f"asking {controller} for the fleet's authority")
        authority = await authority_of(session, controller, fingerprint)
        say("the fingerprint is right; asking it to prove that it is a controller")
        trusting = identity.trusting(authority)
        await _ask(session, "GET", controller, "authorities", trusting, None, Authorities)
        if dry_run:
            return None
        own.settle()
        key = _key(own, owner, new_key=new_key)
        say(f"asking for the certificate of {appliance}")
        asked = Enrolment(appliance=appliance, code=code, csr=request_for(key, appliance))
        got = await _ask(session, "POST", controller, "enrol", trusting, asked, Certified)
    return _install(own, got, key, appliance, owner)


def renewal_due(own: Identity, now: float) -> bool:
    """Whether two thirds of the certificate's life are over at `now` (UTC seconds). ConfigError if there is none."""
    peer = holder(own)
    return now >= peers.renew_at(peer.begins, peer.ends, peer.serial)


async def renew_if_due(
    own: Identity,
    session: aiohttp.ClientSession,
    controllers: Sequence[str],
    now: float,
    *,
    new_key: bool = False,
    anyway: bool = False,
) -> bool:
    """Renew the certificate if that is due, `anyway`, or for a new key; whether files have changed. Call it daily.

    It also takes up the fleet's authorities, so that a change of them is known everywhere before it is needed. Those
    of `controllers` that begin with https:// are tried in order; EnrolmentError or ConfigError says why none helped.
    """
    own.settle()
    peer = holder(own)
    if now >= peer.ends:
        raise EnrolmentError(peers.refusal(peer, ("appliance",), now))
    before = own.mark()
    urls = [url for url in controllers if url.startswith("https://")]
    failures = [] if urls else ["no controller in the settings begins with https://"]
    for url in urls:
        context = identity.client_context(own, ("controller",))
        try:
            if new_key or anyway or renewal_due(own, now):
                key = _key(own, _owner_of(own), new_key=new_key)
                asked = Renewal(csr=request_for(key, peer.id))
                got = await _ask(session, "POST", url, "renew", context, asked, Certified)
                _install(own, got, key, peer.id, _owner_of(own))
            else:
                known = await _ask(session, "GET", url, "authorities", context, None, Authorities)
                _trust(own, known.authorities, _leaf(own), _owner_of(own))
            return own.mark() != before
        except EnrolmentError as error:
            failures.append(str(error))
    raise EnrolmentError("; ".join(failures))


async def renew(own: Identity, controllers: Sequence[str], *, new_key: bool = False, anyway: bool = False) -> bool:
    """`renew_if_due` now, over connections of its own."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        return await renew_if_due(own, session, controllers, time.time(), new_key=new_key, anyway=anyway)


async def keep(own: Identity, controllers: Sequence[str]) -> None:
    """Renew daily until cancelled, hourly while that fails; nothing while the box is not enrolled."""
    while True:
        pause = _DAY_S
        try:
            if own.certificate.exists() and await renew(own, controllers):
                _log.info("the certificate of this box, or whom it trusts, has changed and is in use")
        except OcaError as error:
            pause = _DAY_S / 24
            _log.error("the certificate of this box is not renewed", detail=str(error))
        await asyncio.sleep(pause)


def _key(own: Identity, owner: Owner | None, *, new_key: bool) -> PrivateKey:
    """The key to ask with: the one that waits, the one that is there, or a new one, on disk before it is used."""
    path = own.next_key if new_key else own.key
    try:
        own.key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if owner is not None:
            os.chown(own.key.parent, *owner)
        if keyfile.load(path) is None:
            keyfile.write_once(path, keyfile.pem(keyfile.new()), 0o600, owner)
    except OSError as error:
        raise ConfigError(f"cannot write the key {path}: {error.strerror}") from None
    found = keyfile.load(path)
    assert found is not None
    return found


def _install(own: Identity, got: Certified, key: PrivateKey, appliance: str, owner: Owner | None) -> Enrolled:
    """Check what the controller sent, and write it: authorities first, then the certificate, then the key's name."""
    try:
        leaf = peers.certificates(got.certificate.encode(), "the controller's answer")[0]
    except FormatError as error:
        raise EnrolmentError(str(error)) from None
    peer = peers.of_certificate(leaf)
    if peer is None or (peer.role, peer.id) != ("appliance", appliance):
        raise EnrolmentError(f"the certificate that the controller sent is not of appliance {appliance}")
    if peers.fingerprint(leaf.public_key()) != peers.fingerprint(key.public_key()):
        raise EnrolmentError("the certificate that the controller sent is of another key than ours")
    _trust(own, got.authorities, leaf, owner)
    _write(own.certificate, leaf.public_bytes(_PEM), owner)
    own.settle()
    return Enrolled(peer, got.controllers)


def _trust(own: Identity, bundle: str, leaf: x509.Certificate, owner: Owner | None) -> None:
    """Take up a list of authorities, if one of them has signed our certificate and it is another than we have."""
    try:
        found = peers.certificates(bundle.encode(), "the controller's list of authorities")
    except FormatError as error:
        raise EnrolmentError(str(error)) from None
    if not peers.chained(leaf, found):
        raise EnrolmentError("none of the authorities that the controller sent has signed our certificate")
    data = b"".join(one.public_bytes(_PEM) for one in found)
    try:
        same = own.authorities.read_bytes() == data
    except OSError:
        same = False
    if not same:
        _write(own.authorities, data, owner)


def _write(path: Path, data: bytes, owner: Owner | None) -> None:
    try:
        keyfile.write(path, data, 0o644, owner)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def _leaf(own: Identity) -> x509.Certificate:
    found = own.leaf()
    if found is None:
        raise ConfigError(f"there is no certificate {own.certificate}: enrol this box with `oca enrol`")
    return found


def holder(own: Identity) -> Peer:
    """What the certificate of a box says; ConfigError if it has none."""
    found = peers.of_certificate(_leaf(own))
    if found is None:
        raise ConfigError(f"{own.certificate} is no certificate of a fleet: enrol this box again with `oca enrol`")
    return found


def _owner_of(own: Identity) -> Owner | None:
    """Who owns the key now, if we may give files away: root renews for the user that serves."""
    if os.geteuid() != 0:
        return None
    found = own.key.stat()
    return found.st_uid, found.st_gid


async def _ask(
    session: aiohttp.ClientSession,
    method: str,
    base: str,
    call: str,
    context: ssl.SSLContext,
    message: Message | None,
    kind: type[M],
) -> M:
    """The answer of one controller; EnrolmentError with its sentence, or what went wrong on the way."""
    url = f"{base.rstrip('/')}/api/v1/{call}"
    body = None if message is None else wire.encode(message)
    try:
        async with session.request(
            method, url, data=body, ssl=context, allow_redirects=False, timeout=_TIMEOUT
        ) as response:
            data = bytearray()
            async for part in response.content.iter_any():
                data += part
                if len(data) > _MOST:
                    raise EnrolmentError(f"{base} answers with more than the {_MOST} bytes allowed")
            if response.status >= 300:
                raise EnrolmentError(f"{base} answers {response.status}: {_sentence(bytes(data))}")
            return wire.decode(bytes(data), kind, f"the answer of {base}")
    except aiohttp.ClientConnectorCertificateError as error:
        raise EnrolmentError(f"{base} is not a controller of this fleet: {error.certificate_error}") from None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise EnrolmentError(f"{base} cannot be reached: {error or type(error).__name__}") from None
    except FormatError as error:
        raise EnrolmentError(str(error)) from None


def _sentence(data: bytes) -> str:
    try:
        return msgspec.json.decode(data, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data[:200].decode("utf-8", "replace").strip()
