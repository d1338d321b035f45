"""Interlaced sources, colours and high dynamic range."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from packager import package
from packager.ffmpeg import Ffmpeg
from packager.package import Order
from packager.source.pictures import Look, look
from packager.source.probe import SourceError, probe

Make = Callable[..., Path]
LINE = "[Parsed_showinfo_0 @ 0x1] n:   1 pts: 512 fmt:yuv420p cl:left sar:1/1 s:320x240 i:{} iskey:0 type:B "
COLOURS = "[Parsed_showinfo_0 @ 0x1] color_range:tv color_space:{} color_primaries:bt709 color_trc:{}"


@pytest.mark.parametrize(
    ("lines", "height", "seen"),
    [
        ([], 720, Look(False, "bt709", "")),
        ([LINE.format("P"), COLOURS.format("unknown", "unknown")], 719, Look(False, "bt601", "")),
        ([LINE.format("P"), COLOURS.format("smpte170m", "bt709")], 1080, Look(False, "auto", "")),
        ([LINE.format("T"), LINE.format("T"), LINE.format("P")], 576, Look(True, "bt601", "")),
        ([LINE.format("B"), LINE.format("P"), LINE.format("P")], 576, Look(False, "bt601", "")),
        ([COLOURS.format("bt2020nc", "smpte2084")], 1080, Look(False, "auto", "PQ, as in HDR10")),
        ([COLOURS.format("bt2020nc", "arib-std-b67")], 1080, Look(False, "auto", "HLG")),
    ],
)
def test_what_is_seen(lines: list[str], height: int, seen: Look) -> None:
    assert look(lines, height) == seen


def pixel(path: Path, x: int, y: int) -> tuple[int, ...]:
    """Red, green and blue of a pixel of the last picture but a few, as a player shows it that believes the file."""
    crop = f"scale=out_range=pc,format=rgb24,crop=1:1:{x}:{y}"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", crop, "-f", "rawvideo", "-"]
    return tuple(subprocess.run(command, capture_output=True, check=True).stdout[-30:-27])


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "matrix"), [("320x240", "bt601"), ("1280x720", "bt709"), ("320x240", "bt709"), ("1280x720", "bt601")]
)
@pytest.mark.parametrize("told", [True, False])
def test_colours_stay(binary: Ffmpeg, make: Make, tmp_path: Path, size: str, matrix: str, told: bool) -> None:
    """Red is red in every rung: what the source says is believed, and where it is silent what its size suggests."""
    name = {"bt601": "smpte170m", "bt709": "bt709"}[matrix]
    name = name if told else "unknown"
    marks = f"setparams=colorspace={name}:color_primaries={name}:color_trc={name}"
    paint = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p,{marks}"
    video = make(
        f"{size}-{matrix}-{told}.mp4",
        *("-f", "lavfi", "-i", f"color=c=0xd03020:s={size}:r=25:d=1", "-vf", paint, "-c:v", "libx264", "-crf", "10"),
    )
    usual = (matrix == "bt709") is (size == "1280x720")
    built = package.build(binary, Order(video, tmp_path, "t", "T", preset="ultrafast"))
    for track in (built.title.tracks[0], built.title.tracks[-1]):
        path = built.path / f"{track.name}.mp4"
        ask = ["ffprobe", "-v", "error", "-show_entries", "stream=color_range,color_space,color_transfer"]
        said = subprocess.run([*ask, "-of", "csv=p=0", str(path)], capture_output=True, text=True, check=True).stdout
        assert said.strip() == "tv,bt709,bt709"
        near = all(abs(a - b) <= 6 for a, b in zip(pixel(path, 40, 40), (0xD0, 0x30, 0x20), strict=True))
        assert near is (told or usual)


@pytest.mark.parametrize(("first", "order"), [("top", "tff"), ("bottom", "bff")])
def test_interlaced(binary: Ffmpeg, make: Make, tmp_path: Path, first: str, order: str) -> None:
    """Fields become whole pictures, without combs, at the same rate; and it is said."""
    bars = "nullsrc=s=320x240:r=50:d=4,geq=lum='if(lt(mod(X+8*N,80),40),16,235)':cb=128:cr=128"
    video = make(
        "fields.mp4",
        *("-f", "lavfi", "-i", bars, "-vf", f"tinterlace=mode=interleave_{first},fieldorder={order},format=yuv420p"),
        *("-c:v", "libx264", "-flags", "+ildct+ilme", "-x264-params", f"{order}=1", "-crf", "10"),
    )
    source = probe(binary, video)
    assert source.interlaced
    assert source.rate == 25
    built = package.build(binary, Order(video, tmp_path, "t", "T", preset="veryfast", chunk=2))
    assert "it is interlaced: its fields become whole pictures" in built.notes
    path = built.path / f"{built.title.tracks[0].name}.mp4"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", "format=gray", "-f", "rawvideo", "-"]
    pictures = subprocess.run(command, capture_output=True, check=True).stdout
    assert len(pictures) == 100 * 320 * 240
    middle = pictures[50 * 320 * 240 : 51 * 320 * 240]
    rows = [middle[320 * row : 320 * row + 320] for row in range(100, 140)]
    combs = sum(abs(a - b) > 60 for one, other in pairwise(rows) for a, b in zip(one, other, strict=True))
    assert combs < 0.02 * 320 * len(rows), "neighbouring lines are alike where bars stand upright"


def test_high_dynamic_range_is_refused(binary: Ffmpeg, make: Make) -> None:
    """With what to do, rather than a title that looks washed out."""
    video = make(
        "hdr.mp4",
        *("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=1", "-pix_fmt", "yuv420p10le", "-c:v", "libx265"),
        *("-x265-params", "log-level=error:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"),
    )
    with pytest.raises(SourceError, match=r"PQ, as in HDR10.*tonemap"):
        probe(binary, video)
