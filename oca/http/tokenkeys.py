"""The keys that tokens are verified with: a TOML file, read again when it changes, so that keys can be rotated.

[[keys]]
kid = "2026-11"
kind = "hmac"                      # or es256, ed25519
secret = "base64url, 32 bytes"     # of hmac; the others have public = "PEM"
until = 2026-12-31T00:00:00Z       # if it is to end; `from` likewise
"""

from __future__ import annotations

import base64
import datetime
import math
import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import cbor2
import msgspec
from cwt import COSE, COSEKey
from cwt.cose_key_interface import COSEKeyInterface
from msgspec import Meta

from oca.errors import ConfigError
from oca.http.token import TokenError

Kind = Literal["hmac", "es256", "ed25519"]
# COSE's numbers (RFC 9053) and the tag of the message that goes with each (RFC 9052 2).
ALGORITHMS: dict[Kind, int] = {"hmac": 5, "es256": -7, "ed25519": -8}
_MAC0, _SIGN1 = 0xD1, 0xD2
_NAMES: dict[Kind, str] = {"hmac": "HS256", "es256": "ES256", "ed25519": "EdDSA"}
_CWT = b"\xd8\x3d"  # tag 61, which may be there or not (RFC 8392 6)
MOST_TOKEN = 4096
_ALG, _KID = 1, 4


class KeySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"begins": "from"}):
    """One key as the file has it."""

    kid: Annotated[str, Meta(min_length=1, max_length=64)]
    kind: Kind
    secret: str = ""
    public: str = ""
    private: str = ""
    begins: Annotated[datetime.datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime.datetime, Meta(tz=True)] | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: Annotated[list[KeySettings], Meta(min_length=1)]


class Key:
    """A key that verifies tokens, and makes them if its private half is there."""

    def __init__(self, settings: KeySettings, where: str) -> None:
        self.kid = settings.kid.encode()
        self.kind: Kind = settings.kind
        self.begins = settings.begins.timestamp() if settings.begins else -math.inf
        self.until = settings.until.timestamp() if settings.until else math.inf
        self.print = (settings.secret, settings.public, settings.private)
        """Differs between keys that share a kid."""
        self.makes = bool(settings.secret or settings.private)
        try:
            self._key = self._load(settings)
        except Exception as error:  # the library raises what its own parts raise
            raise ConfigError(f"{where}: key {settings.kid!r} is not a key of kind {self.kind}: {error}") from None

    def _load(self, settings: KeySettings) -> COSEKeyInterface:
        if self.kind == "hmac":
            secret = _base64url(settings.secret)
            if len(secret) < 32:
                raise ValueError("its secret has less than 32 bytes")
            return COSEKey.from_symmetric_key(secret, alg="HS256", kid=self.kid)
        pem = settings.private or settings.public
        if not pem:
            raise ValueError("it has neither public nor private")
        key = COSEKey.from_pem(pem, kid=self.kid, alg=_NAMES[self.kind])
        if key.alg != ALGORITHMS[self.kind]:
            raise ValueError("it is of another kind")
        return key

    def verify(self, data: bytes) -> bytes:
        """What the token says; TokenError if this key did not make it."""
        try:
            payload = COSE.new().decode(data, self._key)
        except Exception as error:  # the library raises what its own parts raise
            raise TokenError("the token's signature is wrong") from error
        if not isinstance(payload, bytes):
            raise TokenError("the token holds no claims")
        return payload

    def make(self, claims: dict[int, object]) -> str:
        """A token with these claims."""
        if not self.makes:
            raise TokenError(f"key {self.kid.decode()!r} only verifies: tokens are made with its private half")
        data = COSE.new().encode(
            cbor2.dumps(claims), self._key, protected={_ALG: ALGORITHMS[self.kind]}, unprotected={_KID: self.kid}
        )
        return base64.urlsafe_b64encode(_CWT + data).rstrip(b"=").decode()


class Keys:
    """The keys of one file, by id."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark: tuple[int, ...] | None = None
        self._keys: dict[bytes, Key] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: bytes) -> Key | None:
        """The key with this id."""
        return self._keys.get(kid)

    def refresh(self) -> bool:
        """Read the file again if it has changed; whether it had. ConfigError: it is no good; the old keys stay."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read token keys {self.path}: {error.strerror}") from None
        # The time of its last change of any kind: a chmod mends a file too.
        mark = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        if mark == self._mark:
            return False
        self._mark = mark
        self._keys = read(self.path)
        return True


def read(path: Path) -> dict[bytes, Key]:
    """The keys in a file; ConfigError says what is wrong with it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise ConfigError(f"{path} can be read by everybody on this machine: chmod o= {path}")
            table = tomllib.loads(file.read().decode())
        keys = [Key(one, str(path)) for one in msgspec.convert(table, _File).keys]
    except OSError as error:
        raise ConfigError(f"cannot read token keys {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # tomllib lets through what int() and its own depth raise
        raise ConfigError(f"{path} is no file of token keys: {error}") from None
    found = {key.kid: key for key in keys}
    if len(found) < len(keys):
        raise ConfigError(f"{path} has two keys with one kid: give each its own")
    return found


def claims_of(token: str) -> dict[object, object]:
    """What a token says, whoever made it: to be looked at, never to be believed. TokenError if it is none."""
    try:
        claims = cbor2.loads(_parts(_data(token))[2])
    except TokenError:
        raise
    except Exception as error:  # it may hold anything
        raise TokenError("the token's claims are not CBOR") from error
    if not isinstance(claims, dict):
        raise TokenError("the token's claims are not a map")
    return claims


def open_token(token: str, keys: Keys, now: float) -> tuple[object, bytes]:
    """Verify a token (base64url): its claims and the id of its key. TokenError says why it is no good.

    Before the signature is good nothing is believed: only a message of exactly the expected shape gets as far.
    """
    data = _data(token)
    algorithm, kid, _ = _parts(data)
    key = keys.find(kid)
    if key is None:
        raise TokenError("the token's key is not known here")
    if algorithm != ALGORITHMS[key.kind] or data[0] != (_MAC0 if key.kind == "hmac" else _SIGN1):
        raise TokenError("the token does not use its key as that is meant")
    if not key.begins <= now < key.until:
        raise TokenError("the token's key is not in use at this time")
    try:
        claims = cbor2.loads(key.verify(data))
    except TokenError:
        raise
    except Exception as error:  # signed by us and yet no CBOR: whatever it is, it is refused
        raise TokenError("the token's claims are not CBOR") from error
    return claims, kid


def _base64url(text: str) -> bytes:
    """RFC 4648 5, padded or not. ValueError if it is anything else, or if bits that mean nothing are set."""
    text = text.rstrip("=")
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(data).rstrip(b"=") != text.encode():
        raise ValueError("it is not base64url")
    return data


def _data(token: str) -> bytes:
    """The message in a token, without the tag of a CWT."""
    if len(token) > MOST_TOKEN:
        raise TokenError("the token is too long")
    try:
        data = _base64url(token)
    except ValueError:
        raise TokenError("the token is not base64url") from None
    return data.removeprefix(_CWT)


def _parts(data: bytes) -> tuple[int, bytes, bytes]:
    """Algorithm, key id and payload of a COSE_Mac0 or COSE_Sign1 message (RFC 9052 4.2, 6.2).

    TokenError if it is neither, or not written in the one way: what is not sealed must not be a way to write a
    token differently, since rates and what is remembered go by its text.
    """
    try:
        if data[0] not in (_MAC0, _SIGN1) or data[1] != 0x84:
            raise TokenError("the token is neither COSE_Mac0 nor COSE_Sign1")
        protected, at = _item(data, 2)
        unprotected, at = _item(data, at)
        payload, at = _item(data, at)
        seal, at = _item(data, at)
        if not isinstance(protected, bytes) or not isinstance(payload, bytes) or not isinstance(seal, bytes):
            raise TokenError("the token's parts are not what they should be")
        inner, end = _item(protected, 0)
        if not isinstance(inner, dict) or not isinstance(unprotected, dict):
            raise TokenError("the token's header is not what it should be")
    except IndexError:
        raise TokenError("the token is cut short") from None
    if at != len(data) or end != len(protected):
        raise TokenError("the token has more parts than it should have")
    if not inner.keys() <= {_ALG, _KID} or not unprotected.keys() <= {_KID}:
        raise TokenError("the token's header has fields that are not known here")
    if inner.keys() & unprotected.keys():
        raise TokenError("the token says twice which key it is of")
    if data[1:] != cbor2.dumps([protected, unprotected, payload, seal]):
        raise TokenError("the token's lengths are written longer than they are")
    algorithm, kid = inner.get(_ALG), inner.get(_KID, unprotected.get(_KID))
    if not isinstance(algorithm, int) or not isinstance(kid, bytes):
        raise TokenError("the token does not say which key it is of")
    return algorithm, kid, payload


Item = int | bytes | dict[int, "int | bytes"]


def _item(data: bytes, at: int, depth: int = 0) -> tuple[Item, int]:
    """The little of CBOR that a header is made of: integers, byte strings, a map of them. IndexError at the end."""
    major, size = data[at] >> 5, data[at] & 31
    at += 1
    if size > 25:
        raise TokenError("the token's header is not what it should be")
    if size >= 24:
        width = size - 23
        size = int.from_bytes(data[at : at + width], "big")
        at += width
    if major == 0:
        return size, at
    if major == 1:
        return -1 - size, at
    if major == 2:
        if at + size > len(data):
            raise IndexError
        return data[at : at + size], at + size
    if major == 5 and depth == 0 and size <= 4:
        found: dict[int, int | bytes] = {}
        for _ in range(size):
            label, at = _item(data, at, 1)
            value, at = _item(data, at, 1)
            if not isinstance(label, int) or isinstance(value, dict) or label in found:
                raise TokenError("the token's header is not what it should be")
            found[label] = value
        return found, at
    raise TokenError("the token's header is not what it should be")
