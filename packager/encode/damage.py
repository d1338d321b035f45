"""Damage of a source: which of its pictures cannot be decoded whole.

Decoders make something up for what they cannot read, and only grumble. So when one has, it is run again, told to give
up at the least thing that is wrong: pictures that have packets and do not come are damaged, and so are those that the
decoder itself calls corrupt. Some never notice: HEVC and VP9 take nearly any bits for a picture.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import ffmpeg as graph

from packager.encode.chunks import Chunk
from packager.encode.job import EncodeError, Job, reading
from packager.ffmpeg import Ffmpeg, FfmpegError
from packager.source.probe import FORMATS, MAX_PIXELS, PROTOCOLS

# Read so much further than the chunk goes: pictures come in another order than they are shown in.
_BEYOND_S = 2
# Two packets may be one picture, such as its fields: a picture this share of its duration away is that of the packet.
_NEAR = Fraction(3, 5)
_FLAGS = re.compile(r", F=0x([0-9A-F]+)")
_DISCARDED = 4  # AV_PKT_FLAG_DISCARD: an edit list cuts it away
# What is said with -debug_ts; 5.1 and 9 agree in this much.
_CORRUPT, _DECODED = "corrupt decoded frame", "decoder -> "
_TIME = re.compile(r"(?:best_effort_ts|decoder -> pts):(-?[0-9]+)")
_BASE = re.compile(r"time_base:([0-9]+/[0-9]+)")
_NO_TIME = "-9223372036854775808"


def damaged(binary: Ffmpeg, job: Job, chunk: Chunk, room: Path) -> list[float]:
    """When those pictures of a chunk are shown that cannot be decoded whole, in seconds, rising.

    Of a source that is played several times, those of the first. `room` is for what ffmpeg writes.
    """
    skip = 0 if job.loops else max(0, int(chunk.first / job.source.rate) - 1)
    packets, pictures = _times(binary, job, chunk, skip, room)
    if skip and min(packets, default=Fraction(0)) > chunk.first / job.source.rate:
        packets, pictures = _times(binary, job, chunk, 0, room)  # as in encode: it cannot be read from there
    rate = job.source.rate
    mine = [time for time in packets if chunk.first <= round(time * rate) < chunk.end]
    return [round(float(time), 6) for time in missing(mine, pictures, _NEAR / rate)]


def missing(packets: Iterable[Fraction], pictures: Iterable[Fraction], near: Fraction) -> list[Fraction]:
    """The times of packets, rising, than which no picture's is `near` or nearer."""
    come = sorted(pictures)
    found = []
    for time in sorted(set(packets)):
        place = bisect_left(come, time)
        if all(abs(time - other) > near for other in come[max(0, place - 1) : place + 1]):
            found.append(time)
    return found


def refusal(job: Job, times: Sequence[float]) -> EncodeError:
    """Why a source with damaged pictures is not packaged."""
    first = round(times[0] * job.source.rate) + 1
    others = f", and {len(times) - 1} more soon after" if len(times) > 1 else ""
    return EncodeError(
        f"{job.source.path} is damaged {times[0]:.2f} s after its start: picture {first} of {job.frames} cannot be "
        f"decoded whole{others}; make it anew, or let --tolerate cover up such pictures"
    )


def note(job: Job, times: Sequence[float]) -> list[str]:
    """What is said of a source whose damage is tolerated."""
    if not times:
        return []
    were = "was" if len(times) == 1 else "were"
    return [f"{len(times)} of {job.frames} pictures {were} damaged, the first {times[0]:.2f} s after the start"]


def _times(binary: Ffmpeg, job: Job, chunk: Chunk, skip: int, room: Path) -> tuple[list[Fraction], list[Fraction]]:
    """When packets in and around a chunk are shown, and the whole pictures that come of them, in seconds."""
    packets = room / "packets"
    packets.touch()
    length = float(chunk.end / job.source.rate) - skip + _BEYOND_S
    given = graph.input(
        f"file:{job.source.path.absolute()}",
        protocol_whitelist=PROTOCOLS,
        format_whitelist=FORMATS,
        t=f"{length:.3f}",
        # One thread: with more, 5.1 runs into an assertion of its own.
        **{"err_detect:v": "explode", "flags:v": "-output_corrupt", "threads:v": 1, "max_pixels:v": MAX_PIXELS},
        **reading(skip),
    )
    copied = graph.output(given["V:0"], f"file:{packets}", c="copy", f="framecrc")
    decoded = graph.output(given["V:0"], "-", f="null", fps_mode="passthrough")
    options = ["-nostdin", "-hide_banner", "-nostats", "-y", "-loglevel", "repeat+info", "-debug_ts"]
    heard = _Decoder(skip)
    with suppress(FfmpegError):  # when nothing at all can be decoded, which is found out by that
        arguments = [*options, "-max_error_rate", "1", *graph.merge_outputs(copied, decoded).get_args()]
        binary.run(arguments, complaint=heard.line)
    return _of_packets(packets.read_text("utf-8"), skip), heard.whole


class _Decoder:
    """What a decoder says of its pictures: that one is corrupt, and then when it is shown."""

    def __init__(self, skip: int) -> None:
        self.whole: list[Fraction] = []
        self._skip = skip
        self._corrupt = False

    def line(self, text: str) -> None:
        """Take a line of ffmpeg's log."""
        if _CORRUPT in text:
            self._corrupt = True
        elif _DECODED in text and (time := _TIME.search(text)):
            base = _BASE.search(text)
            if not self._corrupt and base:
                self.whole.append(int(time[1]) * Fraction(base[1]) + self._skip)
            self._corrupt = False


def _of_packets(told: str, skip: int) -> list[Fraction]:
    """The times in what framecrc wrote, but those before the start."""
    base = Fraction(0)
    times = []
    for line in told.splitlines():
        if line.startswith("#tb 0: "):
            base = Fraction(line.removeprefix("#tb 0: "))
        elif not line.startswith("#"):
            columns = [column.strip() for column in line.split(",")]
            flags = _FLAGS.search(line)
            time = columns[1] if columns[2] == _NO_TIME else columns[2]
            if int(time) * base + skip >= 0 and not (flags and int(flags[1], 16) & _DISCARDED):
                times.append(int(time) * base + skip)
    return times
