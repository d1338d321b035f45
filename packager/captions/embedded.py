"""Captions inside a source: its streams of text, read as WebVTT."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ffmpeg as graph

from packager.captions import cues as captions
from packager.captions.cues import Captions, Kind
from packager.captions.webvtt import CaptionsError
from packager.ffmpeg import Ffmpeg, FfmpegError
from packager.source import languages
from packager.source.probe import FORMATS, PROTOCOLS
from packager.source.streams import Described, described

# What ffmpeg can make WebVTT of; others hold pictures of text.
_TEXT = ("subrip", "mov_text", "webvtt", "ass", "ssa", "text")


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream of captions: its number, codec, language (BCP 47, `und` if unknown), kind, and what it is called."""

    number: int
    codec: str
    language: str
    kind: Kind
    label: str = ""


def streams(log: Sequence[str]) -> list[Stream]:
    """The streams of captions that ffmpeg tells of; ValueError if it is not all there."""
    return [
        Stream(each.number, each.codec, languages.bcp47(each.language), _kind(each), each.title)
        for each in described(log)
        if each.kind == "Subtitle"
    ]


def _kind(stream: Described) -> Kind:
    if stream.has("forced"):
        return "forced"
    return "captions" if stream.has("hearing impaired", "captions") else "subtitles"


def usable(found: Sequence[Stream], where: str) -> tuple[list[Stream], list[str]]:
    """Those of which WebVTT can be made, and sentences on the others, or on there being none."""
    texts = [stream for stream in found if stream.codec in _TEXT]
    notes = [
        f"{where}, stream {stream.number} has {stream.codec} captions, which cannot become WebVTT: they were left out"
        for stream in found
        if stream not in texts
    ]
    return texts, notes or ([] if found else [f"{where} has no captions in it"])


def read(binary: Ffmpeg, path: Path) -> tuple[list[Captions], list[str]]:
    """The captions in the video file at `path`, and sentences on what of them is left out."""
    source = ["-protocol_whitelist", PROTOCOLS, "-format_whitelist", FORMATS, "-i", f"file:{path.absolute()}"]
    quiet = ["-nostdin", "-hide_banner", "-nostats"]
    try:
        log = binary.run([*quiet, "-loglevel", "info", *source, "-map", "0:V:0", "-t", "0", "-f", "null", "-"])
        texts, notes = usable(streams(log), path.name)
        found = _extracted(binary, path, texts)
    except (FfmpegError, ValueError) as error:
        raise CaptionsError(
            f"cannot read the captions in {path} ({error}): give them as files, with --captions LANGUAGE=FILE"
        ) from None
    notes += [f"{each.where} has no cue that could be shown: it was left out" for each in found if not each.cues]
    return [each for each in found if each.cues], notes


def _extracted(binary: Ffmpeg, path: Path, texts: Sequence[Stream]) -> list[Captions]:
    """The cues of streams, in one reading of the file."""
    if not texts:
        return []
    found = []
    name = f"file:{path.absolute()}"
    given = graph.input(name, protocol_whitelist=PROTOCOLS, format_whitelist=FORMATS)
    with tempfile.TemporaryDirectory(prefix="oca-pack-") as folder:
        outputs = [
            graph.output(
                given[str(stream.number)],
                f"file:{Path(folder) / str(stream.number)}.vtt",
                **{"c:s": "webvtt", "f": "webvtt", "map_metadata": -1, "map_chapters": -1},
            )
            for stream in texts
        ]
        merged = graph.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]
        binary.run(["-nostdin", "-hide_banner", "-nostats", "-loglevel", "error", "-y", *merged.get_args()])
        for stream in texts:
            where = f"{path.name}, stream {stream.number}"
            with (Path(folder) / f"{stream.number}.vtt").open("rb") as file:
                content = captions.parse(file.read(captions.MAX_BYTES + 1), where)
            found.append(
                Captions(
                    *(stream.language, content.cues, content.blocks, content.notes, stream.kind, stream.label, where)
                )
            )
    return found
