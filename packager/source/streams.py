"""The streams of a source, as ffmpeg describes them when it opens one; 5.1 and 9 agree. Pure.

What a file says of itself is hostile: a line that it wrote has a word and a colon before it, so it is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_TITLE = 100
_STREAM = re.compile(r"Stream #0:([0-9]+)(?:\[0x[0-9a-f]+\])?(?:\(([^()]*)\))?: (\w+): (\w+)(.*)")
# ISO 639 as containers have it, or BCP 47 (RFC 5646 2.1) as far as its usual shape goes.
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{2,8}){0,3}")
_TITLE = re.compile(r"title\s*: (.*)")
_BEGIN, _END = "Input #0,", "Stream mapping:"


@dataclass(frozen=True, slots=True)
class Described:
    """A stream: number in the file, kind (`Audio`), codec, language (`und` if unknown), what follows, and its title.

    What follows are the codec's particulars, and the dispositions as `(default)`.
    """

    number: int
    kind: str
    codec: str
    language: str
    more: str
    title: str = ""

    def has(self, *dispositions: str) -> bool:
        """Whether it has one of these dispositions, such as `comment`."""
        return any(f"({each})" in self.more for each in dispositions)


def described(log: Sequence[str]) -> list[Described]:
    """The streams of the first input that ffmpeg tells of, by number; ValueError if it is not all there."""
    begin = next((n for n, line in enumerate(log) if line.startswith(_BEGIN)), None)
    if begin is None:
        raise ValueError("ffmpeg says more of it than is kept")
    found: list[Described] = []
    for line in log[begin:]:
        if line == _END:
            break
        if stream := _STREAM.fullmatch(line):
            number, language, kind, codec, more = stream.groups()
            known = language if language and _LANGUAGE.fullmatch(language) else "und"
            found.append(Described(int(number), kind, codec, known, more))
        elif found and (title := _TITLE.fullmatch(line)):
            label = "".join(c for c in title[1] if c.isprintable() and c != '"')[:MAX_TITLE].strip()
            found[-1] = replace(found[-1], title=label)
    return sorted(found, key=lambda each: each.number)
