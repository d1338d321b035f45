"""Builds of many kinds of source, and what is left when one fails or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from oca.errors import FormatError, OcaError, StoreError
from oca.store.content import FILLING, Store
from oca.store.verify import verify
from oca.title import hls, segments
from oca.title import model as title_format
from packager import package, staging
from packager.encode.chunks import Chunk
from packager.encode.job import EncodeError, check_frames, plan
from packager.ffmpeg import Ffmpeg
from packager.ladder.rungs import ladder
from packager.package import Built, Order
from packager.source.probe import probe

Make = Callable[..., Path]
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=30:d=6")
SOUND = ("-f", "lavfi", "-i", "sine=d=6")
UNEVEN = ("-vf", "select='gt(random(1),.4)'", "-fps_mode", "vfr")
FAST = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac")


def build(binary: Ffmpeg, video: Path, out: Path, loop_to: float = 0) -> Built:
    """Build quickly."""
    return package.build(binary, Order(video, out, "t", "T", preset="ultrafast", loop_to=loop_to))


def test_the_clip(packaged: Built, store: Path) -> None:
    """The published title is held in full, sound, and named by its bytes."""
    held = Store([store]).held("bbb", packaged.version)
    assert held is not None
    assert held.title == packaged.title == title_format.read(packaged.path)[0]
    assert held.tracks == {track.name for track in packaged.title.tracks}
    assert verify(packaged.path).problems == []
    assert packaged.title.seconds == pytest.approx(5.28)
    assert abs(held.published - time.time()) < 3600
    assert [track.segments for track in packaged.title.tracks] == [2] * 9
    assert packaged.notes == ["its 5.1 audio becomes stereo"]


def test_rates(packaged: Built) -> None:
    """The declared peak is the highest rate of any run of segments that lasts 0.5 to 1.5 targets, and no more."""
    for track in packaged.title.tracks:
        index = segments.decode((packaged.path / f"{track.name}.idx").read_bytes())
        target = hls.target_duration(index) * index.timescale
        count = len(index.segments)
        runs = [index.segments[first:end] for first in range(count) for end in range(first + 1, count + 1)]
        lengths = [(sum(s.bytes for s in run), sum(s.duration for s in run)) for run in runs]
        peak = max(8 * size * index.timescale / d for size, d in lengths if target <= 2 * d <= 3 * target)
        assert peak <= track.bandwidth <= peak + 1


@pytest.mark.parametrize(
    ("name", "arguments", "tracks", "size", "frame_rate", "seconds"),
    [
        ("silent.mp4", (*PICTURES, *FAST), 1, (320, 240), "30", 6),
        ("sound.mkv", (*PICTURES, *SOUND, *FAST), 2, (320, 240), "30", 6),
        ("odd.mkv", (*PICTURES, *SOUND, "-vf", "format=yuv444p,crop=319:201", *FAST), 2, (320, 200), "30", 6),
        ("ntsc.mp4", (*PICTURES, *SOUND, "-r", "30000/1001", *FAST), 2, (320, 240), "30000/1001", 6),
        ("wide.mp4", (*PICTURES, "-vf", "setsar=3/2", *FAST), 1, (480, 240), "30", 6),
        ("deep.mkv", (*PICTURES, "-pix_fmt", "yuv422p10le", *FAST), 1, (320, 240), "30", 6),
        (
            "uneven.mkv",
            (*PICTURES, *SOUND, "-vf", "select='gt(random(1),.4)'", "-fps_mode", "vfr", *FAST),
            2,
            None,
            "",
            6,
        ),
        ("long-sound.mkv", (*PICTURES, "-f", "lavfi", "-i", "sine=d=7.5", *FAST), 2, (320, 240), "30", 7.5),
        ("short-sound.mkv", (*PICTURES, "-f", "lavfi", "-i", "sine=d=3", *FAST), 2, (320, 240), "30", 6),
        ("late-sound.mkv", (*PICTURES, "-itsoffset", "1", *SOUND, "-t", "6", *FAST), 2, (320, 240), "30", 6),
        ("late-picture.mkv", ("-itsoffset", "1", *PICTURES, *SOUND, "-t", "6", *FAST), 2, (320, 240), "30", 6),
    ],
)
def test_sources(
    binary: Ffmpeg,
    make: Make,
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
    tracks: int,
    size: tuple[int, int] | None,
    frame_rate: str,
    seconds: float,
) -> None:
    """Whatever the source: a sound title, tracks that end together and are cut alike, square pixels, even sizes."""
    built = build(binary, make(name, *arguments), tmp_path)
    assert verify(built.path).problems == []
    assert len(built.title.tracks) == tracks
    video = built.title.tracks[0]
    assert size in (None, (video.width, video.height))
    assert frame_rate in ("", video.frame_rate)
    assert built.title.seconds == pytest.approx(seconds, abs=0.1)
    for track in built.title.tracks:
        assert track.seconds == pytest.approx(built.title.seconds, abs=0.03)
        assert track.segments == 2
    seen = shown(built.path / f"{video.name}.mp4", "stream=pix_fmt,sample_aspect_ratio,r_frame_rate")
    rate = Fraction(video.frame_rate)
    assert seen == f"1:1,yuv420p,{rate.numerator}/{rate.denominator}"


def shown(path: Path, entries: str) -> str:
    """What ffprobe says of a file."""
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "csv=p=0", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_rotated(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """A picture that is to be turned is turned, and the track file asks for no turning."""
    upright = make("upright6.mp4", *PICTURES, *FAST)
    turned = make("turned6.mp4", "-display_rotation", "90", "-i", str(upright), "-c", "copy")
    built = build(binary, turned, tmp_path)
    assert [(track.width, track.height) for track in built.title.tracks] == [(180, 240), (216, 288)]
    assert shown(built.path / "v-240-235.mp4", "stream=width,height:stream_side_data=rotation") == "180,240"


@pytest.mark.parametrize(("loop_to", "frames"), [(10, 250), (5, 132), (5.5, 138)])
def test_loop(binary: Ffmpeg, clip: Path, loop_to: float, frames: int) -> None:
    """A source shorter than asked for is repeated to just that length; a longer one is left alone."""
    source = probe(binary, clip)
    assert plan(source, ladder(320, 240), "ultrafast", loop_to).frames == frames


def test_looped_title(binary: Ffmpeg, clip: Path, make: Make, tmp_path: Path) -> None:
    """A looped title has pictures and sound to its end."""
    small = make("small6.mkv", "-i", str(clip), "-vf", "scale=-2:240", *FAST)
    built = build(binary, small, tmp_path, 14)
    assert [track.seconds for track in built.title.tracks] == [14, 14, 14]
    assert [track.segments for track in built.title.tracks] == [4, 4, 4]
    assert "it is played 3 times, to 14 s" in built.notes


def test_same_bytes_again(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """The same source and options give the same version, which is then published once."""
    video = make("sound.mkv", *PICTURES, *SOUND, *FAST)
    first, second = build(binary, video, tmp_path), build(binary, video, tmp_path)
    assert first.path == second.path
    assert list((tmp_path / FILLING).iterdir()) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("Big Buck Bunny", "big-buck-bunny"),
        ("..x", "x"),
        ("Ä Ö", ""),
        ("a" * 99, "a" * 64),
        ("S01E02.final", "s01e02.final"),
    ],
)
def test_id_from_a_file_name(name: str, title: str) -> None:
    """A file's name becomes an id, or a sentence asks for one."""
    if title:
        assert package.id_of(name) == title
    else:
        with pytest.raises(FormatError, match="--title"):
            package.id_of(name)


@pytest.mark.parametrize("title", ["../x", "X", ""])
def test_bad_ids(binary: Ffmpeg, clip: Path, tmp_path: Path, title: str) -> None:
    """An id that could leave the store is refused before anything is written."""
    with pytest.raises(FormatError, match="is not an id"):
        package.build(binary, Order(clip, tmp_path / "out", title, "T"))
    assert not (tmp_path / "out").exists()


def test_store_that_cannot_be_written(binary: Ffmpeg, clip: Path, tmp_path: Path) -> None:
    """A store that cannot be is said to be one, before the encode."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        build(binary, clip, tmp_path / "file")


def test_no_room(tmp_path: Path) -> None:
    """A disk without room is told in one sentence."""
    staging.check_space(tmp_path, 1)
    with pytest.raises(staging.SpaceError, match="make room"):
        staging.check_space(tmp_path, 1 << 60)


def test_a_build_without_room_never_begins(binary: Ffmpeg, clip: Path, tmp_path: Path) -> None:
    """Petabytes, which no disk has: one sentence, and no encoder has run."""
    rungs = [f"[[rungs]]\nlines = {lines}\nkbps = 1000000\n" for lines in range(2, 66, 2)]
    (tmp_path / "huge.toml").write_text("\n".join(rungs))
    told: list[str] = []
    order = Order(clip, tmp_path / "out", "t", "T", loop_to=86400, ladder=str(tmp_path / "huge.toml"))
    with pytest.raises(staging.SpaceError, match=r"^\S+ has [\d.]+ GB free, and this build may need \d+\.\d GB: "):
        package.build(replace(binary, show=told.append), order)
    assert told
    assert not any("libx264" in command for command in told)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".build-")]


def test_failed_build_leaves_nothing(clip: Path, tmp_path: Path, binary: Ffmpeg) -> None:
    """An encode that fails publishes nothing and cleans up."""
    with pytest.raises(OcaError, match="cannot encode"):
        package.build(binary, Order(clip, tmp_path, "t", "T", preset="no-such-preset"))
    assert list(Store([tmp_path]).versions()) == []
    assert list((tmp_path / FILLING).iterdir()) == []


def test_damaged_source(binary: Ffmpeg, clip: Path) -> None:
    """Pictures that could not be decoded are missed, and so is a timescale that is not the planned one."""
    job = plan(probe(binary, clip), ladder(320, 240), "ultrafast")
    first, last = Chunk(0, 0, 100), Chunk(1, 100, 132)
    check_frames(job, first, 100, 25)
    check_frames(job, last, 31, 25)
    with pytest.raises(EncodeError, match="99 of its 132 pictures"):
        check_frames(job, first, 99, 25)
    with pytest.raises(EncodeError, match="110 of its 132 pictures"):
        check_frames(job, last, 10, 25)
    with pytest.raises(EncodeError, match="timescale"):
        check_frames(job, last, 32, 12800)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_build(make: Make, tmp_path: Path, binary: Ffmpeg, how: signal.Signals) -> None:
    """However a build is ended: no ffmpeg goes on, nothing is published, what it left goes with the years."""
    video = make("long.mkv", "-f", "lavfi", "-i", "testsrc2=s=1280x720:r=30:d=20", *FAST)
    process = _building(video, tmp_path, ["--preset", "veryslow"])
    try:
        encoder = _wait(lambda: _child_writing(process.pid, tmp_path))
        process.send_signal(how)
        status = process.wait(60)
    finally:
        process.kill()
        process.wait()
    assert status == (130 if how == signal.SIGINT else -how)
    _wait(lambda: _is_gone(encoder))
    (left,) = (tmp_path / FILLING).iterdir()
    assert not (tmp_path / "long").exists()
    with staging.staging(tmp_path / FILLING, "a") as mine, staging.staging(tmp_path / FILLING, "b") as other:
        assert sorted((tmp_path / FILLING).iterdir()) == sorted([left, mine, other])
        with pytest.raises(staging.StagingError, match="is running"), staging.staging(tmp_path / FILLING, "a"):
            pass
    old = time.time() - staging.KEEP_S - 60
    os.utime(left, (old, old))
    with staging.staging(tmp_path / FILLING, "a") as mine:
        assert list((tmp_path / FILLING).iterdir()) == [mine]
    assert list((tmp_path / FILLING).iterdir()) == []


@pytest.mark.long
def test_a_killed_build_goes_on(make: Make, tmp_path: Path, binary: Ffmpeg) -> None:
    """kill -9, wherever: the same command ends with the bytes of a build that was left alone, no piece done twice."""
    video = make("pieces.mkv", *("-f", "lavfi", "-i", "testsrc2=s=426x240:r=25:d=40"), *SOUND, *FAST)
    options = ["--title", "t", "--name", "T", "--preset", "slow", "--chunk", "4", "--jobs", "2"]
    alone = package.build(binary, Order(video, tmp_path / "alone", "t", "T", preset="slow", chunk=4, jobs=2))
    pieces = 0
    for share in (0.2, 0.5, 0.8):
        process = _building(video, tmp_path / "out", options)
        try:
            wanted = share * alone.pieces
            _wait(lambda least=wanted: len(_pieces(tmp_path / "out")) >= least)
        finally:
            process.kill()
            process.wait()
        kept = _pieces(tmp_path / "out")
        assert len(kept) >= pieces
        pieces = len(kept)
    again = package.build(binary, Order(video, tmp_path / "out", "t", "T", preset="slow", chunk=4, jobs=2))
    assert (again.version, again.pieces) == (alone.version, alone.pieces)
    assert again.encoded == alone.pieces - pieces < alone.pieces
    assert verify(again.path).problems == []
    assert list((tmp_path / "out" / FILLING).iterdir()) == []


@pytest.mark.long
def test_other_options_begin_anew(make: Make, tmp_path: Path, binary: Ffmpeg) -> None:
    """What was encoded for other options, or of a file that has changed since, is not taken."""
    video = tmp_path / "v.mkv"
    video.write_bytes(make("sound.mkv", *PICTURES, *SOUND, *FAST).read_bytes())
    full = tmp_path / "out"
    made = Order(video, full, "t", "T", preset="ultrafast", chunk=4)

    def interrupted(order: Order) -> int:
        def stop(step: str, done: int, total: int) -> None:
            if step == "package":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            package.build(binary, order, stop)
        return len(_pieces(full))

    assert interrupted(made) == 2
    assert interrupted(replace(made, title="other")) == 2, "the name of the title changes no picture"
    assert interrupted(replace(made, preset="superfast")) == 4
    os.utime(video, (1, 1))
    assert interrupted(made) == 6
    assert package.build(binary, made).encoded == 0
    os.utime(video, (2, 2))
    assert package.build(binary, made).encoded == 2


def _building(video: Path, out: Path, options: list[str]) -> subprocess.Popen[bytes]:
    # What is started in the background of a shell ignores SIGINT, and so does all that it starts.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeds}; import sys; from packager.cli import main; sys.argv[0] = 'oca-pack'; main()"
    arguments = [sys.executable, "-c", program, "build", str(video), "--out", str(out), *options]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _pieces(out: Path) -> list[Path]:
    """The pieces that builds have done; others come and go meanwhile."""
    found = [Path(folder) for folder, _, names in os.walk(out / FILLING) if "media.mp4" in names]
    return sorted(folder for folder in found if not folder.parent.name.startswith("."))


def _wait(ready: Callable[[], int]) -> int:
    """What `ready` returns once it is not 0."""
    deadline = time.monotonic() + 60
    while not (found := ready()):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # another process's doing, which tells nobody
    return found


def _child_writing(parent: int, folder: Path) -> int:
    """Process id of a child of `parent` that has a file in `folder` open; 0 if there is none."""
    with suppress(FileNotFoundError):  # processes come and go
        for task in Path(f"/proc/{parent}/task").iterdir():
            for child in (task / "children").read_text().split():
                for descriptor in Path(f"/proc/{child}/fd").iterdir():
                    if str(descriptor.readlink()).startswith(str(folder)) and descriptor.readlink().is_file():
                        return int(child)
    return 0


def _is_gone(process: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    return True
