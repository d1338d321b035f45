"""The captions of a title: all that are asked for, fitted to its presentation, as the files of its version."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from oca.title import hls
from oca.title.filelist import filelist, index_of
from oca.title.model import Text
from packager.captions import cues as captions
from packager.captions import embedded, webvtt
from packager.captions.cues import Captions
from packager.captions.webvtt import CaptionsError
from packager.encode.job import Job
from packager.ffmpeg import Ffmpeg
from packager.source import languages

SOURCE = "source"
"""Asks for the captions inside the video."""
# Segments of captions begin where segments of video do, every minute; less often in what is so long, and has captions
# in so many languages, that title.json would list more files than this of them.
_SEGMENT_S = 60
_MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class Made:
    """Captions as title.json lists them, their files by name, and how many cues these are to have."""

    text: Text
    files: dict[str, bytes]
    cues: int


def given(wanted: Sequence[str]) -> list[Captions]:
    """The captions in the files that `wanted` names as `captions.asked` has it; CaptionsError if two have a label."""
    found: list[Captions] = []
    for text in wanted:
        if text == SOURCE:
            continue
        asked = captions.asked(text)
        language = languages.bcp47(asked.language)
        label = asked.label or _label(language, asked.kind)
        if label in {each.label for each in found}:
            raise CaptionsError(
                f"two captions would be {label!r} in the menu: give them labels, such as "
                f"{asked.language}:{asked.kind}:Director={asked.path}"
            )
        content = captions.read(asked.path, language)
        found.append(replace(content, kind=asked.kind, label=label, where=asked.path.name))
    return found


def inside(binary: Ffmpeg, video: Path, taken: Collection[str]) -> tuple[list[Captions], list[str]]:
    """The captions inside a video, and notes; they get labels that are not `taken`."""
    found, notes = embedded.read(binary, video)
    labels = set(taken)
    called = []
    for each in found:
        wanted = each.label or _label(each.language, each.kind)
        label = _free(wanted, labels, " ")
        labels.add(label)
        called.append(replace(each, label=label))
    return called, notes


def _label(language: str, kind: captions.Kind) -> str:
    name = languages.name(language)
    return name if kind == "subtitles" else f"{name}, {kind}"


def _free(wanted: str, taken: Collection[str], between: str) -> str:
    """`wanted`, or if that is taken the same with the first number from 2 on that makes it free."""
    number, found = 1, wanted
    while found in taken:
        number += 1
        found = f"{wanted}{between}{number}"
    return found


def made(found: Sequence[Captions], job: Job) -> tuple[list[Made], list[str]]:
    """The files of captions, and notes; CaptionsError if all cues of one come after the end of the presentation."""
    texts: list[Made] = []
    notes = []
    names: set[str] = set()
    for each in found:
        fitted, said = captions.trimmed(each, job.seconds)
        if not fitted.cues:
            raise CaptionsError(
                f"{each.where}: all cues begin after the end of the pictures, "
                f"{webvtt.timestamp(job.seconds * 1000 // 1)}: these are not the captions of this video"
            )
        notes += [f"{each.where}: {note}" for note in (*each.notes, *said, *captions.overlaps(fitted))]
        name = _free(f"c-{each.language.lower()}", names, "-")
        names.add(name)
        texts.append(_files(name, fitted, job, len(found)))
    if texts and job.loops:
        notes.append("the captions are shown the first time that it is played, and not again")
    return texts, notes


def _files(name: str, fitted: Captions, job: Job, count: int) -> Made:
    # A dot before the number of a segment: with a dash it could be the sidecar of other captions.
    bounds = _bounds(job, count)
    rate = job.source.rate
    parts = [text.encode() for text in captions.segments(fitted, [n / rate for n in bounds[1:-1]], bounds[-1] / rate)]
    names = [f"{name}.{number}.vtt" for number in range(1, len(parts) + 1)]
    durations = [(end - first) * rate.denominator for first, end in pairwise(bounds)]
    index = index_of([len(part) for part in parts], durations, rate.numerator)
    text = Text(
        name=name,
        kind=fitted.kind,
        language=fitted.language,
        label=fitted.label,
        bandwidth=hls.peak_rate(index),
        average_bandwidth=hls.average_rate(index),
    )
    whole, playlist = text.files
    return Made(
        text,
        {
            **dict(zip(names, parts, strict=True)),
            whole: captions.sidecar(fitted).encode(),
            playlist: filelist(names, index).encode(),
        },
        len(fitted.cues),
    )


def _bounds(job: Job, count: int) -> list[int]:
    """The pictures with which segments begin, and the end."""
    minutes = float(job.seconds) / _SEGMENT_S
    length = max(1, round(_SEGMENT_S / job.segment)) * (1 + int(minutes * count / _MOST_FILES)) * job.gop
    return [*range(0, job.frames, length), job.frames]
