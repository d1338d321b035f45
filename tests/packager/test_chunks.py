"""Chunks: where they are cut, that each gets the right pictures, and that joined they are one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.errors import FormatError
from packager import package
from packager.boxes.join import join
from packager.encode import job as encode
from packager.encode.chunks import Chunk, cut
from packager.encode.job import plan
from packager.ffmpeg import Ffmpeg
from packager.ladder.rungs import ladder
from packager.package import Order
from packager.source.probe import probe

Make = Callable[..., Path]


@given(
    frames=st.integers(1, 20_000),
    gop=st.integers(1, 240),
    wanted=st.integers(1, 4000),
    keys=st.lists(st.floats(0, 20_000), max_size=50).map(sorted),
)
def test_chunks_are_whole_segments(frames: int, gop: int, wanted: int, keys: list[float]) -> None:
    """They cover everything once, start at segments, and are neither far longer nor far shorter than wanted."""
    chunks = cut(frames, gop, wanted, keys)
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    assert chunks[0].first == 0
    assert chunks[-1].end == frames
    for one, other in pairwise(chunks):
        assert one.end == other.first
        assert one.end % gop == 0
    assert all(chunk.frames > 0 for chunk in chunks)
    assert max(chunk.frames for chunk in chunks) <= max(1.5 * wanted, 1.25 * wanted + 2 * gop)
    if gop <= wanted / 4:
        assert all(chunk.frames >= 0.25 * wanted for chunk in chunks[:-1])
        assert len(chunks) == 1 or chunks[-1].frames >= 0.25 * wanted - gop


@pytest.mark.parametrize(
    ("keys", "first_cut"),
    [
        *[
            ((), 1000),
            ((0, 850), 900),
            ((0, 1130, 1190), 1200),
            ((0, 5), 1000),
            ((0, 2000), 1000),
            ((500, 1000), 1000),
        ],
        ((0, 250, 500, 750, 1000, 1130, 1380), 1100),  # what comes out of turn is a scene
        ((0, 250, 500, 750, 1000, 1250, 1400), 1000),  # too far away
        ((0, 250.01, 500, 750.02, 1000, 1250), 1000),  # rounded
    ],
)
def test_cuts_are_where_scenes_may_begin(keys: tuple[float, ...], first_cut: int) -> None:
    """The start of a segment that is nearest a scene, else a key frame, of those within a quarter of a chunk."""
    assert cut(5000, 100, 1000, keys)[0].end == first_cut


SECONDS = 9
PICTURES = ("-f", "lavfi", "-i", f"testsrc2=s=128x96:r=25:d={SECONDS}")
SOURCES = {
    "plain.mp4": (*PICTURES, "-g", "50"),
    "one-key.mp4": (*PICTURES, "-g", "9999", "-keyint_min", "9999", "-sc_threshold", "0"),
    "open-gops.mkv": (*PICTURES, "-x264-params", "open-gop=1:keyint=40:bframes=5"),
    "ntsc.mkv": (*PICTURES, "-r", "30000/1001", "-g", "45"),
    "film.avi": (*PICTURES, "-r", "24000/1001", "-c:v", "mpeg4", "-g", "30"),
    "broadcast.ts": (*PICTURES, "-g", "60"),
    "uneven.mkv": (*PICTURES, "-vf", "select='gt(random(1),.5)'", "-fps_mode", "vfr", "-g", "20"),
    "slides.mkv": (*PICTURES, "-vf", "select='not(mod(n,70))'", "-fps_mode", "vfr"),
    "late.mp4": ("-itsoffset", "1.3", *PICTURES, "-f", "lavfi", "-i", f"sine=d={SECONDS}", "-shortest", "-g", "30"),
    "program.mpg": (*PICTURES, "-c:v", "mpeg2video", "-g", "15"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_chunk_has_the_pictures_of_the_whole(
    binary: Ffmpeg, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Bit by bit what reading from the start gives, for any container, order and spacing of pictures."""
    source = probe(binary, make(name, *SOURCES[name]))
    job = plan(source, ladder(source.width, source.height), "ultrafast")
    # What goes into the encoder, instead of what comes out of it.
    monkeypatch.setattr(encode, "video_options", lambda *_: {"f": "framecrc"})

    def pictures(chunk: Chunk) -> list[str]:
        folder = tmp_path / str(chunk.first)
        folder.mkdir()
        encode.encode(binary, job, job.rungs, chunk, folder)
        lines = (folder / f"{job.rungs[0].track}.mp4").read_text().splitlines()
        return [line.rsplit(",", 1)[1] for line in lines if not line.startswith("#")]

    whole = pictures(Chunk(0, 0, job.frames))
    assert job.frames - 2 <= len(whole) <= job.frames
    for first in (1, 37, 100, 148):
        assert pictures(Chunk(1, first, first + 40)) == whole[first : first + 40]


@pytest.mark.long
def test_the_title_of_many_chunks(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """No seam: every picture is there, decodes, shown when it would be; the same bytes however many at once."""
    video = make("chunked.mp4", *PICTURES[:2], "-i", "testsrc2=s=426x240:r=25:d=26", "-f", "lavfi", "-i", "sine=d=26")
    asked: dict[str, Any] = {"preset": "ultrafast", "chunk": 8}
    many = package.build(binary, Order(video, tmp_path / "many", "t", "T", **asked, jobs=3))
    one = package.build(binary, Order(video, tmp_path / "one", "t", "T", **asked, jobs=1))
    assert (many.pieces, many.encoded) == (4, 4)
    assert many.version == one.version
    whole = package.build(binary, Order(video, tmp_path / "whole", "t", "T", preset="ultrafast", chunk=60))
    assert whole.pieces == 2
    for track in many.title.tracks:
        path = many.path / f"{track.name}.mp4"
        assert seen(path) == seen(whole.path / path.name)
        decode = ["ffmpeg", "-v", "warning", "-i", str(path), "-f", "null", "-"]
        assert subprocess.run(decode, capture_output=True, text=True, check=True).stderr == ""
    assert [track.segments for track in many.title.tracks] == [7, 7]


def seen(path: Path) -> list[str]:
    """When each packet of a track file is shown, and whether one can start there."""
    entries = "packet=pts,duration" if path.name.startswith("a-") else "packet=pts,duration,flags"
    command = ["ffprobe", "-v", "error", "-show_entries", entries, "-of", "csv=p=0", str(path)]
    return sorted(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_what_does_not_fit_is_not_joined(make: Make) -> None:
    """Another size, another kind: one sentence."""
    small, large = make("a.mp4", *PICTURES), make("b.mp4", *PICTURES, "-s", "160x96")
    sound = make("c.mp4", "-f", "lavfi", "-i", "sine=d=2")
    whole = join([small, small]).track
    assert len(whole.samples.sizes) == 2 * 25 * SECONDS
    assert Fraction(sum(whole.samples.durations), whole.timescale) == 2 * SECONDS
    for other in (large, sound):
        with pytest.raises(FormatError, match="does not go on"):
            join([small, other])
