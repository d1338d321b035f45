"""WebVTT: captions as text with times (W3C WebVTT, Candidate Recommendation of April 2019).

Blocks are found as the standard's parser finds them (section 6.1), so what it passes over is passed over here, with
a note. Two things are wrong and not passed over, because text would go missing: a header or a timing that does not
hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from oca.errors import OcaError

# Speech for 24 h is some 30,000 cues.
MAX_CUES = 100_000
# Styles and regions together, in characters: they are repeated in every segment.
MAX_BLOCKS = 1 << 16

_ARROW = "-->"
_SPACE = " \t\f"
_TIME = r"(?:([0-9]{1,4}):)?([0-5][0-9]):([0-5][0-9])\.([0-9]{3})"
_TIMING = re.compile(rf"[{_SPACE}]*{_TIME}[{_SPACE}]*-->[{_SPACE}]*{_TIME}(?:[{_SPACE}]+(.*))?")
_PERCENT = r"(?:100(?:\.0{1,6})?|[0-9]{1,2}(?:\.[0-9]{1,6})?)%"
# Section 6.3: a setting of another shape has no effect.
_SETTING = re.compile(
    r"region:.+|vertical:(?:rl|lr)"
    rf"|line:(?:-?[0-9]{{1,4}}|{_PERCENT})(?:,(?:start|center|end))?"
    rf"|position:{_PERCENT}(?:,(?:line-left|center|line-right))?"
    rf"|size:{_PERCENT}|align:(?:start|center|end|left|right)"
)
_NOTE = re.compile(r"NOTE(?:[ \t]|\Z)")
# Some readers take a cue whose id begins like this for a block of another kind.
_HEADS = ("WEBVTT", "NOTE", "STYLE", "REGION")


class CaptionsError(OcaError):
    """A captions file that cannot be used; the sentence names the file and the line."""


@dataclass(frozen=True, slots=True)
class Cue:
    """`text`, shown from `start` until `end`, in milliseconds, of which `start` is the lesser.

    `text` is WebVTT cue text (section 4.2.2) of one or more lines, none empty; it, the `settings` (section 4.4) and
    the `id`, either of which may be empty, never contain an arrow.
    """

    start: int
    end: int
    text: str
    settings: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: cues by rising start, styles and regions as text, sentences on what was left out."""

    cues: tuple[Cue, ...]
    blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Gathered:
    """Cues and notes as a reader finds them; `where` names the file."""

    where: str
    cues: list[Cue] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _notes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def note(self, what: str, line: int) -> None:
        """Say that something was left out; of each kind the first line is told, and how many there were."""
        first, count = self._notes.get(what, (line, 0))
        self._notes[what] = (first, count + 1)

    def wrong(self, line: int, what: str) -> CaptionsError:
        """The error to raise for what is wrong in `line`."""
        return CaptionsError(f"{self.where}, line {line}: {what}")

    def add(self, line: int, cue: Cue) -> None:
        """Take a cue whose timing is in `line`, unless nobody would ever see it."""
        if cue.start >= cue.end:
            self.note("a cue that ends no later than it begins was left out", line)
        elif not cue.text.strip(_SPACE + "\n"):
            self.note("a cue without text was left out", line)
        elif len(self.cues) >= MAX_CUES:
            raise self.wrong(line, f"there are more than {MAX_CUES} cues: split the title, or remove some")
        else:
            self.cues.append(Cue(cue.start, cue.end, cue.text, cue.settings, self._unique(line, cue.id)))

    def _unique(self, line: int, name: str) -> str:
        """`name`, or nothing if it could do harm: players that know an id already take the cue for one they have."""
        if not name:
            return ""
        if name in self._ids or name.startswith(_HEADS):
            self.note("a cue id that was used before, or that is a keyword, was left out", line)
            return ""
        self._ids.add(name)
        return name

    def content(self) -> Content:
        """Everything, in order of time (section 4.1 wants it so); cues that begin together stay as they were."""
        cues = tuple(sorted(self.cues, key=lambda cue: cue.start))
        said = [
            f"line {line}: {what}" + (f" ({count} such in all)" if count > 1 else "")
            for what, (line, count) in self._notes.items()
        ]
        if cues != tuple(self.cues):
            said.append("cues that were not in order of time were sorted")
        return Content(cues, tuple(self.blocks), tuple(said))


def is_webvtt(line: str) -> bool:
    """Whether a file that begins with this line says that it is WebVTT (section 4.1)."""
    return line == "WEBVTT" or line.startswith(("WEBVTT ", "WEBVTT\t"))


def parse(lines: Sequence[str], where: str) -> Content:
    """Read the lines of a file, without their ends; CaptionsError if the header or a timing is wrong."""
    found = Gathered(where)
    if not lines or not is_webvtt(lines[0]):
        raise found.wrong(1, "this is not WebVTT, whose first line is WEBVTT; SubRip goes by the name of .srt")
    size, seen = 0, False
    for number, block in _blocks(lines, _body(lines, found)):
        timing = next((place for place, line in enumerate(block[:2]) if _ARROW in line), None)
        if timing is not None:
            seen = True
            _cue(found, number, block, timing)
        elif _NOTE.match(block[0]):
            continue  # for those who edit the file, not for those who watch
        elif len(block) == 1 or block[0].rstrip(_SPACE) not in ("STYLE", "REGION"):
            found.note("text that belongs to no cue was left out", number)
        elif seen:
            found.note("a style or a region after the first cue, which has no effect, was left out", number)
        else:
            text = "\n".join([block[0].rstrip(_SPACE), *block[1:]])
            size += len(text)
            if size > MAX_BLOCKS:
                raise found.wrong(number, f"styles and regions are longer than {MAX_BLOCKS} characters: shorten them")
            found.blocks.append(text)
    return found.content()


def _body(lines: Sequence[str], found: Gathered) -> int:
    """Index of the first line that is not of the header."""
    for place, line in enumerate(lines[1:], 1):
        if not line or _ARROW in line:
            return place
        if line.startswith("X-TIMESTAMP-MAP"):
            what = "X-TIMESTAMP-MAP makes this a segment of an HLS stream: give the captions as one whole file"
            raise found.wrong(place + 1, what)
    return len(lines)


def _blocks(lines: Sequence[str], first: int) -> Iterator[tuple[int, list[str]]]:
    """Line number (from 1) and lines of each block; an arrow begins a new one unless it is where a cue has it."""
    block: list[str] = []
    for place in range(first, len(lines)):
        line = lines[place]
        if block and (not line or (_ARROW in line and (len(block) > 1 or _ARROW in block[0]))):
            yield place + 1 - len(block), block
            block = []
        if line:
            block.append(line)
    if block:
        yield len(lines) + 1 - len(block), block


def _cue(found: Gathered, number: int, block: Sequence[str], timing: int) -> None:
    line = number + timing
    match = _TIMING.fullmatch(block[timing])
    if match is None:
        shown = block[timing][:80]
        raise found.wrong(line, f"{shown!r} is not a timing such as 00:00:01.000 --> 00:00:02.500")
    settings: dict[str, str] = {}
    for each in re.findall(rf"[^{_SPACE}]+", match[9] or ""):
        if _SETTING.fullmatch(each) and _ARROW not in each:
            settings[each.partition(":")[0]] = each  # the last one counts
        else:
            found.note("a cue setting that has no effect was left out", line)
    text = "\n".join(block[timing + 1 :])
    name = block[0].strip(_SPACE) if timing else ""
    start, end = clock(*match.groups()[:4]), clock(*match.groups()[4:8])
    found.add(line, Cue(start, end, text, " ".join(settings.values()), name))


def clock(hours: str | None, minutes: str, seconds: str, thousandths: str) -> int:
    """Milliseconds."""
    return ((int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(thousandths)


def timestamp(milliseconds: int) -> str:
    """A WebVTT timestamp (section 4.3), always with hours."""
    seconds, thousandths = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{thousandths:03}"


def written(cue: Cue) -> str:
    """The cue as a block, without the empty line that ends it."""
    timing = " ".join(filter(None, (timestamp(cue.start), _ARROW, timestamp(cue.end), cue.settings)))
    return "\n".join(filter(None, (cue.id, timing, cue.text)))


def document(blocks: Iterable[str], cues: Iterable[str], header: Sequence[str] = ()) -> str:
    """A whole file: `cues` as `written`, `header` lines that follow the first."""
    return "\n\n".join(["\n".join(["WEBVTT", *header]), *blocks, *cues]) + "\n"
