"""SubRip (.srt), the format that most captions come in, read as WebVTT.

There is no standard. A cue is a number, a timing, and text up to the next timing; empty lines in the text, which
WebVTT cannot have, are dropped. Of its markup i, b, u and the place `{\\an8}` are kept; colours and fonts are not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from packager.captions.webvtt import Content, Cue, Gathered, clock

_TIME = r"([0-9]{1,4}):([0-5][0-9]):([0-5][0-9])[,.]([0-9]{3})"
# After the timing there may be the corners of a box, in pixels of a picture nobody knows.
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s+(?:[XY][12]:-?[0-9]+\s*)*)?")
_NUMBER = re.compile(r"\s*[0-9]+\s*")
_MARKUP = re.compile(
    r"<(?P<end>/?)(?P<tag>[biuBIU])>"
    r"|</?[fF][oO][nN][tT]\b[^<>]*>"
    r"|\{\\[^{}]*\}"
    r"|(?P<kept>&(?:amp|lt|gt|nbsp|lrm|rlm);)"
    r"|(?P<special>[&<>])"
)
_PLACE = re.compile(r"\{\\an([1-9])\}")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def parse(lines: Sequence[str], where: str) -> Content:
    """Read the lines of a file, without their ends; CaptionsError if a timing is wrong or comes too late."""
    found = Gathered(where)
    start = end = timing = 0
    text: list[str] = []
    for number, line in enumerate(lines, 1):
        if "-->" not in line:
            text.append(line)
            continue
        match = _TIMING.fullmatch(line)
        if match is None:
            raise found.wrong(number, f"{line[:80]!r} is not a timing such as 00:00:01,000 --> 00:00:02,500")
        if text and _NUMBER.fullmatch(text[-1]):
            text.pop()
        _finish(found, timing, start, end, text)
        start, end, timing = clock(*match.groups()[:4]), clock(*match.groups()[4:]), number
        text = []
    _finish(found, timing, start, end, text)
    return found.content()


def _finish(found: Gathered, timing: int, start: int, end: int, text: Sequence[str]) -> None:
    """Take the cue whose timing was in line `timing`; 0: there was none yet, so there must be no text either."""
    if timing:
        raw = "\n".join(line for line in text if line.strip())
        found.add(timing, Cue(start, end, _converted(raw), _settings(raw)))
        return
    for number, line in enumerate(text, 1):
        if line.strip():
            raise found.wrong(number, f"{line[:80]!r} is text before any timing: this is not SubRip")


def _converted(text: str) -> str:
    """WebVTT cue text; a line of nothing but markup that is not kept is gone."""
    lines = (_MARKUP.sub(_replacement, line) for line in text.split("\n"))
    return "\n".join(line for line in lines if line.strip())


def _replacement(match: re.Match[str]) -> str:
    if match["tag"]:
        return f"<{match['end']}{match['tag'].lower()}>"
    return match["kept"] or _ESCAPES.get(match["special"] or "", "")


def _settings(text: str) -> str:
    """Cue settings for the place on a keypad that the text asks for: 1 to 3 is below, where captions are anyway."""
    match = _PLACE.search(text)
    if match is None:
        return ""
    row, column = divmod(int(match[1]) - 1, 3)
    return " ".join(filter(None, (("", "line:50%,center", "line:0")[row], ("align:left", "", "align:right")[column])))
