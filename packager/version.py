"""Writing a version: track files and indexes from the encoder's files, manifests, and title.json over them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from msgspec import UNSET, UnsetType, structs

from oca.store.content import write_durably
from oca.title import dash, hls, segments
from oca.title import model as title_format
from oca.title.digest import CHUNK_BYTES, file_digest
from oca.title.model import TITLE_JSON, File, Period, Text, Tiles, Title, Track
from oca.title.protection import Protection
from oca.title.segments import SegmentIndex
from packager.audio.loudness import Change
from packager.audio.renditions import Rendition
from packager.boxes import cmaf, mp4
from packager.boxes.codecs import codec_of
from packager.encode.job import EncodeError, Job
from packager.encode.work import Work
from packager.encryption.encrypt import Sealer
from packager.ladder.quality import Metric
from packager.ladder.rungs import Rung
from packager.promise import check

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done and how much there is."""
Judge = Callable[[Path, SegmentIndex], dict[Metric, float]]
"""What is measured of a finished track file, by its path and index."""


@dataclass(frozen=True, slots=True)
class Named:
    """What title.json says at its head: id, the name for people, and how long its chunks are."""

    id: str
    name: str
    chunk_bytes: int = CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Beside:
    """What a version has beside its tracks: captions, thumbnails, and the files of these by name; `cues` is how many
    the captions of a name are to have.
    """

    captions: list[Text] = field(default_factory=list)
    thumbnails: list[Tiles] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    cues: dict[str, int] = field(default_factory=dict)


def write(
    named: Named,
    work: Work,
    folder: Path,
    progress: Progress,
    judge: Judge,
    beside: Beside,
    sealer: Sealer | None = None,
) -> tuple[Title, bytes]:
    """Write a whole version to the empty directory `folder`; returns the title, and its title.json as it is there.

    With a `sealer`, its tracks are encrypted. PromiseError if it is not what the work was to give.
    """
    for name, content in beside.files.items():
        write_durably(folder / name, content)
    tracks, indexes = _write_tracks(work, folder, progress, judge, sealer)
    title = _describe(named, tracks, indexes, beside, folder, sealer.protection if sealer else UNSET)
    data = title_format.encode(title)
    title_format.decode(data)  # what a reader would refuse must not be published
    write_durably(folder / TITLE_JSON, data)
    check(work.job, beside.cues, title, folder)
    return title, data


def _write_tracks(
    work: Work, folder: Path, progress: Progress, judge: Judge, sealer: Sealer | None
) -> tuple[list[Track], dict[str, SegmentIndex]]:
    """Turn the encoder's files into track files and segment indexes."""
    job = work.job
    tracks: list[Track] = []
    indexes: dict[str, SegmentIndex] = {}
    cuts: list[Fraction] = []
    wanted: list[Rung | Rendition] = [*job.rungs, *job.sounds]
    for number, each in enumerate(wanted):
        progress("package", number, len(wanted))
        rung = each if isinstance(each, Rung) else None
        name = each.track if isinstance(each, Rung) else each.name
        files = work.files(each) if isinstance(each, Rung) else [work.audio(each)]
        clear = (sealer.folder if sealer else folder) / f"{name}.mp4"
        held, index = cmaf.write_track(files, clear, None if rung else cuts)
        seen = judge(clear, index) if rung else {}
        if sealer:
            found = sealer.seal(name, clear, len(held.samples.sizes))
            held, index = cmaf.write_track(files, folder / clear.name, None if rung else cuts, sealed=found)
            found.path.unlink()
            clear.unlink()
        if rung:
            mine = [Fraction(segment.time, index.timescale) for segment in index.segments[1:]]
            if number and mine != cuts:
                raise EncodeError(f"the encoder cut {name} at other pictures than the rungs below it: report this")
            cuts = mine
        write_durably(folder / f"{name}.idx", segments.encode(index))
        indexes[name] = index
        if isinstance(each, Rung):
            tracks.append(structs.replace(_video_track(job, each, held, index), quality=seen))
        else:
            tracks.append(_audio_track(each, work.loudness(each), held, index))
    progress("package", len(wanted), len(wanted))
    return tracks, indexes


def _video_track(job: Job, rung: Rung, held: mp4.Track, index: SegmentIndex) -> Track:
    return Track(
        name=rung.track,
        kind="video",
        codecs=codec_of(held.entry, held.config),
        timescale=index.timescale,
        duration=index.duration,
        segments=len(index.segments),
        bandwidth=hls.peak_rate(index),
        average_bandwidth=hls.average_rate(index),
        reason=rung.reason,
        width=rung.width,
        height=rung.height,
        frame_rate=str(job.source.rate),
    )


def _audio_track(rendition: Rendition, change: Change | None, held: mp4.Track, index: SegmentIndex) -> Track:
    return Track(
        name=rendition.name,
        kind="audio",
        codecs=codec_of(held.entry, held.config),
        timescale=index.timescale,
        duration=index.duration,
        segments=len(index.segments),
        bandwidth=hls.peak_rate(index),
        average_bandwidth=hls.average_rate(index),
        reason=f"{rendition.reason}, {change.said}" if change else rendition.reason,
        language=rendition.language,
        channels=held.channels,
        sample_rate=held.sample_rate,
        label=rendition.label,
        role=rendition.role,
    )


def _describe(
    named: Named,
    tracks: list[Track],
    indexes: dict[str, SegmentIndex],
    beside: Beside,
    folder: Path,
    protection: Protection | UnsetType,
) -> Title:
    """Write the manifests to `folder` and return the title that lists every file there."""
    for track in tracks:
        for name, text in hls.playlists(track, indexes[track.name], protection or None).items():
            write_durably(folder / name, text.encode())
    tracks = [_with_i_frames(track, indexes[track.name]) for track in tracks]
    periods = [Period("p0", tracks, beside.captions, beside.thumbnails)]
    # A multivariant playlist announces the I-frame playlists that the title lists.
    files = _files(folder, {}, named.chunk_bytes)
    title = Title(
        id=named.id,
        name=named.name,
        chunk_bytes=named.chunk_bytes,
        periods=periods,
        files=files,
        protection=protection,
    )
    for name, text in {
        "manifest.mpd": dash.mpd(title, indexes),
        "ondemand.mpd": dash.mpd(title, indexes, ondemand=True),
        "master.m3u8": hls.multivariant(title, indexes),
        "master.ranges.m3u8": hls.multivariant(title, indexes, ranges=True),
    }.items():
        write_durably(folder / name, text.encode())
    return structs.replace(title, files=_files(folder, title.files, named.chunk_bytes))


def _with_i_frames(track: Track, index: SegmentIndex) -> Track:
    """The track with the rates of its I-frame playlist, if it has one."""
    if track.kind != "video":
        return track
    peak, average = hls.i_frame_rates(index)
    return structs.replace(track, i_frame_bandwidth=peak, i_frame_average_bandwidth=average)


def _files(folder: Path, known: dict[str, File], chunk_bytes: int) -> dict[str, File]:
    """What title.json says of the files in `folder`; those that are `known` are not read again."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name in known:
            files[path.name] = known[path.name]
        else:
            found = file_digest(path, chunk_bytes)
            files[path.name] = File(found.bytes, found.whole, found.chunks, chunk_bytes)
    return files
