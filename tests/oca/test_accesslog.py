"""The access log: every line is JSON of the documented shape, whatever a client sent; none is lost in silence."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.http import accesslog
from oca.http.accesslog import AccessLog, Line
from oca.http.slices import Descriptor, Slice


def read(path: Path) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in path.read_bytes().splitlines()]


def note(log: AccessLog, request: bytes = b"GET /a HTTP/1.1", cut: str = "", problem: str = "") -> None:
    log.note("192.0.2.7", request, 206, 1234, 10.0, 10.25, None, cut, problem)


def a_slice(number: int) -> Slice:
    return Slice(
        descriptor=cast(Descriptor, None),
        offset=0,
        length=1000,
        title="clip",
        version="0" * 32,
        track="v-720-3000",
        number=number,
        content_type="",
        etag="",
        modified=0,
        fields="",
        head=b"",
    )


@given(request=st.binary(max_size=200), cut=st.text(max_size=20), problem=st.text(max_size=50))
def test_a_line_says_what_was_noted(request: bytes, cut: str, problem: str) -> None:
    log = AccessLog("")
    log.tick(1_700_000_000.0)
    note(log, request, cut, problem)
    written = bytes(log._lines)
    assert written.endswith(b"}\n")
    assert written.count(b"\n") == 1
    assert written.isascii()
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


@given(
    times=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10_000_000)), min_size=1, max_size=20),
    number=st.integers(0, 999_999),
)
def test_a_hit_says_what_any_other_line_would(times: list[tuple[int, int]], number: int) -> None:
    """Whatever it takes from the line before: the millisecond, or all that the slice says."""
    short, long = AccessLog(""), AccessLog("")
    found, now = a_slice(number), 5.0
    for log in (short, long):
        log.tick(1_700_000_000.0)
    for pause_ms, took_us in times:
        now += pause_ms / 1000
        ended = now + took_us / 1e6
        short.hit(b"192.0.2.7", b"GET /a", 1450, now, ended, found)
        long.note("192.0.2.7", b"GET /a HTTP/1.1", 200, 1450, now, ended, found)
    decoded = [[msgspec.json.decode(line, type=Line) for line in log._lines.splitlines()] for log in (short, long)]
    assert decoded[0] == decoded[1]
    assert {(line.title, line.track, line.segment) for line in decoded[0]} == {("clip", "v-720-3000", number)}


async def test_lines_wait_for_a_disk_that_refuses(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "access.log"
    log = AccessLog(str(path))
    note(log, b"first")
    with pytest.raises(OSError, match="No such file"):
        await log.flush()
    path.parent.mkdir()
    note(log, b"second")
    await log.flush()
    assert [line.request for line in read(path)] == ["first", "second"]


async def test_who_is_cancelled_meanwhile_loses_no_line(tmp_path: Path) -> None:
    """A server that ends while its disk is slow, as a pipe is that nobody reads yet."""
    path = tmp_path / "access.log"
    os.mkfifo(path)
    log = AccessLog(str(path))
    note(log, b"first")
    cut = asyncio.create_task(log.flush())
    async with asyncio.timeout(60):
        while not log._writing.locked():
            await asyncio.sleep(0)
    cut.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cut
    note(log, b"second")
    last = asyncio.create_task(log.flush())
    reader = os.open(path, os.O_RDWR)
    try:
        await last
        lines = os.read(reader, 1 << 16).splitlines()
    finally:
        os.close(reader)
    assert [msgspec.json.decode(line, type=Line).request for line in lines] == ["first", "second"]


async def test_lines_are_written_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for it: what is noted does not grow in memory until the next sweep."""
    monkeypatch.setattr(accesslog, "_FULL", 1000)
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    for number in range(100):
        note(log, b"%d" % number)
        if number % 10 == 0 and log._task is not None:
            await log._task
    assert len(read(path)) > 80
    await log.flush()
    assert [line.request for line in read(path)] == [str(number) for number in range(100)]


async def test_what_had_to_be_dropped_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice, with what was told of the first time among what is dropped the second."""
    monkeypatch.setattr(accesslog, "_FULL", 500)
    monkeypatch.setattr(accesslog, "_MOST_WAITING", 4)
    path = tmp_path / "missing" / "access.log"
    log = AccessLog(str(path))
    for number in range(100):
        note(log, b"%d" % number)
        if log._task is not None:
            await log._task
    path.parent.mkdir()
    await log.flush()
    lines = read(path)
    assert len(lines) + sum(line.lost for line in lines) == 100
    assert len(lines) < 40
    assert (lines[0].request, lines[-1].request) == ("0", "99")


async def test_a_disk_that_takes_half_a_piece_gets_the_rest_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk ends a file within a line; when there is room again the line goes on there."""
    path = tmp_path / "access.log"
    log = AccessLog(str(path))
    note(log, b"first")
    note(log, b"second")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            await log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handled)
    assert path.stat().st_size == 150
    note(log, b"third")
    await log.flush()
    assert [line.request for line in read(path)] == ["first", "second", "third"]


async def test_no_path_keeps_nothing() -> None:
    log = AccessLog("")
    note(log)
    await log.flush()
    assert not log._lines
    assert not log._waiting
