"""The table of fuzz targets: which parser reads hostile bytes, and the function that feeds it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
"""A folder for each target: inputs that reach deep, and those that once found something."""


@dataclass(frozen=True, slots=True)
class Target:
    """One function that takes any bytes and raises only if something is wrong.

    `where` is "module:function", imported late, so that a fuzzer can instrument what it imports. `words` are byte
    strings that the format is made of; `longest` is the length in bytes of the longest input worth trying.
    """

    name: str
    where: str
    about: str
    words: tuple[bytes, ...] = ()
    longest: int = 4096

    @property
    def corpus(self) -> Path:
        """Where its inputs are kept."""
        return CORPUS / self.name

    def load(self) -> Callable[[bytes], None]:
        """The function."""
        module, _, name = self.where.partition(":")
        found: Callable[[bytes], None] = getattr(importlib.import_module(module), name)
        return found


_JSON = (b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"-1", b"1e308", b"\\ud800", b"\\u0000")
_PATH = b"/t/clip/0123456789abcdef0123456789abcdef/v1.mp4"
_TOML = (b"[[", b"]]", b"[", b"]", b'"""', b"=", b"{", b"}", b"\n", b"1979-05-27T07:32:00Z", b"0x", b"inf", b"nan")
_ALL = (
    Target(
        "range",
        "tests.fuzz.requests:byte_ranges",
        "Range header, against a slow reference (oca/ranges.py)",
        (b"bytes=", b"-", b",", b" ", b"\t"),
        512,
    ),
    Target(
        "preconditions",
        "tests.fuzz.requests:preconditions",
        "If-Match and its kin, dates (oca/conditional.py)",
        (b'W/"', b'"', b"*", b", ", b" GMT", b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT"),
        1024,
    ),
    Target(
        "cmcd",
        "tests.fuzz.requests:cmcd",
        "a player's rtp in a request head (oca/pacing.py)",
        (b"?CMCD=", b"&CMCD=", b"\r\nCMCD-Status:", b"rtp=", b"rtp%3D", b"%2C", b","),
        16384,
    ),
    Target(
        "request-head",
        "tests.fuzz.connection:requests",
        "bytes of a client through a connection of a real server (oca/connection.py, oca/framing.py, oca/answer.py)",
        (
            b"GET ",
            b"HEAD ",
            b"OPTIONS ",
            _PATH,
            b" HTTP/1.1\r\n",
            b"Host: a.example\r\n",
            b"\r\n",
            b"Content-Length: ",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"Range: bytes=",
            b"If-None-Match: *\r\n",
            b"Upgrade: h2c\r\n",
        ),
    ),
    Target(
        "token-found",
        "tests.fuzz.tokens:found_in_request",
        "where a request carries its token (oca/gate.py)",
        (b"/c/", b"?CAT=", b"&CAT=", b"%3D", b"=", b";CTA-Common-Access-Token="),
        1024,
    ),
    Target(
        "token",
        "tests.fuzz.tokens:token",
        "the text of a token: base64url, COSE, signature (oca/tokenkeys.py)",
    ),
    Target(
        "claims",
        "tests.fuzz.tokens:claims",
        "the claims of a token that is sealed with a good key (oca/token.py)",
        (b"\xd8\x34", b"\xd8\x36", b"\x19\x01\x38", b"\x19\x01\x37", b"\x19\x01\x3c", b"\xc4\x82", b"\xfb", b"\x7f"),
        1024,
    ),
    Target(
        "title",
        "tests.fuzz.content:title_json",
        "title.json (oca/title.py)",
        (*_JSON, b"[]", b'"chunks"', b'"bytes"', b'"periods"'),
    ),
    Target(
        "segment-index",
        "tests.fuzz.content:segment_index",
        "the .idx file of a track (oca/segments.py)",
        (b"OCAIDX1\x00",),
        1024,
    ),
    Target(
        "mp4",
        "tests.fuzz.content:mp4",
        "what an encoder left: boxes, tables, codec (packager/mp4.py, packager/codecs.py)",
        tuple(b"moov trak mdia minf stbl stsd stsz stsc stco co64 stts ctts stss edts elst avcC esds".split()),
    ),
    Target(
        "message",
        "tests.fuzz.messages:message",
        "every message between box and controller (oca/wire.py, oca/wire_enrolment.py)",
        _JSON,
    ),
    Target(
        "bulk",
        "tests.fuzz.messages:bulk",
        "an inventory in an lz4 frame (oca/wire.py)",
        (b"\x04\x22\x4d\x18", b"\x00\x00\x00\x00", *_JSON),
    ),
    Target(
        "neighbours",
        "tests.fuzz.messages:neighbours_file",
        "the file of neighbours, and redirects to them (oca/neighbours.py, oca/hops.py)",
        _JSON,
    ),
    Target(
        "redirect",
        "tests.fuzz.messages:redirect",
        "the query of a request that is redirected (oca/hops.py)",
        (b"oca-hops=", b"&", b",", b"a", b"%0d%0a"),
        512,
    ),
    Target("errand", "tests.fuzz.messages:errands", "between worker and puller (oca/errand.py)", (), 1024),
    Target(
        "forwarded",
        "tests.fuzz.messages:forwarded",
        "X-Forwarded-For (control/http.py)",
        (b"127.0.0.1", b"::1", b"192.0.2.1", b",", b"\n"),
        512,
    ),
    Target("settings", "tests.fuzz.operators:settings", "settings of boxes and controllers (oca/config.py)", _TOML),
    Target("token-keys", "tests.fuzz.operators:token_keys", "the file of token keys (oca/tokenkeys.py)", _TOML),
    Target(
        "coverage",
        "tests.fuzz.operators:zones",
        "coverage zone file (control/coverage.py)",
        (*_JSON, b'"coverageZones"', b'"network6"', b"::ffff:", b"/0"),
    ),
    Target(
        "cpix",
        "tests.fuzz.operators:cpix_document",
        "a CPIX document: keys, rules, boxes (packager/cpix.py)",
        tuple(
            b'<CPIX xmlns="urn:dashif:org:cpix"> <ContentKey <ContentKeyUsageRule <DRMSystem <VideoFilter '
            b'<AudioFilter <BitrateFilter <LabelFilter <PSSH> <p:PlainValue> kid=" systemId=" minPixels=" maxFps=" '
            b'hdr="true" '
            b"<!DOCTYPE <!ENTITY <![CDATA[ &amp; &#x0; />".split(b" ")
        ),
    ),
    Target(
        "demand",
        "tests.fuzz.operators:imported_demand",
        "imported demand, CSV or JSON lines (control/demand.py)",
        (b"time,region,title,views", b",", b'"', b"\n", b"T", b"Z", b"+23:59", b"1e9", b"inf", b"nan", *_JSON),
    ),
)
TARGETS = {target.name: target for target in _ALL}
