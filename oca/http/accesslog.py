"""The access log: one JSON line per response, noted in memory, written off the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import aiofiles
import msgspec

from oca.http.slices import Slice

FORMAT = 1
# Beyond this many unwritten lines the disk is not keeping up; the oldest go first, and their number is logged.
_MAX_WAITING = 200_000
# Bytes that stand for themselves in a JSON string; a request line seldom has others.
_SAFE = bytes(byte for byte in range(0x20, 0x7F) if byte not in b'"\\')

Record = tuple[str, bytes, int, int, float, float, Slice | None, str, str]
"""What is noted of a response, as cheaply as can be: client, request line, status, bytes sent, when it began and
ended (time.monotonic()), slice, why it was cut short, what is wrong with the store."""


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One response. `at` UTC seconds, `took` seconds until the kernel had all of it, `sent` bytes with head."""

    v: int
    at: float
    client: str
    request: str
    status: int
    sent: int
    took: float
    title: str = ""
    track: str = ""
    segment: int = -1
    cut: str = ""  # reason's name, if the response was not sent to its end, or the client was turned away
    problem: str = ""
    lost: int = 0  # lines dropped before this one


def texts(records: Iterable[Record], offset: float) -> Iterator[str]:
    """Each record as the JSON of a `Line` with its end of line; `offset` is UTC less time.monotonic().

    Put together by hand: at full speed there are tens of thousands a second, and a tenth of the cost matters. So
    times are written from integers, and what many lines have in common is made once.
    """
    last, stamp = -1, ""
    for client, request, status, sent, started, ended, found, cut, problem in records:
        if request.translate(None, _SAFE):
            asked = json.dumps(request.decode("latin-1"))
        else:
            asked = f'"{request.decode("ascii")}"'
        at = int((offset + ended) * 1000)
        if at != last:
            last, stamp = at, f'{{"v":{FORMAT},"at":{at // 1000}.{at % 1000:03d},"client":"'
        took = max(0, int((ended - started) * 1e6))
        took_s = f"0.{took:06d}" if took < 1_000_000 else f"{took / 1e6:.6f}"
        more = ""
        if found is not None:
            more = found.noted
            if not more:
                more = found.noted = f',"title":"{found.title}","track":"{found.track}","segment":{found.number}'
        if cut or problem:
            more += f',"cut":{json.dumps(cut)},"problem":{json.dumps(problem)}'
        yield f'{stamp}{client}","request":{asked},"status":{status},"sent":{sent},"took":{took_s}{more}}}\n'


class AccessLog:
    """Appends lines to a file; `path` "" keeps none."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._waiting: list[str] = []
        self._lost = 0
        self._writing = asyncio.Lock()

    @property
    def wanted(self) -> bool:
        """Whether lines go anywhere."""
        return self._path is not None

    def add(self, records: Iterable[Record], offset: float) -> None:
        """Take responses, see `texts`."""
        if self._path is not None:
            self._waiting += texts(records, offset)
            if len(self._waiting) > _MAX_WAITING:
                dropped = len(self._waiting) // 2
                self._waiting = self._waiting[dropped:]
                self._lost += dropped

    async def flush(self) -> None:
        """Write what was taken so far; raises OSError, keeping the lines, if the disk refuses.

        Whoever is cancelled meanwhile leaves a write that goes on to its end: no line is lost or cut in two, the file
        is closed. The next flush waits for it.
        """
        await asyncio.shield(self._write())

    async def _write(self) -> None:
        async with self._writing:
            lines, self._waiting = self._waiting, []
            lost, self._lost = self._lost, 0
            if not lines or self._path is None:
                return
            if lost:
                lines[0] = f'{lines[0][:-2]},"lost":{lost}}}\n'
            try:
                # Opened every time, so that a rotated file is simply continued under its name.
                async with aiofiles.open(self._path, "ab") as file:
                    await file.write("".join(lines).encode())
            except OSError:
                self._waiting = lines + self._waiting
                raise
