"""The controllers as the fill agent sees them: four questions over HTTP, asked of the first that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import aiohttp
import msgspec

from oca import wire
from oca.errors import FormatError, OcaError
from oca.trust.identity import Proof
from oca.wire import MAX_BODY, FillLease, FillManifest, FillReport, Message, Source, Sources

_TIMEOUT = aiohttp.ClientTimeout(total=30.0, sock_connect=5.0)

M = TypeVar("M", bound=Message)


class ControllerError(OcaError):
    """No controller gave a usable answer; the sentence says what each one did."""


class _Refusal(msgspec.Struct):
    error: str


class Controllers:
    """Asks on behalf of `appliance`, as `proof` shows; `urls` are tried in order. The session stays the caller's."""

    def __init__(
        self, session: aiohttp.ClientSession, appliance: str, urls: Sequence[str], proof: Proof | None = None
    ) -> None:
        self._session = session
        self._appliance = appliance
        self._urls = urls
        self._proof = proof

    async def manifest(self) -> FillManifest:
        """What the plan in force wants on this appliance. Raises ControllerError."""
        where = f"fill manifest of {self._appliance}"
        manifest = await self._ask("GET", "fill-manifest", FillManifest, where)
        if manifest.appliance != self._appliance:
            raise ControllerError(f"the controller sent {self._appliance} the manifest of {manifest.appliance}")
        return manifest

    async def sources(self, title: str, version: str, track: str) -> list[Source]:
        """Where to fetch a track now, best first. Raises ControllerError."""
        query = {"title": title, "version": version, "track": track}
        where = f"sources of {title} {version} {track}"
        return (await self._ask("GET", "sources", Sources, where, query)).sources

    async def lease(self) -> FillLease:
        """What of the site's line may be used for the next seconds. Raises ControllerError."""
        return await self._ask("POST", "fill-lease", FillLease, f"fill lease of {self._appliance}")

    async def report(self, report: FillReport) -> None:
        """Tell how the fill goes; repeating a report is harmless. Raises ControllerError."""
        await self._send("POST", "fill-report", None, wire.encode(report))

    async def _ask(
        self, method: str, call: str, kind: type[M], where: str, query: Mapping[str, str] | None = None
    ) -> M:
        data = await self._send(method, call, query, None)
        try:
            return wire.decode(data, kind, where)
        except FormatError as error:
            raise ControllerError(str(error)) from None

    async def _send(self, method: str, call: str, query: Mapping[str, str] | None, body: bytes | None) -> bytes:
        failures = []
        for base in self._urls:
            url = f"{base}/api/v1/appliances/{self._appliance}/{call}"
            try:
                shown = self._proof.context() if self._proof is not None and base.startswith("https:") else True
                async with self._session.request(
                    method, url, params=query, data=body, timeout=_TIMEOUT, allow_redirects=False, ssl=shown
                ) as response:
                    data = await _body(response)
                    if response.status < 300:
                        return data
                    failures.append(f"{base} answers {response.status}: {_sentence(data)}")
            except (aiohttp.ClientError, TimeoutError, OSError, OcaError) as error:
                failures.append(f"{base}: {error or type(error).__name__}")
        raise ControllerError("; ".join(failures) or "no controllers in the settings: name one under `controllers`")


async def _body(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in response.content.iter_any():
        data += part
        if len(data) > MAX_BODY:
            raise FormatError(f"its answer is longer than the {MAX_BODY} bytes allowed")
    return bytes(data)


def _sentence(data: bytes) -> str:
    """The sentence of an error body, or as much of the body as helps."""
    try:
        return msgspec.json.decode(data, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data[:200].decode("utf-8", "replace").strip()
