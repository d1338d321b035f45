"""The client of the benchmarks asks again when it has all of an answer, and no sooner than it is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from bench.compiler import compiled

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize("pause_us", [0, 50_000])
async def test_a_connection_pauses_after_each_answer(tmp_path: Path, pause_us: int) -> None:
    pauses: list[float] = []
    enough = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered = 0.0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                if answered:
                    pauses.append(time.monotonic() - answered)
                if len(pauses) == 9:
                    enough.set()
                answered = time.monotonic()
                writer.write(ANSWER)
        writer.close()

    heads = tmp_path / "heads"
    heads.write_bytes(b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        words = (compiled("reader", tmp_path), port, 3, 1, 600, heads, pause_us)
        asking = await asyncio.create_subprocess_exec(*map(str, words), stdout=asyncio.subprocess.DEVNULL)
        async with asyncio.timeout(120):
            await enough.wait()
        asking.kill()
        await asking.wait()
    assert min(pauses) >= pause_us / 1e6
