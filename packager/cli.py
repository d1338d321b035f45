"""`oca-pack`: from a video file to a title that any player plays."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from msgspec import structs

from oca.errors import guarded
from oca.sizes import parse_size
from oca.store import verify
from oca.store.content import HeldVersion
from oca.title import model as title_format
from packager import bucket_options, ffmpeg, lock_options, package, play, promise, sound_options, terminal
from packager.audio import renditions
from packager.encode import chunks
from packager.encode import job as encode
from packager.ladder import analysis, plot, quality
from packager.source import probe

app = typer.Typer(
    help="Turn videos into titles that any DASH or HLS player plays, and check titles on disk.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)

Preset = StrEnum(
    "Preset", ["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
)
Codec = StrEnum("Codec", ["h264", "hevc", "av1"])
Speed = Annotated[
    Preset, typer.Option("--preset", help="Speed of the encoder: slower gives a better picture per bit.")
]
Codecs = Annotated[
    list[Codec], typer.Option("--codec", help="Codec of the video; repeat it for more than one ladder.")
]
Wanted = Annotated[
    str,
    typer.Option(
        "--ladder",
        metavar="per-title|fixed|FILE",
        help="per-title measures the video; FILE is TOML, see docs/packaging.md.",
    ),
]
Texts = Annotated[
    list[str],
    typer.Option(
        "--captions",
        metavar="LANG[:captions|subtitles|forced][:LABEL]=FILE",
        help="Captions, WebVTT (.vtt) or SubRip (.srt), as in en=film.srt; `source`: those in the video. Repeatable.",
    ),
]
Tolerate = Annotated[
    bool,
    typer.Option(
        "--tolerate",
        help="Take a damaged video: cover up and count what cannot be decoded, end where its tail is gone.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text for people.")]
Video = Annotated[Path, typer.Argument(metavar="VIDEO", help="The video file, in any container that ffmpeg reads.")]
Versions = Annotated[
    Path, typer.Argument(metavar="PATH", help="A version's directory, or a title's with all versions in it.")
]


@app.command()
def build(
    video: Video,
    out: Annotated[Path, typer.Option("--out", help="Content store to publish into; made if it is missing.")],
    title: Annotated[
        str | None, typer.Option("--title", help="Id of the title: a-z 0-9 . _ -  [default: from the file's name]")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name for people.  [default: the file's name]")] = None,
    preset: Speed = Preset["medium"],
    loop_to: Annotated[
        float,
        typer.Option(
            "--loop-to", min=0, max=86400, metavar="SECONDS", help="Repeat a shorter source to this length."
        ),
    ] = 0,
    chunk: Annotated[
        float, typer.Option("--chunk", min=1, max=86400, metavar="SECONDS", help="Length of what is encoded apart.")
    ] = chunks.CHUNK_S,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, max=256, help="Chunks encoded at once; 0: one per processor.")
    ] = 0,
    segment: Annotated[
        float,
        typer.Option(
            "--segment-seconds", min=1, max=30, metavar="SECONDS", help="Length of a segment, to the nearest picture."
        ),
    ] = encode.SEGMENT_S,
    chunk_bytes: Annotated[
        str,
        typer.Option(
            "--chunk-bytes",
            metavar="SIZE",
            help="Length of what is verified, and fetched, at once: 4KiB to 64MiB; 64K is 64,000, 64KiB is 65,536.",
        ),
    ] = "8MiB",
    ladder_: Wanted = "fixed",
    codec: Codecs = [Codec["h264"]],  # noqa: B006
    audio: sound_options.Audio = renditions.ALL,
    audio_codec: sound_options.Codecs = [sound_options.Codec["aac"]],  # noqa: B006
    channels: sound_options.Channels = sound_options.Layout["source"],
    loudness: sound_options.Loudness = None,
    captions: Texts = [],  # noqa: B006
    thumbnails: Annotated[bool, typer.Option(help="Small pictures for finding a place in the title.")] = True,
    encrypt: lock_options.Encrypt = None,
    key: lock_options.Key = [],  # noqa: B006
    key_file: lock_options.KeyFile = None,
    cpix: lock_options.Cpix = None,
    clearkey_url: lock_options.ClearkeyUrl = "",
    key_url: lock_options.KeyUrl = "",
    dask: Annotated[
        str,
        typer.Option(
            "--dask",
            metavar="tcp://HOST:PORT",
            help="Encode on the workers of this Dask scheduler, as many chunks at once as they have threads. They "
            "must see VIDEO and OUT under the same paths, on shared disks, and have the same versions.",
        ),
    ] = "",
    tolerate: Tolerate = False,
    show_commands: Annotated[
        bool, typer.Option("--show-commands", help="Print each command line that is run, to stderr, without keys.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Encode a video into its ladder and publish it as a new version of a title, under OUT/TITLE/VERSION.

    A build that was killed or interrupted goes on where it was when the same command is given again. With --json,
    stderr tells once a second how far it is, one JSON object a line.
    """
    wanted = title if title is not None else package.id_of(video.stem)
    codecs = tuple(dict.fromkeys(each.value for each in codec))
    order = package.Order(
        *(video, out, wanted, name or video.stem, preset.value, loop_to, chunk, jobs), ladder_, codecs
    )
    sounds = tuple(dict.fromkeys(each.value for each in audio_codec))
    order = replace(order, audio=audio, audio_codecs=sounds, channels=channels.value, loudness=loudness)
    order = replace(order, captions=tuple(captions), thumbnails=thumbnails, dask=dask, tolerate=tolerate)
    order = replace(order, segment=segment, chunk_bytes=parse_size(chunk_bytes))
    encryption = lock_options.encryption(encrypt, key, key_file, cpix, clearkey_url, key_url)
    binary = ffmpeg.find()
    if show_commands:
        binary = replace(binary, show=terminal.show)
        if encryption:
            encryption = replace(encryption, program=replace(encryption.program, show=terminal.show))
    order = replace(order, encryption=encryption)
    with terminal.Lines() if as_json else terminal.Bars() as shown:
        built = package.build(binary, order, shown.step)
    if built.encoded < built.pieces:
        sys.stderr.write(f"note: {built.pieces - built.encoded} of {built.pieces} pieces were encoded before\n")
    for note in built.notes:
        sys.stderr.write(f"note: {note}\n")
    told = {
        "title": built.title.id,
        "version": built.version,
        "path": str(built.path),
        "tracks": [track.name for track in built.title.tracks],
        "bytes": sum(file.bytes for file in built.title.files.values()),
        "seconds": round(built.title.seconds, 6),
        "pieces": built.pieces,
        "encoded": built.encoded,
    }
    if as_json:
        terminal.print_json(told)
    else:
        sys.stdout.write(f"published {built.path}\n")


def _verified(directory: Path) -> verify.Report:
    """What is wrong with a version: bytes first, and if these are right what they hold."""
    report = verify.verify(directory)
    if report.problems:
        return report
    title, _ = title_format.read(directory)
    wrong = [verify.Problem(directory, file, None, said) for file, said in promise.contradictions(directory, title)]
    return replace(report, problems=wrong)


@app.command("verify")
def verify_command(path: Versions, as_json: Json = False) -> None:
    """Read every chunk of every file, and what tracks and captions hold, and compare it with title.json; exit 1 if
    anything is wrong.
    """
    reports = [_verified(directory) for directory in verify.version_directories(path)]
    sound = not any(report.problems for report in reports)
    if as_json:
        versions = [
            {
                "path": str(report.path),
                "version": report.version,
                "files": report.files,
                "bytes": report.bytes,
                "problems": [
                    {"file": each.file, "chunk": each.chunk, "problem": each.sentence} for each in report.problems
                ],
            }
            for report in reports
        ]
        terminal.print_json({"ok": sound, "versions": versions})
    else:
        for report in reports:
            for problem in report.problems:
                sys.stderr.write(f"error: {problem.sentence}\n")
            if not report.problems:
                sys.stdout.write(f"{report.path}: {report.files} files, {report.bytes} bytes, all sound\n")
    if not sound:
        raise typer.Exit(1)


@app.command()
def inspect(path: Versions, as_json: Json = False) -> None:
    """Show the tracks of a version, their rates and sizes."""
    told = []
    for directory in verify.version_directories(path):
        title, version = title_format.read(directory)
        tracks = [
            {
                "name": track.name,
                "codecs": track.codecs,
                "width": track.width,
                "height": track.height,
                "frame_rate": track.frame_rate,
                "language": track.language,
                "channels": track.channels,
                "label": track.label,
                "role": track.role,
                "seconds": round(track.seconds, 6),
                "segments": track.segments,
                "quality": track.quality,
                "bandwidth": track.bandwidth,
                "average_bandwidth": track.average_bandwidth,
                "bytes": title.track_bytes(track),
                "reason": track.reason,
            }
            for track in title.tracks
        ]
        told.append(
            {
                "title": title.id,
                "name": title.name,
                "version": version,
                "tracks": tracks,
                "captions": [structs.asdict(text) for text in title.captions],
                "thumbnails": [structs.asdict(tiles) for tiles in title.thumbnails],
                "protection": structs.asdict(title.protection) if title.protection else None,
            }
        )
        if not as_json:
            heading = f"{title.id} {version}, {title.seconds:.2f} s"
            columns: tuple[str, ...] = (
                "track",
                "codecs",
                "picture or sound",
                "quality",
                "segments",
                "peak kbit/s",
                "kbit/s",
                "MB",
            )
            rows: list[tuple[str, ...]] = [
                (
                    track.name,
                    track.codecs,
                    f"{track.width}x{track.height}, {track.frame_rate} frames/s"
                    if track.kind == "video"
                    else _sound(track),
                    ", ".join(f"{metric} {value:g}" for metric, value in track.quality.items()),
                    str(track.segments),
                    f"{track.bandwidth / 1000:.0f}",
                    f"{track.average_bandwidth / 1000:.0f}",
                    f"{title.track_bytes(track) / 1e6:.2f}",
                )
                for track in title.tracks
            ]
            for text in title.captions:
                rates = (f"{text.bandwidth / 1000:.1f}", f"{text.average_bandwidth / 1000:.1f}")
                rows.append((text.name, "WebVTT", f"{text.language}, {text.label}", "", "", *rates, ""))
            for tiles in title.thumbnails:
                shape = f"{tiles.width}x{tiles.height}, {tiles.count} pictures"
                rate = f"{tiles.bandwidth / 1000:.1f}"
                rows.append((tiles.name, "JPEG", shape, "", str(tiles.sheets), rate, "", ""))
            if title.protection:
                heading += f", encrypted with {title.protection.scheme}"
                columns = (*columns, "key id")
                rows = [(*row, title.protection.kids.get(row[0], "")) for row in rows]
            terminal.print_table(heading, columns, rows)
    if as_json:
        terminal.print_json(told)


def _sound(track: title_format.Track) -> str:
    called = f", {track.label}" if track.label else ""
    return f"{track.language}{called}, {track.channels} channels, {track.sample_rate} Hz"


@app.command("ladder")
def ladder_command(
    video: Video,
    ladder_: Wanted = "fixed",
    codec: Codecs = [Codec["h264"]],  # noqa: B006
    preset: Speed = Preset["medium"],
    picture: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw quality over rate, as .svg or .png; per-title."),
    ] = None,
    tolerate: Tolerate = False,
    as_json: Json = False,
) -> None:
    """Show what `build` would encode, and why, without building; per-title encodes and measures some stretches."""
    binary, codecs = ffmpeg.find(), tuple(dict.fromkeys(each.value for each in codec))
    if picture is not None:
        plot.check(picture, ladder_)
    found = probe.probe(binary, video, tolerate)
    audio, notes = renditions.chosen(found.audio, renditions.ALL, video)
    source = replace(found, audio=audio)
    shape = replace(encode.plan(source, (), preset.value), tolerate=tolerate)
    notes = [*encode.notes(shape), *notes, *renditions.notes(audio, renditions.SOURCE)]
    rungs = package.given(ladder_, codecs, source)
    if rungs is None:
        scale = quality.scale_of(binary)
        with (
            tempfile.TemporaryDirectory(prefix="oca-pack-") as folder,
            terminal.Lines() if as_json else terminal.Bars() as shown,
        ):
            trials = analysis.trials(
                *(binary, shape, codecs, scale, Path(folder), package.jobs_of(0)),
                lambda done, total: shown.step("analyse", done, total),
            )
        rungs = analysis.per_title(source, trials, codecs, scale)
        if picture is not None:
            plot.draw(picture, video.name, trials, rungs, scale)
    if as_json:
        terminal.print_json(
            {
                "width": source.width,
                "height": source.height,
                "frame_rate": str(source.rate),
                "seconds": round(source.end, 6),
                "audio": source.audio[0].channels if source.audio else None,
                "rungs": [
                    {
                        "track": r.track,
                        "codec": r.codec,
                        "width": r.width,
                        "height": r.height,
                        "kbps": r.kbps,
                        "crf": r.crf or None,
                        "reason": r.reason,
                    }
                    for r in rungs
                ],
                "notes": notes,
            }
        )
        return
    rows = [(rung.track, f"{rung.width}x{rung.height}", str(rung.kbps), rung.reason) for rung in rungs]
    heading = f"{video}: {source.width}x{source.height}, {source.rate} frames/s, {source.end:.2f} s"
    terminal.print_table(heading, ("track", "size", "kbit/s", "reason"), rows)
    for note in notes:
        sys.stdout.write(f"note: {note}\n")


@app.command("play")
def play_command(
    path: Versions,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port of the page on 127.0.0.1; 0: a free one.")
    ] = 0,
) -> None:
    """Play a version, or the newest one of a title, from disk in a browser on this machine, until Ctrl-C."""

    def ready(url: str, held: HeldVersion) -> None:
        sys.stdout.write(f"{held.title.id} {held.version} plays at {url} until Ctrl-C\n")
        sys.stdout.flush()

    play.play(path, port, ready)


app.command("publish")(bucket_options.publish_command)


def main() -> None:
    """Console entry."""
    guarded(app)
