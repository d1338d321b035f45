"""Thumbnails: each tile is the picture of its time, at the place and of the size that is announced."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from oca.title import model as title_format
from oca.title.model import Tiles
from packager import package, thumbnails
from packager.encode.chunks import Chunk
from packager.encode.job import EncodeError, Job, plan
from packager.encode.work import Work
from packager.ffmpeg import Ffmpeg
from packager.ladder.rungs import ladder
from packager.package import Built, Order
from packager.source.probe import Source, probe

Make = Callable[..., Path]


def tiles_of(built: Built) -> Tiles:
    (tiles,) = title_format.read(built.path)[0].thumbnails
    return tiles


def lights(binary: Ffmpeg, sheet: Path, tiles: Tiles) -> list[float]:
    """Mean light of every cell of a sheet, row by row, of 255."""
    lines: list[str] = []
    cells = f"untile={tiles.columns}x{tiles.rows},signalstats,metadata=print:key=lavfi.signalstats.YAVG:file=-"
    binary.run(["-v", "error", "-i", str(sheet), "-vf", cells, "-f", "null", "-"], lines.append)
    return [float(line.rpartition("=")[2]) for line in lines if "YAVG" in line]


def light_at(second: float) -> float:
    """What the grey video shows then, as full range."""
    return 37 * int(second) % 220 * 255 / 219


def test_every_tile_shows_the_picture_of_its_time(binary: Ffmpeg, subtitled: Built) -> None:
    """Of a long title, whose tiles are key frames, over two sheets; the rest of the last one is black."""
    tiles = tiles_of(subtitled)
    interval = tiles.interval / tiles.timescale
    assert (interval, tiles.count, tiles.sheets, tiles.width, tiles.height) == (8, 27, 2, 64, 36)
    found = [light for n in (1, 2) for light in lights(binary, subtitled.path / tiles.sheet(n), tiles)]
    assert found[: tiles.count] == pytest.approx([light_at(8 * n) for n in range(27)], abs=5)
    assert found[tiles.count :] == pytest.approx([0] * 23, abs=1)


def test_tiles_of_a_real_video_look_like_it(binary: Ffmpeg, packaged: Built, clip: Path) -> None:
    """Of a short title one picture a second; structure, and colours, are those of the source at that time."""
    tiles = tiles_of(packaged)
    assert (tiles.interval / tiles.timescale, tiles.count, tiles.sheets) == (1, 6, 1)
    assert (tiles.width, tiles.height, tiles.columns, tiles.rows) == (160, 90, 5, 5)
    compare = (
        "[0]untile=5x5,select='lt(n,6)',setpts=N/TB,format=gbrp[a];"
        "[1]select='not(mod(n,25))',scale=160:90:in_color_matrix=bt601,setpts=N/TB,format=gbrp[b];[a][b]ssim=f=-"
    )
    lines: list[str] = []
    sheet = packaged.path / tiles.sheet(1)
    binary.run(["-v", "error", "-i", str(sheet), "-i", str(clip), "-lavfi", compare, "-f", "null", "-"], lines.append)
    similar = [float(match[1]) for line in lines if (match := re.search(r"All:([\d.]+)", line))]
    assert len(similar) == 6
    assert min(similar) > 0.85


def test_the_playlist_of_sheets(subtitled: Built, packaged: Built) -> None:
    """It lists every sheet with the time that it stands for, up to the end, and the layout; the rate is its peak."""
    for built, lengths in ((subtitled, [200, 10]), (packaged, [5.28])):
        tiles = tiles_of(built)
        text = (built.path / tiles.playlist).read_text()
        assert "#EXT-X-IMAGES-ONLY\n" in text
        assert [float(each) for each in re.findall(r"#EXTINF:([\d.]+),", text)] == lengths
        shape = f"RESOLUTION={tiles.width}x{tiles.height},LAYOUT=5x5,DURATION={tiles.interval / tiles.timescale:.6f}"
        assert text.count(f"#EXT-X-TILES:{shape}\n") == tiles.sheets
        names = [line for line in text.splitlines() if not line.startswith("#")]
        assert names == [tiles.sheet(number) for number in range(1, tiles.sheets + 1)]
        sizes = [(built.path / name).stat().st_size for name in names]
        runs = [8 * sizes[0] / lengths[0], 8 * sum(sizes) / sum(lengths)]  # the last sheet alone is too short
        assert tiles.bandwidth == pytest.approx(max(runs), abs=1)


@pytest.mark.parametrize(
    ("width", "height", "seconds", "rate", "tile", "lines", "step"),
    [
        (1920, 1080, 7200, Fraction(24), (160, 90), 240, 192),
        (1080, 1920, 7200, Fraction(30000, 1001), (90, 160), 384, 240),
        (720, 576, 100, Fraction(25), (134, 108), 240, 100),
        (1920, 800, 101, Fraction(25), (186, 78), 240, 101),
        (4000, 2, 10, Fraction(25), (4000, 2), 2, 25),
        (64, 36, 3, Fraction(25), (64, 36), 36, 25),
        (64, 36, 1, Fraction(1, 2), (64, 36), 36, 1),
        (1280, 720, 20, Fraction(60000, 1001), (160, 90), 240, 60),
    ],
)
def test_size_and_distance(
    width: int, height: int, seconds: int, rate: Fraction, tile: tuple[int, int], lines: int, step: int
) -> None:
    """Some 14400 pixels in the shape of the source, never more than it has; two segments apart, or a sheet in all."""
    source = Source(Path("film.mp4"), width, height, rate, seconds, None, ())
    frames = max(1, int(seconds * rate))
    found = thumbnails.plan(Job(source, ladder(width, height), "medium", frames, 0, 0))
    assert (found.width, found.height) == tile
    assert (found.rung.height, found.step) == (lines, step)


def test_of_two_codecs_the_first_is_read(grey: Path, binary: Ffmpeg) -> None:
    rungs = ladder(640, 360, ("av1", "h264"))
    found = thumbnails.plan(replace(plan(probe(binary, grey), rungs, "medium"), rungs=rungs))
    assert found.rung.codec == "av1"


@pytest.fixture
def work(binary: Ffmpeg, make: Make, tmp_path: Path) -> Work:
    """Three seconds, encoded in two pieces, in a place with a name that ffmpeg could take for a pattern."""
    told = "color=black:s=64x36:r=10:d=6,geq=lum='16+mod(37*floor(T),220)':cb=128:cr=128"
    video = make("six.mp4", "-f", "lavfi", "-i", told, "-c:v", "libx264", "-preset", "ultrafast", "-qp", "10")
    job = plan(probe(binary, video), ladder(64, 36), "ultrafast")
    work = Work(job, [Chunk(0, 0, 40), Chunk(1, 40, 60)], tmp_path / "100%d" / "encoded")
    assert work.run(binary) == 2
    return work


def test_what_is_there_is_not_made_again(binary: Ffmpeg, work: Work) -> None:
    """The same bytes, without a run of ffmpeg; a room that a killed build left is cleared, and progress ends."""
    (work.folder / ".thumbnails").mkdir()
    (work.folder / ".thumbnails" / "rubbish").touch()
    commands: list[str] = []
    told: list[tuple[int, int]] = []
    shown = replace(binary, show=commands.append)
    first = thumbnails.make(shown, work, lambda done, total: told.append((done, total)))
    assert len(commands) == 1
    assert thumbnails.make(shown, work) == first
    assert len(commands) == 1
    assert told[0] == (0, 1)
    assert told[-1] == (1, 1)
    assert not (work.folder / ".thumbnails").exists()


def test_pieces_are_one_video(binary: Ffmpeg, work: Work, tmp_path: Path) -> None:
    """Times go on across them; and a picture or two that the source lacks at its end leave no hole."""
    longer = replace(work, job=replace(work.job, frames=62))
    made = thumbnails.make(binary, longer)
    assert (made.tiles.count, list(made.files)) == (7, ["i-36-1.jpg", "i-36.m3u8"])
    (tmp_path / "sheet.jpg").write_bytes(made.files["i-36-1.jpg"])
    found = lights(binary, tmp_path / "sheet.jpg", made.tiles)
    assert found[:7] == pytest.approx([*(light_at(n) for n in range(6)), light_at(5)], abs=5)


def test_sheets_that_are_missing(binary: Ffmpeg, work: Work) -> None:
    (work.folder / "thumbnails").mkdir()
    with pytest.raises(EncodeError, match="wrote 0 sheets of thumbnails, not 1"):
        thumbnails.make(binary, work)


def test_an_ffmpeg_that_fails(binary: Ffmpeg, work: Work) -> None:
    """The sentence says what for, and what it left is not taken for thumbnails."""
    with pytest.raises(EncodeError, match=r"cannot make thumbnails of .*six\.mp4"):
        thumbnails.make(replace(binary, path=Path("/bin/false")), work)
    assert thumbnails.make(binary, work).tiles.count == 6


def test_the_same_source_gives_the_same_sheets(binary: Ffmpeg, grey: Path, subtitled: Built, tmp_path: Path) -> None:
    """In other chunks, beside other captions, into another store."""
    built = package.build(binary, Order(grey, tmp_path, "grey", "Grey", preset="ultrafast", chunk=200))
    names = [name for name in built.title.files if name.startswith("i-")]
    assert len(names) == 3
    for name in names:
        assert (built.path / name).read_bytes() == (subtitled.path / name).read_bytes()
    assert built.title.captions == []
