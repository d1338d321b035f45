"""HTTP semantics of the segment server, over real sockets (RFC 9110, 9112)."""

from __future__ import annotations

import asyncio
import email.utils
import re
import time

import pytest

from oca.http.connection import Connection

DAY = 86_400
MODIFIED = "Tue, 14 Nov 2023 22:13:20 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def secured(request):
    """Every one of these holds over TLS just as it does in clear: there is one HTTP above both."""
    return request.param


@pytest.fixture
async def client(start, make_title):
    running = await start()
    made = make_title(running.root)
    client = await running.connect()
    client.made, client.running = made, running
    return client


async def test_segment_is_the_slice_its_index_says(client):
    """Every segment, the init segment and the whole file are the published bytes."""
    for track, index in client.made.indexes.items():
        for number in range(1, len(index.segments) + 1):
            response = await client.ask(f"{client.made.url}/{track}/{number}.m4s")
            assert (response.status, response.body) == (200, client.made.segment(track, number))
            assert response["Content-Type"] == "video/iso.segment"
        init = await client.ask(f"{client.made.url}/{track}/init.mp4")
        assert init.body == client.made.segment(track, 0)
        whole = await client.ask(f"{client.made.url}/{track}.mp4")
        assert whole.body == client.made.bytes_of(f"{track}.mp4")
        assert whole["Content-Type"] == ("video/mp4" if track[0] == "v" else "audio/mp4")


async def test_a_range_of_the_track_file_is_the_segment(client):
    """Manifests of byte ranges lead to the same bytes as those of segments: the init segment, sidx, each segment."""
    for track, index in client.made.indexes.items():
        whole = client.made.bytes_of(f"{track}.mp4")
        spans = [index.slice(number) for number in range(len(index.segments) + 1)]
        for offset, length in [*spans, (index.init_bytes, 40)]:
            last = offset + length - 1
            response = await client.ask(f"{client.made.url}/{track}.mp4", "GET", f"Range: bytes={offset}-{last}")
            assert (response.status, response.body) == (206, whole[offset : last + 1])
            assert response["Content-Range"] == f"bytes {offset}-{last}/{len(whole)}"
            assert response["Content-Type"] == ("video/mp4" if track[0] == "v" else "audio/mp4")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("manifest.mpd", "application/dash+xml"),
        ("master.m3u8", "application/vnd.apple.mpegurl"),
        ("title.json", "application/json"),
        ("v1.idx", "application/octet-stream"),
    ],
)
async def test_other_files_have_their_types(client, name, kind):
    response = await client.ask(f"{client.made.url}/{name}")
    assert (response.status, response["Content-Type"]) == (200, kind)
    assert response.body == client.made.bytes_of(name)


async def test_content_is_immutable_and_validated(client):
    """Media may be cached for ever, has a strong tag of its own per slice, and the publication time as its date."""
    begun = time.time()
    first = await client.ask(f"{client.made.url}/v1/1.m4s")
    second = await client.ask(f"{client.made.url}/v1/2.m4s")
    assert first["Cache-Control"] == "public, max-age=31536000, immutable"
    assert re.fullmatch(r'"[^"]+"', first["ETag"])
    assert first["ETag"] != second["ETag"]
    assert first["Last-Modified"] == MODIFIED
    assert first["Accept-Ranges"] == "bytes"
    date = email.utils.parsedate_to_datetime(first["Date"]).timestamp()
    assert begun - 60 <= date <= time.time()


async def test_every_response_is_readable_by_pages_from_anywhere(client):
    for path in (f"{client.made.url}/v1/1.m4s", "/t/none"):
        response = await client.ask(path)
        assert response["Access-Control-Allow-Origin"] == "*"
        assert "Content-Range" in response["Access-Control-Expose-Headers"]
        assert response["Timing-Allow-Origin"] == "*"


async def test_preflight(client):
    response = await client.ask(f"{client.made.url}/v1/1.m4s", "OPTIONS", "Access-Control-Request-Headers: range")
    assert response.status == 204
    assert "Content-Length" not in response
    assert response["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"
    assert "CMCD-Session" in response["Access-Control-Allow-Headers"]


async def test_options_for_the_whole_server(client):
    assert (await client.ask("*", "OPTIONS")).status == 204


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
async def test_other_methods_are_refused_with_what_is_allowed(client, method):
    response = await client.ask(f"{client.made.url}/v1/1.m4s", method)
    assert (response.status, response["Allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_head_is_get_without_the_body(client):
    """HEAD has the fields of GET, ignores Range, and the next answer follows at once."""
    path = f"{client.made.url}/v1/2.m4s"
    get = await client.ask(path)
    head = await client.ask(path, "HEAD", "Range: bytes=0-9")
    assert head.status == 200
    assert [f for f in head.fields if f[0] != "Date"] == [f for f in get.fields if f[0] != "Date"]
    missing = await client.ask("/t/none", "HEAD")
    assert (missing.status, int(missing["Content-Length"]) > 0) == (404, True)
    assert (await client.ask(path)).body == get.body


RANGES = [
    # header, status, list of (first, last) or None for the whole 4000 bytes
    ("bytes=0-0", 206, [(0, 0)]),
    ("bytes=0-", 206, [(0, 3999)]),
    ("bytes=100-199", 206, [(100, 199)]),
    ("bytes=3999-", 206, [(3999, 3999)]),
    ("bytes=3990-9999", 206, [(3990, 3999)]),
    ("bytes=-1", 206, [(3999, 3999)]),
    ("bytes=-9999", 206, [(0, 3999)]),
    ("BYTES=0-9", 206, [(0, 9)]),
    ("bytes= 0-9 ,", 206, [(0, 9)]),
    ("bytes=0-9,20-29", 206, [(0, 9), (20, 29)]),
    ("bytes=20-29,0-9", 206, [(20, 29), (0, 9)]),
    ("bytes=0-9,5-14", 206, [(0, 14)]),
    ("bytes=0-9,10-19", 206, [(0, 19)]),
    ("bytes=0-9,9999-", 206, [(0, 9)]),
    ("bytes=4000-", 416, None),
    ("bytes=9999-10000", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=" + ",".join(f"{n * 20}-{n * 20 + 1}" for n in range(17)), 416, None),
    ("bytes=9-0", 200, None),
    ("bytes=a-b", 200, None),
    ("bytes=", 200, None),
    ("bytes=-", 200, None),
    ("bytes=1", 200, None),
    ("bytes 0-9", 200, None),
    ("items=0-9", 200, None),
    ("bytes=0-9,x", 200, None),
    ("bytes=+1-9", 200, None),
    ("bytes=0-" + "9" * 400, 200, None),
]


@pytest.mark.parametrize(("header", "status", "spans"), RANGES)
async def test_ranges(client, header, status, spans):
    """One range, several, none that fits, and what is no range at all (RFC 9110 14)."""
    whole = client.made.segment("v1", 2)
    response = await client.ask(f"{client.made.url}/v1/2.m4s", "GET", f"Range: {header}")
    assert response.status == status
    if status == 416:
        assert response["Content-Range"] == "bytes */4000"
    elif status == 200:
        assert response.body == whole
        assert "Content-Range" not in response
    elif len(spans) == 1:
        first, last = spans[0]
        assert response["Content-Range"] == f"bytes {first}-{last}/4000"
        assert response.body == whole[first : last + 1]
    else:
        kind, _, boundary = response["Content-Type"].partition("; boundary=")
        assert kind == "multipart/byteranges"
        assert "Content-Range" not in response
        expected = b"".join(
            f"\r\n--{boundary}\r\nContent-Type: video/iso.segment\r\n"
            f"Content-Range: bytes {first}-{last}/4000\r\n\r\n".encode()
            + whole[first : last + 1]
            for first, last in spans
        )
        assert response.body == expected + f"\r\n--{boundary}--\r\n".encode()
    assert (await client.ask(f"{client.made.url}/v1/2.m4s")).body == whole


async def test_two_range_lines_are_ignored(client):
    response = await client.ask(f"{client.made.url}/v1/2.m4s", "GET", "Range: bytes=0-1", "Range: bytes=2-3")
    assert response.status in (200, 400)


CONDITIONS = [
    # fields with {etag}, expected status
    (["If-None-Match: {etag}"], 304),
    (["If-None-Match: W/{etag}"], 304),
    (['If-None-Match: "x", {etag}'], 304),
    (['If-None-Match: "x"', "If-None-Match: {etag}"], 304),
    (["If-None-Match: *"], 304),
    (['If-None-Match: "x"'], 200),
    (["If-None-Match: garbage"], 200),
    ([f"If-Modified-Since: {MODIFIED}"], 304),
    ([f"If-Modified-Since: {LATER}"], 304),
    ([f"If-Modified-Since: {EARLIER}"], 200),
    (["If-Modified-Since: Tuesday, 14-Nov-23 22:13:20 GMT"], 304),
    (["If-Modified-Since: Tue Nov 14 22:13:20 2023"], 304),
    (["If-Modified-Since: yesterday"], 200),
    (['If-None-Match: "x"', f"If-Modified-Since: {LATER}"], 200),
    (["If-None-Match: {etag}", f"If-Modified-Since: {EARLIER}"], 304),
    (["If-Match: {etag}"], 200),
    (["If-Match: *"], 200),
    (['If-Match: "x"'], 412),
    (["If-Match: W/{etag}"], 412),
    ([f"If-Unmodified-Since: {MODIFIED}"], 200),
    ([f"If-Unmodified-Since: {EARLIER}"], 412),
    (["If-Unmodified-Since: yesterday"], 200),
    (["If-Match: {etag}", f"If-Unmodified-Since: {EARLIER}"], 200),
    (["If-Match: {etag}", "If-None-Match: {etag}"], 304),
    (['If-Match: "x"', "If-None-Match: {etag}"], 412),
    (["If-None-Match: {etag}", "Range: bytes=0-1"], 304),
    (["Range: bytes=0-1", "If-Range: {etag}"], 206),
    (["Range: bytes=0-1", f"If-Range: {MODIFIED}"], 206),
    (["Range: bytes=0-1", "If-Range: W/{etag}"], 200),
    (["Range: bytes=0-1", 'If-Range: "x"'], 200),
    (["Range: bytes=0-1", f"If-Range: {EARLIER}"], 200),
    (["Range: bytes=0-1", f"If-Range: {LATER}"], 200),
    (["Range: bytes=0-1", "If-Range: garbage"], 200),
    (["Range: bytes=9999-", 'If-Range: "x"'], 200),
]


@pytest.mark.parametrize(("fields", "status"), CONDITIONS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_conditions(client, fields, status, method):
    """Preconditions in the order of RFC 9110 13.2.2; If-Range by strong comparison or exact date (13.1.5)."""
    path = f"{client.made.url}/v1/1.m4s"
    etag = (await client.ask(path))["ETag"]
    response = await client.ask(path, method, *(field.format(etag=etag) for field in fields))
    assert response.status == (200 if method == "HEAD" and status == 206 else status)
    if status == 304:
        assert (response["ETag"], response["Last-Modified"]) == (etag, MODIFIED)
        assert response.body == b""
    if status == 200 and method == "GET":
        assert response.body == client.made.segment("v1", 1)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/t",
        "/t/clip",
        "/t/clip/{v}",
        "/t/clip/{v}/",
        "/t/clip/{v}/v1",
        "/t/clip/{v}/v1/",
        "/t/clip/{v}/v1/0.m4s",
        "/t/clip/{v}/v1/4.m4s",
        "/t/clip/{v}/v1/01.m4s",
        "/t/clip/{v}/v1/-1.m4s",
        "/t/clip/{v}/v1/99999999999999999999.m4s",
        "/t/clip/{v}/v9/1.m4s",
        "/t/clip/{v}/v1/init.m4s",
        "/t/clip/{v}/nothing.mpd",
        "/t/clip/00000000000000000000000000000000/v1/1.m4s",
        "/t/none/{v}/v1/1.m4s",
        "/t/clip/{v}/../{v}/v1.mp4",
        "/t/../../../../etc/passwd",
        "/t/clip/{v}/..%2f..%2f..%2fetc%2fpasswd",
        "/t/clip/{v}/%2e%2e/title.json",
        "/t/clip/{v}/%252e%252e/title.json",
        "/t/clip/{v}/title.json%00",
        "/t/clip/{v}/..\\..\\title.json",
        "/t/clip/{v}/%c0%ae%c0%ae/title.json",
        "/t/.filling/{v}/title.json",
        "/t/clip/{v}/.generation",
        "//t/clip/{v}/v1.mp4",
        "/t//clip/{v}/v1.mp4",
        "/T/clip/{v}/v1.mp4",
        "/t/clip/{v}/" + "n" * 300,
    ],
)
async def test_what_is_not_there_is_404_and_never_a_file(client, path):
    response = await client.ask(path.format(v=client.made.version))
    assert response.status == 404
    assert response["Cache-Control"] == "no-store"
    assert (await client.ask(f"{client.made.url}/v1/1.m4s")).status == 200


async def test_a_query_does_not_change_what_is_served(client):
    response = await client.ask(f"{client.made.url}/v1/1.m4s?CMCD=br%3D3200%2Csid%3D%22x%22")
    assert response.body == client.made.segment("v1", 1)


async def test_absolute_form(client):
    """A server must accept the absolute form of a target (RFC 9112 3.2.2)."""
    response = await client.ask(f"http://other.example{client.made.url}/v1/1.m4s")
    assert response.body == client.made.segment("v1", 1)


HEADS = [
    (b"GET /t HTTP/1.1\r\n\r\n", 400, "no Host"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "two Hosts"),
    (b"GET /t HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "Host with a space"),
    (b"GET /t HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "Host with a path"),
    (b"GET /t HTTP/1.1\r\nHost:\r\n\r\n", 400, "empty Host"),
    (b"GET /t HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "Host with a user"),
    (b"GET /t HTTP/2.0\r\nHost: a\r\n\r\n", 505, "HTTP/2.0"),
    (b"GET /t HTTP/0.9\r\nHost: a\r\n\r\n", 505, "HTTP/0.9"),
    (b"GET /t HTTP/1.2\r\nHost: a\r\n\r\n", 505, "HTTP/1.2"),
    (b"GET /t\r\n\r\n", 400, "no version"),
    (b"GET  /t HTTP/1.1\r\nHost: a\r\n\r\n", 400, "two spaces"),
    (b"GET t HTTP/1.1\r\nHost: a\r\n\r\n", 400, "target is no path"),
    (b"get /t HTTP/1.1\r\nHost: a\r\n\r\n", 400, "method in small letters"),
    (b"NONSENSE\r\n\r\n", 400, "nonsense"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "a TLS hello"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400, "space before the colon"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400, "folded line"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n", 400, "NUL in a value"),
    (b"GET /t HTTP/1.1\nHost: a\n\n", 400, "bare LF"),
    (b"GET /t HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, "bare LF inside"),
    (b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bytes above 127 in the target"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 400, "GET with a body"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "two lengths"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "negative length"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "chunked GET"),
    (b"GET /t HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "chunked HTTP/1.0"),
    (
        b"GET /t HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "length and chunked",
    ),
    (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "CONNECT"),
    (b"POST /t HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 405, "POST"),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "a long target"),
    (b"GET /" + b"a" * 9000, 414, "a long target without an end"),
    (b"GET /t HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 17000 + b"\r\n\r\n", 431, "a long head"),
    (b"GET /t HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(2500)) + b"\r\n", 431, "many fields"),
]


@pytest.mark.parametrize(("head", "status", "why"), HEADS, ids=[why for _, _, why in HEADS])
async def test_a_bad_head_is_refused_and_the_connection_closed(client, head, status, why):
    client.send(head)
    response = await client.receive()
    assert response.status == status
    assert response["Connection"] == "close"
    assert await client.closed()
    again = await client.running.connect()
    assert (await again.ask(f"{client.made.url}/v1/1.m4s")).status == 200


@pytest.mark.parametrize(
    "head",
    # Of a head whose end is in doubt the method is, too.
    [head for head, status, why in HEADS if head.startswith(b"GET ") and status < 414 and "bare LF" not in why],
)
async def test_a_refusal_of_head_has_no_body(client, head):
    """Only what it would have had with GET: whoever asked for a head takes what follows for the next answer."""
    client.send(head)
    wanted = await client.receive()
    asking = await client.running.connect()
    asking.send(head.replace(b"GET ", b"HEAD ", 1))
    response = await asking.receive("HEAD")
    assert response.status == wanted.status
    assert await asking.closed(), "nothing follows"


@pytest.mark.parametrize("count", [1, 2, 5])
async def test_empty_lines_before_a_request_are_ignored(client, count):
    """RFC 9112 2.2."""
    client.send(b"\r\n" * count)
    assert (await client.ask(f"{client.made.url}/v1/1.m4s")).status == 200


async def test_an_upgrade_is_ignored(client):
    """RFC 9110 7.8: who asks for HTTP/2 in clear text is answered in HTTP/1.1, and may go on."""
    fields = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    for _ in range(2):
        response = await client.ask(f"{client.made.url}/v1/1.m4s", "GET", *fields)
        assert response.body == client.made.segment("v1", 1)


async def test_a_head_may_arrive_byte_by_byte(client):
    for byte in f"GET {client.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n".encode():
        client.send(bytes([byte]))
        await client.writer.drain()
    assert (await client.receive()).body == client.made.segment("v1", 1)


async def test_pipelined_requests_are_answered_in_order(client):
    """Answers never land inside each other, however requests are bunched (RFC 9112 9.3.2)."""
    wanted = [("v1", 1), ("a1", 3), ("v1", 3), ("v1", 2), ("a1", 1)] * 40
    client.send("".join(f"GET {client.made.url}/{t}/{n}.m4s HTTP/1.1\r\nHost: a\r\n\r\n" for t, n in wanted))
    for track, number in wanted:
        assert (await client.receive()).body == client.made.segment(track, number)


async def test_connections_persist_as_the_version_says(client):
    """HTTP/1.1 persists unless told to close; HTTP/1.0 closes unless asked to persist (RFC 9112 9.3)."""
    path = f"{client.made.url}/v1/1.m4s"
    client.send(f"GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (await client.receive())["Connection"] == "keep-alive"
    client.send(f"GET {path} HTTP/1.0\r\n\r\n")
    assert (await client.receive()).status == 200
    assert await client.closed()
    other = await client.running.connect()
    assert (await other.ask(path, "GET", "Connection: close"))["Connection"] == "close"
    assert await other.closed()


@pytest.mark.parametrize("secured", [False], ids=["plain"])  # over TLS: test_secure
async def test_a_half_closed_client_gets_its_answer(client):
    """A client may close its side after the last request, and is still answered."""
    client.send(f"GET {client.made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    client.writer.write_eof()
    assert (await client.receive()).body == client.made.segment("v1", 1)
    assert await client.closed()


async def test_the_same_fields_again_are_answered_as_the_first_time(client):
    """The short way that repeated requests take gives the same bytes, refuses the same lines, and sees changes."""
    fields = ("User-Agent: player", "Accept: */*")
    for _ in range(3):
        for track, number in (("v1", 1), ("a1", 2), ("v1", 3)):
            response = await client.ask(f"{client.made.url}/{track}/{number}.m4s?CMCD=bl%3D{number}", "GET", *fields)
            assert response.body == client.made.segment(track, number)
            assert [name for name, _ in response.fields][:2] == ["Date", "Content-Type"]
    path = f"{client.made.url}/v1/1.m4s"
    assert (await client.ask("/t/none", "GET", *fields)).status == 404
    assert (await client.ask(path, "HEAD", *fields)).status == 200
    assert (await client.ask(path, "GET", *fields, "Range: bytes=0-1")).body == client.made.segment("v1", 1)[:2]
    assert (await client.ask(path, "GET", *fields)).status == 200
    counters = client.running.server.counters
    assert sum(counters.statuses.values()) == 13
    assert counters.hits == 12


async def test_fields_that_come_again_are_parsed_once(client, monkeypatch):
    """Also before segments that nobody has asked for yet, or not for a while, of a track that has been opened."""
    server, parsed = client.running.server, []
    decide = Connection._decide

    def noted(connection, head, line):
        parsed.append(line)
        return decide(connection, head, line)

    monkeypatch.setattr(Connection, "_decide", noted)
    assert (await client.ask(f"{client.made.url}/v1/init.mp4")).status == 200
    for _ in range(2):
        for number in (1, 2, 3):
            path = f"{client.made.url}/v1/{number}.m4s"
            assert (await client.ask(path)).body == client.made.segment("v1", number)
        for known in server.slices.asked.values():
            known.warm = 0.0
    assert [line.split()[1].decode() for line in parsed] == [
        f"{client.made.url}/v1/{n}" for n in ("init.mp4", "1.m4s")
    ]
    assert server.counters.hits == 7


@pytest.mark.parametrize("target", ["{p}?a b", "{p}?\x01", "{p}?\xff", "{p} ", " {p}", "{p}\t"])
async def test_the_short_way_is_no_way_around_the_rules(client, target):
    path = f"{client.made.url}/v1/1.m4s"
    for _ in range(2):
        assert (await client.ask(path)).status == 200
    assert (await client.ask(target.format(p=path))).status in (400, 404)


async def test_last_modified_is_never_later_than_date(start, make_title):
    """RFC 9110 8.8.2.1: a clock that was ahead at publication does not show, nor does a Date that is a second old."""
    running = await start(sweep_s=60)
    begun = int(time.time())
    made = make_title(running.root, published=int(time.time()) + DAY)
    while int(time.time()) == begun:
        await asyncio.sleep(0.05)
    response = await (await running.connect()).ask(f"{made.url}/v1/1.m4s")
    modified, date = (email.utils.parsedate_to_datetime(response[n]) for n in ("Last-Modified", "Date"))
    assert modified <= date
