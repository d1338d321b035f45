"""The access log: every line is JSON of the documented shape, whatever a client sent; none is lost in silence."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.http import accesslog
from oca.http.accesslog import AccessLog, Line, Record, texts


def read(path: Path) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


def record(request: bytes = b"GET /a HTTP/1.1", cut: str = "", problem: str = "") -> Record:
    return ("192.0.2.7", request, 206, 1234, 10.0, 10.25, None, cut, problem)


@given(request=st.binary(max_size=200), cut=st.text(max_size=20), problem=st.text(max_size=50))
def test_a_line_says_what_was_noted(request: bytes, cut: str, problem: str) -> None:
    written = next(texts([record(request, cut, problem)], 1_700_000_000.0))
    assert written.endswith("}\n")
    assert written.count("\n") == 1
    assert msgspec.json.decode(written, type=Line) == Line(
        v=1,
        at=1_700_000_010.25,
        client="192.0.2.7",
        request=request.decode("latin-1"),
        status=206,
        sent=1234,
        took=0.25,
        cut=cut,
        problem=problem,
    )


async def test_lines_wait_for_a_disk_that_refuses(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "access.log"
    log = AccessLog(str(path))
    log.add([record(b"first")], 0.0)
    with pytest.raises(OSError, match="No such file"):
        await log.flush()
    path.parent.mkdir()
    log.add([record(b"second")], 0.0)
    await log.flush()
    assert [line.request for line in read(path)] == ["first", "second"]


async def test_who_is_cancelled_meanwhile_loses_no_line(tmp_path: Path) -> None:
    """A server that ends while its disk is slow, as a pipe is that nobody reads yet."""
    path = tmp_path / "access.log"
    os.mkfifo(path)
    log = AccessLog(str(path))
    log.add([record(b"first")], 0.0)
    cut = asyncio.create_task(log.flush())
    async with asyncio.timeout(60):
        while not log._writing.locked():
            await asyncio.sleep(0)
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    log.add([record(b"second")], 0.0)
    last = asyncio.create_task(log.flush())
    reader = os.open(path, os.O_RDWR)
    try:
        await last
        lines = os.read(reader, 1 << 16).splitlines()
    finally:
        os.close(reader)
    assert [msgspec.json.decode(line, type=Line).request for line in lines] == ["first", "second"]


async def test_what_had_to_be_dropped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accesslog, "_MAX_WAITING", 10)
    log = AccessLog(str(tmp_path / "access.log"))
    for number in range(25):
        log.add([record(b"%d" % number)], 0.0)
    await log.flush()
    lines = read(tmp_path / "access.log")
    assert len(lines) + sum(line.lost for line in lines) == 25
    assert lines[-1].request == "24"
    assert lines[0].lost == 15


async def test_no_path_keeps_nothing() -> None:
    log = AccessLog("")
    log.add([record()], 0.0)
    await log.flush()
    assert not log.wanted
