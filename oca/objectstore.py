"""A bucket of an S3 service as an origin: what is in it, reading, writing, and URLs that let others read.

Objects lie as in a store, `<prefix>/<title>/<version>/<file>`, and title.json is written last: where it is, the
version is whole. Keys to the bucket stay in this process: no error and no signed URL carries the secret one.
"""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from oca.errors import ConfigError, FormatError, OcaError
from oca.title.model import MAX_TITLE_JSON, TITLE_JSON

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

_PLACE = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([a-z0-9][a-z0-9._/-]{0,254}?))?/?")
_ENDPOINT = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_CONNECT = timedelta(seconds=5)
_PART = 8 << 20
PUBLISHED = "oca-published"
"""Metadata of title.json: when the version was published, UTC seconds."""


class ObjectStoreError(OcaError):
    """A bucket that does not do as asked; the sentence says which, what it answered, and what to look at."""


class MissingError(ObjectStoreError):
    """An object, or a bucket, that is not there."""


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What opens a bucket. It is never shown."""

    access_key_id: Annotated[str, Meta(min_length=1, max_length=256)]
    secret_access_key: Annotated[str, Meta(min_length=1, max_length=256)]
    session_token: Annotated[str, Meta(max_length=8192)] = ""

    def __repr__(self) -> str:
        return "Keys(...)"


def keys(path: Path | None) -> Keys:
    """The keys in a TOML file that its owner alone may read, or without one from AWS_ACCESS_KEY_ID and its fellows.

    ConfigError if there are none, or if others may read the file. No error quotes them.
    """
    if path is None:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        found = [os.environ.get(name, "") for name in names]
        if not found[0] or not found[1]:
            raise ConfigError(f"there are no keys for S3: set {names[0]} and {names[1]}, or name a key file")
        return Keys(*found)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(64 << 10)
    except OSError as error:
        raise ConfigError(f"cannot read the S3 keys in {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"others than its owner may read the S3 keys in {path} (mode {mode:04o}): chmod 600 {path}")
    try:
        return msgspec.convert(tomllib.loads(data.decode()), type=Keys)
    except (ValueError, RecursionError):
        # What the parsers say may quote what they read.
        raise ConfigError(
            f'{path} holds no S3 keys: write access_key_id = "…" and secret_access_key = "…" into it, as TOML'
        ) from None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket is: `where` as s3://bucket/prefix, the service's URL ('' for AWS), and its region."""

    where: str
    endpoint: str = ""
    region: str = "us-east-1"
    _parts: tuple[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        match = _PLACE.fullmatch(self.where)
        if match is None or any(part in ("", ".", "..") for part in (match[2] or "x").split("/")):
            raise ConfigError(
                f"{self.where[:200]!r} is no bucket: write s3://BUCKET or s3://BUCKET/PREFIX, in lower case"
            )
        if self.endpoint and not _ENDPOINT.fullmatch(self.endpoint):
            raise ConfigError(f"{self.endpoint[:200]!r} is no URL of an S3 service: write https://HOST[:PORT]")
        object.__setattr__(self, "_parts", (match[1], match[2] or ""))

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._parts[0]

    @property
    def prefix(self) -> str:
        """What the names of all our objects in the bucket begin with, '' or without a slash at its end."""
        return self._parts[1]

    @property
    def url(self) -> str:
        """The service's URL."""
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com"

    def __str__(self) -> str:
        return f"s3://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")


class Bucket:
    """One bucket, opened with keys. Methods that speak to the service block; `sign` does not speak to it."""

    def __init__(self, place: Place, opened_with: Keys, timeout_s: float = 20.0) -> None:
        try:
            from obstore.store import S3Store
        except ImportError:
            raise ConfigError("S3 takes the package obstore, which is not installed: pip install 'oca[s3]'") from None

        def credential() -> S3Credential:
            # As plain settings keys would be mixed with what else of keys is in the environment.
            return {
                "access_key_id": opened_with.access_key_id,
                "secret_access_key": opened_with.secret_access_key,
                "token": opened_with.session_token or None,
                "expires_at": None,
            }

        self.place = place
        self._store: S3Store = S3Store(
            place.bucket,
            prefix=place.prefix or None,
            endpoint=place.url,
            region=place.region,
            credential_provider=credential,
            virtual_hosted_style_request=False,
            client_options={
                "allow_http": place.url.startswith("http:"),
                "connect_timeout": _CONNECT,
                "timeout": timedelta(seconds=timeout_s),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=timeout_s)},
        )

    def sizes(self, title: str, version: str) -> dict[str, int]:
        """The names and sizes of the objects of a version."""
        import obstore

        with _asking(self.place):
            rows = obstore.list(self._store, f"{title}/{version}").collect()
        return {row["path"].rpartition("/")[2]: row["size"] for row in rows}

    def versions(self, title: str) -> list[str]:
        """Names of what may be versions of a title, whole or not, sorted."""
        return self._folders(f"{title}/")

    def titles(self) -> list[str]:
        """Names of what may be titles, sorted."""
        return self._folders(None)

    def _folders(self, prefix: str | None) -> list[str]:
        import obstore

        with _asking(self.place):
            found = obstore.list_with_delimiter(self._store, prefix)["common_prefixes"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in found)

    def holds(self, title: str, version: str) -> bool:
        """Whether a version is there, whole: its title.json is."""
        import obstore

        try:
            with _asking(self.place):
                obstore.head(self._store, f"{title}/{version}/{TITLE_JSON}")
        except MissingError:
            return False
        return True

    def read(self, title: str, version: str, name: str, most: int = MAX_TITLE_JSON) -> tuple[bytes, int]:
        """An object's bytes, `most` at most, and when it was published, UTC seconds. MissingError: there is none."""
        import obstore

        where = f"{self.place}/{title}/{version}/{name}"
        with _asking(self.place, where):
            got = obstore.get(self._store, f"{title}/{version}/{name}")
            size, told = got.meta["size"], got.attributes.get(PUBLISHED, "")
            if size > most:
                raise FormatError(f"{where} is {size} bytes long, more than the {most} allowed")
            data = bytes(got.bytes())
        published = int(told) if told.isascii() and told.isdecimal() and len(told) < 16 else None
        return data, int(got.meta["last_modified"].timestamp()) if published is None else published

    def write(
        self, title: str, version: str, name: str, parts: Iterator[bytes], content_type: str, published: int | None
    ) -> None:
        """Write an object whole or not at all; what `parts` raises ends it. Large ones go up in parts of 8 MiB."""
        import obstore

        fields = {"Content-Type": content_type, "Cache-Control": "public, max-age=31536000, immutable"}
        if published is not None:
            fields[PUBLISHED] = str(published)
        first = b""
        while len(first) < _PART and (more := next(parts, b"")):
            first += more
        whole = first if len(first) < _PART else None
        with _asking(self.place, f"{self.place}/{title}/{version}/{name}"):
            obstore.put(
                self._store,
                f"{title}/{version}/{name}",
                whole if whole is not None else _chain(first, parts),
                attributes=fields,
                use_multipart=whole is None,
                chunk_size=_PART,
                max_concurrency=4,
            )

    def sign(self, title: str, version: str, names: Sequence[str], seconds: float) -> dict[str, str]:
        """For each named file of a version a URL that reads it for so long, whoever has it."""
        import obstore

        paths = [f"{title}/{version}/{name}" for name in names]
        with _asking(self.place):
            return dict(zip(names, obstore.sign(self._store, "GET", paths, timedelta(seconds=seconds)), strict=True))


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


@contextlib.contextmanager
def _asking(place: Place, what: str = "") -> Iterator[None]:
    """Make one sentence of what the library says: that holds whole answers, and in them keys."""
    from obstore import exceptions

    what, at = what or str(place), f"the S3 service at {place.url}"
    try:
        yield
    except exceptions.BaseError as error:
        text, refusals = str(error), (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        code = match[1] if (match := _CODE.search(text)) else ""
        if code == "NoSuchBucket":
            raise MissingError(f"{at} has no bucket {place.bucket}: make it, or correct its name") from None
        if isinstance(error, exceptions.NotFoundError):
            raise MissingError(f"{at} has no {what}") from None
        if isinstance(error, refusals):
            raise ObjectStoreError(
                f"{at} refuses {what} ({code or 'permission denied'}): are the keys right, may they read and list "
                "the bucket, and write it to publish, and is the clock right?"
            ) from None
        if code:
            raise ObjectStoreError(f"{at} answers {code} for {what}: are endpoint and region right?") from None
        raise ObjectStoreError(f"{at} cannot be reached, or does not answer as S3 would, for {what}") from None
