"""Private keys as files that their owner alone may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from oca.errors import ConfigError
from oca.store.content import fsync_directory

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
Owner = tuple[int, int]
"""User and group id."""
# A longer one of RSA would be work for whoever verifies, and no safer.
_RSA_BITS = range(2048, 8193)


def new() -> ec.EllipticCurvePrivateKey:
    """A key that nobody has: ECDSA with P-256, which every TLS stack knows and which signs fast."""
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: PrivateKey) -> bytes:
    """PKCS #8 without a passphrase: there is nobody to type it when a box starts."""
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def objection(key: PublicKeyTypes) -> str:
    """Why a key is not taken into the fleet, '' if it is: P-256, Ed25519, or RSA with 2048 to 8192 bits."""
    match key:
        case ed25519.Ed25519PublicKey():
            return ""
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return ""
        case rsa.RSAPublicKey() if key.key_size in _RSA_BITS:
            return ""
    return "use P-256, Ed25519, or RSA with 2048 to 8192 bits"


def load(path: Path) -> PrivateKey | None:
    """The key in a file, None if there is no file; ConfigError if it is no good or others may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(64 << 10)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"others than its owner may read the key {path} (mode {mode:04o}): chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is not a private key in PEM form without a passphrase") from None
    if not isinstance(key, PrivateKey) or objection(key.public_key()):
        raise ConfigError(f"the key {path} is of a kind that is not taken: {objection(key.public_key())}")
    return key


def write(path: Path, data: bytes, mode: int, owner: Owner | None = None) -> None:
    """Replace a file: afterwards all of it is there, or the old one, also after a power cut. OSError if not."""
    temporary = _temporary(path, data, mode, owner)
    try:
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_once(path: Path, data: bytes, mode: int, owner: Owner | None = None) -> bool:
    """As `write`, but what is there stays: whether it was written. Of several at once exactly one succeeds."""
    temporary = _temporary(path, data, mode, owner)
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
        fsync_directory(path.parent)


def _temporary(path: Path, data: bytes, mode: int, owner: Owner | None) -> Path:
    """A neighbour of `path` that nobody has opened before its mode and owner are right."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
