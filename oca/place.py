"""The place of a setting in the text of a TOML file: the line to look at when its value is wrong. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

Key = tuple[str | int, ...]
"""Names of tables and settings from the outermost in; a number (from 0) for one of an array."""
_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_WORD}(?:[ \t]*\.[ \t]*{_WORD})*"
_TABLE = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_SETTING = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_PATH = re.compile(r"\.([^.\[\]`]+)|\[([0-9]+)\]")


def key_of(path: str) -> Key:
    """The key that msgspec's path, such as `$.tls.certificates[0].chain`, leads to."""
    return tuple(int(number) if number else name for name, number in _PATH.findall(path))


def line_of(text: str, key: Key) -> int | None:
    """Number (from 1) of the line where `key`, or the innermost thing around it that there is, begins; else None."""
    best: tuple[int, int] | None = None
    inside: Key = ()
    counts: Counter[Key] = Counter()
    for number, line in enumerate(text.split("\n"), 1):
        if table := _TABLE.match(line):
            inside = _within(_names(table[2]), counts)
            if table[1] == "[[":
                counts[inside] += 1
                inside = (*inside, counts[inside] - 1)
            found = inside
        elif setting := _SETTING.match(line):
            found = (*inside, *_names(setting[1]))
        else:
            continue
        if found == key[: len(found)] and (best is None or len(found) > best[0]):
            best = (len(found), number)
    return best[1] if best else None


def _names(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_WORD, dotted)]


def _within(names: Sequence[str], counts: Counter[Key]) -> Key:
    """The full key of a table: below an array of tables it is in the last one so far."""
    key: Key = ()
    for place, name in enumerate(names):
        key = (*key, name)
        if key in counts and place < len(names) - 1:
            key = (*key, counts[key] - 1)
    return key
