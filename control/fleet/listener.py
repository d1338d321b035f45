"""The controller's listener for TLS: a certificate of its own, issued by the fleet's authority and renewed by itself.

Files in the state directory beside the authority's: `controller.key`, `controller.pem`.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from msgspec import Meta

from control.fleet.authority import Authority, host_name
from oca.errors import ConfigError
from oca.store import keyfile
from oca.trust import peers
from oca.trust.identity import Identity, ServerContext
from oca.wire import Url

_ADDRESS = r"^((\[[0-9a-fA-F:.]+\]|[^\s:\[\]]+):[0-9]{1,5})?\Z"


class TlsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[tls]: the same API over TLS, where appliances prove who they are."""

    listen: Annotated[
        str, Meta(pattern=_ADDRESS, description="address and port, such as 0.0.0.0:8443; '' for no TLS")
    ] = ""
    urls: Annotated[
        tuple[Url, ...],
        Meta(description="where appliances reach the controllers, https:// only; if empty, public_url's host"),
    ] = ()
    state: Annotated[
        str, Meta(min_length=1, description="directory of the fleet's authority; all controllers have the same")
    ] = "/var/lib/oca-control"
    required: Annotated[
        bool, Meta(description="whether appliances without a certificate are refused, on every listener")
    ] = False

    def __post_init__(self) -> None:
        """ValueError if a URL is not one of TLS."""
        for url in self.urls:
            if not url.startswith("https://") or host_name(url) is None:
                raise ValueError(f"{url} is not an https:// URL with a host name or an address")


def reached_at(settings: TlsSettings, public_url: str) -> tuple[str, ...]:
    """Where appliances reach the controllers over TLS."""
    if settings.urls:
        return settings.urls
    host = urlsplit(public_url).hostname or ""
    bracketed = f"[{host}]" if ":" in host else host
    return (f"https://{bracketed}:{settings.listen.rpartition(':')[2]}",)


class Listener:
    """What the TLS listener shows and whom it trusts. `now` in UTC seconds; ConfigError says which file is wrong."""

    def __init__(self, state: Path, authority: Authority, urls: Sequence[str], now: float) -> None:
        self._authority = authority
        self._urls = urls
        self._identity = Identity(state / "controller.key", state / "controller.pem", state / "authority.pem")
        self._renew(now)
        self._server = ServerContext(self._identity, ("appliance",), required=False)

    @property
    def context(self) -> ssl.SSLContext:
        """What connections are accepted with; it stays the same when certificates are renewed."""
        return self._server.context

    def refresh(self, now: float) -> bool:
        """Renew the certificate if that is due, and take up files that have changed; whether anything had."""
        self._authority.refresh()
        self._renew(now)
        return self._server.refresh()

    def _renew(self, now: float) -> None:
        try:
            key = keyfile.load(self._identity.key)
            if key is None:
                keyfile.write_once(self._identity.key, keyfile.pem(keyfile.new()), 0o600)
                key = keyfile.load(self._identity.key)
                assert key is not None
            if not self._good(key, now):
                issued = self._authority.issue_controller(key.public_key(), self._urls, now)
                keyfile.write(self._identity.certificate, issued.pem.encode(), 0o644)
        except OSError as error:
            raise ConfigError(
                f"cannot keep the controller's certificate {self._identity.certificate}: {error.strerror}"
            ) from None

    def _good(self, key: keyfile.PrivateKey, now: float) -> bool:
        """Whether the certificate that is there may stay: of this key, these names, this authority, and young."""
        try:
            leaf = self._identity.leaf()
        except ConfigError:
            return False
        peer = peers.of_certificate(leaf) if leaf is not None else None
        if leaf is None or peer is None or peers.refusal(peer, ("controller",), now):
            return False
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        wanted = {name for name in map(host_name, self._urls) if name is not None}
        return (
            peers.fingerprint(leaf.public_key()) == peers.fingerprint(key.public_key())
            and peers.chained(leaf, self._authority.trusted[:1])
            and wanted <= set(names)
            and now < peers.renew_at(peer.begins, peer.ends, peer.serial)
        )
