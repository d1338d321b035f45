"""The join: the encoder's files of one rung, chunk after chunk, as if it had written one."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from oca.errors import FormatError
from packager.boxes.mp4 import Samples, Track, read_track

KEPT = ("avcC", "hvcC", "av1C", "esds", "dOps", "colr", "pasp")
"""Boxes of the encoder's sample entry that say how to decode or show; the rest (btrt, names) is dropped."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A track whose samples lie in several files; `firsts` are the numbers of each file's first sample, from 0."""

    track: Track
    files: list[Path]
    firsts: list[int]

    def file_of(self, sample: int) -> Path:
        """The file in which a sample lies, at the offset that the track says."""
        return self.files[bisect_right(self.firsts, sample) - 1]


def join(files: Sequence[Path]) -> Joined:
    """Read progressive files, each with one track, one after the other; FormatError if they do not fit together.

    Of video, the first picture of each is shown when the last of the one before is over.
    """
    tracks = [read_track(file) for file in files]
    first = tracks[0]
    for file, track in zip(files, tracks, strict=True):
        if track.kind == "vide":
            _shift_to_zero(track.samples, file)
        if _format(track) != _format(first) or (len(files) > 1 and track.samples.sync[:1] != [0]):
            raise FormatError(f"{file} does not go on where {files[0]} ends: remove both, they are encoded anew")
    firsts = list(accumulate((len(track.samples.sizes) for track in tracks), initial=0))[:-1]
    if len(tracks) > 1:
        first = replace(first, samples=_concatenated([track.samples for track in tracks], firsts))
    return Joined(first, list(files), firsts)


def _format(track: Track) -> tuple[object, ...]:
    """All that a decoder has to know beforehand."""
    config = {kind: track.config.get(kind) for kind in KEPT}
    return track.kind, track.timescale, track.entry, config, track.width, track.height, track.channels


def _concatenated(parts: Sequence[Samples], firsts: Sequence[int]) -> Samples:
    whole = Samples(array("q"), array("q"), array("q"), array("q"), [])
    for part, first in zip(parts, firsts, strict=True):
        for name in ("sizes", "offsets", "durations", "compositions"):
            getattr(whole, name).extend(getattr(part, name))
        whole.sync.extend(first + number for number in part.sync)
    return whole


def _shift_to_zero(samples: Samples, source: Path) -> None:
    """Make composition offsets signed, such that the first picture is shown at 0 and no edit list is needed."""
    times = accumulate(samples.durations, initial=0)
    earliest = min(time + offset for time, offset in zip(times, samples.compositions, strict=False))
    for n, offset in enumerate(samples.compositions):
        samples.compositions[n] = offset - earliest
    if samples.compositions[0] != 0:
        raise FormatError(f"{source} does not start with the picture that is shown first")
