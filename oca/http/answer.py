"""The answer to one request: status, head and the parts of the body, decided without any input or output.

Every branch of HTTP semantics lives here and nowhere else (RFC 9110, 9111, 9112); plain and encrypted
connections, hot and cold content all send what this module decides.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from http import HTTPStatus

from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage

from oca.http import ranges, reasons
from oca.http.access import Access, Verdict
from oca.http.conditional import evaluate, range_applies
from oca.http.gate import FIELD
from oca.http.rates import retry_after
from oca.http.slices import CORS, Descriptor, NotLoadedError, Slice, Slices, place_of

Part = bytes | tuple[Descriptor, int, int]
"""Bytes to send as they are, or an open file with offset and length."""

# RFC 9110 7.2, RFC 3986 3.2: reg-name or IPv4, or a bracketed IPv6 address, and a port; no userinfo.
_HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)([^#]*)", re.IGNORECASE)
# RFC 9110 4.1 asks for room for a target of at least 8000 bytes.
MAX_LINE = 8190
OK = b"HTTP/1.1 200 OK\r\n"
_METHODS = "GET, HEAD, OPTIONS"
# Header fields that make a GET more than a plain one.
_SPECIAL = frozenset(
    (
        "range",
        "if-range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "content-length",
        "transfer-encoding",
    )
)
_PREFLIGHT = (
    f"Allow: {_METHODS}\r\nAccess-Control-Allow-Methods: {_METHODS}\r\n"
    "Access-Control-Allow-Headers: Range, If-Range, If-None-Match, If-Modified-Since, "
    f"CMCD-Object, CMCD-Request, CMCD-Session, CMCD-Status, {FIELD}\r\n"
    f"Access-Control-Max-Age: 86400\r\n{CORS}"
)


@dataclass(slots=True)
class Answer:
    """What to send. `close`: the connection ends after it. `slice`: what was asked for, if it is held."""

    status: int
    head: bytes
    parts: list[Part]
    close: bool
    slice: Slice | None = None
    problem: str = ""
    """What is wrong with the store, for the log; the client gets a plain 500."""
    missed: Missed | None = None
    """Of a 404: what another box could be asked for."""
    unsure: bool = False
    """Of a 404: whether the disk has not been asked yet."""
    refused: str = ""
    """The name of the limit, or what is wrong with the token, that speaks against serving it; for the log."""
    plain: bool = False
    """Whether another GET with the very same fields is answered alike: `OK`, Date, head, and all of its slice."""


@dataclass(slots=True)
class Missed:
    """A well-formed GET or HEAD for content that is not held here, so that it can be answered in another way."""

    message: RawRequestMessage
    target: str
    """Path and query, as asked for."""
    path: str
    """Of the content: without query, and without the token in front of it."""
    lead: bytes
    """The lines that every answer to it has: Date, and Connection where needed."""
    close: bool

    def serve(self, found: Slice) -> Answer:
        """The answer if the content has been found after all."""
        return _content(self.message, found, self.lead, self.close)

    def redirect(self, location: str) -> Answer:
        """A redirect for now: the next request for it comes here again (RFC 9110 15.4.3)."""
        extra = f"Location: {location}\r\n"
        head, parts = _error(302, f"held at {location}", self.lead, b"", self.message.method, extra)
        return Answer(302, head, parts, self.close)

    def fail(self, status: int, sentence: str, problem: str = "") -> Answer:
        """An error: 404 if nobody holds it, 504 if those who do did not answer (RFC 9110 15.6.5), 500 if our store
        has the `problem`, which is for the log and not for the client."""
        head, parts = _error(status, sentence, self.lead, b"", self.message.method)
        return Answer(status, head, parts, self.close, problem=problem)


def answer(
    message: RawRequestMessage,
    slices: Slices,
    date: bytes,
    *,
    last: bool = False,
    access: Access | None = None,
    client: str = "",
) -> Answer:
    """Decide the answer to a parsed request head.

    `date` is the line `Date: ...` with its end of line; `last` closes the connection after this answer. `access`
    says whether `client` may have what it asks for.
    """
    version, method = message.version, message.method
    headers = message.headers
    hosts = headers.getall("Host", ())
    # RFC 9112 3.2: 400 to a 1.1 request without Host, with more than one, or with an invalid one.
    if len(hosts) != 1 and (hosts or version == HttpVersion11):
        return refuse(400, "a request must have exactly one Host field", date)
    if hosts and not _HOST.fullmatch(hosts[0]):
        return refuse(400, "the Host field is not a host", date)
    target = message.path
    if not target.startswith("/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:  # RFC 9112 3.2.2: a server must accept the absolute form
            target = absolute[2] or "/"
        elif not (target == "*" and method == "OPTIONS"):  # RFC 9112 3.2.4
            return refuse(400, "the request target is neither a path nor a URL", date)
    special = not _SPECIAL.isdisjoint(name.lower() for name in headers)
    if special and ("Content-Length" in headers or "Transfer-Encoding" in headers):
        refused = _refuse_body(message, date)
        if refused is not None:
            return refused
    keep = b"" if version == HttpVersion11 else b"Connection: keep-alive\r\n"
    close = last or message.should_close
    if close:
        keep = b"Connection: close\r\n"
    if method == "OPTIONS":
        head = b"HTTP/1.1 204 No Content\r\n" + date + keep + _PREFLIGHT.encode() + b"\r\n"
        return Answer(204, head, [], close)
    if method not in ("GET", "HEAD"):
        # RFC 9110 15.5.6. Closing spares us reading a body that nobody wants.
        return refuse(405, f"this server answers {_METHODS}", date, f"Allow: {_METHODS}\r\n")
    verdict = Verdict(target) if access is None else access.judge(message, target, client)
    if verdict.late:
        extra = f"Retry-After: {retry_after(verdict.late)}\r\n"
        head, parts = _error(429, reasons.TOO_OFTEN.words, date, keep, method, extra)
        return Answer(429, head, parts, close, refused=reasons.TOO_OFTEN.name)
    if verdict.why:
        head, parts = _error(403, "a token is needed that allows this", date, keep, method)
        return Answer(403, head, parts, close, refused=f"{reasons.NOT_ALLOWED.name}: {verdict.why}")
    path, unsure = verdict.target.partition("?")[0], False
    try:
        found = slices.at_hand(path)
    except NotLoadedError:
        found, unsure = None, True
    if found is None:
        head, parts = _error(404, "no such content is held here", date, keep, method)
        missed = Missed(message, target, path, date + keep, close) if place_of(path) is not None else None
        return Answer(404, head, parts, close, missed=missed, unsure=unsure)
    if special:
        return _conditional(message, found, date + keep, close)
    plain = verdict.again and method == "GET" and not keep
    return Answer(200, OK + date + keep + found.head, _body(found, method), close, found, plain=plain)


def _content(message: RawRequestMessage, found: Slice, lead: bytes, close: bool) -> Answer:
    """A GET or HEAD for content that is there."""
    if not _SPECIAL.isdisjoint(name.lower() for name in message.headers):
        return _conditional(message, found, lead, close)
    return Answer(200, OK + lead + found.head, _body(found, message.method), close, found)


def _body(found: Slice, method: str) -> list[Part]:
    return [(found.descriptor, found.offset, found.length)] if method == "GET" and found.length else []


def _conditional(message: RawRequestMessage, found: Slice, lead: bytes, close: bool) -> Answer:
    """A GET or HEAD with preconditions or a range, for content that is held."""
    headers, method = message.headers, message.method
    verdict = evaluate(
        found.etag,
        found.modified,
        if_match=headers.getall("If-Match", ()),
        if_none_match=headers.getall("If-None-Match", ()),
        if_modified_since=headers.getall("If-Modified-Since", ()),
        if_unmodified_since=headers.getall("If-Unmodified-Since", ()),
    )
    if verdict == "not modified":
        # RFC 9110 15.4.5: the validators and caching fields a 200 would have had; 8.6: and its length.
        fields = f"Content-Length: {found.length}\r\n{found.fields}\r\n"
        return Answer(304, b"HTTP/1.1 304 Not Modified\r\n" + lead + fields.encode(), [], close, found)
    if verdict == "failed":
        head, parts = _error(412, "the content is not what the precondition says", lead, b"", method)
        return Answer(412, head, parts, close, found)
    asked: ranges.Asked = None
    listed = headers.getall("Range", ())
    # RFC 9110 14.2: Range counts for GET only, and after all preconditions but If-Range held. Two Range lines
    # would be one malformed list, so they are ignored like any malformed one.
    if (
        method == "GET"
        and len(listed) == 1
        and range_applies(headers.getall("If-Range", ()), found.etag, found.modified)
    ):
        asked = ranges.parse(listed[0], found.length)
    if asked is None:
        parts = _body(found, method)
        return Answer(200, OK + lead + found.head, parts, close, found)
    if asked == "unsatisfiable":  # RFC 9110 15.5.17
        extra = f"Content-Range: bytes */{found.length}\r\n"
        head, parts = _error(416, "none of the ranges asked for can be sent", lead, b"", method, extra)
        return Answer(416, head, parts, close, found)
    kind, length, parts = found.content_type, asked[0][1], []
    lines = found.fields
    if len(asked) == 1:  # RFC 9110 15.3.7.1
        offset = asked[0][0]
        lines += f"Content-Range: bytes {offset}-{offset + length - 1}/{found.length}\r\n"
        parts = [(found.descriptor, found.offset + offset, length)]
    else:  # RFC 9110 15.3.7.2
        boundary = uuid.uuid4().hex
        parts = _multipart(found, asked, boundary)
        length = sum(len(part) if isinstance(part, bytes) else part[2] for part in parts)
        kind = f"multipart/byteranges; boundary={boundary}"
    fields = f"Content-Type: {kind}\r\nContent-Length: {length}\r\n{lines}\r\n"
    return Answer(206, b"HTTP/1.1 206 Partial Content\r\n" + lead + fields.encode(), parts, close, found)


def _multipart(found: Slice, spans: list[ranges.Span], boundary: str) -> list[Part]:
    """The body of a multipart/byteranges response (RFC 9110 14.6)."""
    parts: list[Part] = []
    for offset, length in spans:
        last = offset + length - 1
        parts.append(
            f"\r\n--{boundary}\r\nContent-Type: {found.content_type}\r\n"
            f"Content-Range: bytes {offset}-{last}/{found.length}\r\n\r\n".encode()
        )
        parts.append((found.descriptor, found.offset + offset, length))
    parts.append(f"\r\n--{boundary}--\r\n".encode())
    return parts


def refuse(status: int, sentence: str, date: bytes, extra: str = "") -> Answer:
    """An error after which the connection closes, because what follows on it cannot be trusted or is unwanted."""
    head, parts = _error(status, sentence, date, b"Connection: close\r\n", "GET", extra)
    return Answer(status, head, parts, True)


def _refuse_body(message: RawRequestMessage, date: bytes) -> Answer | None:
    """Refuse a body: nothing here takes one, and one on a GET is how requests are smuggled (RFC 9110 9.3.1)."""
    if "Transfer-Encoding" in message.headers and message.version == HttpVersion10:
        return refuse(400, "HTTP/1.0 has no Transfer-Encoding", date)  # RFC 9112 6.1
    if message.method not in ("GET", "HEAD", "OPTIONS"):
        return None  # 405 says more
    if "Transfer-Encoding" in message.headers or message.headers.getall("Content-Length") != ["0"]:
        return refuse(400, f"{message.method} takes no body here", date)
    return None


def _error(
    status: int, sentence: str, date: bytes, keep: bytes, method: str, extra: str = ""
) -> tuple[bytes, list[Part]]:
    """Head and body of an error: a sentence in plain text, never stored by a cache (RFC 9111 5.2.2.5)."""
    body = f"{sentence}\n".encode()
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        + date
        + keep
        + f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{CORS}{extra}\r\n".encode()
    )
    return head, [body] if method != "HEAD" else []
