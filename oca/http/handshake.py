"""A connection before it is one: the TLS handshake, step by step as the client's messages arrive."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from oca.http import reasons
from oca.http.answer import refuse
from oca.http.reasons import Reason
from oca.http.secure import Secure

if TYPE_CHECKING:
    from oca.http.certificates import Certificates
    from oca.http.server import Server

ALERT = bytes((21, 3, 3, 0, 2, 2, 80))
"""A fatal alert, internal_error (RFC 8446 6.2): how a client is turned away before anything is agreed."""


class Handshake:
    """Has the same times and ends as a connection, and becomes one through `Server.welcome`."""

    __slots__ = ("_deadline", "_fd", "_secured", "_server", "_socket", "_tls", "_writing", "client", "of_fleet")

    def __init__(self, server: Server, tls: Certificates, sock: socket.socket, client: str) -> None:
        self._server = server
        self._tls = tls
        self._socket = sock
        self._secured: ssl.SSLSocket | None = None
        self._fd = sock.fileno()
        self.client = client
        self.of_fleet = False
        """Whether the client is another box: then it has proved which when the handshake is done."""
        self._writing = False
        self._deadline = server.now + tls.settings.handshake_s

    @property
    def idle(self) -> bool:
        """A client that has come this far gets its answer."""
        return False

    def begin(self) -> None:
        """Wait for the client's first message; it is usually there."""
        self._server.loop.add_reader(self._fd, self._step)
        self._step()

    def _secure(self) -> ssl.SSLSocket:
        """The socket as TLS has it, from the client's first message on; BlockingIOError before."""
        if self._secured is None:
            entrance = self._tls.entrance
            of_fleet = entrance.wrap(self._socket) if entrance is not None else None
            self.of_fleet = of_fleet is not None
            self._socket = self._secured = of_fleet or self._tls.wrap(self._socket)
        return self._secured

    def _step(self) -> None:
        try:
            secured = self._secure()
            secured.do_handshake()
        except (ssl.SSLWantReadError, BlockingIOError):
            self._want_to_write(False)
        except ssl.SSLWantWriteError:
            self._want_to_write(True)
        except ssl.SSLCertVerificationError:
            self.close(reasons.HANDSHAKE_FAILED)
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                self._send_to_https()
            else:
                self.close(reasons.HANDSHAKE_FAILED)
        except OSError:
            self.close(reasons.CLIENT_GONE)
        else:
            # The connection takes the reader over: a new one would cost as much as the rest of what we do here.
            self._want_to_write(False)
            self._fd = -1
            self._server.welcome(self, secured, Secure(secured, self._tls.kernel and not self.of_fleet))

    def _want_to_write(self, wanted: bool) -> None:
        if wanted != self._writing:
            self._writing = wanted
            if wanted:
                self._server.loop.add_writer(self._fd, self._step)
            else:
                self._server.loop.remove_writer(self._fd)

    def _leave(self) -> None:
        self._want_to_write(False)
        self._server.loop.remove_reader(self._fd)
        self._fd = -1

    def _send_to_https(self) -> None:
        """A client that speaks HTTP in clear is told so in its own words."""
        self._leave()
        given = refuse(400, "this port speaks HTTPS only: use an https URL", self._server.date)
        self._server.counters.status(400)
        self._server.forget(self, reasons.HANDSHAKE_FAILED)
        clear = socket.socket(fileno=self._socket.detach())
        clear.setblocking(False)  # a fresh object does not know that its socket does not block
        self._server.part(clear, given)

    def expire(self, now: float) -> None:
        """Called by the sweep: end what has taken too long."""
        if now >= self._deadline:
            self.close(reasons.HANDSHAKE_TIMEOUT)

    def close(self, reason: Reason) -> None:
        """End it now; closing a closed one does nothing."""
        if self._fd >= 0:
            self._leave()
            self._socket.close()
            self._server.forget(self, reason)
