"""A playlist of whole files: captions and thumbnails in HLS (RFC 8216 4.3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from oca.title.hls import target_duration
from oca.title.segments import Segment, SegmentIndex

# Durations that are no whole seconds came in with 3.
_VERSION = 3


def index_of(sizes: Sequence[int], durations: Sequence[int], timescale: int) -> SegmentIndex:
    """The index that files of these sizes in bytes and durations in ticks would have as segments, for their rates."""
    times = accumulate(durations, initial=0)
    rows = zip(sizes, times, durations, strict=False)
    return SegmentIndex(timescale, 0, tuple(Segment(0, size, time, ticks, 0) for size, time, ticks in rows))


def filelist(names: Sequence[str], index: SegmentIndex, tag: str = "", each: str = "") -> str:
    """The VOD playlist of files, by name in order, that last as long as the segments of `index`.

    `tag` is a line for the playlist, `each` one for every file. The files are relative to the playlist.
    """
    lines = [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_VERSION}",
        f"#EXT-X-TARGETDURATION:{target_duration(index)}",
        "#EXT-X-MEDIA-SEQUENCE:1",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        *([tag] if tag else []),
    ]
    for name, segment in zip(names, index.segments, strict=True):
        lines += [f"#EXTINF:{segment.duration / index.timescale:.6f},", *([each] if each else []), name]
    return "\n".join([*lines, "#EXT-X-ENDLIST"]) + "\n"
