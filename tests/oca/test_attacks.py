"""What an attacker sends, over raw sockets, in clear and over TLS: each gets what it deserves, nobody else notes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MadeTitle, MakeTitle
from tests.oca.conftest import Running, Start
from tests.oca.test_serving import closed, until

# What is smuggled: if it is ever answered, the smuggling worked.
EVIL = b"GET /evil HTTP/1.1\r\nHost: evil.example\r\n\r\n"
GET = b"GET {path} HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def secured(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture
async def target(start: Start, make_title: MakeTitle) -> tuple[Running, MadeTitle]:
    running = await start(sweep_s=0.05)
    return running, make_title(running.root)


# A request after which the server ends the connection.
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def say(running: Running, data: bytes) -> tuple[bytes, bool]:
    """All that comes back to some bytes, and whether the server ended the connection."""
    client = await running.connect()
    client.send(data)
    got = b""
    try:
        async with asyncio.timeout(60):
            while part := await client.reader.read(1 << 16):
                got += part
    except TimeoutError:
        return got, False
    except ConnectionError:
        pass  # a reset is an end, too
    return got, True


def statuses(data: bytes) -> list[int]:
    """The status of each response; bodies of errors are sentences, so no body looks like one."""
    return [int(code) for code in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", data)]


def path_of(title: MadeTitle) -> bytes:
    return f"{title.url}/v1/1.m4s".encode()


SMUGGLED = {
    "CL.TE": GET + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE.CL": GET + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + EVIL + b"0\r\n\r\n",
    "TE only": GET + b"Transfer-Encoding: chunked\r\n\r\n" + EVIL,
    "TE twice": GET + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + EVIL,
    "TE xchunked": GET + b"Transfer-Encoding: xchunked\r\n\r\n" + EVIL,
    "TE with a tab": GET + b"Transfer-Encoding:\tchunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE with a vertical tab": GET + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE, space before the colon": GET + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE folded": GET + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE behind a bare CR": GET + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE behind a bare LF": GET + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "TE in capitals": GET + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n" + EVIL,
    "TE in quotes": GET + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + EVIL,
    "TE listed": GET + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "length of the evil one": GET + b"Content-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "two lengths": GET + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "lengths in a list": GET + b"Content-Length: 0, %d\r\n\r\n" % len(EVIL) + EVIL,
    "length with a plus": GET + b"Content-Length: +%d\r\n\r\n" % len(EVIL) + EVIL,
    "length in hexadecimal": GET + b"Content-Length: 0x2a\r\n\r\n" + EVIL,
    "length with an underscore": GET + b"Content-Length: 4_2\r\n\r\n" + EVIL,
    "length beyond 64 bits": GET + b"Content-Length: 18446744073709551616\r\n\r\n" + EVIL,
    "length with a space": GET + b"Content-Length: 4 2\r\n\r\n" + EVIL,
    "length empty": GET + b"Content-Length:\r\n\r\n" + EVIL,
    "length in other digits": GET + "Content-Length: ４２\r\n\r\n".encode() + EVIL,
    "POST with a body": b"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "POST chunked": b"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
    "HEAD with a body": b"HEAD {path} HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "HTTP/1.0, length": b"GET {path} HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL,
    "two Hosts": GET + b"Host: evil.example\r\n\r\n" + EVIL,
    "field without a name": GET + b": x\r\n\r\n" + EVIL,
    "field without a colon": GET + b"nothing\r\n\r\n" + EVIL,
    "name with a space": GET + b"Content Length: 4\r\n\r\n" + EVIL,
    "NUL in a name": GET + b"Content-Length\0: 4\r\n\r\n" + EVIL,
    "request line folded": b"GET {path}\r\n HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "tab in the request line": b"GET\t{path} HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "bare LF in front": b"\nHEAD {path}.no HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "bare CR in front": b"\rGET {path} HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "bare CR ends the line": b"GET {path} HTTP/1.1\rHost: a\r\n\r\n" + EVIL,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EVIL,
    "HTTP/0.9": b"GET {path}\r\n" + EVIL,
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n\r\n" + EVIL,
    "SMTP": b"EHLO mail.example\r\nMAIL FROM:<a@b>\r\n\r\n" + EVIL,
    "control characters in the target": b"GET {path}\x01 HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "DEL in the target": b"GET {path}\x7f HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "authority as the target": b"GET a.example:80 HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "star as the target": b"GET * HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "another scheme": b"GET ftp://a.example{path} HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
    "thousands of fields": GET + b"X: y\r\n" * 4000 + b"\r\n" + EVIL,
    "one field too long": GET + b"X: " + b"y" * 20_000 + b"\r\n\r\n" + EVIL,
    "a line too long": b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n" + EVIL,
}


@pytest.mark.parametrize("words", SMUGGLED.values(), ids=SMUGGLED.keys())
async def test_nothing_is_smuggled(target: tuple[Running, MadeTitle], words: bytes) -> None:
    """One refusal, then the connection ends: whatever follows cannot be told from a body, so it is never answered."""
    running, title = target
    got, ended = await say(running, words.replace(b"{path}", path_of(title)))
    assert len(statuses(got)) == 1, got
    assert 400 <= statuses(got)[0] < 600
    assert ended
    assert b"evil" not in got
    assert (await (await running.connect()).ask(f"{title.url}/v1/1.m4s")).body == title.segment("v1", 1)


async def test_what_follows_a_good_request_is_a_request(target: tuple[Running, MadeTitle]) -> None:
    """Answers of an upgrade or of `Expect` swallow nothing of it."""
    running, title = target
    for field in (
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        b"Expect: 100-continue\r\n",
    ):
        words = GET.replace(b"{path}", path_of(title)) + field + b"\r\n" + EVIL + LAST
        got, _ = await say(running, words)
        assert statuses(got) == [200, 404, 404]


INJECTED = {
    "target": b"GET {path}%0d%0aSet-Cookie:%20x=y HTTP/1.1\r\nHost: a\r\n\r\n",
    "query": b"GET {path}?%0d%0aSet-Cookie:%20x=y HTTP/1.1\r\nHost: a\r\n\r\n",
    "token": b"GET /c/%0d%0aSet-Cookie:%20x=y{path} HTTP/1.1\r\nHost: a\r\n\r\n",
    "Host": b"GET {path} HTTP/1.1\r\nHost: a%0d%0aSet-Cookie:x\r\n\r\n",
    "CMCD": b'GET {path} HTTP/1.1\r\nHost: a\r\nCMCD-Request: mtp=1,x="%0d%0aSet-Cookie: x=y"\r\n\r\n',
    "Range": b"GET {path} HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1,%0d%0aSet-Cookie: x\r\n\r\n",
    "If-None-Match": b'GET {path} HTTP/1.1\r\nHost: a\r\nIf-None-Match: "%0d%0aSet-Cookie: x"\r\n\r\n',
    "Origin": b"GET {path} HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n\r\n",
    "X-Forwarded-Host": b"GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-Host: evil.example\r\n\r\n",
    "absolute form": b"GET http://evil.example{path} HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("words", INJECTED.values(), ids=INJECTED.keys())
async def test_nothing_that_is_said_comes_back(target: tuple[Running, MadeTitle], words: bytes) -> None:
    """No header field of an answer holds a word of the request; a cache before us has nothing to be poisoned with."""
    running, title = target
    got, _ = await say(running, words.replace(b"{path}", path_of(title)) + LAST)
    head = got.partition(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 ")
    assert b"Set-Cookie" not in head
    assert b"evil" not in got


@pytest.mark.parametrize(
    "spec",
    [
        "bytes=" + ",".join(f"{n}-{n}" for n in range(2000)),
        "bytes=" + "0-," * 1500,
        "bytes=0-" + "9" * 4000,
        "bytes=" + "9" * 4000 + "-",
        "bytes=-" + "9" * 4000,
        "bytes=" + ",".join(["0-"] * 1300),
        "bytes=\x00-",
        "bytes=" + "-" * 3000,
    ],
)
async def test_ranges_amplify_nothing(target: tuple[Running, MadeTitle], spec: str) -> None:
    """However many are asked for, no more is sent than the whole, or than that and a bounded number of part heads."""
    running, title = target
    words = GET.replace(b"{path}", path_of(title)) + f"Range: {spec}\r\nConnection: close\r\n\r\n".encode()
    got, ended = await say(running, words)
    assert ended
    assert statuses(got)[0] in (200, 206, 400, 416, 431)
    assert len(got) < 3 * len(title.segment("v1", 1)) + 20_000


async def drip(running: Running, whole: bytes, head: bytes) -> bytes:
    """Send `whole` and the beginning of a head, then byte by byte what never ends it; all that came back.

    The head's time is over soon after its beginning was heard, however long that took.
    """
    client = await running.connect()
    client.send(whole + head)
    await until(
        lambda: [bytes(getattr(known, "_buffer", b"")) for known in running.server._connections] == [head], 60
    )
    (known,) = running.server._connections
    known._deadline = running.server.now + 0.4

    async def write() -> None:
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                client.send(b"y")
                await client.writer.drain()
                await asyncio.sleep(0.01)

    writing = asyncio.create_task(write())
    got = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            while part := await client.reader.read(1 << 16):
                got += part
    writing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writing
    return got


async def test_who_drips_a_head_is_ended(start: Start) -> None:
    """Time runs from the first byte; each further one does not start it anew."""
    running = await start(sweep_s=0.05)
    assert statuses(await drip(running, b"", b"GET /t HTTP/1.1\r\nHost: a\r\nX: ")) == [408]
    await until(lambda: running.server.counters.open == 0)


async def test_who_drips_a_second_head_is_ended(start: Start) -> None:
    """Neither does a whole request before it."""
    running = await start(sweep_s=0.05)
    assert statuses(await drip(running, b"GET /t HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /")) == [404, 408]


@pytest.mark.long
async def test_who_reads_a_byte_now_and_then_is_ended(start: Start, make_title: MakeTitle) -> None:
    running = await start(sweep_s=0.05, grace_s=0.3, min_bytes_per_s=1 << 20)
    title = make_title(running.root, v1=[24 << 20])
    client = await running.connect(limit=1 << 10)
    client.send(GET.replace(b"{path}", path_of(title)) + b"\r\n")
    await client.reader.read(1)
    await until(lambda: closed(running, "slow-reader") == 1, 60)


def _symlink(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to(outside)


def _fifo(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def _socket(path: Path, _: Path) -> None:
    path.unlink()
    folder = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as sock:
        # A path that is short wherever the tests run: 107 bytes are the most.
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _device(path: Path, _: Path) -> None:
    path.unlink()
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        path.symlink_to("/dev/zero")  # only root makes devices


@pytest.mark.parametrize("secured", [False], ids=["plain"])
@pytest.mark.parametrize("harm", [_symlink, _fifo, _directory, _socket, _device])
@pytest.mark.parametrize("name", ["v1.mp4", "v1.idx", "title.json"])
async def test_what_is_no_file_in_the_store_is_not_served(
    start: Start,
    make_title: MakeTitle,
    tmp_path: Path,
    harm: Callable[[Path, Path], None],
    name: str,
) -> None:
    """A link out of the store, or what would block or never end: an error, and the loop goes on for others."""
    running = await start(sweep_s=0.05)
    title, other = make_title(running.root), make_title(running.root, name="other")
    outside = tmp_path / "secret"
    outside.write_bytes(b"secret" * 1000)
    harm(title.directory / name, outside)
    client = await running.connect()
    paths = [f"{title.url}/v1/1.m4s", f"{title.url}/v1.mp4", f"{title.url}/{name}"]
    for path in paths:
        response = await client.ask(path)
        assert b"secret" not in response.body
        if name in path or name != "v1.mp4":
            assert response.status in (404, 500), path
    assert (await client.ask(f"{other.url}/v1/1.m4s")).body == other.segment("v1", 1)


@pytest.mark.parametrize("secured", [False], ids=["plain"])
@pytest.mark.parametrize("level", ["title", "version"])
async def test_directories_that_are_links_are_not_followed_out(
    start: Start, make_title: MakeTitle, tmp_path: Path, level: str
) -> None:
    """A title or version that was moved away and linked to: what is behind the link is not the store."""
    running = await start(sweep_s=0.05)
    title = make_title(running.root)
    moved = title.directory if level == "version" else title.directory.parent
    shutil.move(moved, tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    client = await running.connect()
    assert (await client.ask(f"{title.url}/v1.mp4")).status in (404, 500)
