"""Track files: what players and ffmpeg see in them is what was encoded."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest

from oca.errors import FormatError
from oca.title import segments
from oca.title.segments import SegmentIndex
from packager import package
from packager.boxes import cmaf
from packager.boxes.mp4 import boxes
from packager.ffmpeg import Ffmpeg
from packager.package import Built

Make = Callable[..., Path]


def index_of(built: Built, track: str) -> SegmentIndex:
    """The segment index of a published track."""
    return segments.decode((built.path / f"{track}.idx").read_bytes())


def packets(path: Path) -> list[tuple[int, int, int, str]]:
    """Presentation time, decode time, size and flags of each packet, as ffprobe sees them."""
    entries = ["-show_entries", "packet=pts,dts,size,flags", "-of", "csv=p=0"]
    text = subprocess.run(["ffprobe", "-v", "error", *entries, path], capture_output=True, text=True, check=True)
    assert text.stderr == ""
    rows = [line.split(",") for line in text.stdout.split()]
    return [(int(row[0]), int(row[1]), int(row[2]), row[3]) for row in rows]


def decoded(binary: Ffmpeg, path: Path, *arguments: str) -> list[str]:
    """One line per decoded picture or block of samples, without complaints of the decoder."""
    lines: list[str] = []
    assert binary.run(["-v", "error", "-i", str(path), *arguments, "-f", "framecrc", "-"], lines.append) == []
    return [line for line in lines if not line.startswith("#")]


def test_pictures_and_times(binary: Ffmpeg, packaged: Built, clip: Path) -> None:
    """Every rung has as many pictures as the source, at the same times, with decode times from 0."""
    source = [line.split(",")[2] for line in decoded(binary, clip, "-map", "0:v")]
    for track in packaged.title.tracks:
        if track.kind == "video":
            assert [line.split(",")[2] for line in decoded(binary, packaged.path / f"{track.name}.mp4")] == source
            times = packets(packaged.path / f"{track.name}.mp4")
            assert [dts for _, dts, _, _ in times] == list(range(132))
            assert sorted(pts for pts, _, _, _ in times) == list(range(132))


def test_composition_offsets(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """B-frames: the first picture is shown at decode time 0, offsets go below zero, and nothing is reordered."""
    source = make(
        "reordered.mp4", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=30000/1001:d=5", "-c:v", "libx264", "-g", "60"
    )
    track, index = cmaf.write_track([source], tmp_path / "t.mp4")
    assert min(track.samples.compositions) < 0 == track.samples.compositions[0]
    assert [segment.time for segment in index.segments] == [0, 60060 * track.timescale // 30000, 120120]
    assert decoded(binary, tmp_path / "t.mp4") == decoded(binary, source)


def test_sidx_agrees_with_the_index(packaged: Built) -> None:
    """The sidx box and the .idx file describe the same segments; to the sidx their padding belongs to them."""
    for track in packaged.title.tracks:
        index, data = index_of(packaged, track.name), (packaged.path / f"{track.name}.mp4").read_bytes()
        found = [(kind, len(body)) for kind, body in boxes(data)]
        kinds = [kind for kind, _ in found if kind != "free"]
        assert kinds == ["ftyp", "moov", "sidx"] + ["moof", "mdat"] * len(index.segments)
        assert index.track_bytes == len(data)
        sidx = next(body for kind, body in boxes(data) if kind == "sidx")
        _, timescale, earliest, first, _, count = struct.unpack_from(">IIQQHH", sidx, 4)
        rows = list(struct.iter_unpack(">III", sidx[32:]))
        assert (timescale, earliest, count) == (index.timescale, 0, len(index.segments))
        start = index.init_bytes + 8 + len(sidx) + first
        for (size, duration, _), segment in zip(rows, index.segments, strict=True):
            assert (start, duration) == (segment.offset, segment.duration)
            padding = data[segment.offset + segment.bytes : segment.offset + size]
            assert [kind for kind, _ in boxes(padding)] in ([], ["free"])
            start += size
        assert start == len(data)


def test_segments_start_on_pages(packaged: Built) -> None:
    """So that the kernel sends whole pages; the padding is no part of what viewers get."""
    for track in packaged.title.tracks:
        index, data = index_of(packaged, track.name), (packaged.path / f"{track.name}.mp4").read_bytes()
        for segment in index.segments:
            assert segment.offset % 4096 == 0
            piece = data[segment.offset : segment.offset + segment.bytes]
            assert [kind for kind, _ in boxes(piece)] == ["moof", "mdat"]


@pytest.mark.parametrize(("end", "gap"), [(0, 0), (4096, 0), (1, 4095), (4088, 8), (4089, 4103), (4095, 4097)])
def test_padding_is_a_box_of_its_own(end: int, gap: int) -> None:
    """A gap too small for a box is made larger by a page."""
    assert cmaf._gap(end) == gap
    assert len(cmaf._padding(gap)) == gap
    assert [kind for kind, _ in boxes(cmaf._padding(gap))] == (["free"] if gap else [])


def test_init_and_segments_decode(binary: Ffmpeg, packaged: Built, tmp_path: Path) -> None:
    """What a player appends, the init segment and then any segment alone, decodes."""
    for track in packaged.title.tracks:
        data, index = (packaged.path / f"{track.name}.mp4").read_bytes(), index_of(packaged, track.name)
        for number in range(1, len(index.segments) + 1):
            offset, length = index.slice(number) or (0, 0)
            piece = tmp_path / "piece.mp4"
            piece.write_bytes(data[: index.init_bytes] + data[offset : offset + length])
            assert decoded(binary, piece)


def test_first_frame_of_a_segment(binary: Ffmpeg, packaged: Built, tmp_path: Path) -> None:
    """The index tells where a segment's first picture ends: that much of it decodes to one picture."""
    data, index = (packaged.path / "v-720-3000.mp4").read_bytes(), index_of(packaged, "v-720-3000")
    for segment in index.segments:
        first = data[segment.offset : segment.offset + segment.i_frame_bytes]
        moof = first.index(b"mdat") - 4
        sizes = packets(packaged.path / "v-720-3000.mp4")
        assert len(first) - moof - 8 == sizes[segment.time][2]


def test_audio_is_cut_where_video_is(packaged: Built) -> None:
    """Audio segments start at the AAC frame nearest a video segment, and audio ends with the pictures."""
    video, audio = index_of(packaged, "v-240-235"), index_of(packaged, "a-und-128")
    assert len(video.segments) == len(audio.segments)
    for v, a in zip(video.segments, audio.segments, strict=True):
        assert abs(Fraction(v.time, video.timescale) - Fraction(a.time, audio.timescale)) <= Fraction(512, 48000)
    assert Fraction(audio.duration, audio.timescale) == Fraction(video.duration, video.timescale)


def test_flash_and_beep(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """A flash and a beep at the same moment are within 10 ms of each other in the track files, in every codec."""
    path = make(
        "flash.mov",
        *("-f", "lavfi", "-i", "color=black:s=320x240:r=25:d=6,drawbox=t=fill:c=white:enable='eq(n,125)'"),
        *("-f", "lavfi", "-i", "aevalsrc=sin(2*PI*1000*t)*gte(t\\,5)*lt(t\\,5.04):s=44100:d=6"),
        *("-c:v", "libx264", "-c:a", "pcm_s16le"),
    )
    order = package.Order(path, tmp_path, "flash", "flash", preset="ultrafast", audio_codecs=("aac", "opus"))
    built = package.build(binary, order)
    raw = tmp_path / "sound.raw"
    for name in ("a-und-64.mp4", "a-und-48-opus.mp4"):
        binary.run(["-v", "error", "-y", "-i", str(built.path / name), "-f", "s16le", "-ac", "1", str(raw)])
        sound = struct.unpack(f"<{raw.stat().st_size // 2}h", raw.read_bytes())
        loud = next(n for n, value in enumerate(sound) if abs(value) > 8000)
        # ffmpeg skips the priming, or, when older, shows it before time 0: the first time it gives says which.
        start = int(decoded(binary, built.path / name, "-copyts")[0].split(",")[2])
        assert abs((loud + start) / 48000 - 5) < 0.010, name
    video = tmp_path / "pictures.raw"
    binary.run(
        ["-v", "error", "-i", str(built.path / "v-240-235.mp4"), "-pix_fmt", "gray", "-f", "rawvideo", str(video)]
    )
    pictures = video.read_bytes()
    assert [n for n in range(150) if pictures[n * 320 * 240 + 5000] > 128] == [125]


def test_deterministic(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """The same samples give the same bytes."""
    source = make("same.mp4", "-f", "lavfi", "-i", "testsrc2=s=64x64:d=5", "-c:v", "libx264")
    for name in ("one", "two"):
        cmaf.write_track([source], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("cuts", [[], [0.0], [0.001], [4.0], [4.0, 4.001], [1.0, 2.0, 3.0], [4.99], [100.0]])
def test_audio_cuts(make: Make, tmp_path: Path, cuts: list[float]) -> None:
    """Wherever cuts fall, also before the start, twice, or beyond the end: no segment is empty, none is lost."""
    source = make("five.mp4", "-f", "lavfi", "-i", "sine=r=48000:d=5", "-c:a", "aac")
    progress: list[int] = []
    track, index = cmaf.write_track([source], tmp_path / "t.mp4", [Fraction(cut) for cut in cuts], progress.append)
    assert index.segments[0].time == 0
    assert sum(progress) == sum(track.samples.sizes)
    assert segments.decode(segments.encode(index)) == index
    for before, after in pairwise(index.segments):
        assert before.duration > 0 < after.duration


def test_source_that_shrinks(make: Make, tmp_path: Path) -> None:
    """A source cut off while it is read is noticed."""
    source = make("shrinks.mp4", "-f", "lavfi", "-i", "testsrc2=s=640x480:d=6", "-c:v", "libx264", "-g", "25")
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(source.read_bytes())

    def shrink(_: int) -> None:
        with whole.open("r+b") as file:
            file.truncate(1000)

    with pytest.raises(FormatError, match="shorter"):
        cmaf.write_track([whole], tmp_path / "t.mp4", None, shrink)
