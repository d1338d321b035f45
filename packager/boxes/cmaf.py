"""The CMAF track file: init, sidx and one fragment per segment, written from a progressive file (ISO/IEC 23000-19).

Samples are copied as they are. What is written follows from the samples alone: no clock, no name of a program.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import BinaryIO

from oca.errors import FormatError
from oca.title.segments import MAX_SEGMENTS, Segment, SegmentIndex
from packager.boxes.codecs import channels_of
from packager.boxes.join import KEPT, join
from packager.boxes.mp4 import Samples, Track
from packager.boxes.sealed import Sealed

_TRACK_ID = 1
# 14496-12 8.8.3.1: depends on no other sample; or on others, and is no sync sample.
_SYNC, _NOT_SYNC = 0x02000000, 0x01010000
# sidx has 31 bits for the size of a segment and 16 for their number (8.16.3).
_MAX_SEGMENT_BYTES, _MAX_REFERENCES = (1 << 31) - 1, (1 << 16) - 1
_COPY_BYTES = 1 << 20
# Every segment starts on a page of the file: the kernel then sends whole pages, none of them with two segments in
# it. Starts in the middle of a page cost a third of the throughput over a loopback, of any server. What it takes is
# some 0.2 % of a ladder on disk, and nothing on the way to viewers, who are not sent the padding.
_PAGE = 4096
# 23001-7 7.2.1: of senc's body, what comes before the samples: version and flags, and their number.
_SENC_HEAD = 8
# "und" in three times five bits (14496-12 8.4.2.3): the manifest says the language.
_UND = 0x55C4
# A decoder of Opus wants to have heard 80 ms before what it plays (Opus in ISOBMFF 4.3.6.2): four samples of 20 ms.
_PRE_ROLL = {"Opus": -4}
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


@dataclass(frozen=True, slots=True)
class _Fragment:
    """Samples [first, end): the moof box, and the bytes of the mdat's body."""

    first: int
    end: int
    moof: bytes
    body_bytes: int

    @property
    def bytes(self) -> int:
        return len(self.moof) + 8 + self.body_bytes


def write_track(
    sources: Sequence[Path],
    destination: Path,
    cuts: Sequence[Fraction] | None = None,
    progress: Callable[[int], None] = lambda _: None,
    sealed: Sealed | None = None,
) -> tuple[Track, SegmentIndex]:
    """Write the samples of progressive files, joined, as a track file; returns what it holds and its index.

    Segments start at the sync samples, or, given `cuts` (presentation times in seconds, of audio), at the sample
    nearest each. `progress` gets the number of bytes of each piece written. The file is on disk on return.
    With `sealed`, which are the same samples encrypted, these are written, and what players must know of them.

    Times in the index are presentation times from 0: of audio, the first segment's duration leaves out the
    priming, which an edit list in the init segment hides (14496-12 8.6.6, the way of CMAF 7.5.13).
    """
    joined = join(sources)
    track, source = joined.track, sources[0]
    if track.kind == "soun":
        # ffmpeg 5 writes 2 into the entry whatever there is; decoders go by the boxes in it, people by what we say.
        track = replace(track, channels=channels_of(track.entry, track.config))
    if sealed is not None:
        if sealed.sizes != track.samples.sizes:
            raise FormatError(f"{sealed.path} has other samples than were to be encrypted: report this")
        track = replace(track, samples=replace(track.samples, offsets=sealed.offsets))
    priming = track.start if track.kind == "soun" else 0
    starts = track.samples.sync if cuts is None else _nearest(track, priming, cuts)
    if len(starts) > min(MAX_SEGMENTS, _MAX_REFERENCES):
        raise FormatError(f"{source} would have {len(starts)} segments, more than a track file may hold")
    times = list(accumulate(track.samples.durations, initial=0))
    bounds = list(pairwise([*starts, len(track.samples.sizes)]))
    fragments = [_fragment(track, n, first, end, times[first], sealed) for n, (first, end) in enumerate(bounds, 1)]
    if max(fragment.bytes for fragment in fragments) > _MAX_SEGMENT_BYTES:
        raise FormatError(f"{source} has a segment of 2 GiB or more, which no segment index can describe")
    init = _init(track, priming, times[-1] - priming, sealed)
    shown = [max(0, times[first] - priming) for first, _ in bounds] + [times[-1] - priming]
    durations = [end - start for start, end in pairwise(shown)]
    head = len(init) + len(_sidx(track.timescale, [0] * len(fragments), durations, 0))
    gaps = [_gap(head), *(_gap(fragment.bytes) for fragment in fragments[:-1]), 0]
    sizes = [fragment.bytes + gap for fragment, gap in zip(fragments, gaps[1:], strict=True)]
    sidx = _sidx(track.timescale, sizes, durations, gaps[0])
    with ExitStack() as readers, destination.open("wb") as writer:
        opened = cache(lambda path: readers.enter_context(path.open("rb")))
        writer.write(init + sidx + _padding(gaps[0]))
        for fragment, gap in zip(fragments, gaps[1:], strict=True):
            writer.write(fragment.moof + struct.pack(">I4s", 8 + fragment.body_bytes, b"mdat"))
            _copy(opened(sealed.path if sealed else joined.file_of(fragment.first)), writer, track.samples, fragment)
            writer.write(_padding(gap))
            progress(fragment.body_bytes)
        writer.flush()
        os.fsync(writer.fileno())
    offsets = accumulate(sizes, initial=head + gaps[0])
    segments = tuple(
        Segment(offset, fragment.bytes, time, duration, len(fragment.moof) + 8 + track.samples.sizes[fragment.first])
        for offset, fragment, time, duration in zip(offsets, fragments, shown, durations, strict=False)
    )
    return track, SegmentIndex(track.timescale, len(init), segments)


def _nearest(track: Track, priming: int, cuts: Sequence[Fraction]) -> list[int]:
    """Numbers of the samples that start nearest the `cuts`, rising, from 0; cuts beyond the end give none."""
    times = list(accumulate(track.samples.durations, initial=-priming))
    starts = [0]
    for cut in cuts:
        ticks = cut * track.timescale
        after = bisect_left(times, ticks)
        if after > len(times) - 1:
            break
        nearest = after - 1 if after and ticks - times[after - 1] < times[after] - ticks else after
        # A segment must show something, so the first one never is the priming alone.
        if starts[-1] < nearest < len(times) - 1 and times[nearest] > 0:
            starts.append(nearest)
    return starts


def _copy(reader: BinaryIO, writer: BinaryIO, samples: Samples, fragment: _Fragment) -> None:
    """Copy the fragment's samples; those that lie next to one another in one go."""
    position = fragment.first
    while position < fragment.end:
        start = end = samples.offsets[position]
        while position < fragment.end and samples.offsets[position] == end:
            end += samples.sizes[position]
            position += 1
        reader.seek(start)
        while start < end:
            piece = reader.read(min(_COPY_BYTES, end - start))
            if not piece:
                raise FormatError(f"{reader.name} became shorter while it was read")
            writer.write(piece)
            start += len(piece)


def _gap(end: int) -> int:
    """Bytes from `end` to where the next page starts, or the one after it if no box would fit between."""
    gap = -end % _PAGE
    return gap + _PAGE if 0 < gap < 8 else gap


def _padding(gap: int) -> bytes:
    """A box of `gap` bytes that everybody skips (8.1.2)."""
    return _box("free", bytes(gap - 8)) if gap else b""


def _box(kind: str, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind.encode()) + body


def _full(kind: str, version: int, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *parts)


def _fragment(track: Track, number: int, first: int, end: int, time: int, sealed: Sealed | None) -> _Fragment:
    """The moof of samples [first, end) that start at decode time `time` (8.8.4 to 8.8.12; 23001-7 7.2)."""
    samples, video = track.samples, track.kind == "vide"
    sizes, durations = samples.sizes[first:end], samples.durations[first:end]
    same = min(durations) == max(durations)
    columns: list[Sequence[int]] = [sizes]
    flags = 0x000201  # data offset, sizes
    if not same:
        flags |= 0x000100
        columns.insert(0, durations)
    if video:
        flags |= 0x000804  # composition offsets, flags of the first sample
        columns.append([offset & 0xFFFFFFFF for offset in samples.compositions[first:end]])
    # Default duration, default flags, and offsets from this moof: a fragment means the same wherever it is moved.
    tfhd_values = struct.pack(">III", _TRACK_ID, durations[0], _NOT_SYNC if video else _SYNC)
    tfhd = _full("tfhd", 0, 0x020028, tfhd_values)
    tfdt = _full("tfdt", 1, 0, struct.pack(">Q", time))
    rows = struct.pack(
        f">{len(sizes) * len(columns)}I", *(value for row in zip(*columns, strict=True) for value in row)
    )
    first_flags = struct.pack(">I", _SYNC) if video else b""
    saiz, senc = sealed.boxes(first, end) if sealed else (b"", b"")

    def moof(data_offset: int) -> bytes:
        # Version 1: composition offsets are signed.
        trun = _full("trun", 1, flags, struct.pack(">Ii", len(sizes), data_offset), first_flags, rows)
        mfhd = _full("mfhd", 0, 0, struct.pack(">I", number))
        boxes = [tfhd, tfdt, trun, *_rolled(track, len(sizes))]
        if senc:
            # What senc tells ends the moof: saio says where it begins, from the start of the moof on.
            saio = _full("saio", 0, 0, struct.pack(">II", 1, data_offset - 8 - len(senc) + _SENC_HEAD))
            boxes += [_box("saiz", saiz), saio, _box("senc", senc)]
        return _box("moof", mfhd, _box("traf", *boxes))

    length = len(moof(8 + len(senc)))  # of what is not known yet, the values do not matter, and must fit
    return _Fragment(first, end, moof(length + 8), sum(sizes))


def _rolled(track: Track, count: int | None = None) -> list[bytes]:
    """How far before a sample a decoder must begin (14496-12 8.9, 10.1): said once, and then of `count` samples.

    Nothing of a track whose decoder need not.
    """
    distance = _PRE_ROLL.get(track.entry)
    if distance is None:
        return []
    if count is None:
        return [_full("sgpd", 1, 0, b"roll", struct.pack(">IIh", 2, 1, distance))]
    return [_full("sbgp", 0, 0, b"roll", struct.pack(">III", 1, count, 1))]


def _sidx(timescale: int, sizes: Sequence[int], durations: Sequence[int], gap: int) -> bytes:
    """The segment index box over all segments, each of which starts with a sync sample (8.16.3).

    `sizes` in bytes, padding included, for players take them to follow one another; `gap` before the first.
    """
    starts_with_sap_1 = 0x90000000
    rows = b"".join(
        struct.pack(">III", size, duration, starts_with_sap_1)
        for size, duration in zip(sizes, durations, strict=True)
    )
    head = struct.pack(">IIQQHH", _TRACK_ID, timescale, 0, gap, 0, len(sizes))
    return _full("sidx", 1, 0, head, rows)


def _init(track: Track, priming: int, duration: int, sealed: Sealed | None) -> bytes:
    """ftyp and moov: one track without samples, its defaults in mvex; `duration` is what is shown, in ticks."""
    video = track.kind == "vide"
    # cmf2: signed composition offsets instead of an edit list (23000-19 table A.2).
    brands = b"cmfciso6cmf2dash" if video else b"cmfciso6dash"
    ftyp = _box("ftyp", b"cmfc", struct.pack(">I", 0), brands)
    mvhd_values = struct.pack(">IIIIIH10x", 0, 0, track.timescale, 0, 0x10000, 0x100)
    mvhd = _full("mvhd", 0, 0, mvhd_values, _MATRIX, bytes(24), struct.pack(">I", _TRACK_ID + 1))
    volume = 0 if video else 0x100
    tkhd = _full(
        "tkhd",
        0,
        3,  # enabled, in movie
        struct.pack(">IIIII8xHHHH", 0, 0, _TRACK_ID, 0, 0, 0, 0, volume, 0),
        _MATRIX,
        struct.pack(">II", track.width << 16, track.height << 16),
    )
    # Duration 0 means all there is, fragments included.
    elst = _full("elst", 0, 0, struct.pack(">IIiI", 1, 0, priming, 0x10000))
    edts = _box("edts", elst) if priming else b""
    mdhd = _full("mdhd", 0, 0, struct.pack(">IIIIHH", 0, 0, track.timescale, 0, _UND, 0))
    name = b"VideoHandler\0" if video else b"SoundHandler\0"
    hdlr = _full("hdlr", 0, 0, struct.pack(">I4s12x", 0, track.kind.encode()), name)
    header = _full("vmhd", 0, 1, bytes(8)) if video else _full("smhd", 0, 0, bytes(4))
    dinf = _box("dinf", _full("dref", 0, 0, struct.pack(">I", 1), _full("url ", 0, 1)))
    stsd = _full("stsd", 0, 0, struct.pack(">I", 1), _sample_entry(track, sealed))
    empty = [_full(kind, 0, 0, bytes(4)) for kind in ("stts", "stsc")]
    stbl = _box("stbl", stsd, *empty, _full("stsz", 0, 0, bytes(8)), _full("stco", 0, 0, bytes(4)), *_rolled(track))
    trak = _box("trak", tkhd, edts, _box("mdia", mdhd, hdlr, _box("minf", header, dinf, stbl)))
    mehd = _full("mehd", 1, 0, struct.pack(">Q", duration))
    trex = _full("trex", 0, 0, struct.pack(">IIIII", _TRACK_ID, 1, 0, 0, 0))
    return ftyp + _box("moov", mvhd, trak, _box("mvex", mehd, trex), sealed.pssh if sealed else b"")


def _sample_entry(track: Track, sealed: Sealed | None) -> bytes:
    """The codec's sample entry with the boxes that matter to a decoder (14496-12 12.1.3, 12.2.3; sealed 8.12)."""
    kept = [_box(kind, track.config[kind]) for kind in KEPT if kind in track.config]
    if track.kind == "vide":
        head = struct.pack(">6xH16xHH", 1, track.width, track.height)
        # 72 dpi, one frame per sample, no compressor name, depth 24, pre-defined -1: as 12.1.3 has them
        fields = head + struct.pack(">IIIH32xHh", 0x480000, 0x480000, 0, 1, 0x18, -1)
    else:
        fields = struct.pack(">6xH8xHHII", 1, track.channels, 16, 0, track.sample_rate << 16)
    if sealed is None:
        return _box(track.entry, fields, *kept)
    return _box("encv" if track.kind == "vide" else "enca", fields, *kept, sealed.sinf)
