"""title.json: what a title's version consists of, down to the digest of every chunk.

The version is the BLAKE3 of these bytes, so title.json certifies itself and, through its digests, every other
file beside it. It must never hold its own version, a clock or a path.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from oca.errors import FormatError
from oca.ids import TRACK_RULE, is_id, is_track
from oca.title.digest import (
    CHUNK_BYTES,
    LEAST_CHUNK_BYTES,
    MOST_CHUNK_BYTES,
    chunk_count,
    chunk_span,
    version_of,
)
from oca.title.protection import Protection, objection

FORMAT = 1
TITLE_JSON = "title.json"
# A title of 24 h in 20 tracks has some 6,000 chunk digests; four times that is still far below this.
MAX_TITLE_JSON = 16 << 20

Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
# What a signed 64-bit integer holds: longer ones could be read, but neither divided nor written.
_MOST = (1 << 63) - 1
Positive = Annotated[int, Meta(gt=0, le=_MOST)]
Natural = Annotated[int, Meta(ge=0, le=_MOST)]
Side = Annotated[int, Meta(gt=0, le=16_384)]
Cells = Annotated[int, Meta(gt=0, le=64)]


class File(msgspec.Struct, frozen=True, omit_defaults=True):
    """Size in bytes, BLAKE3 of the whole file, and of each of its chunks in order.

    The length of a chunk is the title's: `decode` puts it here, and `encode` writes it once, there.
    """

    bytes: Natural
    digest: Digest
    chunks: list[Digest]
    chunk_bytes: int = CHUNK_BYTES

    def span(self, chunk: int) -> tuple[int, int]:
        """Offset and length in bytes of chunk number `chunk`, from 0."""
        return chunk_span(self.bytes, chunk, self.chunk_bytes)


class Track(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rendition: the files `<name>.mp4` and `<name>.idx`. Rates in bit/s, duration in ticks of timescale."""

    name: str
    kind: Literal["video", "audio"]
    codecs: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.-]{1,100}\Z")]
    timescale: Positive
    duration: Positive
    segments: Positive
    bandwidth: Positive
    average_bandwidth: Positive
    reason: str = ""
    width: Natural = 0
    height: Natural = 0
    frame_rate: Annotated[str, Meta(pattern=r"^(?:[1-9][0-9]{0,8}(?:/[1-9][0-9]{0,8})?)?\Z")] = ""
    language: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{0,35}\Z")] = ""
    channels: Natural = 0
    sample_rate: Natural = 0
    i_frame_bandwidth: Natural = 0
    i_frame_average_bandwidth: Natural = 0
    """Of the I-frame playlist; versions packaged before there were any have none."""
    quality: dict[Literal["vmaf", "ssim-db"], float] = {}
    """What was measured of the picture, if anything."""
    label: Annotated[str, Meta(max_length=120)] = ""
    """What a menu calls the sound; tracks with the same label are the same sound, coded differently."""
    role: Annotated[str, Meta(pattern=r"^[a-z-]{0,40}\Z")] = ""
    """What the sound is for, as DASH has it (23009-1 table 34): main, alternate, commentary, description."""

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.duration / self.timescale

    @property
    def files(self) -> tuple[str, str]:
        """Names of the files that together are this track, media first."""
        return f"{self.name}.mp4", f"{self.name}.idx"


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """Captions in a language (BCP 47), in WebVTT: `<name>.vtt` is all of them, `<name>.m3u8` lists their segments.

    Rates in bit/s, of the segments. `label` is what a player's menu shows.
    """

    name: str
    kind: Literal["subtitles", "captions", "forced"]
    language: Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]{1,35}\Z")]
    label: Annotated[str, Meta(max_length=100)]
    bandwidth: Positive
    average_bandwidth: Positive

    @property
    def files(self) -> tuple[str, str]:
        """The whole as one file, and the playlist of segments."""
        return f"{self.name}.vtt", f"{self.name}.m3u8"


class Tiles(msgspec.Struct, frozen=True, kw_only=True):
    """Small pictures of what is shown every `interval` ticks of timescale from 0 on, `count` in all.

    They are tiles of `width` x `height` pixels in sheets, `columns` x `rows` on each, row by row: `<name>-<n>.jpg`,
    n from 1. `<name>.m3u8` lists these. The rate, in bit/s, is the peak.
    """

    name: str
    width: Side
    height: Side
    columns: Cells
    rows: Cells
    timescale: Positive
    interval: Positive
    count: Positive
    bandwidth: Positive

    @property
    def sheets(self) -> int:
        """How many sheets there are; the last may be partly empty."""
        return -(-self.count // (self.columns * self.rows))

    def sheet(self, number: int) -> str:
        """The file name of a sheet, numbered from 1."""
        return f"{self.name}-{number}.jpg"

    @property
    def playlist(self) -> str:
        """The file name of the playlist of sheets."""
        return f"{self.name}.m3u8"


class Period(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of the presentation in which the set of tracks does not change; one, for now."""

    id: str
    tracks: list[Track]
    captions: list[Text] = []
    thumbnails: list[Tiles] = []


class Title(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of title.json. `files` lists every file of the version but title.json itself."""

    format: int = FORMAT
    id: str
    name: str
    chunk_bytes: int = CHUNK_BYTES
    periods: list[Period]
    files: dict[str, File]
    protection: Protection | msgspec.UnsetType = msgspec.UNSET

    @property
    def tracks(self) -> list[Track]:
        """Tracks of every period, in order."""
        return [track for period in self.periods for track in period.tracks]

    @property
    def captions(self) -> list[Text]:
        """Captions of every period, in order."""
        return [text for period in self.periods for text in period.captions]

    @property
    def thumbnails(self) -> list[Tiles]:
        """Sets of small pictures of every period, in order."""
        return [tiles for period in self.periods for tiles in period.thumbnails]

    @property
    def seconds(self) -> float:
        """Duration of the presentation in seconds: each period lasts as long as its longest track."""
        return sum(max(track.seconds for track in period.tracks) for period in self.periods)

    @property
    def shared_files(self) -> list[str]:
        """Files that belong to no track (manifests, captions, thumbnails): every holder has all of them."""
        of_tracks = {name for track in self.tracks for name in track.files}
        return [name for name in self.files if name not in of_tracks]

    def track_bytes(self, track: Track) -> int:
        """Bytes on disk of the track's own files."""
        return sum(self.files[name].bytes for name in track.files)


class _Format(msgspec.Struct):
    format: int


def check_format(data: bytes, newest: int, where: str) -> None:
    """Raise FormatError unless `data` carries a `format` from 1 to `newest`."""
    try:
        found = msgspec.json.decode(data, type=_Format).format
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{where} is corrupt: {error}") from None
    if not 1 <= found <= newest:
        raise FormatError(
            f"{where} is of format {found}, this program knows formats 1 to {newest}: upgrade oca to read it"
        )


def encode(title: Title) -> bytes:
    """The bytes of title.json: the same title always gives the same bytes."""
    title = _with_chunks(title, CHUNK_BYTES)
    return msgspec.json.format(msgspec.json.encode(title, order="deterministic"), indent=1) + b"\n"


def decode(data: bytes, where: str = TITLE_JSON) -> Title:
    """Read and check the bytes of a title.json; `where` names them in a FormatError."""
    if len(data) > MAX_TITLE_JSON:
        raise FormatError(f"{where} is {len(data)} bytes long, more than the {MAX_TITLE_JSON} allowed")
    check_format(data, FORMAT, where)
    try:
        title = msgspec.json.decode(data, type=Title)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{where} is corrupt: {error}") from None
    # Before anything is divided by it.
    if not LEAST_CHUNK_BYTES <= title.chunk_bytes <= MOST_CHUNK_BYTES:
        raise FormatError(f"{where} is corrupt: {chunk_rule(title.chunk_bytes)}")
    title = _with_chunks(title, title.chunk_bytes)
    _check(title, where)
    return title


def chunk_rule(found: int) -> str:
    """What to say of a `chunk_bytes` that cannot be."""
    return f"chunk_bytes is {found}, not from {LEAST_CHUNK_BYTES} (4 KiB) to {MOST_CHUNK_BYTES} (64 MiB)"


def _with_chunks(title: Title, chunk_bytes: int) -> Title:
    """The title whose files say that their chunks are so long."""
    files = {name: msgspec.structs.replace(file, chunk_bytes=chunk_bytes) for name, file in title.files.items()}
    return msgspec.structs.replace(title, files=files)


def _check(title: Title, where: str) -> None:
    """Raise FormatError if what the types cannot say does not hold."""
    names = [track.name for track in title.tracks]
    strange = [name[:80] for name in names if not is_track(name)]
    names += [text.name for text in title.captions] + [tiles.name for tiles in title.thumbnails]
    wanted = [name for track in title.tracks for name in track.files]
    for ok, sentence in (
        (is_id(title.id), f"title id {title.id[:80]!r} is not an id"),
        (title.periods != [] and all(p.tracks for p in title.periods), "a period has no tracks"),
        (not strange, f"track name {''.join(strange[:1])!r} is not {TRACK_RULE}"),
        (all(map(is_id, names)), "the name of captions or thumbnails is not an id"),
        (len(set(names)) == len(names), "two tracks, captions or thumbnails have the same name"),
        (all(map(is_id, title.files)), "a file name is not an id"),
        (TITLE_JSON not in title.files, f"files lists {TITLE_JSON} itself"),
        (set(wanted) <= title.files.keys(), "a track's .mp4 or .idx is missing from files"),
        ({n for text in title.captions for n in text.files} <= title.files.keys(), "captions are missing from files"),
        (all(_has_sheets(title, tiles) for tiles in title.thumbnails), "thumbnails are missing from files"),
        (
            all(len(file.chunks) == chunk_count(file.bytes, title.chunk_bytes) for file in title.files.values()),
            "a file has too many or too few chunk digests for its size",
        ),
    ):
        if not ok:
            raise FormatError(f"{where} is corrupt: {sentence}")
    if title.protection and (sentence := objection(title.protection, [track.name for track in title.tracks])):
        raise FormatError(f"{where} is corrupt: {sentence}")


def _has_sheets(title: Title, tiles: Tiles) -> bool:
    # Compared first: there could be said to be more of them than fit into memory.
    there = tiles.playlist in title.files and tiles.sheets <= len(title.files)
    return there and all(tiles.sheet(n) in title.files for n in range(1, tiles.sheets + 1))


def read(directory: Path) -> tuple[Title, str]:
    """The title in `directory` and its version, computed from the bytes; FormatError if corrupt or missing."""
    path = directory / TITLE_JSON
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TITLE_JSON + 1)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from None
    return decode(data, str(path)), version_of(data)
