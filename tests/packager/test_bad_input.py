"""Whatever file is given: a right title, or one sentence that says what is wrong with it."""

from __future__ import annotations

import random
import re
import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from oca.errors import FormatError, OcaError
from oca.store.content import FILLING
from oca.store.verify import verify
from packager import package
from packager.encode.chunks import Chunk
from packager.encode.damage import damaged, missing, note, refusal
from packager.encode.job import EncodeError, plan
from packager.encode.work import Work
from packager.ffmpeg import Ffmpeg, find
from packager.package import Built, Order
from packager.source.probe import SourceError, holes, on_grid, probe

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
FAST = ("-c:v", "libx264", "-preset", "ultrafast")
CLIP = ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=25:d=2")
SOUND = ("-f", "lavfi", "-i", "sine=d=2")
LONG = ("-f", "lavfi", "-i", "testsrc2=s=160x90:r=25:d=10")


def build(binary: Ffmpeg, video: Path, out: Path, tolerate: bool = False, jobs: int = 1) -> Built:
    """Build quickly, in chunks of 4 s."""
    asked = Order(video, out, "t", "T", preset="ultrafast", chunk=4, jobs=jobs, thumbnails=False, tolerate=tolerate)
    return package.build(binary, asked)


def pictures(binary: Ffmpeg, built: Built) -> list[str]:
    """The checksum of every picture of the first rung; a decoder that complains fails."""
    lines: list[str] = []
    path = built.path / f"{built.title.tracks[0].name}.mp4"
    log = binary.run(["-nostdin", "-loglevel", "error", "-i", str(path), "-f", "framecrc", "-"], lines.append)
    assert log == []
    return [line.rsplit(",", 1)[1] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "arguments", "size", "rate", "frames"),
    [
        ("tiny.mkv", ("-f", "lavfi", "-i", "testsrc2=s=2x2:r=25:d=2", "-c:v", "ffv1"), (2, 2), "25", 50),
        ("small.mp4", ("-f", "lavfi", "-i", "testsrc2=s=16x16:r=25:d=2", *FAST), (16, 16), "25", 50),
        ("flat.mp4", ("-f", "lavfi", "-i", "testsrc2=s=2048x16:r=25:d=1", *FAST), (2048, 16), "25", 25),
        ("odd.mkv", (*CLIP, "-vf", "format=yuv444p,crop=63:35", *FAST), (64, 36), "25", 50),
        ("fast.mp4", ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=240:d=1", *FAST), (64, 36), "240", 240),
        ("slow.mp4", ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=1:d=5", *FAST), (64, 36), "1", 5),
        ("two.mp4", (*CLIP, "-frames:v", "2", *FAST), (64, 36), "25", 2),
        ("live.mkv", (*CLIP, *FAST, "-live", "1"), (64, 36), "25", 50),
        ("grey.mkv", (*CLIP, "-pix_fmt", "gray10le", "-c:v", "ffv1"), (64, 36), "25", 50),
        ("chroma.mkv", (*CLIP, "-pix_fmt", "yuv422p10le", *FAST), (64, 36), "25", 50),
        ("alpha.mkv", (*CLIP, "-pix_fmt", "yuva420p", "-c:v", "ffv1"), (64, 36), "25", 50),
    ],
)
def test_unusual_but_right(
    binary: Ffmpeg,
    make: Make,
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
    size: tuple[int, int],
    rate: str,
    frames: int,
) -> None:
    """Sizes, rates, lengths and formats that nobody expects become a sound title with every picture."""
    built = build(binary, make(name, *arguments), tmp_path)
    (video,) = built.title.tracks
    assert (video.width, video.height, video.frame_rate) == (*size, rate)
    assert len(pictures(binary, built)) == frames
    assert built.title.seconds == pytest.approx(float(frames / Fraction(rate)))
    assert verify(built.path).problems == []
    assert built.notes == []


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("dot.mkv", ("-f", "lavfi", "-i", "color=s=1x1:r=25:d=2", "-c:v", "ffv1"), "has pictures of 1x1: 2 to 16384"),
        ("line.mkv", ("-f", "lavfi", "-i", "color=s=64x1:r=25:d=2", "-c:v", "ffv1"), "has pictures of 64x1: 2 to 16"),
        ("one.mp4", (*CLIP, "-frames:v", "1", *FAST), r"has 1 picture\(s\), which is no video: at least 2"),
        (
            "one.mkv",
            ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=1:d=1", *FAST),
            r"has 1 picture\(s\), which is no video",
        ),
        ("sound.mkv", (*SOUND, "-c:a", "aac"), "has no video stream: give a file with pictures"),
        (
            "none.mp4",
            (*CLIP, *SOUND, *FAST, "-bsf:v", "noise=drop=1", "-shortest"),
            "has no video stream: give a file",
        ),
        (
            "none.mkv",
            (*CLIP, *SOUND, *FAST, "-bsf:v", "noise=drop=1"),
            "a video stream that is empty, or damaged from",
        ),
        (
            "none.ts",
            (*CLIP, *SOUND, *FAST, "-bsf:v", "noise=drop=1"),
            "a video stream that is empty, or damaged from",
        ),
        (
            "still.mkv",
            (*CLIP, *FAST, "-bsf:v", "setts=ts=0"),
            "has no duration: all its pictures are shown at the same",
        ),
        ("text.srt", ("-f", "lavfi", "-i", "sine=d=1", "-f", "ffmetadata"), "is not a video that ffmpeg can read"),
    ],
)
def test_refused(binary: Ffmpeg, make: Make, name: str, arguments: tuple[str, ...], sentence: str) -> None:
    """What cannot become a video is refused in a sentence, as with the distribution's ffmpeg."""
    video = make(name, *arguments)
    for program in (binary, replace(binary, path=Path("/usr/bin/ffmpeg"))):
        with pytest.raises(SourceError, match=sentence) as caught:
            probe(program, video)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(20_000, 20_000), (16_384, 16_300), (2_000_000_000, 2)])
def test_absurd_sizes(binary: Ffmpeg, make: Make, tmp_path: Path, width: int, height: int) -> None:
    """A header that claims pictures for which there is no memory is not believed."""
    video = tmp_path / "huge.avi"
    told, lie = struct.pack("<ii", 64, 36), struct.pack("<ii", width, height)
    content = make("honest.avi", *CLIP, "-c:v", "huffyuv").read_bytes()
    assert told in content
    video.write_bytes(content.replace(told, lie))
    with pytest.raises(SourceError, match=r"has pictures of|is not a video that ffmpeg can read"):
        probe(binary, video)


def corrupt(source: Path, folder: Path, *places: float, length: int = 1000) -> Path:
    """A copy of a file of which bytes at these shares of it are overwritten at random, the same ones every time."""
    content = bytearray(source.read_bytes())
    noise = random.Random(3)
    for share in places:
        at = int(len(content) * share)
        content[at : at + length] = noise.randbytes(length)
    folder.mkdir(exist_ok=True)
    path = folder / source.name
    path.write_bytes(content)
    return path


def counted(built: Built, total: int) -> tuple[int, float]:
    """How many of a title's `total` pictures were damaged, as its notes say, and when the first is shown."""
    found = [
        re.fullmatch(rf"(\d+) of {total} pictures (?:was|were) damaged, the first (\S+) s .*", n) for n in built.notes
    ]
    (said,) = (each for each in found if each)
    return int(said[1]), float(said[2])


SOURCES = {
    "damaged.mp4": ("-c:v", "libx264", "-preset", "veryfast", "-g", "50"),
    "damaged.mkv": ("-c:v", "libx264", "-preset", "veryfast", "-g", "50"),
    "damaged.ts": ("-c:v", "mpeg2video", "-g", "25"),
    "damaged.avi": ("-c:v", "mpeg4", "-g", "50"),
    "damaged.webm": ("-c:v", "libsvtav1", "-preset", "12", "-g", "50"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", SOURCES)
def test_damaged_pictures(binary: Ffmpeg, make: Make, tmp_path: Path, name: str) -> None:
    """Refused, with the place. Tolerated: as many pictures as ever, counted, those before it untouched."""
    whole = make(name, *LONG, *SOURCES[name])
    video = corrupt(whole, tmp_path / "bad", 0.55, 0.57)
    with pytest.raises(EncodeError) as caught:
        build(binary, video, tmp_path / "out")
    told = re.fullmatch(
        rf"{video} is damaged (\S+) s after its start: picture (\d+) of (\d+) cannot be decoded whole.*; make it "
        "anew, or let --tolerate cover up such pictures",
        str(caught.value),
    )
    assert told
    assert int(told[2]) == round(25 * float(told[1])) + 1
    total = int(told[3])
    assert 245 < total <= 250, "AVI has no times: nobody can know of a picture that is lost"
    assert not list((tmp_path / "out" / FILLING).glob("*"))
    built = build(binary, video, tmp_path / "out", tolerate=True)
    count, first = counted(built, total)
    assert 0 < count < 120
    assert 3 < first <= float(told[1]) < 9
    seen, right = pictures(binary, built), pictures(binary, build(binary, whole, tmp_path / "right"))
    assert (len(seen), len(right)) == (total, 250)
    before = int(25 * first) // 100 * 100
    assert seen[:before] == right[:before]
    assert seen != right
    again = build(binary, video, tmp_path / "again", tolerate=True, jobs=3)
    assert (again.version, again.notes) == (built.version, built.notes)


@pytest.mark.long
def test_whole_sources_are_not_damaged(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """Of what is whole, nothing is found, wherever one begins to read; nor does tolerance change a picture."""
    for name in SOURCES:
        video = make(name, *LONG, *SOURCES[name])
        job = plan(probe(binary, video), (), "ultrafast")
        assert [damaged(binary, job, Chunk(0, n, n + 70), tmp_path) for n in (0, 90, 180)] == [[], [], []]
    strict, lenient = build(binary, video, tmp_path / "a"), build(binary, video, tmp_path / "b", tolerate=True)
    assert strict.version == lenient.version
    assert lenient.notes == []


@pytest.mark.long
@pytest.mark.parametrize(("where", "least", "most"), [("begin", 50, 150), ("end", 40, 110)])
def test_long_damage(binary: Ffmpeg, make: Make, tmp_path: Path, where: str, least: int, most: int) -> None:
    """Whole chunks of it, at either end: the title is as long as the source says, with what pictures there are."""
    whole = make("damaged.mp4", *LONG, *SOURCES["damaged.mp4"])
    share, length = (0.01, 0.33) if where == "begin" else (0.72, 0.25)
    size = whole.stat().st_size
    video = corrupt(whole, tmp_path / "bad", share, length=int(size * length))
    with pytest.raises(EncodeError, match="is damaged"):
        build(binary, video, tmp_path / "out")
    built = build(binary, video, tmp_path / "out", tolerate=True)
    assert len(pictures(binary, built)) == 250
    assert least <= counted(built, 250)[0] <= most


TAILS = {
    "first.mp4": (*SOURCES["damaged.mp4"], "-movflags", "+faststart"),
    "blocks.mkv": SOURCES["damaged.mkv"],
    "field.avi": SOURCES["damaged.avi"],
    "leaf.mxf": ("-c:v", "mpeg2video", "-g", "25", "-c:a", "pcm_s16le", "-ar", "48000"),
    "tags.flv": ("-c:v", "libx264", "-preset", "veryfast", "-g", "50", "-c:a", "aac"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name != "first.mp4" else ()) for name in TAILS]
)
def test_a_tail_that_is_missing(binary: Ffmpeg, make: Make, tmp_path: Path, name: str) -> None:
    """Refused; tolerated, packaged up to where it decodes, sound as long as pictures, and the seconds are said."""
    whole = make(name, *LONG, "-f", "lavfi", "-i", "sine=d=10", *TAILS[name])
    video = tmp_path / name
    video.write_bytes(whole.read_bytes()[: whole.stat().st_size * 63 // 100])
    with pytest.raises(SourceError, match=r"is truncated.* or let --tolerate package"):
        build(binary, video, tmp_path / "out")
    built = build(binary, video, tmp_path / "out", tolerate=True)
    (found,) = (note for note in built.notes if note.startswith("its tail is missing: "))
    said = re.fullmatch(
        r"its tail is missing: (?:of the 10\.\d\d s that it promises )?the first (\S+) s can be .*", found
    )
    assert said
    assert 5 < float(said[1]) < 7
    assert built.title.seconds == pytest.approx(float(said[1]), abs=0.041)
    pictures_of, sound_of = built.title.tracks
    assert pictures_of.seconds == pytest.approx(sound_of.seconds, abs=0.03)
    assert len(pictures(binary, built)) == round(25 * pictures_of.seconds)
    assert not any("damaged" in note for note in built.notes)
    assert verify(built.path).problems == []


def test_nothing_but_damage(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """A file whose index is whole, and nothing else."""
    content = bytearray(make("damaged.mp4", *LONG, *SOURCES["damaged.mp4"]).read_bytes())
    first, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
    content[first:end] = random.Random(1).randbytes(end - first)
    video = tmp_path / "noise.mp4"
    video.write_bytes(content)
    for tolerate in (False, True):
        with pytest.raises(OcaError, match="damaged from end to end"):
            build(binary, video, tmp_path / "out", tolerate)


def test_tolerate(run: Run, make: Make, tmp_path: Path) -> None:
    """As a person sees it: refused with exit 1 and one line; then published, with the count as a note."""
    video = corrupt(make("damaged.mp4", *LONG, *SOURCES["damaged.mp4"]), tmp_path / "bad", 0.5, 0.52)
    arguments = ("build", video, "--out", tmp_path / "out", "--preset", "ultrafast", "--no-thumbnails")
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    status, out, err = run(*arguments, "--tolerate")
    assert status == 0
    assert out.startswith("published ")
    assert " of 250 pictures w" in err


def test_a_looped_source_is_looked_at_once(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """What is damaged is damaged every time it is played, and counted once."""
    video = corrupt(make("damaged.mp4", *LONG, *SOURCES["damaged.mp4"]), tmp_path / "bad", 0.5, 0.52)
    asked = Order(video, tmp_path / "out", "t", "T", preset="ultrafast", loop_to=22, thumbnails=False, tolerate=True)
    built = package.build(binary, asked)
    once = build(binary, video, tmp_path / "once", tolerate=True)
    assert counted(built, 550) == counted(once, 250)
    assert len(pictures(binary, built)) == 550


def test_damage_outlives_a_build_that_is_killed(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """What was found before is told when the build goes on; a note that is corrupt is said to be."""
    video = corrupt(make("damaged.mp4", *LONG, *SOURCES["damaged.mp4"]), tmp_path / "bad", 0.3, 0.32)
    asked = Order(video, tmp_path / "out", "t", "T", preset="ultrafast", chunk=4, thumbnails=False, tolerate=True)

    def stop(step: str, done: int, total: int) -> None:
        if step == "package":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.build(binary, asked, stop)
    (folder,) = (tmp_path / "out" / FILLING).iterdir()
    work = Work(plan(probe(binary, video), (), "ultrafast"), [], folder / "encoded")
    found = work.damage()
    built = package.build(binary, asked)
    assert built.encoded == 0
    assert counted(built, 250)[0] == len(found) > 0
    (tmp_path / "damage").mkdir()
    (tmp_path / "damage" / "00000").write_text("{")
    with pytest.raises(FormatError, match=r"damage/00000 is corrupt"):
        Work(work.job, [], tmp_path).damage()


def test_missing_pictures() -> None:
    """A picture near its packet's time is that packet's, and no other one's."""
    near = Fraction(3, 250)
    times = [Fraction(n, 25) for n in range(5)]
    fields = sorted([*times, *(time + Fraction(1, 50) for time in times)])
    assert missing(times, times, near) == []
    assert missing(times, times[:2] + times[3:], near) == [times[2]]
    assert missing(times, [], near) == times
    assert missing(fields, times, Fraction(3, 125)) == []
    assert missing([times[0], times[0]], [], near) == [times[0]]


def test_holes() -> None:
    """Pictures that a container has lost are told from a rate that varies: what is left is where it would be."""
    tick, rate = Fraction(1, 1000), Fraction(25)
    assert holes(array("q", (0, 40, 80, 200, 240)), tick, rate) == [3, 4]
    assert on_grid(array("q", (0, 40, 80, 200, 240)), tick, rate)
    assert not on_grid(array("q", (0, 40, 80, 217, 240)), tick, rate)
    assert not on_grid(array("q", (0, 40, 80, 82, 120)), tick, rate)
    assert on_grid(array("q", (33, 67, 167, 200)), tick, Fraction(30))
    assert holes(array("q", (33, 67, 167, 200)), tick, Fraction(30)) == [3, 4]


def test_sentences_on_damage(binary: Ffmpeg, clip: Path) -> None:
    """One picture or many, where the first is, and what to do."""
    job = plan(probe(binary, clip), (), "ultrafast")
    assert note(job, []) == []
    assert note(job, [2.0]) == ["1 of 132 pictures was damaged, the first 2.00 s after the start"]
    assert note(job, [2.0, 3.0]) == ["2 of 132 pictures were damaged, the first 2.00 s after the start"]
    assert f"{clip} is damaged 2.00 s after its start: picture 51 of 132 cannot be decoded whole; make it" in str(
        refusal(job, [2.0])
    )
    assert "whole, and 1 more soon after; make it anew, or let --tolerate" in str(refusal(job, [2.0, 2.4]))


@pytest.mark.long
def test_damage_with_debian(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution's ffmpeg finds damage as well, if not quite the same."""
    monkeypatch.setenv("OCA_FFMPEG", "/usr/bin/ffmpeg")
    binary = find()
    for name in ("damaged.mp4", "damaged.ts", "damaged.avi"):
        video = corrupt(make(name, *LONG, *SOURCES[name]), tmp_path / name, 0.55, 0.57)
        job = plan(probe(binary, video), (), "ultrafast")
        assert 0 < len(damaged(binary, job, Chunk(0, 0, 250), tmp_path)) < 120
