"""Captions: a file of them in one language, fitted to a presentation, as a sidecar and as segments of HLS.

The times of the media begin at 0, and cues count from there.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal, get_args

from packager.captions import subrip, webvtt
from packager.captions.webvtt import CaptionsError, Content, Cue

# 24 h of speech is some 3 MB.
MAX_BYTES = 8 << 20
MAX_LINE = 4096
# All segments together, in characters. A cue is in every segment it overlaps, so lasting ones add up.
MAX_SEGMENTED = 64 << 20

# BCP 47 (RFC 5646 2.1) as far as its shape goes; 35 is what its section 4.4.1 says to have room for.
_LANGUAGE = re.compile(r"(?=.{1,35}\Z)[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*")
MAX_LABEL = 100
Kind = Literal["subtitles", "captions", "forced"]
"""Of what is said; of what else is heard, too, for those who hear nothing; of what everybody needs, such as signs."""
_KINDS: Mapping[str, Kind] = {kind: kind for kind in get_args(Kind)}

# RFC 8216 3.5 maps cue times to MPEG-2 timestamps, which fragmented MP4 has none of; players (hls.js, Shaka,
# AVPlayer) put the media's own time, in ticks of 90 kHz, in their place. Ours begin at 0. The usual 900000, which is
# where many writers of transport streams begin, would show every cue 10 s late. Without the line 0 is to be
# assumed, but not every player does, so it is said.
_MAP = "X-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000"


@dataclass(frozen=True, slots=True)
class Asked:
    """Captions that somebody asks for: the file, what language (BCP 47) and kind they are, and how a menu calls them.

    Without a `label` they are called by their language.
    """

    path: Path
    language: str
    kind: Kind = "subtitles"
    label: str = ""


@dataclass(frozen=True, slots=True)
class Captions:
    """Cues by rising start, in a language (BCP 47); `blocks` are WebVTT's styles and regions, as text.

    `notes` are sentences about what of the file was left out, `where` is what they were read from.
    """

    language: str
    cues: tuple[Cue, ...]
    blocks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kind: Kind = "subtitles"
    label: str = ""
    where: str = ""


def asked(text: str) -> Asked:
    """What `LANGUAGE[:captions|subtitles|forced][:LABEL]=FILE` asks for; CaptionsError if that is not its form."""
    before, equals, path = text.partition("=")
    language, _, rest = before.partition(":")
    first, _, label = rest.partition(":")
    kind = _KINDS.get(first)
    if kind is None:
        kind, label = "subtitles", rest
    if not equals or not path:
        raise CaptionsError(f"{text[:200]!r} names no captions: give LANGUAGE=FILE, such as en=film.srt, or `source`")
    check_language(language)
    if len(label) > MAX_LABEL or not label.isprintable() or '"' in label:
        raise CaptionsError(
            f"label {label[:80]!r} is no name for a menu: give up to {MAX_LABEL} printable characters, no quotes"
        )
    return Asked(Path(path), language, kind, label.strip())


def check_language(language: str) -> str:
    """The `language` if it has the form of a BCP 47 tag; CaptionsError if not."""
    if not _LANGUAGE.fullmatch(language):
        raise CaptionsError(f"{language[:80]!r} is no language: give a BCP 47 tag, such as en or pt-BR")
    return language


def read(path: Path, language: str) -> Captions:
    """The captions in a WebVTT or SubRip file; CaptionsError names the file, and the line if one is wrong."""
    check_language(language)
    if not path.is_file():
        raise CaptionsError(f"there is no file {path}: give WebVTT (.vtt) or SubRip (.srt)")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CaptionsError(f"cannot read {path}: {error.strerror}") from None
    content = parse(data, str(path), path.suffix.lower() == ".srt")
    if not content.cues:
        raise CaptionsError(f"{path} has no cue that could be shown: give a file with captions, or none")
    return Captions(language, content.cues, content.blocks, content.notes)


def parse(data: bytes, where: str, srt: bool = False) -> Content:
    """What the bytes of a file hold; `where` names it in a CaptionsError. WebVTT, or SubRip if `srt` allows it."""
    if len(data) > MAX_BYTES:
        raise CaptionsError(f"{where} is longer than {MAX_BYTES} bytes: no captions are, give another file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = len(re.findall(rb"\r\n?|\n", error.object[: error.start])) + 1
        raise CaptionsError(f"{where}, line {bad}: this is not UTF-8: convert the file (iconv -t UTF-8)") from None
    # WebVTT 6.1, steps 1 and 2.
    lines = re.sub("\r\n?", "\n", text).replace("\0", "\ufffd").split("\n")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            raise CaptionsError(f"{where}, line {number}: it is longer than {MAX_LINE} characters: break it")
    if srt and not webvtt.is_webvtt(lines[0]):
        return subrip.parse(lines, where)
    return webvtt.parse(lines, where)


def trimmed(captions: Captions, seconds: Fraction) -> tuple[Captions, list[str]]:
    """The captions without what is past the end of a presentation of so many seconds, and sentences that say so."""
    end = seconds * 1000 // 1
    kept = tuple(replace(cue, end=min(cue.end, end)) for cue in captions.cues if cue.start < end)
    late = len(captions.cues) - len(kept)
    across = sum(cue.start < end < cue.end for cue in captions.cues)
    last = webvtt.timestamp(end)
    notes = []
    if late:
        notes.append(f"{late} cue(s) begin after the end of the pictures, {last}: they were dropped")
    if across:
        notes.append(f"{across} cue(s) last longer than the pictures, until {last}: they were cut")
    return replace(captions, cues=kept), notes


def overlaps(captions: Captions) -> list[str]:
    """A sentence if cues are shown together, which two who speak at once may want, and a careless file has."""
    ends = accumulate((cue.end for cue in captions.cues), max)
    count = sum(cue.start < end for cue, end in zip(captions.cues[1:], ends, strict=False))
    return [f"{count} cue(s) begin before those in front of them end: players show them together"] if count else []


def sidecar(captions: Captions) -> str:
    """The whole as one WebVTT file; the same captions always give the same text."""
    return webvtt.document(captions.blocks, map(webvtt.written, captions.cues))


def read_back(data: bytes, where: str) -> tuple[Cue, ...]:
    """The cues of a sidecar, or of a segment, as written here; CaptionsError if it is neither."""
    text = data.decode(errors="replace").replace(f"\n{_MAP}", "", 1)
    return webvtt.parse(text.split("\n"), where).cues


def segments(captions: Captions, cuts: Sequence[Fraction], end: Fraction) -> list[str]:
    """WebVTT segments for HLS (RFC 8216 3.5), cut at rising `cuts` between 0 and `end`, in seconds.

    There is one more than cuts. Each has every cue that is shown while it lasts, with the cue's full times, by which
    players know a cue that they have. ValueError if a cue is past the end (see `trimmed`), CaptionsError if all
    would be too long together.
    """
    if any(before >= after for before, after in pairwise([Fraction(0), *cuts, end])):
        raise ValueError("cuts do not rise from 0 to the end")
    if any(cue.end > end * 1000 for cue in captions.cues):
        raise ValueError("a cue is past the end")
    times = [cut * 1000 for cut in cuts]
    held: list[list[str]] = [[] for _ in range(len(cuts) + 1)]
    size = sum(map(len, captions.blocks)) * len(held)
    for cue in captions.cues:
        text = webvtt.written(cue)
        first, last = bisect_right(times, cue.start), bisect_left(times, cue.end)
        size += len(text) * (last - first + 1)
        if size > MAX_SEGMENTED:
            raise CaptionsError(
                f"the captions in {captions.language} would be longer than {MAX_SEGMENTED} characters in segments, "
                f"as cues are in each that they overlap: shorten cues that last long, such as at "
                f"{webvtt.timestamp(cue.start)}"
            )
        for texts in held[first : last + 1]:
            texts.append(text)
    return [webvtt.document(captions.blocks, texts, [_MAP]) for texts in held]
