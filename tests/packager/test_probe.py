"""What a source is taken for, on real files."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from packager.ffmpeg import Ffmpeg
from packager.source.probe import SourceError, constant_rate, is_constant, probe

Make = Callable[..., Path]

TESTSRC = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=30:d=2")


def test_the_clip(binary: Ffmpeg, clip: Path) -> None:
    """The real clip is told as it is."""
    source = probe(binary, clip)
    assert (source.width, source.height, source.rate, source.notes) == (1280, 720, Fraction(25), ())
    assert source.end == pytest.approx(5.28)
    (audio,) = source.audio
    assert (audio.language, audio.channels) == ("und", "5.1")
    assert audio.end == pytest.approx(5.312)


@pytest.mark.parametrize(
    ("name", "arguments", "size", "rate"),
    [
        ("odd.mkv", ("-vf", "format=yuv444p,crop=319:239"), (319, 239), Fraction(30)),
        ("ntsc.mkv", ("-r", "30000/1001"), (320, 240), Fraction(30000, 1001)),
        ("film.ts", ("-r", "24000/1001"), (320, 240), Fraction(24000, 1001)),
        ("wide.mp4", ("-vf", "setsar=4/3"), (427, 240), Fraction(30)),
        ("slow.avi", ("-r", "12.5", "-c:v", "mpeg4"), (320, 240), Fraction(25, 2)),
    ],
)
def test_size_and_rate(
    binary: Ffmpeg, make: Make, name: str, arguments: tuple[str, ...], size: tuple[int, int], rate: Fraction
) -> None:
    """Size in square pixels and the exact rate, whatever the container rounds them to."""
    source = probe(binary, make(name, *TESTSRC, *arguments))
    assert (source.width, source.height) == size
    assert source.rate == rate
    assert source.audio == ()
    assert source.end == pytest.approx(2, abs=0.2)


def test_rotation(binary: Ffmpeg, make: Make) -> None:
    """A picture that is to be turned is as high as it is shown."""
    turned = make("turned.mp4", "-display_rotation", "90", "-i", str(make("upright.mp4", *TESTSRC)), "-c", "copy")
    source = probe(binary, turned)
    assert (source.width, source.height) == (240, 320)


def test_variable_rate(binary: Ffmpeg, make: Make) -> None:
    """A variable rate becomes a standard one near its mean, and is told."""
    uneven = make("uneven.mkv", *TESTSRC, "-vf", "select='not(mod(n,3))+gt(n,30)'", "-fps_mode", "vfr")
    source = probe(binary, uneven)
    assert source.rate in (Fraction(24000, 1001), 24)
    assert "frame rate varies" in source.notes[0]


def test_language(binary: Ffmpeg, make: Make) -> None:
    """An audio track's language is taken over."""
    sine = ("-f", "lavfi", "-i", "sine=d=2")
    path = make("german.mkv", *TESTSRC, *sine, "-metadata:s:a:0", "language=ger", "-c:a", "aac")
    (audio,) = probe(binary, path).audio
    assert (audio.language, audio.channels) == ("ger", "mono")


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("sound.m4a", ("-f", "lavfi", "-i", "sine=d=1"), "has no video stream"),
        ("picture.png", (*TESTSRC, "-frames:v", "1"), "is not a video"),
        ("single.mp4", (*TESTSRC, "-frames:v", "1"), "1 picture"),
    ],
)
def test_no_video(binary: Ffmpeg, make: Make, name: str, arguments: tuple[str, ...], sentence: str) -> None:
    """A file without moving pictures is refused in one sentence."""
    with pytest.raises(SourceError, match=sentence):
        probe(binary, make(name, *arguments))


@pytest.mark.parametrize("name", ["text.txt", "text.mp4", "text.m3u8", "empty.mp4"])
def test_not_a_video(binary: Ffmpeg, tmp_path: Path, clip: Path, name: str) -> None:
    """Text is no video, not even by a name under which ffmpeg would draw or follow it."""
    path = tmp_path / name
    path.write_text("" if name.startswith("empty") else f"#EXTM3U\n#EXTINF:5,\nfile:{clip}\n")
    with pytest.raises(SourceError, match="not a video"):
        probe(binary, path)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("last.mp4", (), "is truncated, or not a video: its index is missing"),
        (
            "first.mp4",
            ("-movflags", "+faststart"),
            r"is truncated: it promises 5\.31 s and holds [34]\.[0-9]+ s of pictures",
        ),
        ("whole.mkv", (), r"is truncated: it promises 5\.31 s and holds [34]\.[0-9]+ s of pictures"),
        (
            "silent.flv",
            ("-ac", "2", "-c:a", "aac"),
            r"is truncated: it promises 5\.\d+ s and holds [23]\.\d+ s of pictures",
        ),
        ("silent.mxf", ("-an", "-c:v", "mpeg2video"), r"is truncated: it promises 5\.\d+ s and holds [23]\.\d+ s"),
        ("flagged.avi", ("-an",), r"is truncated after [34]\.[0-9]+ s of pictures"),
    ],
)
def test_truncated(
    binary: Ffmpeg, make: Make, clip: Path, tmp_path: Path, name: str, arguments: tuple[str, ...], words: str
) -> None:
    """A file cut off is told from a whole one, wherever its index lies, and what is missing is said."""
    whole = make(name, "-i", str(clip), "-c", "copy", *arguments).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(SourceError, match=words):
        probe(binary, cut)
    assert not any(
        "tail" in note for note in probe(binary, make(name, "-i", str(clip), "-c", "copy", *arguments)).notes
    )


def test_missing_file(binary: Ffmpeg, tmp_path: Path) -> None:
    """A file that is not there is said to be not there."""
    with pytest.raises(SourceError, match="there is no file"):
        probe(binary, tmp_path / "none.mp4")


@pytest.mark.parametrize(
    ("times", "rate", "constant"),
    [
        ((0, 33, 67, 100, 133, 167), 30, True),  # milliseconds, rounded
        ((0, 33, 67, 133, 167), 30, False),  # one missing
        ((0, 42, 83, 125), 24, True),
        ((0, 42, 83, 125), 25, True),  # too short to tell
        (tuple(1000 * n // 24 for n in range(100)), 25, False),
        ((7, 47, 87), 25, True),
    ],
)
def test_constant_or_not(times: tuple[int, ...], rate: int, constant: bool) -> None:
    """Rounding is no variation, a missing picture and a drift are."""
    assert is_constant(array("q", times), Fraction(1, 1000), Fraction(rate)) is constant


@pytest.mark.parametrize(
    ("gap", "rate"), [(1, 60), (20, 50), (34, 30000 / 1001), (41, 24000 / 1001), (300, 24000 / 1001)]
)
def test_rate_for_uneven_pictures(gap: int, rate: float) -> None:
    """The lowest standard rate that keeps nearly all pictures, and none above 60."""
    chosen, mean = constant_rate(array("q", range(0, 100 * gap, gap)), Fraction(1, 1000))
    assert float(chosen) == rate
    assert mean == pytest.approx(1000 / gap)
