"""Sources that few expect, and what comes out of them, heard and seen: the right picture at its time, the right sound
in its place.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oca.title.model import Track
from packager import package
from packager.ffmpeg import Ffmpeg
from packager.package import Built, Order
from tests.packager.test_hls_strict import parsed

Make = Callable[..., Path]
NS = {"": "urn:mpeg:dash:schema:mpd:2011"}
FAST = ("-c:v", "libx264", "-preset", "ultrafast")
PICTURES = ("-f", "lavfi", "-i", "color=s=64x36:r=25:d=1")
SHAPES = ("-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=1", *FAST)


def build(binary: Ffmpeg, video: Path, out: Path, **more: tuple[str, ...]) -> Built:
    return package.build(binary, Order(video, out, "t", "T", preset="ultrafast", thumbnails=False, **more))


def light(binary: Ffmpeg, built: Built) -> list[int]:
    """The mean light (Y) of each picture of the first rung."""
    media, raw = built.path / built.title.tracks[0].files[0], built.path.parent / "light"
    mean = ("-vf", "extractplanes=y,scale=1:1:flags=area", "-fps_mode", "passthrough", "-f", "rawvideo")
    binary.run(["-nostdin", "-loglevel", "error", "-y", "-i", str(media), *mean, str(raw)])
    return list(raw.read_bytes())


@pytest.mark.parametrize(
    ("name", "arguments", "size", "said"),
    [
        (
            "pal.mpg",
            ("-vf", "scale=352:288,setsar=16/11", "-c:v", "mpeg2video"),
            (512, 288),
            "352x288 pixels of shape 16:11",
        ),
        ("narrow.mp4", ("-vf", "setsar=1/2"), (160, 240), "320x240 pixels of shape 1:2: they become square, 160x240"),
    ],
)
def test_anamorphic(
    binary: Ffmpeg,
    make: Make,
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
    size: tuple[int, int],
    said: str,
) -> None:
    """Pixels that are no squares become squares at the same height, which is said."""
    built = build(binary, make(name, *SHAPES, *arguments), tmp_path)
    assert (built.title.tracks[-1].width, built.title.tracks[-1].height) == size
    assert len(built.notes) == 1
    assert said in built.notes[0]


@pytest.mark.parametrize(
    ("turn", "sizes"),
    [("90", [(120, 240), (144, 288)]), ("180", [(480, 240)]), ("-90", [(120, 240), (144, 288)])],
)
def test_rotated_and_anamorphic(
    binary: Ffmpeg, make: Make, tmp_path: Path, turn: str, sizes: list[tuple[int, int]]
) -> None:
    """A phone's: what is wide before it is turned is high afterwards, and bright is where it is to be."""
    half = ("-vf", "drawbox=w=iw/2:c=white:t=fill,drawbox=x=iw/2:w=iw/2:c=black:t=fill,setsar=3/2")
    flat = make("flat.mp4", *SHAPES, *half)
    turned = make(f"turned{turn}.mp4", "-display_rotation", turn, "-i", str(flat), "-c", "copy")
    built = build(binary, turned, tmp_path)
    assert [(track.width, track.height) for track in built.title.tracks] == sizes
    assert len(built.notes) == 1
    assert "they become square" in built.notes[0]
    video = built.title.tracks[-1]
    shown = ("-vf", "extractplanes=y,scale=2:2:flags=area", "-frames:v", "1", "-f", "rawvideo")
    raw = tmp_path / "raw"
    binary.run(["-nostdin", "-loglevel", "error", "-i", str(built.path / video.files[0]), *shown, str(raw)])
    bright = [value > 128 for value in raw.read_bytes()]
    # Rows from above; turned by 90 degrees against the clock, what was at the left is below.
    assert (
        bright
        == {"90": [False, False, True, True], "180": [False, True] * 2, "-90": [True, True, False, False]}[turn]
    )


def test_a_rate_that_varies(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """Every picture is shown when it was: the light of each tells its time."""
    told = "color=black:s=64x36:r=30:d=2,geq=lum='16+100*T':cb=128:cr=128,select='lt(n,20)+not(mod(n,4))'"
    video = make("varies.mkv", "-f", "lavfi", "-i", told, "-fps_mode", "vfr", *FAST, "-qp", "4")
    built = build(binary, video, tmp_path)
    (note,) = built.notes
    rate = re.fullmatch(r"its frame rate varies \((\S+) frames/s on average\): it becomes (\S+) constant", note)
    assert rate
    assert 14 < float(rate[1]) < 18
    seen = light(binary, built)
    assert len(seen) == pytest.approx(2 * float(rate[2]), abs=2)
    for number, value in enumerate(seen):
        # Behind by up to a picture of the source's, and one of its own; never ahead by more than half of that.
        assert -0.05 < number / float(rate[2]) - (value - 16) / 100 < 4 / 30 + 0.05


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ten.mp4", ("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast", "-tag:v", "hvc1")),
        ("wide.mxf", ("-pix_fmt", "yuv422p", "-c:v", "mpeg2video", "-qscale", "1")),
        ("prores.mov", ("-pix_fmt", "yuv422p10le", "-c:v", "prores_ks")),
        ("twelve.mkv", ("-pix_fmt", "yuv444p12le", "-c:v", "ffv1")),
        ("full.mp4", ("-vf", "scale=out_range=pc,format=yuvj420p", *FAST)),
    ],
)
def test_depths_and_colours(
    binary: Ffmpeg, make: Make, tmp_path: Path, name: str, arguments: tuple[str, ...]
) -> None:
    """More bits, more colour or the full range become 8 bits of 4:2:0 in video range, as bright as they were."""
    grey = "color=black:s=64x36:r=25:d=1,format=yuv420p,geq=lum=100:cb=128:cr=128"
    built = build(binary, make(name, "-f", "lavfi", "-i", grey, *arguments), tmp_path)
    assert built.notes == []
    assert built.title.tracks[0].codecs.startswith("avc1.42c0"), "8 bits of 4:2:0 is all that it has"
    seen = light(binary, built)
    assert len(seen) == 25
    assert all(abs(value - 100) <= 2 for value in seen)


PLACES = {
    "5.1": ("FL", "FR", "FC", "LFE", "BL", "BR"),
    "5.1(side)": ("FL", "FR", "FC", "LFE", "SL", "SR"),
    "4.0": ("FL", "FR", "FC", "BC"),
    "2.1": ("FL", "FR", "LFE"),
    "6.1": ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    "7.1(wide)": ("FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC"),
}
TONES = {
    place: 80 if place == "LFE" else 400 + 100 * number
    for number, place in enumerate(("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR", "BC", "FLC", "FRC"))
}
"""Hz, by place."""


def strengths(binary: Ffmpeg, built: Built, track: Track) -> list[dict[str, float]]:
    """Of each channel of a track, how strong the tone of each place is in it."""
    raw = built.path.parent / "sound"
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[track.channels]
    how = ("-af", f"aformat=flt:channel_layouts={layout}", "-f", "f32le")
    binary.run(["-nostdin", "-loglevel", "error", "-y", "-i", str(built.path / track.files[0]), *how, str(raw)])
    samples = np.fromfile(raw, np.float32).reshape(-1, track.channels)[12_000:36_000]
    spectra = np.abs(np.fft.rfft(samples, axis=0)) / (len(samples) / 2)
    return [{place: float(spectra[hertz // 2, n]) for place, hertz in TONES.items()} for n in range(track.channels)]


def test_every_channel_stays_in_its_place(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """A tone in each channel of odd layouts: in 5.1, in either codec, it is heard where it was, or beside that."""
    given: list[str] = []
    for layout, places in PLACES.items():
        tones = "|".join(f"0.1*sin({TONES[place]}*2*PI*t)" for place in places)
        given += ["-f", "lavfi", "-i", f"aevalsrc={tones}:c={layout}:s=48000:d=1"]
    maps = [word for n in range(len(PLACES) + 1) for word in ("-map", str(n))]
    video = make("places.mov", *PICTURES, *given, *maps, *FAST, "-c:a", "pcm_s16le")
    built = build(binary, video, tmp_path, audio_codecs=("aac", "opus"))
    tracks = [track for track in built.title.tracks if track.channels == 6]
    assert len(tracks) == 2 * len(PLACES)
    assert len([track for track in built.title.tracks if track.channels == 2]) == 2 * len(PLACES)
    for (layout, places), pair in zip(PLACES.items(), zip(tracks[::2], tracks[1::2], strict=True), strict=True):
        for track in pair:
            front_left, front_right, centre, low, back_left, back_right = strengths(binary, built, track)
            where = f"{layout} in {track.codecs}"
            backs = ("BL", "BR") if "BL" in places else ("SL", "SR")
            direct = {"FL": front_left, "FR": front_right, "FC": centre, "LFE": low}
            direct |= dict(zip(backs, (back_left, back_right), strict=True))
            for place, channel in direct.items():
                if place in places:
                    assert channel[place] > max(0.02, 0.9 * max(channel.values())), (where, place)
                    others = [other[place] for other in direct.values() if other is not channel]
                    assert max(others) < channel[place] / 10, (where, place)
                else:
                    assert channel[place] < 0.005, (where, place)
            if "BC" in places:
                assert back_left["BC"] == pytest.approx(back_right["BC"], rel=0.1)
                assert back_left["BC"] > 0.02, where
            if "FLC" in places:
                assert front_left["FLC"] > 2 * front_right["FLC"], where
                assert front_right["FRC"] > 2 * front_left["FRC"], where


def test_sound_in_one_language(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """Several streams in English, of which one has the name that another would get: all are in both manifests, told
    apart by what a menu shows, and each is what it says.
    """
    given, told = [], []
    for number, hertz in enumerate((400, 500, 600)):
        given += ["-f", "lavfi", "-i", f"sine={hertz}:d=1:r=48000"]
        told += [f"-metadata:s:a:{number}", "language=eng"]
    maps = [word for n in range(4) for word in ("-map", str(n))]
    named = ("-metadata:s:a:1", "title=English", "-c:a", "pcm_s16le")
    built = build(binary, make("english.mkv", *PICTURES, *given, *maps, *FAST, *told, *named), tmp_path)
    sounds = [track for track in built.title.tracks if track.kind == "audio"]
    assert [(each.name, each.label, each.language) for each in sounds] == [
        ("a-en-64", "English", "en"),
        ("a-en-64-2", "English 2", "en"),
        ("a-en-64-3", "English 3", "en"),
    ]
    for track, place in zip(sounds, ("FL", "FR", "FC"), strict=True):
        (channel,) = strengths(binary, built, track)
        assert channel[place] == max(channel.values()) > 0.02
    for name in ("manifest.mpd", "ondemand.mpd"):
        sets = ET.parse(built.path / name).findall(".//AdaptationSet[@contentType='audio']", NS)
        assert [(each.get("lang"), each.findtext("Label", None, NS)) for each in sets] == [
            ("en", each.label) for each in sounds
        ]
        assert [each.get("id") for one in sets for each in one.findall("Representation", NS)] == [
            each.name for each in sounds
        ]
    for name in ("master.m3u8", "master.ranges.m3u8"):
        text = (built.path / name).read_text()
        media = re.findall(r'#EXT-X-MEDIA:TYPE=AUDIO,.*NAME="([^"]*)".*URI="([^"]*)"', text)
        assert [label for label, _ in media] == [each.label for each in sounds]
        assert len({uri for _, uri in media}) == 3
        assert [each["variants"] for each in parsed([text])] == [1]
