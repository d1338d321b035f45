"""Simulated viewers: players over real sockets that adapt, buffer, stall and move on as people do."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.abr import BUFFER_S, Chooser, percentile
from bench.download import Client, DownloadError
from bench.plot import Bar, Panel
from bench.presentation import Presentation, parse
from bench.qoe import Session, score
from bench.viewing import get, session
from oca.errors import OcaError

# Popularity of the n-th title, from public viewing figures.
ZIPF = 0.79


class LoadError(OcaError):
    """There is nothing to play."""


@dataclass
class Load:
    """What all viewers together saw."""

    sessions: list[Session] = field(default_factory=list)
    bytes: int = 0
    segments: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Failed requests by kind: a status, or what happened instead of one."""
    fatal: int = 0
    """Sessions that ended because no location gave a segment."""

    def summary(self, seconds: float) -> dict[str, Any]:
        """Figures for people and machines; rates in Gbit/s, times in seconds."""
        scores = sorted(score(session) for session in self.sessions)
        startups = sorted(session.startup_s for session in self.sessions if session.played_s > 0)
        played = sum(session.played_s for session in self.sessions)
        stalls = sum(session.stalls for session in self.sessions)
        return {
            "seconds": round(seconds, 2),
            "sessions": len(self.sessions),
            "segments": self.segments,
            "gbps": round(8 * self.bytes / seconds / 1e9, 4),
            "failed_requests": self.failures.total(),
            "failures": dict(self.failures),
            "fatal": self.fatal,
            "stalls": stalls,
            "stalls_per_hour": round(3600 * stalls / played, 3) if played else 0.0,
            "startup_p95_s": round(percentile(startups, 0.95), 4) if startups else 0.0,
            "qoe_mean": round(statistics.fmean(scores), 4) if scores else 0.0,
            "qoe_p5": round(percentile(scores, 0.05), 4) if scores else 0.0,
        }

    def panels(self) -> list[Panel]:
        """How the scores of the sessions are spread, to plot."""
        scores = sorted(score(session) for session in self.sessions) or [0.0]
        marks = [(f"p{int(100 * share)}", percentile(scores, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
        return [Panel("quality of experience", [Bar(name, "sessions", value, value, value) for name, value in marks])]


class _Player:
    """One viewing session: buffers ahead, plays in real time, notes what a person would notice."""

    def __init__(self, client: Client, shown: Presentation, load: Load, until: float) -> None:
        self._client = client
        self._shown = shown
        self._load = load
        self._until = until
        self._chooser = Chooser([rung.bandwidth for rung in shown.video])
        self._base = 0
        self._started = time.monotonic()
        self._first_picture = 0.0
        self._loaded_s = 0.0
        self._stalls = 0
        self._stalled_s = 0.0
        self._rungs: list[int] = []

    def _buffer(self, now: float) -> float:
        """Seconds of video ahead of the playhead; notes a stall when it ran dry since the last look."""
        if not self._first_picture:
            return 0.0
        ahead = self._loaded_s - (now - self._first_picture - self._stalled_s)
        if ahead < 0:
            self._stalls += 1
            self._stalled_s -= ahead
            return 0.0
        return ahead

    async def play(self) -> Session:
        """Watch from the start to the end, or until the time is up."""
        for number in range(1, self._shown.segments + 1):
            now = time.monotonic()
            if now >= self._until:
                break
            ahead = self._buffer(now)
            choice = self._chooser.choose(ahead)
            if not await self._segment(choice, number):
                self._load.fatal += 1
                break
            self._rungs.append(choice)
            now = time.monotonic()
            self._first_picture = self._first_picture or now
            self._buffer(now)
            self._loaded_s += self._shown.video[choice].durations[number - 1]
            excess = self._buffer(now) - BUFFER_S
            if excess > 0:
                await asyncio.sleep(min(excess, max(0.0, self._until - now)))
        return self._session()

    def _session(self) -> Session:
        now = time.monotonic()
        ahead = self._buffer(now)
        played = max(0.0, self._loaded_s - ahead) if self._first_picture else 0.0
        rates = [self._shown.video[rung].bandwidth / 1000 for rung in self._rungs]
        return Session(
            played_s=played,
            kbps=statistics.fmean(rates) if rates else 0.0,
            switches=sum(a != b for a, b in zip(self._rungs, self._rungs[1:], strict=False)),
            startup_s=(self._first_picture or now) - self._started,
            stalls=self._stalls,
            stalled_s=self._stalled_s,
        )

    async def _segment(self, choice: int, number: int) -> bool:
        """Fetch the video segment and the audio that goes with it."""
        rung = self._shown.video[choice]
        tracks = [rung, *self._shown.audio[:1]]
        urls = [r.segment(number) for r in tracks if number <= len(r.durations)]
        if not self._rungs or self._rungs[-1] != choice:
            urls.insert(0, rung.initialization)
        start, bits = time.monotonic(), 0
        for url in urls:
            size = await self._fetch(url)
            if size is None:
                return False
            bits += 8 * size
        self._chooser.measured(bits, time.monotonic() - start)
        self._load.segments += 1
        return True

    async def _fetch(self, url: str) -> int | None:
        """Bytes of the resource from the first location that gives it; a failed location is not used again."""
        while self._base < len(self._shown.bases):
            try:
                size = await self._client.get(self._shown.bases[self._base] + url)
            except DownloadError as failed:
                self._load.failures[failed.kind] += 1
                self._base += 1
                continue
            self._load.bytes += size
            return size
        return None


async def run(
    urls: Sequence[str],
    viewers: int,
    seconds: float,
    *,
    think_s: float = 1.0,
    seed: int = 1,
    progress: Callable[[Load, float], None] | None = None,
) -> Load:
    """Let `viewers` play titles at the MPDs `urls`, the n-th as popular as Zipf says, for `seconds`.

    A viewer whose title has ended thinks for `think_s` on average and starts another session. LoadError without
    URLs, ViewingError or FormatError when one of them has nothing to play; what fails while people watch is counted.
    """
    if not urls:
        raise LoadError("there is nothing to play: give the URL of at least one manifest.mpd")
    load, start = Load(), time.monotonic()
    weights = [1 / (rank + 1) ** ZIPF for rank in range(len(urls))]

    async def viewer(number: int) -> None:
        chance = random.Random(f"{seed}.{number}")
        # People do not all press play in the same instant.
        await asyncio.sleep(chance.random() * min(2.0, seconds / 10))
        with Client() as client:
            while time.monotonic() < start + seconds:
                url = chance.choices(urls, weights)[0]
                try:
                    shown = parse(await get(manifests, url), url)
                except OcaError:
                    load.failures["manifest"] += 1
                    load.fatal += 1
                else:
                    load.sessions.append(await _Player(client, shown, load, start + seconds).play())
                await asyncio.sleep(
                    min(chance.expovariate(1 / think_s), max(0.0, start + seconds - time.monotonic()))
                )

    async def watch_clock() -> None:
        while progress is not None:
            progress(load, time.monotonic() - start)
            await asyncio.sleep(0.5)

    async with session() as manifests:
        for url in urls:
            # A mistake in the command is said before anybody plays; what fails later is counted.
            parse(await get(manifests, url), url)
        start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            clock = tasks.create_task(watch_clock())
            await asyncio.gather(*(viewer(number) for number in range(viewers)))
            clock.cancel()
    return load
