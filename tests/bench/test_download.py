"""The load generator's client: every byte counted, none kept, every failure named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from bench.download import Client, DownloadError

Serve = Callable[[bytes | list[bytes]], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve a URL whose n-th request is answered by the n-th of some bytes; the connection stays open."""
    servers: list[asyncio.Server] = []

    async def begin(answers: bytes | list[bytes]) -> str:
        left = [answers] if isinstance(answers, bytes) else list(answers)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    data = left.pop(0)
                    writer.write(data)
                    await writer.drain()
                    if data.endswith(b"!"):
                        break
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        servers.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        return f"http://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}/a"

    yield begin
    for server in servers:
        server.close()
        await server.wait_closed()


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


async def test_bodies_are_counted_over_one_connection(serve: Serve) -> None:
    big = bytes(5 << 20)
    url = await serve([ok(big), ok(b""), ok(b"x" * 1500)])
    with Client() as client:
        assert [await client.get(url) for _ in range(3)] == [len(big), 0, 1500]


async def test_a_redirect_is_followed(serve: Serve) -> None:
    there = await serve(ok(b"12345"))
    here = await serve(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % there.encode())
    with Client() as client:
        assert await client.get(here) == 5


async def test_a_connection_that_was_closed_meanwhile_is_opened_anew(serve: Serve) -> None:
    url = await serve([ok(b"!"), ok(b"12345")])
    with Client() as client:
        assert await client.get(url) == 1
        assert await client.get(url) == 5


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno", "503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort!", "cut short"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nslow", "timeout"),
        (b"nonsense\r\n\r\n", "malformed"),
    ],
)
async def test_failures_are_named(serve: Serve, answer: bytes, kind: str) -> None:
    url = await serve([answer])
    with Client(stall_s=0.5 if kind == "timeout" else 60.0) as client, pytest.raises(DownloadError) as failed:
        await client.get(url)
    assert failed.value.kind == kind


async def test_nobody_there_is_refused() -> None:
    with Client() as client, pytest.raises(DownloadError) as failed:
        await client.get("http://127.0.0.1:1/a")
    assert failed.value.kind == "refused"
