"""The fill manifest as a controller last sent it, kept on disk: a window must not pass because nobody answers."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from oca import wire
from oca.errors import FormatError
from oca.store.content import Store, write_durably
from oca.wire import FillManifest

_log = structlog.get_logger()
FILE = ".fill-manifest"


class ManifestFile:
    """The file on each disk of `store`, for box `me`: any disk may fail. Everything blocks: call it from a thread."""

    def __init__(self, store: Store, me: str) -> None:
        self._store = store
        self._me = me
        self._written: dict[Path, bytes] = {}

    def write(self, manifest: FillManifest) -> None:
        """Keep it, but not its order to fill now: that is obeyed once. A disk that refuses is logged, no more."""
        data = wire.encode(msgspec.structs.replace(manifest, force=0))
        for root in self._store.writable:
            if self._written.get(root) == data:
                continue
            try:
                write_durably(root / FILE, data)
                self._written[root] = data
            except OSError as error:
                _log.warning("the fill manifest cannot be kept", path=str(root / FILE), detail=error.strerror)

    def read(self) -> FillManifest | None:
        """The manifest kept last; None if there is none, or it is damaged, which is logged, or another box's."""
        kept = []
        for root in self._store.usable:
            with suppress(OSError):
                kept.append(((root / FILE).stat().st_mtime_ns, root / FILE))
        # A disk that was away has an older one.
        for _, path in sorted(kept, reverse=True):
            try:
                found = wire.decode(path.read_bytes(), FillManifest, str(path))
            except (FormatError, OSError) as error:
                _log.warning("the fill manifest that was kept is of no use", detail=str(error))
                continue
            if found.appliance == self._me:
                return found
        return None
