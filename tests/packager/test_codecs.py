"""Codecs: what is told of them, and titles in each of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.errors import ConfigError, FormatError
from oca.store.verify import verify
from packager import cli, ffmpeg, package
from packager.boxes.codecs import channels_of, codec_of
from packager.encode.encoders import NAMES, PRESETS, video_options
from packager.ladder.rungs import Rung, ladder
from packager.package import Order

Make = Callable[..., Path]
BOXES = {"avc1": "avcC", "hvc1": "hvcC", "av01": "av1C", "mp4a": "esds", "Opus": "dOps"}


@pytest.mark.parametrize(
    ("entry", "box", "told"),
    [
        ("avc1", "0164001fffe100", "avc1.64001f"),
        # As Apple's HLS authoring guide has them: Main at level 3.1, and Main 10 of the high tier.
        ("hvc1", "010160000000b00000000000 5d f000fcfdf8f800000f00", "hvc1.1.6.L93.B0"),
        ("hvc1", "012220000000b00000000000 99 f000fcfdfafa00000f00", "hvc1.2.4.H153.B0"),
        ("hvc1", "014100000001000000000000 3f f000fcfdf8f800000f00", "hvc1.A1.80000000.L63"),
        ("av01", "81040c00", "av01.0.04M.08"),
        ("av01", "812dcc00", "av01.1.13H.10"),
        ("av01", "815fec00", "av01.2.31H.12"),
        ("Opus", "0002013800000bb80000000000", "opus"),
    ],
)
def test_what_is_told(entry: str, box: str, told: str) -> None:
    data = bytes.fromhex(box.replace(" ", ""))
    assert codec_of(entry, {BOXES[entry]: data}) == told


def test_extended_object_type() -> None:
    """Object types from 32 up take six more bits (14496-3 1.6.2.1); 42 is USAC."""
    config = bytes([0b11111_001, 0b010_00000])
    assert codec_of("mp4a", {"esds": described(config)}) == "mp4a.40.42"


def described(config: bytes) -> bytes:
    """An esds box with this AudioSpecificConfig."""
    inner = b"\x05" + bytes([len(config)]) + config
    inner = b"\x04" + bytes([13 + len(inner)]) + bytes(13) + inner
    return bytes(4) + b"\x03" + bytes([3 + len(inner)]) + bytes(3) + inner


@pytest.mark.parametrize(
    ("bits", "channels"),
    [
        ("00010 0011 0001 000", 1),
        ("00010 0011 0010 000", 2),
        ("00010 0011 0110 000", 6),
        ("00010 0011 0111 000", 8),
        ("11111 001010 0011 0110", 6),
        ("00010 1111 000000001011101110000000 0010", 2),
        ("11111 001010 1111 000000001011101110000000 0001", 1),
    ],
)
def test_channels_of_aac(bits: str, channels: int) -> None:
    """As 14496-3 1.6.2.1 and table 1.19 have it: kind, rate, channels, the first two longer after all ones."""
    plain = bits.replace(" ", "")
    plain = plain.ljust(-(-len(plain) // 8) * 8, "0")
    config = int(plain, 2).to_bytes(len(plain) // 8, "big")
    assert channels_of("mp4a", {"esds": described(config)}) == channels


@pytest.mark.parametrize("config", [b"", bytes([0b00010_001, 0b1_0000_000])])
def test_channels_that_are_not_told(config: bytes) -> None:
    with pytest.raises(FormatError, match="'mp4a' without a number of channels"):
        channels_of("mp4a", {"esds": described(config)})
    with pytest.raises(FormatError, match="'Opus' without a number of channels"):
        channels_of("Opus", {"dOps": b""})


@pytest.mark.parametrize("entry", BOXES)
@pytest.mark.parametrize("data", [b"", b"\2" * 30, b"\0\0\0\0\x03\x80\x80"])
def test_a_configuration_that_is_none(entry: str, data: bytes) -> None:
    with pytest.raises(FormatError, match="no usable"):
        codec_of(entry, {BOXES[entry]: data})
    with pytest.raises(FormatError, match="no codec"):
        codec_of("vp08", {})


@given(entry=st.sampled_from(sorted(BOXES)), data=st.binary(max_size=40))
def test_any_configuration(entry: str, data: bytes) -> None:
    """It becomes what a manifest can hold, or is refused."""
    try:
        told = codec_of(entry, {BOXES[entry]: data})
    except FormatError:
        return
    assert told.isascii()
    assert all(each.isalnum() or each == "." for each in told)


@pytest.mark.long
@pytest.mark.parametrize(("codec", "told"), [("hevc", "hvc1.1."), ("av1", "av01.0.")])
def test_a_title_in_another_codec(binary: ffmpeg.Ffmpeg, make: Make, tmp_path: Path, codec: str, told: str) -> None:
    """Beside H.264: sound, cut alike in all codecs, no seam between chunks, every picture, the same bytes again."""
    video = make("codecs.mkv", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=12", "-c:v", "libx264")
    order = Order(video, tmp_path / "one", "t", "T", preset="ultrafast", chunk=4, codecs=("h264", codec))
    built = package.build(binary, order)
    assert verify(built.path).problems == []
    plain, other = built.title.tracks
    assert (plain.name, other.name) == ("v-240-235", f"v-240-{164 if codec == 'hevc' else 141}-{codec}")
    assert other.codecs.startswith(told)
    assert (other.segments, other.duration, other.timescale) == (plain.segments, plain.duration, plain.timescale)
    for track in built.title.tracks:
        path = built.path / f"{track.name}.mp4"
        decode = [str(binary.path), "-v", "warning", "-i", str(path), "-f", "framecrc", "-"]
        done = subprocess.run(decode, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert len([line for line in done.stdout.splitlines() if not line.startswith("#")]) == 300
    assert package.build(binary, replace(order, out=tmp_path / "two", jobs=3)).version == built.version


def test_an_ffmpeg_without_the_encoder(binary: ffmpeg.Ffmpeg, clip: Path, tmp_path: Path) -> None:
    """Said before anything is done."""
    poor = ffmpeg.Ffmpeg(binary.path, binary.version, encoders=frozenset({"libx264", "aac"}))
    with pytest.raises(ConfigError, match="without libx265 and libsvtav1: install"):
        package.build(poor, Order(clip, tmp_path / "out", "t", "T", codecs=("h264", "hevc", "av1")))
    assert not (tmp_path / "out").exists()


def test_every_preset_of_every_encoder() -> None:
    """One name, three encoders."""
    for codec in NAMES:
        rungs = ladder(1920, 1080, (codec,))
        assert [rung.kbps for rung in rungs] == sorted(rung.kbps for rung in rungs)
        told = [video_options(Rung(2, 2, 100, "", codec), preset, 100, 25)["preset"] for preset in PRESETS]
        assert len(set(told)) == len(PRESETS)
    assert [each.value for each in cli.Preset] == list(PRESETS)
    assert [each.value for each in cli.Codec] == list(NAMES)


@pytest.mark.parametrize("wanted", ["fixed", "per-title", "file"])
@pytest.mark.parametrize(
    ("codec", "size", "sentence"),
    [
        ("av1", "64x36", "libsvtav1 takes pictures of 64 pixels a side or more, and v-36-141-av1 would have 64x36: "),
        (
            "av1",
            "32x512",
            "libsvtav1 takes pictures of 64 pixels a side or more, and v-240-141-av1 would have 16x240",
        ),
        ("hevc", "14x14", "libx265 takes pictures of 16 pixels a side or more, and v-14-164-hevc would have 14x14: "),
    ],
)
def test_too_small_for_an_encoder(
    binary: ffmpeg.Ffmpeg, make: Make, tmp_path: Path, wanted: str, codec: str, size: str, sentence: str
) -> None:
    """Said before anything is encoded, whoever names the rungs; H.264 takes any size."""
    video = make("small.mkv", "-f", "lavfi", "-i", f"testsrc2=s={size}:r=25:d=1", "-c:v", "ffv1")
    if wanted == "file":
        wanted = str(tmp_path / "ladder.toml")
        lines = min(240, int(size.partition("x")[2]))
        Path(wanted).write_text(
            f'[[rungs]]\nlines = {lines}\nkbps = {sentence.partition("and v-")[2].split("-")[1]}\ncodec = "{codec}"'
        )
    asked = Order(video, tmp_path / "out", "t", "T", preset="ultrafast", thumbnails=False, codecs=(codec,))
    with pytest.raises(ConfigError, match=sentence):
        package.build(binary, replace(asked, ladder=wanted))
    assert not (tmp_path / "out").exists()
    assert package.build(binary, replace(asked, codecs=("h264",))).title.tracks[0].codecs.startswith("avc1")


@pytest.mark.parametrize(("codec", "side"), [("hevc", 16), ("av1", 64)])
def test_the_least_that_an_encoder_takes(
    binary: ffmpeg.Ffmpeg, make: Make, tmp_path: Path, codec: str, side: int
) -> None:
    """The bounds are the encoders' own."""
    video = make("least.mkv", "-f", "lavfi", "-i", f"testsrc2=s={side}x{side}:r=25:d=1", "-c:v", "ffv1")
    asked = Order(video, tmp_path, "t", "T", preset="ultrafast", thumbnails=False, codecs=(codec,))
    assert package.build(binary, asked).title.tracks[0].width == side
