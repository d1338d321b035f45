"""What was promised of a title, held against what came out: pictures, seconds, channels and cues.

What came out is what the files that are about to be published, or were, say by their own tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import reduce
from operator import or_
from pathlib import Path

from oca.errors import FormatError, OcaError
from oca.title import segments
from oca.title.model import TITLE_JSON, Text, Title, Track
from packager.audio.renditions import Rendition
from packager.boxes import fragments
from packager.boxes.fragments import Held
from packager.captions import cues as captions
from packager.captions.webvtt import CaptionsError, Cue
from packager.encode.job import MISSING, Job

# In samples at 48 kHz: 14496-3 4.5.1.1; RFC 6716 2.1.4, 20 ms.
_PACKET = {"aac": Fraction(1024, 48_000), "opus": Fraction(960, 48_000)}
# Sound comes in packets, of which the last may stand for more than is needed; and one more holds what an encoder
# puts before the first sample (priming: 1024 samples of AAC, 312 of Opus), where nothing says that it is to be cut.
_PACKETS = 2


class PromiseError(OcaError):
    """A title that is not what was promised."""


def check(job: Job, cues: Mapping[str, int], title: Title, folder: Path) -> None:
    """Raise PromiseError unless the title in `folder` is what the job is to give, with so many `cues` by the names
    of captions.
    """
    found = [*_broken(job, cues, title, folder), *(sentence for _, sentence in contradictions(folder, title))]
    if found:
        more = f", and {len(found) - 1} more such" if len(found) > 1 else ""
        raise PromiseError(
            f"what came out is not what was promised: {found[0]}{more}; nothing was published: use another build of "
            "ffmpeg, or report this"
        )


def contradictions(folder: Path, title: Title) -> Iterator[tuple[str, str]]:
    """Where files of the version in `folder` hold other than its title.json says: a file's name, and a sentence."""
    for track in title.tracks:
        media = track.files[0]
        try:
            said, there = _said(track), _there(track, _held(folder, track))
        except FormatError as error:
            yield media, str(error)
            continue
        wrong = [f"{name} {there[name]}, not {value}" for name, value in said.items() if there[name] != value]
        if wrong:
            yield media, f"{folder / media} has {' and '.join(wrong)}, as {TITLE_JSON} says"
    for text in title.captions:
        whole = text.files[0]
        try:
            one, parts = _cues(folder, title, text)
        except CaptionsError as error:
            yield whole, str(error)
            continue
        if one != parts:
            yield whole, f"{folder / whole} has {one.total()} cues, its segments have {parts.total()}, or others"


def _said(track: Track) -> dict[str, object]:
    """What title.json says of a track, in words and values."""
    shared = {"codecs": track.codecs, "timescale": track.timescale, "duration": track.duration}
    if track.kind == "audio":
        return shared | {"channels": track.channels}
    return shared | {"size": f"{track.width}x{track.height}", "frame rate": track.frame_rate}


def _there(track: Track, held: Held) -> dict[str, object]:
    """The same of what the track file holds."""
    shared = {"codecs": held.codecs, "timescale": held.timescale, "duration": held.ticks}
    if track.kind == "audio":
        return shared | {"channels": held.channels}
    rate = str(held.samples / held.seconds) if held.ticks > 0 else "none"
    return shared | {"size": f"{held.width}x{held.height}", "frame rate": rate}


def _broken(job: Job, cues: Mapping[str, int], title: Title, folder: Path) -> Iterator[str]:
    """A sentence for each promise that was not kept."""
    tracks = {track.name: _held(folder, track) for track in title.tracks}
    for rung in job.rungs:
        held = tracks[rung.track]
        if not job.frames - MISSING <= held.samples <= job.frames:
            yield f"{rung.track} has {held.samples} pictures, not {job.frames}"
        yield from _lasting(rung.track, held, job.seconds, MISSING / job.source.rate)
    for each in job.sounds:
        held = tracks[each.name]
        if held.channels != each.channels:
            yield f"{each.name} has {held.channels} channel(s), not {each.channels}"
        yield from _lasting(each.name, held, job.seconds, _slack(each))
    for text in title.captions:
        count = _cues(folder, title, text)[0].total()
        if count != cues[text.name]:
            yield f"{text.name} has {count} cue(s), not {cues[text.name]}"


def _slack(rendition: Rendition) -> Fraction:
    """By how many seconds a track of sound may differ from the pictures."""
    return _PACKETS * _PACKET[rendition.codec]


def _lasting(name: str, held: Held, seconds: Fraction, slack: Fraction) -> Iterator[str]:
    if abs(held.seconds - seconds) > slack:
        yield f"{name} lasts {float(held.seconds):.3f} s, not {float(seconds):.3f} s"


def _held(folder: Path, track: Track) -> Held:
    media, name = track.files
    index = segments.decode((folder / name).read_bytes(), str(folder / name))
    return fragments.read(folder / media, index)


def _cues(folder: Path, title: Title, text: Text) -> tuple[Counter[Cue], Counter[Cue]]:
    """The cues of captions as a whole, and those of all segments, in each of which is what it overlaps."""
    whole = text.files[0]
    parts = [
        name for name in title.files if name != whole and name.startswith(f"{text.name}.") and name.endswith("vtt")
    ]
    found = [Counter(captions.read_back((folder / name).read_bytes(), str(folder / name))) for name in parts]
    one = captions.read_back((folder / whole).read_bytes(), str(folder / whole))
    return Counter(one), reduce(or_, found, Counter())
