"""Boxes among themselves: on the port that viewers use, but with certificates of the fleet on both sides.

A box that asks for the name FLEET (RFC 6066 3) is shown the certificate that `oca enrol` got, not the one for
viewers, and has to show its own. Nobody else asks for that name, which can belong to no host (RFC 6761 6.4), so
viewers see nothing of it, and no port has to be opened for it.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from oca.errors import ConfigError
from oca.trust.identity import Identity, Mark, Proof, ServerContext
from oca.trust.revocations import RevocationsFile

FLEET = "fleet.oca.invalid"
# As it stands in a ClientHello: kind of name, length, name.
_ASKED = b"\0" + len(FLEET).to_bytes(2, "big") + FLEET.encode()
# Where OpenSSL puts it: behind versions, random, session and ciphers, some 200 bytes.
_LOOK = 1024


class Entrance:
    """Where boxes come in; shut while this one is not enrolled. ConfigError says which of its files is wrong."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._mark: Mark = ()
        self._server: ServerContext | None = None
        self.revoked = RevocationsFile(identity.revoked)
        """Whom not to trust, whatever they show."""
        self.refresh()

    def refresh(self) -> bool:
        """Take up files that have changed; whether any had. ConfigError: they are no good, and the old ones stay."""
        self.revoked.read()
        mark = self._identity.mark()
        if mark == self._mark:
            return False
        # Also if they are no good: they are complained of once, and looked at again when they change again.
        self._mark = mark
        if self._identity.leaf() is None:
            self._server = None
        elif self._server is None:
            self._server = ServerContext(self._identity, ("appliance",), required=True)
        else:
            self._server.refresh()
        return True

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket | None:
        """Take over a socket whose client asks for the fleet; None: it does not, or we are shut.

        BlockingIOError as long as the client has said nothing.
        """
        if self._server is None or _ASKED not in sock.recv(_LOOK, socket.MSG_PEEK):
            return None
        return self._server.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)


def proof(identity: Identity, sources: str) -> Proof | None:
    """What this box shows to boxes that it fetches from, given its setting `sources`; None if they may be any."""
    return Proof(identity, ("appliance",)) if sources == "enrolled" else None


def shown(proof: Proof | None, url: str) -> dict[str, Any]:
    """What an aiohttp request to another box at `url` takes besides, so that both prove who they are.

    Nothing without `proof`. ConfigError if that box cannot prove anything, or this one.
    """
    if proof is None:
        return {}
    if not url.startswith("https://"):
        raise ConfigError(f"{url} proves nothing: give that box [[tls.certificates]], or set sources = 'any'")
    context = proof.context()
    if context is True:
        raise ConfigError("this box is not enrolled and can prove nothing: run `oca enrol`")
    return {"ssl": context, "server_hostname": FLEET}
