"""Presigned URLs as a fetch uses them: the newest there are, asked for again before they end.

Who has such a URL may read the object, so that its query goes nowhere but to the service: not into logs or errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Sequence

from oca.errors import OcaError
from oca.wire import Source

Ask = Callable[[], Awaitable[Sequence[Source]]]
"""Asks the controller for the sources of the same track again."""
# Asked again when so much of their time is over.
_OLD = 0.8
# And after so many seconds if that was in vain.
_AGAIN_S = 10.0
_QUERY = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]*")


def unsigned(text: str) -> str:
    """A text without the queries of URLs in it."""
    return _QUERY.sub(r"\1", text)


class Signed:
    """The URLs that the sources of one track came with, and how to get new ones."""

    def __init__(self, sources: Sequence[Source], ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._asking = asyncio.Lock()
        self._newest: dict[str, tuple[Source, float]] = {}
        self._take(sources)

    def _take(self, sources: Sequence[Source]) -> None:
        # By our own clock from now on: that of the controller may be another.
        until = self._clock()
        for source in sources:
            if source.objects:
                self._newest[source.place] = (source, until + _OLD * source.objects_s)

    async def url(self, source: Source, name: str) -> str | None:
        """Where `source` has the file `name` now; None if the controller has named no URL for it."""
        newest, old_at = self._newest.get(source.place, (source, 0.0))
        if self._clock() >= old_at:
            await self._renew(source, newest)
            newest, _ = self._newest.get(source.place, (source, 0.0))
        return newest.objects.get(name)

    async def refused(self, source: Source, name: str, url: str) -> bool:
        """The service refused `url`: ask for new ones. Whether there is another one now."""
        newest, _ = self._newest.get(source.place, (source, 0.0))
        if newest.objects.get(name) == url:
            await self._renew(source, newest)
            newest, _ = self._newest.get(source.place, (source, 0.0))
        return newest.objects.get(name, url) != url

    async def _renew(self, source: Source, known: Source) -> None:
        """Ask once, however many find out together that `known` is too old."""
        async with self._asking:
            if self._newest.get(source.place, (known, 0.0))[0] is not known:
                return
            # While no controller answers, the old ones may yet work, and it is not asked for every chunk.
            self._newest[source.place] = (known, self._clock() + _AGAIN_S)
            with contextlib.suppress(OcaError):
                self._take(await self._ask())
