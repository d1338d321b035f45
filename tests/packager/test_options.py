"""The lengths that a build may be told: of segments, of chunks; and with them a ladder of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oca.errors import ConfigError, OcaError
from oca.store.verify import verify
from oca.title import model as title_format
from oca.title import segments
from oca.title.digest import digest
from packager import package
from packager.encode.job import plan
from packager.ffmpeg import Ffmpeg
from packager.package import Order
from packager.source.probe import probe
from tests.packager.conftest import Make, Run

RUNGS = ((120, 60), (240, 200), (1080, 9000))
LADDER = "".join(f"[[rungs]]\nlines = {lines}\nkbps = {kbps}\n" for lines, kbps in RUNGS)
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=30000/1001:d=5", "-f", "lavfi", "-i", "sine=d=5")


@pytest.fixture
def video(make: Make) -> Path:
    return make("options.mp4", *PICTURES, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac")


@pytest.fixture
def rungs(tmp_path: Path) -> Path:
    path = tmp_path / "ladder.toml"
    path.write_text(LADDER)
    return path


def test_together(run: Run, video: Path, rungs: Path, tmp_path: Path) -> None:
    """Segments, chunks and rungs are as they were asked for, and the same build gives the same version."""
    (tmp_path / "en.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nHello\n")
    told = []
    for out in ("one", "two"):
        options = ("--segment-seconds", "2", "--chunk-bytes", "20K", "--ladder", rungs, "--captions")
        arguments = (*options, f"en={tmp_path}/en.srt", "--preset", "ultrafast", "--json")
        status, text, _ = run("build", video, "--out", tmp_path / out, "--title", "t", *arguments)
        assert status == 0
        told.append(json.loads(text))
    assert told[0]["version"] == told[1]["version"]
    path = Path(told[0]["path"])
    title, _ = title_format.read(path)
    assert [track.name for track in title.tracks] == ["v-120-60", "v-240-200", "a-und-64"]
    for track in title.tracks[:2]:
        index = segments.decode((path / f"{track.name}.idx").read_bytes())
        assert [each.time for each in index.segments] == [0, 60 * 1001, 120 * 1001], "of 60 pictures each"
    assert [track.segments for track in title.tracks] == [3, 3, 3]
    assert title.chunk_bytes == 20_000
    for name, file in title.files.items():
        data = (path / name).read_bytes()
        assert [digest(data[at : at + 20_000]) for at in range(0, max(1, len(data)), 20_000)] == file.chunks
    assert len(title.files["v-240-200.mp4"].chunks) > 3
    assert verify(path).problems == []
    flipped = bytearray((path / "v-240-200.mp4").read_bytes())
    flipped[40_001] ^= 1
    (path / "v-240-200.mp4").write_bytes(flipped)
    status, _, err = run("verify", path.parent)
    assert status == 1
    assert "v-240-200.mp4 is corrupt in chunk 2 (bytes 40000 to 59999)" in err


@pytest.mark.long
def test_each_has_a_staging_directory_of_its_own(
    binary: Ffmpeg, video: Path, rungs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a build goes on with no piece that was made with other options."""
    names: list[str] = []

    @contextmanager
    def noted(filling: Path, name: str) -> Iterator[Path]:
        names.append(name)
        raise OcaError("far enough")
        yield filling

    monkeypatch.setattr(package, "staging", noted)
    first = Order(video, tmp_path / "out", "t", "T")
    others = [
        Order(video, tmp_path / "out", "t", "T", segment=2),
        # As many pictures as 2 s have, and yet captions may be cut elsewhere.
        Order(video, tmp_path / "out", "t", "T", segment=2.001),
        Order(video, tmp_path / "out", "t", "T", chunk_bytes=1 << 20),
        Order(video, tmp_path / "out", "t", "T", ladder=str(rungs)),
    ]
    for order in (first, *others, first, *others):
        with pytest.raises(OcaError, match="far enough"):
            package.build(binary, order)
    assert len(set(names)) == len(others) + 1
    assert names[: len(names) // 2] == names[len(names) // 2 :]


@pytest.mark.parametrize(
    ("seconds", "pictures"), [(4.0, 120), (2.0, 60), (1.0, 30), (6.006, 180), (1.1, 33), (0.001, 1)]
)
def test_pictures_of_a_segment(binary: Ffmpeg, video: Path, seconds: float, pictures: int) -> None:
    """The nearest number of whole pictures, one at least."""
    found = plan(probe(binary, video), (), "ultrafast", segment=seconds)
    assert found.gop == pictures


@pytest.mark.parametrize(
    ("chunk_bytes", "sentence"),
    [
        (4095, "chunk_bytes is 4095, not from 4096 (4 KiB) to 67108864 (64 MiB)"),
        ((64 << 20) + 1, "chunk_bytes is 67108865, not from"),
    ],
)
def test_chunks_that_cannot_be(binary: Ffmpeg, video: Path, tmp_path: Path, chunk_bytes: int, sentence: str) -> None:
    """Refused before anything is made."""
    with pytest.raises(ConfigError) as error:
        package.build(binary, Order(video, tmp_path / "out", "t", "T", chunk_bytes=chunk_bytes))
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()


def test_chunks_too_short_for_so_long_a_title(binary: Ffmpeg, video: Path, tmp_path: Path) -> None:
    """title.json would be longer than what is read of one: said with a length that will do."""
    order = Order(video, tmp_path / "out", "t", "T", chunk_bytes=4096, loop_to=86_400)
    with pytest.raises(ConfigError, match=r"chunks of 4096 bytes are too short .* say --chunk-bytes \d+K or more"):
        package.build(binary, order)


@pytest.mark.parametrize("arguments", [("--segment-seconds", "0.5"), ("--segment-seconds", "31")])
def test_segments_that_cannot_be(run: Run, video: Path, tmp_path: Path, arguments: tuple[str, str]) -> None:
    """Wrong usage."""
    assert run("build", video, "--out", tmp_path / "out", *arguments)[0] == 2
    status, _, err = run("build", video, "--out", tmp_path / "out", "--chunk-bytes", "much")
    assert (status, "'much' is not a size" in err) == (1, True)
