"""The identity of a box in its fleet: a key, its certificate, and the authorities that it trusts, as files.

TLS between parts of a fleet is TLS 1.3 with certificates on both sides. Who is meant is told by the certificate's URI
(`oca.trust.peers`), not by host names: a box proves which box it is, wherever it is reached. Nothing is resumed, so
every connection proves it anew.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from oca.errors import ConfigError, FormatError
from oca.store import keyfile
from oca.trust import peers
from oca.trust.peers import Peer, Role
from oca.trust.revocations import RevocationsFile

Mark = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """Where the files are: a key, the certificate for it, and the authorities, all in PEM form."""

    key: Path
    certificate: Path
    authorities: Path

    @classmethod
    def of(cls, folder: Path, name: str = "appliance", authorities: str = "authorities") -> Identity:
        """The files of a directory, as `oca enrol` writes them."""
        return cls(folder / f"{name}.key", folder / f"{name}.pem", folder / f"{authorities}.pem")

    @property
    def next_key(self) -> Path:
        """Where a key waits for its certificate while another is in use."""
        return self.key.with_suffix(".key.next")

    @property
    def revoked(self) -> Path:
        """Where it is written whom to trust no longer (`oca.trust.revocations`)."""
        return self.certificate.with_name("revoked.json")

    def mark(self) -> Mark:
        """Changes when one of the files is written or replaced."""
        found = []
        for path in (self.key, self.certificate, self.authorities):
            try:
                stat = path.stat()
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                found.append((0, 0, 0))
        return tuple(found)

    def leaf(self) -> x509.Certificate | None:
        """The certificate, None if there is none yet; ConfigError if the file is no good."""
        try:
            return peers.certificates(self.certificate.read_bytes(), str(self.certificate))[0]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"cannot read the certificate {self.certificate}: {error.strerror}") from None
        except FormatError as error:
            raise ConfigError(f"{error}: enrol this box again") from None

    def settle(self) -> None:
        """Finish what a power cut interrupted: a new certificate is there, and its key still waits beside the old.

        ConfigError if a key cannot be read.
        """
        leaf, waiting = self.leaf(), keyfile.load(self.next_key)
        if leaf is None or waiting is None:
            return
        if peers.fingerprint(waiting.public_key()) == peers.fingerprint(leaf.public_key()):
            try:
                self.next_key.rename(self.key)
            except OSError as error:
                raise ConfigError(f"cannot replace the key {self.key}: {error.strerror}") from None


def _checking(context: ssl.SSLContext, roles: Sequence[Role], revoked: Callable[[Peer], bool]) -> None:
    """Let no handshake end well that is with another role or with the revoked: before a byte of content passes."""

    def check(connection: ssl.SSLObject | ssl.SSLSocket) -> None:
        why = peers.refusal(presented(connection), roles, time.time(), revoked)
        if why:
            raise ssl.SSLCertVerificationError(1, why)

    class Object(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self)

    class Socket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            check(self)

    context.sslobject_class = Object
    context.sslsocket_class = Socket


def _context(protocol: int, authorities: str) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_verify_locations(cadata=authorities)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"the authorities to trust are not certificates: {error}") from None
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def trusting(authorities: str, roles: Sequence[Role] = ("controller",)) -> ssl.SSLContext:
    """A client's context that shows no certificate, and trusts these authorities (PEM) alone. ConfigError."""
    return _trusting(authorities, roles, lambda _: False)


def _trusting(authorities: str, roles: Sequence[Role], revoked: Callable[[Peer], bool]) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_CLIENT, authorities)
    _checking(context, roles, revoked)
    return context


def client_context(identity: Identity, roles: Sequence[Role] = ("controller", "appliance")) -> ssl.SSLContext:
    """A client's context: shows the certificate of this identity, talks to these roles of its fleet only.

    ConfigError says which file is missing or wrong. Make another when `identity.mark()` changes: connections that
    are open keep what they have agreed on.
    """
    context = _trusting(_authorities(identity), roles, RevocationsFile(identity.revoked))
    _show(context, identity)
    return context


class Proof:
    """What a program that runs on shows to `roles`: the certificate of its box, and always the newest one.

    A box that is not enrolled shows nothing, and trusts whom the system trusts.
    """

    def __init__(self, identity: Identity, roles: Sequence[Role] = ("controller",)) -> None:
        self._identity = identity
        self._roles = roles
        self._mark: Mark = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext | bool:
        """The `ssl` of an aiohttp request. ConfigError if the files are no good and never were."""
        mark = self._identity.mark()
        if mark != self._mark:
            self._mark = mark
            try:
                enrolled = self._identity.leaf() is not None
                self._context = client_context(self._identity, self._roles) if enrolled else None
            except ConfigError:
                # Files that are just being replaced are looked at again when they change.
                if self._context is None:
                    raise
        return self._context or True


class ServerContext:
    """What a server of the fleet accepts connections with. `context` stays the same when files change.

    With `required`, whoever has no certificate of the fleet, or one of another role, does not get through the
    handshake. Without, who has none gets through and has to be told apart by `peer`.
    """

    def __init__(self, identity: Identity, roles: Sequence[Role], *, required: bool) -> None:
        self._identity = identity
        self._required = required
        self._mark = identity.mark()
        self._current = self.context = self._make()
        if required:
            _checking(self.context, roles, RevocationsFile(identity.revoked))
        # Asked at every handshake, whether the client names a host or not.
        self.context.sni_callback = self._choose

    def refresh(self) -> bool:
        """Take up files that have changed; whether any had. ConfigError: they are no good, and the old ones stay."""
        mark = self._identity.mark()
        if mark == self._mark:
            return False
        self._mark = mark
        self._current = self._make()
        return True

    def _make(self) -> ssl.SSLContext:
        context = _context(ssl.PROTOCOL_TLS_SERVER, _authorities(self._identity))
        context.num_tickets = 0
        if not self._required:
            context.verify_mode = ssl.CERT_OPTIONAL
        _show(context, self._identity)
        return context

    def _choose(self, connection: ssl.SSLSocket | ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        if self._current is not self.context:
            connection.context = self._current


def server_context(identity: Identity, roles: Sequence[Role] = ("appliance", "controller")) -> ServerContext:
    """A server's context that talks to these roles of its fleet only. ConfigError says which file is wrong."""
    return ServerContext(identity, roles, required=True)


def presented(connection: Any) -> Peer | None:
    """Who the other end has proved to be, None if nobody of the fleet or if there is no TLS (`connection` None)."""
    if not isinstance(connection, ssl.SSLObject | ssl.SSLSocket):
        return None
    try:
        return peers.of_fields(connection.getpeercert())
    except ValueError:
        # The handshake is not done.
        return None


def peer(connection: Any) -> str | None:
    """Id of the appliance at the other end of a TLS connection, None if it has not proved to be one."""
    found = presented(connection)
    return found.id if found is not None and found.role == "appliance" else None


def _authorities(identity: Identity) -> str:
    try:
        return identity.authorities.read_text("ascii")
    except UnicodeDecodeError:
        raise ConfigError(f"{identity.authorities} holds no certificates in PEM form") from None
    except OSError as error:
        raise ConfigError(f"cannot read the fleet's authorities {identity.authorities}: {error.strerror}") from None


def _show(context: ssl.SSLContext, identity: Identity) -> None:
    """Give a context the certificate to show."""
    leaf, keys = identity.leaf(), (identity.key, identity.next_key)
    if leaf is None:
        raise ConfigError(f"there is no certificate {identity.certificate}: enrol this box with `oca enrol`")
    wanted = peers.fingerprint(leaf.public_key())
    for path in keys:
        # After a power cut the key of a new certificate may still have the name under which it waited.
        key = keyfile.load(path)
        if key is not None and peers.fingerprint(key.public_key()) == wanted:
            break
    else:
        raise ConfigError(
            f"{identity.key} is missing, or not the key of {identity.certificate}: enrol this box again"
        )
    try:
        context.load_cert_chain(identity.certificate, path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"the key {path} cannot be used with {identity.certificate}: {error}") from None
