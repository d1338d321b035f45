"""The source: what there is in a file a person hands us, told from its packets and its first picture.

Containers lie about rates and lengths, so every packet's time is read (nothing but the first picture is decoded).
It needs ffmpeg alone, so it sees exactly what the encode will see, rotation and pixel shape included.
"""

from __future__ import annotations

import re
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Literal

from oca.errors import OcaError
from packager.ffmpeg import Ffmpeg, FfmpegError
from packager.source.pictures import LOOKED_AT, look
from packager.source.streams import Described, described

# Containers of video. Playlists, scripts of files, pictures and text, all of which ffmpeg would read (and follow
# to other files and hosts), are none.
FORMATS = "mov,mp4,matroska,webm,mpegts,mpeg,avi,mxf,flv,asf,ogg,gxf,yuv4mpegpipe,nut"
PROTOCOLS = "file"
_TRUNCATED = re.compile(r"partial file|ended prematurely|moov atom not found|Truncat", re.IGNORECASE)
_PROMISED = re.compile(r"^ *Duration: ([0-9]+):([0-9]{2}):([0-9.]+)")
_TOO_LARGE = re.compile(r"Picture size ([0-9]+x[0-9]+) (?:is invalid|exceeds)")
# Containers whose head says how long they are; of others ffmpeg guesses by what is there.
_PROMISING = re.compile(r"Input #0, (?:mov|matroska|flv|mxf)\b")
# Less than this may be due to rounding, and to what the head says for want of better.
_SHORT_S = 1.0
# Pictures may come so many before those that are shown earlier (H.264 A.3.1): where a file ends, some are missing.
_REORDERED = 16
_DEMUXER = re.compile(rf"\[(?:in#0/)?(?:{FORMATS.replace(',', '|')})\b[^\]]* @ ")
_EMPTY = re.compile(r"Cannot determine format of input|dimensions not set")
_NO_VIDEO = re.compile(r"matches no streams|does not contain any stream")
STANDARD_RATES = (
    *(Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30)),
    *(Fraction(48), Fraction(50), Fraction(60000, 1001), Fraction(60)),
)
# A picture this share of its duration off its place still counts as in place: Matroska rounds to milliseconds.
_JITTER = 0.3
_MAX_SIDE = 16_384
MAX_PIXELS = _MAX_SIDE * _MAX_SIDE // 2
"""Of a picture; a decoder makes room for as many as a header claims."""
# Layouts that ffmpeg does not mix: of channels in an order of their own, and of a sphere.
_UNMIXED = re.compile(r"[0-9]+ channels \(.*|ambisonic.*")
_NO_TIME = -(1 << 63)  # AV_NOPTS_VALUE
_FLAGS = re.compile(r", F=0x([0-9A-F]+)")
_CORRUPT = 2  # AV_PKT_FLAG_CORRUPT: some of it is missing


class SourceError(OcaError):
    """A file that cannot be packaged as video."""


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio stream: language (ISO 639 or BCP 47, `und` if unknown), channel layout, end in seconds.

    `number` counts the audio streams from 0, `title` is what the file calls it, `role` is "" where it is what most
    listen to. `trouble` says why it cannot be used, '' if it can.
    """

    language: str
    channels: str
    end: float
    number: int = 0
    codec: str = ""
    title: str = ""
    role: Literal["", "commentary", "description"] = ""
    default: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A video file: size in square pixels as shown, constant frame rate to give it, end of pictures in seconds.

    `notes` are sentences about what will be changed, `keys` the times of key frames in seconds, rising; `interlaced`
    and `matrix` as in `pictures.Look`. `lost` are the times of pictures that a damaged container has no more. A
    source whose tail is missing ends where the last picture is that can be decoded.
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    end: float
    audio: tuple[Audio, ...]
    notes: tuple[str, ...]
    keys: tuple[float, ...] = ()
    interlaced: bool = False
    matrix: str = "auto"
    lost: tuple[float, ...] = ()


@dataclass(slots=True)
class _Packets:
    """What framecrc tells: header values by (name, stream), times of pictures and key frames, ends, in ticks.

    `corrupt` are the times of pictures of which some is missing; the last may be one of these.
    """

    header: dict[tuple[str, int], str] = field(default_factory=dict)
    times: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    corrupt: set[int] = field(default_factory=set)
    ends_whole: bool = True
    ends: dict[int, int] = field(default_factory=dict)

    def line(self, text: str) -> None:
        """Take one line of framecrc output: `#name stream: value` or `stream, dts, pts, duration, size, ...`."""
        if text.startswith("#"):
            name, _, value = text[1:].partition(": ")
            name, _, number = name.partition(" ")
            if number.isdigit():
                self.header[name, int(number)] = value.strip()
            return
        stream, decode, shown, duration = (int(column) for column in text.split(",")[:4])
        time = decode if shown == _NO_TIME else shown
        if time < 0:  # before the start: priming, or cut away by an edit list
            return
        self.ends[stream] = max(self.ends.get(stream, 0), time + duration)
        if stream == 0:
            self.times.append(time)
            # Flags are told only of packets that are no key frames.
            flags = _FLAGS.search(text)
            if flags is None:
                self.keys.append(time)
            self.ends_whole = flags is None or not int(flags[1], 16) & _CORRUPT
            if not self.ends_whole:
                self.corrupt.add(time)

    def base(self, stream: int) -> Fraction:
        """Seconds per tick."""
        return Fraction(self.header["tb", stream])


def probe(ffmpeg: Ffmpeg, path: Path, tolerate: bool = False) -> Source:
    """Look at the file at `path`; SourceError if it is not a whole video file or, to `tolerate` that, none at all."""
    if not path.is_file():
        raise SourceError(f"there is no file {path}")
    with tempfile.TemporaryDirectory(prefix="oca-pack-") as folder:
        picture = Path(folder) / "picture"
        packets = _Packets()
        try:
            log = ffmpeg.run(_arguments(path, picture), packets.line)
            said = ffmpeg.run(_first_pictures(path))
        except FfmpegError as error:
            raise SourceError(_sentence(path, error)) from None
        promised = _promised(said)
        cut = any(_TRUNCATED.search(line) for line in log) or not packets.ends_whole
        cut = cut or _is_short(packets, said, promised)
        if cut and not tolerate:
            raise SourceError(_cut_short(path, packets, promised))
        first = _Packets()
        for line in picture.read_text("utf-8").splitlines():
            first.line(line)
    damaged = any(_DEMUXER.match(line) for line in log)
    if cut:
        _drop_tail(packets)
    audio = _sounds(ffmpeg, packets, said) if ("tb", 1) in packets.header else ()
    source = _source(path, packets, first, audio, damaged)
    if cut:
        whole = f"of the {promised:.2f} s that it promises " if promised else ""
        said_of_tail = f"its tail is missing: {whole}the first {source.end:.2f} s can be decoded"
        heard = tuple(replace(each, end=min(each.end, source.end)) for each in audio)
        source = replace(source, audio=heard, notes=(said_of_tail, *source.notes))
    seen = look(said, source.height)
    if seen.hdr:
        raise SourceError(
            f"{path} has a high dynamic range ({seen.hdr}), which would look washed out: make it SDR first, such as "
            "with ffmpeg's filters zscale and tonemap"
        )
    notes = ("it is interlaced: its fields become whole pictures",) if seen.interlaced else ()
    return replace(source, interlaced=seen.interlaced, matrix=seen.matrix, notes=source.notes + notes)


def _arguments(path: Path, picture: Path) -> list[str]:
    output = ["-f", "framecrc"]
    # V: no cover pictures. Streams are copied, that is read but not decoded.
    return [
        *("-nostdin", "-hide_banner", "-loglevel", "error", "-y"),
        *_input(path),
        *("-map", "0:V:0", "-map", "0:a?", "-c", "copy", *output, "pipe:1"),
        *("-map", "0:V:0", "-frames:v", "1", *output, f"file:{picture}"),
    ]


def _input(path: Path) -> list[str]:
    whitelists = ("-protocol_whitelist", PROTOCOLS, "-format_whitelist", FORMATS)
    # What is damaged is looked into later: here a picture will do that is whole.
    limits = ("-max_error_rate", "1", "-max_pixels:v", str(MAX_PIXELS))
    return [*limits, *whitelists, "-i", f"file:{path.absolute()}"]


def _first_pictures(path: Path) -> list[str]:
    return [
        *("-nostdin", "-hide_banner", "-nostats", "-loglevel", "info"),
        *_input(path),
        *("-map", "0:V:0", "-frames:v", str(LOOKED_AT), "-vf", "showinfo=checksum=0", "-f", "null", "-"),
    ]


def _sentence(path: Path, error: FfmpegError) -> str:
    log = "\n".join(error.log)
    if _TRUNCATED.search(log):
        return f"{path} is truncated, or not a video: its index is missing; copy it again, whole"
    if found := _TOO_LARGE.search(log):
        return (
            f"{path} has pictures of {found[1]}: 2 to {_MAX_SIDE} pixels a side, and "
            f"{MAX_PIXELS // 1_000_000} million in all, can be packaged"
        )
    if _NO_VIDEO.search(log):
        return f"{path} has no video stream: give a file with pictures"
    if _EMPTY.search(log):
        return f"{path} has a video stream that is empty, or damaged from end to end: give a file with pictures"
    return f"{path} is not a video that ffmpeg can read ({error.log[0] if error.log else error}): give a video file"


def _promised(said: Sequence[str]) -> float | None:
    """How many seconds the head of a file says that it has, None if it does not, or nobody knows."""
    found = next((match for match in map(_PROMISED.match, said) if match), None)
    if found is None or not any(_PROMISING.match(line) for line in said):
        return None
    hours, minutes, seconds = found.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _is_short(packets: _Packets, said: Sequence[str], promised: float | None) -> bool:
    """Whether there is less than a file's head promises, which ffmpeg does not always mind.

    Of a file that has other streams than one of pictures and those of sound nothing can be told: they may be longer.
    """
    if promised is None:
        return False
    try:
        kinds = [each.kind for each in described(said)]
    except ValueError:
        return False
    if kinds.count("Video") != 1 or set(kinds) - {"Video", "Audio"}:
        return False
    found = max((float(end * packets.base(stream)) for stream, end in packets.ends.items()), default=0.0)
    # A container need not say how long its last picture lasts: as long as the longest before it, perhaps.
    times = sorted(packets.times)
    longest = max((other - one for one, other in pairwise(times)), default=0) * packets.base(0)
    return promised - found > _SHORT_S + longest


def _drop_tail(packets: _Packets) -> None:
    """Leave out what stands at the end of a file that was cut off, and cannot be decoded or lacks a neighbour."""
    times = array("q", sorted(set(packets.times) - packets.corrupt))
    sure = times[:-_REORDERED]
    steps = sorted(other - one for one, other in pairwise(sure))
    if steps and steps[-1] - steps[0] <= 1:  # at a constant rate, to the tick: a hole is to be seen
        end = len(sure)
        while end < len(times) and times[end] - times[end - 1] <= steps[-1] + 1:
            end += 1
        times = times[:end]
    left = set(times)
    packets.times, packets.keys = times, array("q", (time for time in packets.keys if time in left))
    packets.ends[0] = times[-1] if times else 0


def _cut_short(path: Path, packets: _Packets, promised: float | None) -> str:
    """What is said of a file whose tail is missing: how much its header promises, and how much there is."""
    found = float(packets.ends.get(0, 0) * packets.base(0)) if ("tb", 0) in packets.header else 0.0
    todo = "copy it again, whole, or let --tolerate package what there is"
    if promised is None:
        return f"{path} is truncated after {found:.2f} s of pictures: {todo}"
    return f"{path} is truncated: it promises {promised:.2f} s and holds {found:.2f} s of pictures; {todo}"


def _source(path: Path, packets: _Packets, first: _Packets, audio: tuple[Audio, ...], damaged: bool) -> Source:
    if len(packets.times) < 2 or not first.times:
        raise SourceError(f"{path} has {len(packets.times)} picture(s), which is no video: at least 2 are needed")
    times = array("q", sorted(packets.times))
    if times[-1] == times[0]:
        raise SourceError(f"{path} has no duration: all its pictures are shown at the same time")
    base = packets.base(0)
    notes = []
    rates = (1 / first.base(0), *STANDARD_RATES)
    rate = next((each for each in rates if is_constant(times, base, each)), None)
    lost: list[int] = []
    if rate is None and damaged and (rate := next((each for each in rates if on_grid(times, base, each)), None)):
        lost = holes(times, base, rate)
    if rate is None:
        rate, mean = constant_rate(times, base)
        notes.append(f"its frame rate varies ({mean:.2f} frames/s on average): it becomes {float(rate):g} constant")
    width, height = _size(path, first, notes)
    # A container need not say how long the last picture lasts.
    end = max(float(packets.ends[0] * base), float(times[-1] * base + 1 / rate))
    keys = tuple(float((time - times[0]) * base) for time in sorted(packets.keys))
    gone = tuple(round(float(number / rate), 6) for number in lost)
    return Source(path, width, height, rate, end, audio, tuple(notes), keys, lost=gone)


def _sounds(ffmpeg: Ffmpeg, packets: _Packets, said: Sequence[str]) -> tuple[Audio, ...]:
    """The audio streams: what packets tell of them, and what ffmpeg `said` when it opened the file."""
    decodable = ffmpeg.decodable()
    try:
        told = [each for each in described(said) if each.kind == "Audio"]
    except ValueError:
        told = []
    count = sum(name == "tb" for name, _ in packets.header) - 1
    found = []
    for number in range(count):
        stream = number + 1  # after the video
        codec = packets.header.get(("codec_id", stream), "unknown")
        layout = packets.header.get(("channel_layout_name", stream), "unknown")
        known = told[number] if len(told) == count else Described(stream, "Audio", codec, "und", "")
        role: Literal["", "commentary", "description"] = "commentary" if known.has("comment") else ""
        if known.has("visual impaired", "descriptions"):
            role = "description"
        trouble = "" if stream in packets.ends else "it is empty"
        if codec not in decodable:
            trouble = f"this ffmpeg cannot decode {codec}"
        if _UNMIXED.fullmatch(layout):
            trouble = f"ffmpeg cannot mix {layout}"
        end = float(packets.ends.get(stream, 0) * packets.base(stream))
        found.append(
            Audio(known.language, layout, end, number, codec, known.title, role, known.has("default"), trouble)
        )
    return tuple(found)


def _size(path: Path, first: _Packets, notes: list[str]) -> tuple[int, int]:
    """Width and height as shown, in square pixels."""
    width, height = (int(side) for side in first.header["dimensions", 0].split("x"))
    across, down = (int(side) for side in first.header.get(("sar", 0), "0/1").split("/"))
    if not 2 <= min(width, height) <= max(width, height) <= _MAX_SIDE:
        raise SourceError(f"{path} has pictures of {width}x{height}: 2 to {_MAX_SIDE} pixels a side can be packaged")
    if across and down and across != down:
        shape = f"{width}x{height} pixels of shape {across}:{down}"
        width = round(width * across / down)
        notes.append(f"it has {shape}: they become square, {width}x{height}")
        if not 2 <= width <= _MAX_SIDE:
            raise SourceError(f"{path} has {shape}, which would be {width} pixels wide when square")
    return width, height


def is_constant(times: array[int], base: Fraction, rate: Fraction) -> bool:
    """Whether pictures at sorted `times` (ticks of `base` seconds) are `rate` to the second, none missing."""
    ticks = float(1 / (base * rate))
    slack = 0.5 + _JITTER * ticks
    return all(abs(time - times[0] - n * ticks) <= slack for n, time in enumerate(times))


def on_grid(times: array[int], base: Fraction, rate: Fraction) -> bool:
    """Whether pictures at sorted `times` (ticks of `base` seconds) are where those of `rate` to the second may be."""
    ticks = float(1 / (base * rate))
    slack = 0.5 + _JITTER * ticks
    places = [round((time - times[0]) / ticks) for time in times]
    return len(set(places)) == len(places) and all(
        abs(time - times[0] - place * ticks) <= slack for time, place in zip(times, places, strict=True)
    )


def holes(times: array[int], base: Fraction, rate: Fraction) -> list[int]:
    """The numbers, from 0 for what is shown at 0, of those pictures that are missing between others on the grid."""
    shown = {round(time * base * rate) for time in times}
    return sorted(set(range(min(shown), max(shown))) - shown)


def constant_rate(times: array[int], base: Fraction) -> tuple[Fraction, float]:
    """The rate to give pictures at uneven `times`: the lowest standard one that loses almost none; and their mean."""
    mean = float((len(times) - 1) / ((times[-1] - times[0]) * base))
    return next((rate for rate in STANDARD_RATES if rate >= 0.98 * mean), STANDARD_RATES[-1]), mean
