"""The encode of sound: one audio stream of the source, whole, feeding every track made of it.

Sound is never cut into chunks: an encoder of sound remembers what came before, and a cut would be heard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ffmpeg as graph

from packager.audio.loudness import CEILING, OVERSAMPLED, Change, Heard, bring, heard
from packager.audio.renditions import LAYOUTS, Rendition
from packager.encode import job as encode
from packager.encode.encoders import audio_options
from packager.encode.job import EncodeError, Job
from packager.ffmpeg import Ffmpeg

SAMPLE_RATE = 48_000
# Of the limiter, in ms: short enough for peaks to keep their shape, long enough for bass not to be bent.
_ATTACK, _RELEASE = 5, 50


def command(
    job: Job, tracks: Sequence[Rendition], folder: Path, changes: Mapping[int, Change] | None = None
) -> list[str]:
    """Arguments for ffmpeg to write tracks, all of one stream, to `folder`, as `<name>.mp4`.

    `changes` are those of loudness, by number of channels.
    """
    (stream,) = {each.stream for each in tracks}
    given, changes = encode.opened(job, {})[f"a:{stream}"], changes or {}
    widths = list(dict.fromkeys(each.channels for each in tracks))
    outputs = []
    for width, branch in zip(widths, _split(given, len(widths)), strict=True):
        mine = [each for each in tracks if each.channels == width]
        heard_ = _presentation(branch, job, mine[0], changes.get(width))
        outputs += [
            graph.output(copy, f"file:{folder / each.name}.mp4", **audio_options(each))
            for each, copy in zip(mine, _split(heard_, len(mine)), strict=True)
        ]
    merged = graph.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]
    return [*encode.global_options(), *merged.get_args()]


def make(
    binary: Ffmpeg, job: Job, tracks: Sequence[Rendition], folder: Path, progress: Callable[[int], None]
) -> dict[str, Change]:
    """Encode tracks, all of one stream, into `folder`; the changes of loudness by track, if any are asked for.

    `progress` is called with 0 now and then. EncodeError if the stream cannot be decoded.
    """
    changes: dict[int, Change] = {}
    try:
        if job.loudness is not None:
            for each in {each.channels: each for each in tracks}.values():
                changes[each.channels] = bring(job.loudness, partial(_hear, binary, job, each, progress))
        encode.run(binary, job, command(job, tracks, folder, changes), progress)
    except EncodeError as error:
        first = tracks[0]
        raise EncodeError(
            f"{error} (audio stream {first.stream + 1}, {first.layout}, language {first.language}): choose others "
            "with --audio, or none with --audio none"
        ) from None
    return {each.name: changes[each.channels] for each in tracks if each.channels in changes}


def _hear(
    binary: Ffmpeg, job: Job, track: Rendition, progress: Callable[[int], None], change: Change | None
) -> Heard:
    """How loud a track would be with that change."""
    stream = _presentation(encode.opened(job, {})[f"a:{track.stream}"], job, track, change)
    # Peaks between samples, too. What it says of every moment is not asked for.
    stream = stream.filter("ebur128", peak="true", framelog="verbose")
    arguments = [*encode.global_options("info"), *graph.output(stream, "-", f="null").get_args()]
    return heard(encode.run(binary, job, arguments, progress))


def _presentation(stream: Any, job: Job, track: Rendition, change: Change | None) -> Any:
    """A stream in the channels of a track, exactly as long as the pictures."""
    samples = round(job.seconds * SAMPLE_RATE)
    layout = LAYOUTS[track.channels]
    if track.loose:
        stream = stream.filter("channelmap", "|".join(map(str, range(track.channels))), channel_layout=layout)
    stream = (
        # async and first_pts: silence where the source has none, at its start too, so that sound stays with picture.
        stream.filter("aresample", SAMPLE_RATE, **{"async": 1, "first_pts": 0}).filter(
            "aformat", channel_layouts=layout
        )  # mixed up or down
    )
    if change is not None and change.gain:
        stream = stream.filter("volume", f"{change.gain:.2f}dB", precision="float")
    if change is not None and change.limited:
        # At four times the rate peaks between samples are among the samples (ITU-R BS.1770-5 annex 2).
        stream = (
            stream.filter("aresample", OVERSAMPLED)
            .filter("alimiter", limit=f"{CEILING}dB", level=0, latency=1, attack=_ATTACK, release=_RELEASE)
            .filter("aresample", SAMPLE_RATE)
        )
    return stream.filter("apad", whole_len=samples).filter("atrim", end_sample=samples)


def _split(stream: Any, users: int) -> list[Any]:
    """The stream, `users` times; a filter's output can be used only once."""
    if users == 1:
        return [stream]
    outputs = stream.filter_multi_output("asplit", users)
    return [outputs[n] for n in range(users)]
