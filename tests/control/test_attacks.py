"""Hostile clients of the controller, over raw sockets: each gets one refusal or less, all others are served."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest

from control import http, patience
from oca import wire
from oca.wire import HeldTracks, Inventory
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import NORTH, SOUTH, Desk, Start

EVIL = b"GET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
POST = b"POST /api/v1/demand HTTP/1.1\r\nHost: a\r\n"
CLOSING = POST + b"Connection: close\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n"
VERSION = "0" * 32


@pytest.fixture
async def site(start: Start, make_title: MakeTitle, tmp_path: Path) -> tuple[Desk, MadeTitle]:
    """A controller with a title on two boxes; this machine is no proxy that it trusts."""
    desk, made = await start(), make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(made)
    for name in ("north-1", "south-1"):
        await desk.box(name, name.partition("-")[0])
        await desk.tell(name, (made, "v1 a1"))
    return desk, made


async def say(desk: Desk, data: bytes) -> tuple[bytes, bool]:
    """All that comes back to some bytes, and whether the controller ended the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.server.port)
    got = b""
    try:
        async with asyncio.timeout(60):
            writer.write(data)
            while part := await reader.read(1 << 16):
                got += part
    except TimeoutError:
        return got, False
    except ConnectionError:
        pass  # a reset is an end, too
    finally:
        writer.close()
    return got, True


def statuses(data: bytes) -> list[int]:
    """The status of each response; bodies are JSON, so none looks like one."""
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", data)]


async def well(desk: Desk, made: MadeTitle) -> None:
    """Everybody else is served, and nothing was changed."""
    status, body, _ = await desk.answer("GET", "/healthz")
    assert (status, json.loads(body)["titles"], json.loads(body)["appliances"]) == (200, 1, 2)
    assert (await desk.answer("GET", f"{made.url}/v1/1.m4s"))[0] == 302


SMUGGLED = {
    "CL.TE": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE.CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + EVIL + b"0\r\n\r\n",
    "TE twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + EVIL,
    "TE xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + EVIL,
    "TE, space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE behind a bare CR": POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "the same length twice": POST + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n" + EVIL,
    "lengths in a list": POST + b"Content-Length: 0, %d\r\n\r\n" % len(EVIL) + EVIL,
    "length with a plus": POST + b"Content-Length: +%d\r\n\r\n" % len(EVIL) + EVIL,
    "length below nothing": POST + b"Content-Length: -1\r\n\r\n" + EVIL,
    "length in hexadecimal": POST + b"Content-Length: 0x2a\r\n\r\n" + EVIL,
    "length beyond 64 bits": POST + b"Content-Length: 18446744073709551616\r\n\r\n" + EVIL,
    "chunk of nonsense": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + EVIL,
    "chunk below nothing": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + EVIL,
    "chunk in C's hexadecimal": POST + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + EVIL,
    "chunk ended by bare LF": POST + b"Transfer-Encoding: chunked\r\n\r\n0\n\n" + EVIL,
    "LF in a chunk's extension": POST + b"Transfer-Encoding: chunked\r\n\r\n0;a\n=b\r\n\r\n" + EVIL,
    "two Hosts": GET + b"Host: evil.example\r\n\r\n" + EVIL,
    "no Host": b"GET /healthz HTTP/1.1\r\n\r\n" + EVIL,
    "field without a name": GET + b": x\r\n\r\n" + EVIL,
    "field without a colon": GET + b"nothing\r\n\r\n" + EVIL,
    "NUL in a name": GET + b"Content-Length\0: 4\r\n\r\n" + EVIL,
    "NUL in the target": b"GET /healthz?\0 HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "bytes beyond ASCII in the target": b"GET /api/v1/titles/\xff HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "HTTP/0.9": b"GET /healthz\r\n" + EVIL,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EVIL,
    "HTTP/3": b"GET /healthz HTTP/3.0\r\nHost: a\r\n\r\n" + EVIL,
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n" + EVIL,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 100 + EVIL,
    "a method that there is not": b"BREW /healthz HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "star as the target": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "authority as the target": b"GET a.example:80 HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "a line too long": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "a field too long": GET + b"X: " + b"y" * 20_000 + b"\r\n\r\n" + EVIL,
    "thousands of fields": GET + b"X: y\r\n" * 4000 + b"\r\n" + EVIL,
    "a coding that there is not": POST + b"Content-Encoding: br\r\nContent-Length: 4\r\n\r\nxxxx" + EVIL,
    "no gzip at all": POST + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nxxxx" + EVIL,
}


@pytest.mark.parametrize("words", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_nothing_is_smuggled(site: tuple[Desk, MadeTitle], words: bytes) -> None:
    """One refusal, then the connection ends: whatever follows cannot be told from a body, so it is never answered."""
    got, ended = await say(site[0], words)
    assert len(statuses(got)) <= 1, got
    # 404 would be the answer to the evil one.
    assert all(400 <= status < 600 and status != 404 for status in statuses(got))
    assert ended
    await well(*site)


FRAMED = {
    "a body with GET": GET + b"Content-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "TRACE": b"TRACE /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form": b"GET http://evil.example/api/v1/nothing HTTP/1.1\r\nHost: a\r\n\r\n",
    "two slashes": b"GET //evil.example/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots": b"GET /play/clip/../../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "dots in escapes": b"GET /t/clip/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asset elsewhere": b"GET /assets/..%2f..%2fapp.py HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asset that is none": b"GET /assets/.htaccess HTTP/1.1\r\nHost: a\r\n\r\n",
    "a title that is none": b"GET /api/v1/titles/%ff%ed%a0%80%00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a plan in other digits": b"GET /api/v1/plans/%d9%a3 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a plan beyond numbers": b"GET /api/v1/plans/" + b"9" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a limit beyond numbers": b"GET /api/v1/changes?limit=" + b"9" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "an expectation": POST + b"Content-Length: 1\r\nExpect: 200-ok\r\n\r\nx",
}


@pytest.mark.parametrize("words", FRAMED.values(), ids=FRAMED.keys())
async def test_what_follows_a_good_head_is_a_request(site: tuple[Desk, MadeTitle], words: bytes) -> None:
    """Odd, but framed well: one answer, and one to the request behind it. None tells of our files or of our code."""
    got, ended = await say(site[0], words + LAST)
    assert len(statuses(got)) == 2, got
    assert statuses(got)[1] == 200
    assert ended
    assert b"root:" not in got
    assert b"Traceback" not in got
    assert b"import " not in got
    await well(*site)


def bomb(compress: Callable[[bytes], bytes], before: bytes, each: bytes, after: bytes) -> bytes:
    """A body that is a few kilobytes, and one byte more than is allowed when it is unpacked."""
    count = (http.MAX_BODY + 1 - len(before) - len(after)) // len(each) + 1
    return compress(before + each * count + after)


HEAD = b'{"format":1,"appliance":"north-1","generation":"2",'
NESTED = b'{"format":1,"appliance":"north-1","generation":"2","held":' + b"[" * 100_000
INVENTORIES = {
    "a bomb of spaces": lambda: bomb(lz4.frame.compress, b"", b" " * 4096, HEAD + b'"held":[]}'),
    "a bomb of rows": lambda: bomb(
        lz4.frame.compress, HEAD + b'"held":[', b'{"title":"a","version":"%s","tracks":[]},' % VERSION.encode(), b"]}"
    ),
    "no end": lambda: lz4.frame.compress(HEAD + b'"held":[]}')[:-5],
    "a second frame behind": lambda: lz4.frame.compress(HEAD + b'"held":[]}') + lz4.frame.compress(b" " * 1000),
    "nonsense behind": lambda: lz4.frame.compress(HEAD + b'"held":[]}') + b"x" * 100,
    "a size that is a lie": lambda: _lying(HEAD + b'"held":[]}'),
    "no frame": lambda: HEAD + b'"held":[]}',
    "nothing": lambda: b"",
    "deep": lambda: lz4.frame.compress(NESTED),
    "not UTF-8": lambda: lz4.frame.compress(b'{"format":1,"appliance":"north-1","generation":"\xff","held":[]}'),
    "another box": lambda: lz4.frame.compress(HEAD.replace(b"north-1", b"south-1") + b'"held":[]}'),
    "a title elsewhere": lambda: lz4.frame.compress(
        HEAD + b'"held":[{"title":"../x","version":"%s","tracks":[]}]}' % VERSION.encode()
    ),
    "a generation without end": lambda: lz4.frame.compress(
        b'{"format":1,"appliance":"north-1","generation":"' + b"x" * 1000 + b'","held":[]}'
    ),
    "no object": lambda: lz4.frame.compress(b"[]"),
    "numbers that are none": lambda: lz4.frame.compress(HEAD + b'"held":NaN}'),
    "a format of tomorrow": lambda: lz4.frame.compress(b'{"format":1e400}'),
}


def _lying(data: bytes) -> bytes:
    """A frame whose head says that there are 4 GiB in it."""
    frame = bytearray(lz4.frame.compress(data, content_checksum=False, store_size=True))
    frame[6:14] = struct.pack("<Q", 1 << 32)
    return bytes(frame)


@pytest.mark.parametrize("made_of", INVENTORIES.values(), ids=INVENTORIES.keys())
async def test_inventories_that_are_none(site: tuple[Desk, MadeTitle], made_of: Callable[[], bytes]) -> None:
    """Refused in a sentence; what was known of the box stays known."""
    desk, made = site
    said = await desk.ask("PUT", "appliances/north-1/inventory", made_of(), 400)
    assert len(said) < 500
    assert said.isprintable()
    await well(desk, made)
    assert desk.parts.state.held("north-1").generation == "1"


async def test_an_inventory_of_more_than_any_box_has(
    site: tuple[Desk, MadeTitle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows count too, though they hold nothing: each is kept in memory."""
    desk, made = site
    monkeypatch.setattr("control.fleet.boxes._MOST_TRACKS", 3)
    for tracks in ([["a", "b", "c", "d"]], [[], [], [], []], [["a", "b"], ["c", "d"]]):
        held = [HeldTracks(f"t{n}", VERSION, names) for n, names in enumerate(tracks)]
        body = wire.pack(Inventory(appliance="north-1", generation="2", held=held))
        assert "more than the 3 tracks" in await desk.ask("PUT", "appliances/north-1/inventory", body, 400)
    await well(desk, made)


DEEP = b"[" * 100_000
BODIES = {
    "titles, deep": ("POST", "titles", DEEP),
    "titles, no base64": ("POST", "titles", b'{"title_json":"!","indexes":{},"published":1}'),
    "titles, before time": ("POST", "titles", b'{"title_json":"","indexes":{},"published":-1}'),
    "titles, an index elsewhere": ("POST", "titles", b'{"title_json":"","indexes":{"../x":""},"published":1}'),
    "titles, twice the same key": ("POST", "titles", b'{"published":1,"published":"x"}'),
    "appliance, a line end in its id": ("POST", "appliances", b'{"id":"a\\n","site":"n","url":"http://a.example"}'),
    "appliance, elsewhere": ("POST", "appliances", b'{"id":"../a","site":"n","url":"http://a.example"}'),
    "appliance, site with markup": ("POST", "appliances", b'{"id":"a","site":"<b>","url":"http://a.example"}'),
    "appliance, a file": ("POST", "appliances", b'{"id":"a","site":"n","url":"file:///etc/passwd"}'),
    "appliance, a header": ("POST", "appliances", b'{"id":"a","site":"n","url":"http://a\\r\\nSet-Cookie: x"}'),
    "appliance, a path": ("POST", "appliances", b'{"id":"a","site":"n","url":"http://a.example/x"}'),
    "appliance, somebody in front": ("POST", "appliances", b'{"id":"a","site":"n","url":"http://x@a.example"}'),
    "appliance, beyond 64 bits": (
        "POST",
        "appliances",
        b'{"id":"a","site":"n","url":"http://a.example","capacity_bps":9223372036854775808}',
    ),
    "appliance, no number": (
        "POST",
        "appliances",
        b'{"id":"a","site":"n","url":"http://a.example","capacity_bps":NaN}',
    ),
    "demand, no CSV": ("POST", "demand", b"\0" * 1000),
    "demand, for ever": ("POST", "demand", b"time,region,title,views\n9999-12-31T23:00:00Z,a,clip,1e999\n"),
    "demand, less than nothing": ("POST", "demand", b"time,region,title,views\n2026-01-01T00:00:00Z,a,clip,-1\n"),
    "demand, not UTF-8": ("POST", "demand", b"time,region,title,views\n\xff\xfe\n"),
    "coverage, deep": ("PUT", "coverage", b'{"coverageZones":' + DEEP),
    "coverage, no network": ("PUT", "coverage", b'{"coverageZones":{"a":{"network":["999.0.0.0/8"]}}}'),
    "coverage, a zone without end": (
        "PUT",
        "coverage",
        b'{"coverageZones":{"%s":{"network":["10.0.0.0/8"]}}}' % (b"a" * 1000),
    ),
    "plans, wrong types": ("POST", "plans", b'{"dry_run":"yes"}'),
    "fills, an id elsewhere": ("POST", "fills", b'{"appliances":["../a"]}'),
    "heartbeat, no number": (
        "POST",
        "appliances/north-1/heartbeat",
        b'{"format":1,"appliance":"north-1","at":NaN,"started":0,"url":"http://a.example","inventory":"1"}',
    ),
    "heartbeat, an address of somebody's": (
        "POST",
        "appliances/north-1/heartbeat",
        b'{"format":1,"appliance":"north-1","at":0,"started":0,"url":"javascript:x","inventory":"1",'
        b'"storage_bytes":1,"used_bytes":0}',
    ),
    "heartbeat, a long generation": (
        "POST",
        "appliances/north-1/heartbeat",
        b'{"format":1,"appliance":"north-1","at":0,"started":0,"url":"http://a.example","inventory":"%s",'
        b'"storage_bytes":1,"used_bytes":0}' % (b"x" * 200),
    ),
    "enrolment, no CSR": (
        "POST",
        "enrol",
        b'{"format":1,"appliance":"north-1","code":"x","csr":"%s"}' % (b"x" * 20_000),
    ),
}


@pytest.mark.parametrize(("method", "path", "body"), BODIES.values(), ids=BODIES.keys())
async def test_bodies_that_are_none(site: tuple[Desk, MadeTitle], method: str, path: str, body: bytes) -> None:
    """Refused in one printable sentence, and nothing of it is taken."""
    desk, made = site
    status, answer, _ = await desk.answer(method, f"/api/v1/{path}", body)
    assert status in (400, 404, 409), answer
    said = json.loads(answer)["error"]
    assert said.isprintable()
    assert len(said) < 1000
    await well(desk, made)


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)], ids=["gzip", "deflate"]
)
async def test_bombs_in_codings_of_http(
    site: tuple[Desk, MadeTitle], coding: str, compress: Callable[[bytes], bytes]
) -> None:
    """64 KiB that would be more than is allowed are not unpacked to their end."""
    data = bomb(compress, b"", b" " * 4096, b"")
    head = CLOSING + f"Content-Encoding: {coding}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    got, _ = await say(site[0], head + data)
    assert statuses(got)[0] in (400, 413)
    await well(*site)


async def test_more_than_is_allowed(site: tuple[Desk, MadeTitle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Said beforehand it is refused at once; in chunks as soon as it is too much."""
    monkeypatch.setattr(http, "MAX_BODY", 1 << 20)
    monkeypatch.setattr(site[0].app, "_client_max_size", 1 << 20)
    said = POST + b"Content-Length: 10000000000000\r\n\r\nx"
    reader, writer = await asyncio.open_connection("127.0.0.1", site[0].server.port)
    writer.write(said)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 413 ")
    writer.close()
    part = b"%x\r\n%s\r\n" % (1 << 16, b" " * (1 << 16))
    got, _ = await say(site[0], CLOSING + b"Transfer-Encoding: chunked\r\n\r\n" + part * 20 + b"0\r\n\r\n")
    assert statuses(got)[0] == 413
    await well(*site)


async def test_only_proxies_are_believed(site: tuple[Desk, MadeTitle]) -> None:
    """Whoever is no trusted proxy is steered by its own address, whatever it says of itself."""
    desk, _ = site
    fields = (b"X-Forwarded-For", b"Forwarded", b"X-Real-IP", b"True-Client-IP", b"CF-Connecting-IP")
    plain = (await say(desk, LAST.replace(b"/healthz", b"/play/clip/manifest.mpd")))[0]
    for address in (NORTH, SOUTH, "127.0.0.1", "::1", "unknown", "x" * 1000, "1.1.1.1, 2.2.2.2", "%00"):
        for name in fields:
            words = LAST.replace(b"/healthz", b"/play/clip/manifest.mpd")
            said = f"for={address}" if name == b"Forwarded" else address
            got, _ = await say(desk, words.replace(b"Host: a", b"Host: a\r\n" + name + b": " + said.encode()))
            assert got.partition(b"\r\n\r\n")[2] == plain.partition(b"\r\n\r\n")[2], (name, address)


@pytest.mark.parametrize(
    "path",
    [
        "{title}/v1/1.m4s?%0d%0aSet-Cookie:%20x=y",
        "{title}/v1/1.m4s?a=%00%ff%0a",
        '{title}/v1/1.m4s?"<script>evil</script>',
        "{title}/v1/1.m4s?x=\r\n Set-Cookie: x=y",
        "/steer/clip/{version}?_DASH_pathway=%22%0d%0aSet-Cookie:x&_DASH_throughput=1",
        "/steer/clip/{version}?_HLS_pathway=evil%0d%0aSet-Cookie:x",
        "/play/clip/manifest.mpd?CAT=%0d%0aSet-Cookie:x",
        "/api/v1/demand?name=a%0d%0aSet-Cookie:x",
    ],
)
async def test_nothing_that_is_said_comes_back_in_a_head(site: tuple[Desk, MadeTitle], path: str) -> None:
    """In a Location it stays escaped, elsewhere it does not come at all."""
    desk, made = site
    target = path.format(title=made.url, version=made.version)
    for host in ("a", 'evil.example"><script>', "a%0d%0aSet-Cookie:x"):
        got, _ = await say(desk, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        head = got.partition(b"\r\n\r\n")[0]
        assert not re.search(rb"^Set-Cookie", head, re.M | re.I)
        assert len(statuses(got)) <= 1
        assert host == "a" or host.encode() not in got
        assert b"<script>" not in head


async def test_markup_in_the_name_of_a_title(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """It is text on the page."""
    desk = await start()
    made = make_title(tmp_path / "s")
    await desk.register(made)
    title = desk.parts.state.titles["clip"]
    title.name = '</title><script>evil("&")</script>'
    page = (await desk.answer("GET", "/play/clip"))[1]
    assert b"<script>evil" not in page
    assert b"&lt;script&gt;evil(&quot;&amp;&quot;)&lt;/script&gt;" in page


async def _talk(desk: Desk, words: bytes, pause: float) -> bytes:
    """Say this byte by byte, for as long as somebody listens; what came back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.server.port)
    try:
        # A RuntimeError is what uvloop says of a transport that has closed.
        with contextlib.suppress(ConnectionError, RuntimeError):
            for byte in words:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(pause)
                if reader.at_eof():
                    break
            return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()
    return b""


@pytest.mark.long
async def test_heads_that_do_not_come(site: tuple[Desk, MadeTitle], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither at all nor byte by byte: the connection ends. One that has asked before may take its time."""
    desk, made = site
    monkeypatch.setattr(patience, "HEAD_S", 0.3)
    server = desk.server.runner.server
    assert server is not None
    watching = asyncio.create_task(desk.app[patience.HEADS].watch(server))
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.server.port)
    for _ in range(2):
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b'"plan":0}')).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(1)
    writer.close()
    assert await _talk(desk, b"", 0) == b""
    assert await _talk(desk, GET + b"X: " + b"y" * 10_000, 0.01) == b""
    watching.cancel()
    await well(desk, made)


@pytest.mark.long
async def test_bodies_that_do_not_come(site: tuple[Desk, MadeTitle], monkeypatch: pytest.MonkeyPatch) -> None:
    """408, while one that comes in good time is read to its end."""
    desk, made = site
    monkeypatch.setattr(patience, "LOOK_S", 0.2)
    monkeypatch.setattr(patience, "LEAST", 100)
    head = POST + b"Content-Length: 5000\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.server.port)
    writer.write(head)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 408 ")
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", desk.server.port)
    writer.write(head)
    for _ in range(10):
        writer.write(b"x" * 500)
        await asyncio.sleep(0.1)
    assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await well(desk, made)


async def test_who_goes_away_amid_a_body(site: tuple[Desk, MadeTitle], capsys: pytest.CaptureFixture[str]) -> None:
    """That is not the database being away."""
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", site[0].server.port)
        writer.write(POST + b"Content-Length: 5000\r\n\r\nxx")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
    await asyncio.sleep(0.2)
    await well(*site)
    assert "database" not in capsys.readouterr().out


async def test_many_connections_of_one_client(site: tuple[Desk, MadeTitle]) -> None:
    """Hundreds that say nothing hold up nobody."""
    opened = [await asyncio.open_connection("127.0.0.1", site[0].server.port) for _ in range(300)]
    await well(*site)
    for _, writer in opened:
        writer.close()
