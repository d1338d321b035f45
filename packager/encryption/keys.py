"""The keys of a title: which of those that the operator gives is for which track.

A key is 16 bytes and never leaves this program but into the one that encrypts: no error, log or file has it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from oca.errors import ConfigError

MAX_BYTES = 1 << 20
_MAX_KEYS = 1000
_HEX = re.compile(r"[0-9a-f]{32}")
# In pixels: what was TV, what is on most screens, and what is more; the bounds that other packagers have.
_SD, _HD = 768 * 576, 1920 * 1080
Span = tuple[float, float]
_ALL: Span = (0, float("inf"))


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a track before it is encoded: pixels of its picture or channels of its sound, mean bit/s."""

    name: str
    kind: str
    pixels: int = 0
    frame_rate: float = 0
    channels: int = 0
    bps: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A key is for tracks of this kind ("" for both) whose values lie in these spans, ends included.

    Of rules that a track meets, those of the highest rank count.
    """

    kid: str
    kind: str = ""
    pixels: Span = _ALL
    frame_rate: Span = _ALL
    channels: Span = _ALL
    bps: Span = _ALL
    rank: int = 0

    def meets(self, track: About) -> bool:
        """Whether the key is for the track."""
        if self.kind not in ("", track.kind):
            return False
        own = ("pixels", "frame_rate") if track.kind == "video" else ("channels",)
        return all(getattr(self, of)[0] <= getattr(track, of) <= getattr(self, of)[1] for of in (*own, "bps"))


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys by key id, both as 32 hexadecimal digits; rules; pssh boxes in base64, and FairPlay's URIs, by key id.

    `notes` are sentences on what of the operator's document was left out.
    """

    keys: Mapping[str, str] = field(repr=False)
    rules: Sequence[Rule]
    pssh: Mapping[str, list[str]] = field(default_factory=dict)
    skd: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def kid(self, track: About) -> str:
        """The key id for a track; ConfigError if there is none, or more than one."""
        met = [rule for rule in self.rules if rule.meets(track)]
        highest = max((rule.rank for rule in met), default=0)
        kids = {rule.kid for rule in met if rule.rank == highest}
        if not kids:
            raise ConfigError(
                f"there is no key for the track {track.name}: give one that is for {track.kind}, or all"
            )
        if len(kids) > 1:
            raise ConfigError(f"the track {track.name} has {len(kids)} keys, {', '.join(sorted(kids))}: leave it one")
        return kids.pop()


_LABELS = {
    "": Rule(""),
    "video": Rule("", "video", rank=1),
    "audio": Rule("", "audio", rank=1),
    "sd": Rule("", "video", (0, _SD), rank=2),
    "hd": Rule("", "video", (_SD + 1, _HD), rank=2),
    "uhd": Rule("", "video", (_HD + 1, _ALL[1]), rank=2),
}
LABELS = tuple(filter(None, _LABELS))
"""What a key may be for, where it is not for all."""


def given(texts: Iterable[str]) -> Keys:
    """Keys on a command line, KID:KEY for all tracks or LABEL=KID:KEY; ConfigError, without it, if one is none."""
    found = []
    for number, text in enumerate(texts, 1):
        label, between, pair = text.rpartition("=")
        found.append(_key(pair, label if between else "", f"key number {number}"))
    return _together(found, "--key")


def read(path: Path) -> Keys:
    """A file of keys, KID:KEY or KID:KEY LABEL on each line, # for remarks; ConfigError names the line."""
    found = []
    try:
        lines = private(path).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no file of keys: it is not text") from None
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            where = f"{path}, line {number}"
            if len(words) > 2:
                raise ConfigError(f"{where}: there are {len(words)} words where KID:KEY or KID:KEY LABEL is expected")
            found.append(_key(words[0], words[1] if len(words) == 2 else "", where))
    return _together(found, str(path))


def private(path: Path) -> bytes:
    """The bytes of a file with keys; ConfigError if it is no file, too long, or others than its owner may read it."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the keys in {path}: {error.strerror}") from None
    if stat.S_ISREG(mode) and mode & 0o077:
        raise ConfigError(
            f"others than its owner may read the keys in {path} (mode {mode & 0o777:04o}): chmod 600 {path}"
        )
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is longer than {MAX_BYTES} bytes: that is no file of keys")
    return data


def hexadecimal(text: str, what: str, where: str) -> str:
    """A key or key id as 32 digits, out of a UUID too; ConfigError without what it says, for it may be a key."""
    found = text.strip().replace("-", "").lower()
    if not _HEX.fullmatch(found):
        raise ConfigError(
            f"{where}: the {what} is not 32 hexadecimal digits (16 bytes), it has {len(found)} characters"
        )
    return found


def _key(pair: str, label: str, where: str) -> tuple[str, str, str]:
    """Key id, key and label."""
    kid, between, key = pair.partition(":")
    if not between:
        raise ConfigError(f"{where}: there is no colon, KID:KEY is expected, each of them 32 hexadecimal digits")
    if label not in _LABELS:
        # What stands in the wrong place may be a key.
        said = f"{label!r}" if len(label) < 16 else "what is said there"
        raise ConfigError(f"{where}: a key cannot be for {said}: use {', '.join(LABELS)}, or nothing for all")
    return hexadecimal(kid, "key id", where), hexadecimal(key, "key", where), label


def _together(found: Sequence[tuple[str, str, str]], where: str) -> Keys:
    keys: dict[str, str] = {}
    rules: dict[str, Rule] = {}
    if len(found) > _MAX_KEYS:
        raise ConfigError(f"{where} gives {len(found)} keys, more than the {_MAX_KEYS} allowed")
    for kid, key, label in found:
        if keys.setdefault(kid, key) != key:
            raise ConfigError(f"{where} gives two keys with the key id {kid}: each needs its own")
        if label in rules:
            raise ConfigError(
                f"{where} gives two keys for {label or 'all tracks'}: one of them, or say what each is for"
            )
        rules[label] = labelled(label, kid)
    if not rules:
        raise ConfigError(f"{where} gives no key")
    return Keys(keys, list(rules.values()))


def labelled(label: str, kid: str) -> Rule:
    """The rule that a key is for what one of LABELS says, or with '' for all tracks."""
    return replace(_LABELS[label], kid=kid)
