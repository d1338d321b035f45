"""The MP4 reader on what ffmpeg writes, and on what an attacker might."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oca.errors import FormatError
from packager.boxes.codecs import codec_of
from packager.boxes.mp4 import read_track

Make = Callable[..., Path]
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=3", "-c:v", "libx264", "-g", "25")

SOUND = ("-f", "lavfi", "-i", "sine=d=1")


@pytest.fixture(scope="module")
def progressive(make: Make) -> Path:
    """Three seconds of picture with B-frames."""
    return make("small.mp4", *PICTURES)


def test_samples(progressive: Path) -> None:
    """All samples are found, one after another, with their key frames."""
    track = read_track(progressive)
    assert (track.kind, track.entry, track.width, track.height) == ("vide", "avc1", 64, 64)
    samples = track.samples
    assert len(samples.sizes) == len(samples.durations) == len(samples.compositions) == len(samples.offsets) == 75
    assert sum(samples.durations) == 3 * track.timescale
    assert samples.sync == [0, 25, 50]
    assert max(samples.compositions) > 0
    assert codec_of(track.entry, track.config).startswith("avc1.64")


def test_audio(make: Make) -> None:
    """The priming of AAC is the start of its edit list."""
    track = read_track(make("tone.mp4", "-f", "lavfi", "-i", "sine=r=48000:d=1", "-ac", "2", "-c:a", "aac"))
    assert (track.kind, track.entry, track.sample_rate, track.channels) == ("soun", "mp4a", 48000, 2)
    assert track.start == 1024
    assert codec_of(track.entry, track.config) == "mp4a.40.2"


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("both.mp4", (*SOUND, *PICTURES), "2 tracks"),
        ("fragments.mp4", (*PICTURES, "-movflags", "frag_keyframe+empty_moov"), "0 samples"),
        ("other.mkv", PICTURES, "not a sound MP4"),
    ],
)
def test_other_files(make: Make, name: str, arguments: tuple[str, ...], sentence: str) -> None:
    """What is no progressive file of one track is refused."""
    with pytest.raises(FormatError, match=sentence):
        read_track(make(name, *arguments))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=300
)
@given(data=st.data())
def test_corrupt_tables(progressive: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Whatever a byte of the tables becomes: the file is read within its bounds, or refused in a sentence."""
    whole = bytearray(progressive.read_bytes())
    moov = whole.index(b"moov")
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(moov - 4, len(whole) - 1))] = data.draw(st.sampled_from([0, 1, 0x7F, 0xFF]))
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    path = tmp_path / "corrupt.mp4"
    path.write_bytes(whole[:cut])
    try:
        samples = read_track(path).samples
    except FormatError:
        return
    assert all(o + s <= cut for o, s in zip(samples.offsets, samples.sizes, strict=True))
