"""Why a connection ended or a request was refused: one table for log, metrics and documentation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """`name` is the metric label and log value; `fault` is who is to look into it: "client", "server" or "none"."""

    name: str
    fault: str
    words: str


CLIENT_CLOSED = Reason("client-closed", "none", "the client closed the connection between requests")
CLIENT_GONE = Reason("client-gone", "none", "the client went away before it had the whole response")
ASKED = Reason("asked", "none", "the request asked to close after the response (RFC 9112 9.6)")
REFUSED = Reason("refused", "client", "a request that cannot be framed safely was answered with 4xx or 5xx")
IDLE = Reason("idle", "none", "no new request within the idle time")
HEADER_TIMEOUT = Reason("header-timeout", "client", "a request head was not complete within the header time")
HANDSHAKE_FAILED = Reason("handshake-failed", "client", "the TLS handshake failed")
HANDSHAKE_TIMEOUT = Reason("handshake-timeout", "client", "the TLS handshake was not done within its time")
SLOW_READER = Reason("slow-reader", "client", "the client took the response slower than the minimum rate")
TRUNCATED = Reason("truncated", "server", "a file in the store ended before its recorded length")
READ_ERROR = Reason("read-error", "server", "the disk failed while a file was being sent")
STARVED = Reason("starved", "server", "a disk or another box did not give the content in time")
UPSTREAM_FAILED = Reason("upstream-failed", "server", "another box failed while its content was being passed on")
TOO_MANY_CONNECTIONS = Reason("too-many-connections", "server", "this box has as many connections as it may have")
TOO_MANY_FROM_CLIENT = Reason(
    "too-many-from-client", "client", "this address has as many connections here as one client may have"
)
TOO_MANY_BYTES = Reason(
    "too-many-bytes", "server", "as many bytes wait for their readers as this box may have waiting"
)
TOO_OFTEN = Reason("too-often", "client", "this client, or this token, asks more often than it may")
NOT_ALLOWED = Reason("not-allowed", "client", "the request has no token that allows it")
REVOKED = Reason("revoked", "client", "the certificate of the box that made it is trusted no longer")
SHUTDOWN = Reason("shutdown", "none", "the server is stopping")

ALL = (
    CLIENT_CLOSED,
    CLIENT_GONE,
    ASKED,
    REFUSED,
    IDLE,
    HEADER_TIMEOUT,
    HANDSHAKE_FAILED,
    HANDSHAKE_TIMEOUT,
    SLOW_READER,
    TRUNCATED,
    READ_ERROR,
    STARVED,
    UPSTREAM_FAILED,
    TOO_MANY_CONNECTIONS,
    TOO_MANY_FROM_CLIENT,
    TOO_MANY_BYTES,
    TOO_OFTEN,
    NOT_ALLOWED,
    REVOKED,
    SHUTDOWN,
)
