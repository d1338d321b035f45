"""The boxes that content is pulled from: which one to ask next, a circuit breaker each, and one request to one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import structlog
from yarl import URL

from oca.asking import HELD_ONLY, SourceError, Span, check_head
from oca.breaker import Breaker, Terms
from oca.config import MissSettings
from oca.counters import Counters
from oca.errors import ConfigError
from oca.title.digest import CHUNK_BYTES
from oca.title.model import MAX_TITLE_JSON
from oca.trust.fleet import shown
from oca.trust.identity import Proof
from oca.wire import Source

_log = structlog.get_logger()
# Who sent wrong bytes is not asked again this long: what broke it needs a person.
DISTRUST_S = 3600.0
# Who may have sent wrong bytes rests until it is known whether others did.
SUSPECT_S = 60.0
# For how long a measured connect time counts; a peer that was found far away gets another chance sooner.
_NEAR_S, _FAR_S = 60.0, 10.0
_READ = 1 << 18
_CHAIN = ("peer", "tier", "origin")

Take = Callable[[bytes], Awaitable[None]]


@dataclass(slots=True)
class _Box:
    """What we know of one upstream. Times are of time.monotonic()."""

    appliance: str
    breaker: Breaker
    near: bool = False
    far: str = ""
    """Why it is not near."""
    measured_until: float = 0.0
    measuring: asyncio.Future[None] | None = None
    distrusted_until: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)


class Upstreams:
    """All upstreams of one process, by URL, and the connections to them."""

    def __init__(self, settings: MissSettings, counters: Counters, proof: Proof | None = None) -> None:
        """With `proof`, only boxes that prove to be of our fleet are asked."""
        self._proof = proof
        self._settings = settings
        self._counters = counters
        self._terms = Terms(
            settings.breaker_requests,
            settings.breaker_window_s,
            settings.breaker_percent,
            settings.breaker_rest_s,
        )
        self._boxes: dict[str, _Box] = {}
        self._fallbacks = 0
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_read=settings.stall_s),
            auto_decompress=False,
            read_bufsize=_READ,
            headers={"Accept-Encoding": "identity", "User-Agent": "oca-puller", HELD_ONLY: "1"},
        )

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()

    async def each(self, holders: Sequence[Source], said: dict[str, str]) -> AsyncGenerator[Source, None]:
        """Those of `holders` to ask, one after the other as each fails: near peers, then tiers, then origins.

        `said` collects, by appliance, why one was passed over; the caller adds what those that were asked did.
        Whoever is asked after the first of the chain is a fallback, of which only some may be under way at once.
        """
        peers = [source for source in holders if source.rank == "peer"]
        await asyncio.gather(*(self._measure(source) for source in peers))
        first = True
        for source in sorted(holders, key=lambda source: _CHAIN.index(source.rank)):
            box, now = self._box(source), time.monotonic()
            if source.rank == "peer" and not box.near:
                said[source.appliance] = box.far
            elif box.distrusted_until > now:
                said[source.appliance] = "it is left alone because of wrong bytes"
                first = False
            elif not box.breaker.would_allow(now):
                said[source.appliance] = "its circuit is open after too many failures"
                first = False
            elif first:
                first = False
                yield source
            elif self._fallbacks >= self._settings.fallbacks:
                said[source.appliance] = f"{self._fallbacks} fallbacks are under way already"
            else:
                self._fallbacks += 1
                try:
                    yield source
                finally:
                    self._fallbacks -= 1

    async def ask(self, source: Source, path: str, span: Span | None, take: Take) -> None:
        """One request for `path`, with Range for `span`; `take` gets the parts of the body as they come.

        Without `span` (offset, length and size of the file) the body may be as long as a title.json. Raises
        SourceError; what `take` has got by then is unverified, and may be the beginning of the truth.
        """
        box = self._box(source)
        if not box.breaker.allow(time.monotonic()):
            raise SourceError("retry", "its circuit is open after too many failures")
        outcome = "given-up"
        try:
            await self._ask(source, path, span, take)
            outcome = "ok"
        except SourceError as fault:
            # A box that says it has not got something works.
            outcome = "absent" if fault.verdict == "absent" else "failed"
            raise
        finally:
            now = time.monotonic()
            if outcome == "given-up":
                box.breaker.forgo()
            elif outcome == "failed":
                box.breaker.fail(now)
            else:
                box.breaker.succeed(now)
            self._counters.upstream(source.appliance, outcome)
            self._note(source, box)

    async def _ask(self, source: Source, path: str, span: Span | None, take: Take) -> None:
        settings = self._settings
        headers = {"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"} if span and span[1] != span[2] else {}
        most, got = span[1] if span is not None else MAX_TITLE_JSON, 0
        try:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    async with asyncio.timeout(settings.first_byte_s):
                        # As for a fill: media lies where the controller says, a redirect could lead anywhere.
                        request = self._session.get(
                            URL(source.url + path, encoded=True),
                            headers=headers,
                            allow_redirects=False,
                            **shown(self._proof, source.url),
                        )
                        response = await stack.enter_async_context(request)
                        check_head(response.status, response.headers, span)
                        part = await response.content.readany()
                except TimeoutError:
                    raise SourceError("retry", f"it did not begin to answer in {settings.first_byte_s:g} s") from None
                # For a chunk longer than most titles have as much longer.
                patience = settings.request_s * (max(1.0, most / CHUNK_BYTES) if span is not None else 1.0)
                deadline = time.monotonic() + patience
                while part:
                    got += len(part)
                    if got > most:
                        raise SourceError("bad", f"it sends more than the {most} bytes asked for")
                    if time.monotonic() > deadline:
                        raise SourceError("retry", f"it sent {got} bytes in {patience:g} s: too slow")
                    await take(part)
                    part = await response.content.readany()
        except TimeoutError:
            raise SourceError("retry", f"it stopped sending for {settings.stall_s:g} s") from None
        except ConfigError as error:
            raise SourceError("absent", str(error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise SourceError("retry", f"{error or type(error).__name__}") from None
        if span is not None and got < most:
            raise SourceError("retry", f"it sent {got} bytes instead of {most}")

    def distrust(self, source: Source, sentence: str, seconds: float) -> None:
        """Leave a box alone so long, because it sent bytes that are not, or may not be, what was published."""
        box = self._box(source)
        box.distrusted_until = max(box.distrusted_until, time.monotonic() + seconds)
        _log.error("an upstream sends wrong bytes", source=source.appliance, url=source.url, detail=sentence)

    def observe(self) -> None:
        """Bring what the counters say of the circuits up to date."""
        now = time.monotonic()
        states = {"closed": 0, "open": 0, "half-open": 0}
        for box in self._boxes.values():
            states[box.breaker.state(now)] += 1
        self._counters.circuits = states
        self._counters.error_percent = {
            box.appliance: round(box.breaker.error_percent(now)) for box in self._boxes.values()
        }

    def _box(self, source: Source) -> _Box:
        box = self._boxes.get(source.url)
        if box is None:
            box = self._boxes[source.url] = _Box(source.appliance, Breaker(self._terms))
        return box

    def _note(self, source: Source, box: _Box) -> None:
        """Count, and say in the log, what changed in a circuit."""
        for change, count in box.breaker.changes.items():
            more = count - box.seen.get(change, 0)
            if more:
                box.seen[change] = count
                self._counters.circuit_changes[change] = self._counters.circuit_changes.get(change, 0) + more
                _log.warning(f"circuit {change}", source=source.appliance, url=source.url)

    async def _measure(self, source: Source) -> None:
        """Find out whether a peer is near, unless that is known. Who connects in time is; nobody waits longer."""
        box = self._box(source)
        if box.measuring is not None:
            await asyncio.shield(box.measuring)
            return
        if time.monotonic() < box.measured_until:
            return
        box.measuring = asyncio.get_running_loop().create_future()
        try:
            url = URL(source.url)
            async with asyncio.timeout(self._settings.near_ms / 1000):
                _, writer = await asyncio.open_connection(url.host, url.port)
            writer.close()
            box.near = True
        except TimeoutError:
            box.near, box.far = False, f"connecting to it takes more than {self._settings.near_ms:g} ms"
        except OSError as error:
            box.near, box.far = False, f"cannot connect to it: {error.strerror or error}"
        finally:
            box.measured_until = time.monotonic() + (_NEAR_S if box.near else _FAR_S)
            box.measuring.set_result(None)
            box.measuring = None
