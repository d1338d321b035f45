"""The fill manifest as a controller last sent it, kept on disk: a window must not pass because nobody answers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from oca import wire
from oca.errors import FormatError
from oca.store.content import write_durably
from oca.wire import FillManifest

_log = structlog.get_logger()
FILE = ".fill-manifest"


class ManifestFile:
    """The file under the first root of a store, for box `me`. Everything here blocks: call it from a thread."""

    def __init__(self, root: Path, me: str) -> None:
        self.path = root / FILE
        self._me = me
        self._written = b""

    def write(self, manifest: FillManifest) -> None:
        """Keep it, but not its order to fill now: that is obeyed once. A disk that refuses is logged, no more."""
        data = wire.encode(msgspec.structs.replace(manifest, force=0))
        if data == self._written:
            return
        try:
            write_durably(self.path, data)
            self._written = data
        except OSError as error:
            _log.warning("the fill manifest cannot be kept", path=str(self.path), detail=error.strerror)

    def read(self) -> FillManifest | None:
        """The manifest kept last; None if there is none, or it is damaged, which is logged, or another box's."""
        try:
            found = wire.decode(self.path.read_bytes(), FillManifest, str(self.path))
        except FileNotFoundError:
            return None
        except (FormatError, OSError) as error:
            _log.warning("the fill manifest that was kept is of no use", detail=str(error))
            return None
        return found if found.appliance == self._me else None
