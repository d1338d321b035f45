"""The controllers as the fill agent sees them: four questions over HTTP, asked of the first that answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import aiohttp
import msgspec

from oca import wire
from oca.errors import FormatError, OcaError
from oca.trust.identity import Proof
from oca.wire import (
    MAX_BODY,
    FillLease,
    FillManifest,
    FillReport,
    Message,
    Source,
    Sources,
    SourcesOrder,
    Track,
)

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
        self._manifest: tuple[str, FillManifest] | None = None

    async def manifest(self) -> FillManifest:
        """What the plan in force wants on this appliance, fetched only if it is another. Raises ControllerError."""
        answer = await self._send("GET", "fill", known=self._manifest[0] if self._manifest is not None else "")
        if answer is None and self._manifest is not None:
            return self._manifest[1]
        data, etag = answer or (b"", "")
        manifest = self._read(data, FillManifest, f"fill manifest of {self._appliance}")
        if manifest.appliance != self._appliance:
            raise ControllerError(f"the controller sent {self._appliance} the manifest of {manifest.appliance}")
        self._manifest = (etag, manifest) if etag else None
        return manifest

    async def sources(self, tracks: Sequence[tuple[str, str, str]]) -> list[list[Source]]:
        """Where to fetch each of some tracks (title, version, name) now, best first. Raises ControllerError."""
        order = SourcesOrder(tracks=[Track(*track) for track in tracks])
        found = await self._ask("sources", Sources, f"sources of {self._appliance}", wire.encode(order))
        if len(found.tracks) != len(tracks):
            raise ControllerError(
                f"asked for the sources of {len(tracks)} tracks, the controller told of {len(found.tracks)}"
            )
        return found.tracks

    async def lease(self) -> FillLease:
        """What of the site's line may be used for the next seconds. Raises ControllerError."""
        return await self._ask("fill-lease", FillLease, f"fill lease of {self._appliance}")

    async def report(self, report: FillReport) -> None:
        """Tell how the fill goes; repeating a report is harmless. Raises ControllerError."""
        await self._send("POST", "fill-report", wire.encode(report))

    async def _ask(self, call: str, kind: type[M], where: str, body: bytes | None = None) -> M:
        answer = await self._send("POST", call, body)
        return self._read(answer[0] if answer is not None else b"", kind, where)

    @staticmethod
    def _read(data: bytes, kind: type[M], where: str) -> M:
        try:
            return wire.decode(data, kind, where)
        except FormatError as error:
            raise ControllerError(str(error)) from None

    async def _send(
        self, method: str, call: str, body: bytes | None = None, known: str = ""
    ) -> tuple[bytes, str] | None:
        """The body of the first good answer, and its ETag; None if it is the one whose ETag is `known`."""
        failures = []
        fields = {"If-None-Match": known} if known else {}
        for base in self._urls:
            url = f"{base}/api/v1/appliances/{self._appliance}/{call}"
            try:
                shown = self._proof.context() if self._proof is not None and base.startswith("https:") else True
                async with self._session.request(
                    method, url, headers=fields, data=body, timeout=_TIMEOUT, allow_redirects=False, ssl=shown
                ) as response:
                    data = await _body(response)
                    if response.status < 300:
                        return data, response.headers.get("ETag", "")
                    if response.status == 304 and known:
                        return None
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
