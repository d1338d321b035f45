"""Publishing a version into a bucket: file by file, each verified as it is read, title.json last.

So a version whose title.json is there is whole. What is there already at its full size is not sent again, which
makes a repeat harmless and goes on with what was broken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from oca.errors import DigestError, FormatError, OcaError
from oca.http.slices import TYPES
from oca.objectstore import Bucket, MissingError
from oca.title import model as title_format
from oca.title.digest import digest, read_chunks, version_of
from oca.title.model import TITLE_JSON, File

Progress = Callable[[str, int, int], None]
"""Called with the step's name, bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was done for a version: files sent (or to be sent), bytes of them, and bytes that were there."""

    title: str
    version: str
    where: str
    sent: list[str]
    bytes: int
    there: int


def publish(directory: Path, bucket: Bucket, progress: Progress, *, dry_run: bool = False) -> Published:
    """Bring the version in `directory` into a bucket. OcaError before title.json is there if anything is wrong."""
    title, version = title_format.read(directory)
    data = (directory / TITLE_JSON).read_bytes()
    if version_of(data) != version:
        raise FormatError(f"{directory / TITLE_JSON} changed while it was read: publish again")
    published = int((directory / TITLE_JSON).stat().st_mtime)
    for name, file in title.files.items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise OcaError(f"{path} is missing or is not {file.bytes} bytes long: publish a whole version")
    there = bucket.sizes(title.id, version)
    lacking = [name for name, file in title.files.items() if there.get(name) != file.bytes]
    try:
        whole = TITLE_JSON in there and bucket.read(title.id, version, TITLE_JSON)[0] == data
    except (FormatError, MissingError):
        whole = False
    sent = lacking + ([] if whole else [TITLE_JSON])
    sizes = {**{name: file.bytes for name, file in title.files.items()}, TITLE_JSON: len(data)}
    total, done = sum(sizes[name] for name in sent), 0
    told = Published(
        title.id, version, f"{bucket.place}/{title.id}/{version}", sent, total, sum(sizes.values()) - total
    )
    if dry_run or not sent:
        return told

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress("publish", done, total)

    for name in lacking:
        parts = _verified(directory / name, title.files[name], count)
        bucket.write(title.id, version, name, parts, _type(name), None)
    after = bucket.sizes(title.id, version)
    short = [name for name in title.files if after.get(name) != sizes[name]]
    if short:
        raise OcaError(f"{told.where}/{short[0]} is not there at its full size after it was sent: publish again")
    if not whole:
        bucket.write(title.id, version, TITLE_JSON, iter([data]), _type(TITLE_JSON), published)
        count(len(data))
    return told


def _type(name: str) -> str:
    return TYPES.get(Path(name).suffix, "application/octet-stream")


def _verified(path: Path, file: File, count: Callable[[int], None]) -> Iterator[bytes]:
    """The chunks of a file, each the one that title.json lists, or DigestError."""
    read = read_chunks(path, file.chunk_bytes, linger=False)
    for number, (chunk, wanted) in enumerate(zip(read, file.chunks, strict=True)):
        if digest(chunk) != wanted:
            raise DigestError(f"{path} is corrupt in chunk {number}: mend the version or package it again")
        yield chunk
        count(len(chunk))
