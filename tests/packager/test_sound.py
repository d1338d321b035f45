"""The sound of a title: which streams become which tracks, in what channels and how loud, and what manifests say."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oca.errors import ConfigError, OcaError
from oca.ids import is_track
from oca.store.content import FILLING
from oca.store.verify import verify
from oca.title import model as title_format
from oca.title.model import Track
from packager import package
from packager.audio import loudness, renditions
from packager.audio.loudness import Change, Heard
from packager.encode import job as encode
from packager.ffmpeg import Ffmpeg
from packager.package import Built, Order
from packager.source import streams
from packager.source.probe import Audio, probe
from tests.packager.test_hls_strict import parsed

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
NS = {"": "urn:mpeg:dash:schema:mpd:2011"}
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=25:d=9")
# Two of the same language, of which one is for few; the default is not the first.
TOLD = (
    *("-metadata:s:a:0", "language=ger", "-metadata:s:a:1", "language=eng", "-metadata:s:a:2", "language=eng"),
    *("-metadata:s:a:3", "language=eng", "-metadata:s:a:3", 'title=The "Director"'),
    *("-disposition:a:0", "0", "-disposition:a:1", "default", "-disposition:a:2", "visual_impaired"),
    *("-disposition:a:3", "comment"),
)


@pytest.fixture(scope="module")
def film(make: Make) -> Path:
    """Nine seconds with German stereo, English 5.1, English description in mono and English commentary in mono."""
    tone = "aevalsrc={}:d=9:c={}:s=48000"
    six = "|".join(f"0.05*sin({400 + 100 * n}*t)" for n in range(6))
    heard = (tone.format("0.2*sin(900*t)|0.1*sin(1300*t)", "stereo"), tone.format(six, "5.1"))
    heard += tuple(tone.format(f"0.3*sin({n}*t)", "mono") for n in (2000, 3000))
    given = [word for each in heard for word in ("-f", "lavfi", "-i", each)]
    maps = [word for n in range(5) for word in ("-map", str(n))]
    coded = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le")
    return make("film.mkv", *PICTURES, *given, *maps, *TOLD, *coded)


@pytest.fixture(scope="module")
def order(film: Path, tmp_path_factory: pytest.TempPathFactory) -> Order:
    """All of its sound in both codecs, at -23 LUFS."""
    out = tmp_path_factory.mktemp("sound")
    codecs = ("aac", "opus")
    return Order(film, out, "film", "Film", preset="ultrafast", audio_codecs=codecs, loudness=-23.0)


@pytest.fixture(scope="module")
def built(binary: Ffmpeg, order: Order) -> Built:
    """The film as it comes to be when a build is interrupted after it has encoded, and given again."""

    def stop(step: str, done: int, total: int) -> None:
        if step == "package":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.build(binary, order, stop)
    made = package.build(binary, order)
    assert (made.pieces, made.encoded) == (11, 0)
    return made


def sounds(built: Built) -> list[Track]:
    return [track for track in built.title.tracks if track.kind == "audio"]


def test_every_stream_becomes_tracks(built: Built) -> None:
    """The main one first, its 5.1 in stereo as well, each in both codecs; and all end with the pictures."""
    wanted = [
        ("a-en-128", "en", "English", "main", 2),
        ("a-en-384", "en", "English", "main", 6),
        ("a-de-128", "de", "German", "alternate", 2),
        ("a-en-64-2", "en", "English, audio description", "description", 1),
        ("a-en-64-3", "en", "The Director", "commentary", 1),
    ]
    opus = ("a-en-96-opus", "a-en-256-opus", "a-de-96-opus", "a-en-48-2-opus", "a-en-48-3-opus")
    for codec, names in (("mp4a.40.2", [each[0] for each in wanted]), ("opus", opus)):
        said = [(t.name, t.language, t.label, t.role, t.channels) for t in sounds(built) if t.codecs == codec]
        assert said == [(name, *what) for name, (_, *what) in zip(names, wanted, strict=True)]
    assert {(t.seconds, t.segments, t.sample_rate) for t in sounds(built)} == {(9.0, 3, 48_000)}
    assert verify(built.path).problems == []
    assert title_format.read(built.path)[0] == built.title


@pytest.mark.long
def test_the_same_bytes_again(binary: Ffmpeg, order: Order, built: Built, tmp_path: Path) -> None:
    """A build that was left alone, with as many runs of ffmpeg at once as there are streams, is the same."""
    assert package.build(binary, replace(order, out=tmp_path, jobs=4)).version == built.version


@pytest.mark.parametrize("name", ["manifest.mpd", "ondemand.mpd"])
def test_an_mpd_keeps_them_apart(built: Built, name: str) -> None:
    """A set for each codec and number of channels of each stream, with language, role and label; one is preferred."""
    sets = ET.parse(built.path / name).findall(".//AdaptationSet[@contentType='audio']", NS)
    found = []
    for each in sets:
        (representation,) = each.findall("Representation", NS)
        channels, role = each.find("AudioChannelConfiguration", NS), each.find("Role", NS)
        assert channels is not None
        assert role is not None
        said = (each.get("lang"), each.findtext("Label", None, NS), role.get("value"), channels.get("value"))
        found.append((representation.get("id"), *said, each.find("Accessibility", NS) is not None))
    assert found == [
        (t.name, t.language, t.label, t.role, str(t.channels), t.role == "description") for t in sounds(built)
    ]
    assert [each.get("selectionPriority") for each in sets] == ["2"] + [None] * 9


def test_a_multivariant_playlist_has_a_group_for_each_codec_and_width(built: Built) -> None:
    """Every group has the same members, one of them the default; each variant counts the heaviest of its group."""
    text = (built.path / "master.m3u8").read_text()
    tracks = {track.name: track for track in built.title.tracks}
    groups: dict[str, list[list[str]]] = {}
    for line in re.findall(r"^#EXT-X-MEDIA:TYPE=AUDIO,(.*)", text, re.M):
        told = dict(re.findall(r'([A-Z-]+)="?([^",]*)', line))
        member = [told[key] for key in ("NAME", "LANGUAGE", "DEFAULT", "AUTOSELECT")]
        groups.setdefault(told["GROUP-ID"], []).append([*member, told["CHANNELS"], told["URI"].removesuffix(".m3u8")])
    assert list(groups) == ["audio-aac-2", "audio-aac-6", "audio-opus-2", "audio-opus-6"]
    for name, members in groups.items():
        assert [each[:4] for each in members] == [
            ["English", "en", "YES", "YES"],
            ["German", "de", "NO", "YES"],
            ["English", "en", "NO", "YES"],  # up to the comma of its name
            ["The Director", "en", "NO", "NO"],
        ]
        assert [each[4] for each in members] == [name[-1], "2", "1", "1"]
    assert text.count('CHARACTERISTICS="public.accessibility.describes-video"') == 4
    assert text.count('NAME="English, audio description"') == 4
    video = built.title.tracks[0]
    variants = re.findall(r'BANDWIDTH=(\d+),AVERAGE-BANDWIDTH=\d+,CODECS="([^"]*)".*,AUDIO="([^"]*)"', text)
    assert [each[2] for each in variants] == list(groups)
    for rate, codecs, name in variants:
        members = [tracks[each[5]] for each in groups[name]]
        assert int(rate) == video.bandwidth + max(each.bandwidth for each in members)
        assert codecs == f"{video.codecs},{'opus' if 'opus' in name else 'mp4a.40.2'}"
    assert [each["variants"] for each in parsed([text])] == [4]


def heard(binary: Ffmpeg, path: Path) -> Heard:
    """What ffmpeg hears of a track file."""
    how = ("-nostats", "-i", str(path), "-af", "ebur128=peak=true:framelog=verbose", "-f", "null", "-")
    return loudness.heard(binary.run(["-nostdin", "-hide_banner", *how]))


def test_loudness(binary: Ffmpeg, built: Built) -> None:
    """Every track, in each number of channels and codec, is as loud as was asked, and the notes say what it was."""
    for track in sounds(built):
        assert heard(binary, built.path / track.files[0]).loudness == pytest.approx(-23, abs=1), track.name
        assert re.search(r", was brought from -[0-9.]+ to -23.0 LUFS$", track.reason)
    assert sum("was brought from" in note for note in built.notes) == 5


@pytest.mark.long
def test_peaks_are_held_down(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """Soft noise with loud bursts becomes as loud as was asked without a peak that would be clipped."""
    noise = "aevalsrc=(random(0)*2-1)*if(lt(mod(t\\,3)\\,0.02)\\,0.9\\,0.05):d=9:s=48000"
    path = make("bursts.mkv", *PICTURES, "-f", "lavfi", "-i", noise, "-c:v", "libx264", "-c:a", "pcm_s16le")
    made = package.build(binary, Order(path, tmp_path, "t", "T", preset="ultrafast", loudness=-16.0))
    (track,) = sounds(made)
    found = heard(binary, made.path / track.files[0])
    assert found.loudness == pytest.approx(-16, abs=1)
    assert found.peak < -0.5
    assert "its peaks held below -2 dBTP" in track.reason


@pytest.mark.parametrize(
    ("before", "peak", "losses", "change"),
    [
        (-30.0, -20.0, [], Change(7.0, False, -30.0, -23.0)),
        (-10.0, 0.5, [], Change(-13.0, False, -10.0, -23.0)),
        (-40.0, -10.0, [0.1], Change(17.0, True, -40.0, -23.1)),
        (-40.0, -10.0, [1.0, 0.0], Change(18.0, True, -40.0, -23.0)),
        (-60.0, -1.0, [9.0, 5.0, 3.0], Change(51.0, True, -60.0, -26.0)),
        (-70.0, -99.0, [], Change(0, False, -70.0, -70.0)),
    ],
)
def test_which_gain(before: float, peak: float, losses: list[float], change: Change) -> None:
    """One gain where peaks allow it; else it is measured again what the limiter took, and that is added."""
    left = list(losses)

    def measure(given: Change | None) -> Heard:
        if given is None:
            return Heard(before, peak)
        assert given.limited
        return Heard(-23 - left.pop(0), -2.0)

    assert loudness.bring(-23, measure) == change
    assert left == []


LAYOUTS = {
    "mono": (1,),
    "stereo": (2,),
    "2.1": (2, 6),
    "3.0": (2, 6),
    "4.0": (2, 6),
    "quad": (2, 6),
    "5.0(side)": (2, 6),
    "5.1(side)": (2, 6),
    "hexagonal": (2, 6),
    "6.1": (2, 6),
    "7.1": (2, 6),
    "7.1(wide)": (2, 6),
    "octagonal": (2, 6),
    "downmix": (2,),
}


@pytest.mark.long
def test_odd_layouts(binary: Ffmpeg, make: Make, tmp_path: Path) -> None:
    """Whatever the source's, a track has one, two or six channels, and it is said what was done."""
    given = [word for each in LAYOUTS for word in ("-f", "lavfi", "-i", f"anullsrc=cl={each}:r=48000:d=1")]
    nine = tmp_path / "nine.wav"
    nine.write_bytes(wave(9))
    maps = [word for n in range(len(LAYOUTS) + 2) for word in ("-map", str(n))]
    coded = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le", "-t", "1")
    path = make("layouts.mov", *PICTURES, *given, "-i", str(nine), *maps, *coded)
    assert [each.channels for each in probe(binary, path).audio] == [*LAYOUTS, "9 channels"]
    made = package.build(binary, Order(path, tmp_path / "out", "t", "T", preset="ultrafast", thumbnails=False))
    found: dict[str, tuple[int, ...]] = {}
    for track in sounds(made):
        found[track.label] = (*found.get(track.label, ()), track.channels)
    assert list(found.values()) == [*LAYOUTS.values(), (2,)]
    assert len({track.name for track in made.title.tracks}) == len(made.title.tracks)
    assert made.notes[0] == "its 2.1 audio (stream 3, und) becomes 5.1, and stereo"
    assert "its 5.1(side) audio (stream 8, und) is there in stereo, too" in made.notes
    assert made.notes[-1].endswith("does not say where its channels are: the first two become stereo")
    stereo = package.build(
        binary, Order(path, tmp_path / "out", "t", "T", preset="ultrafast", channels="stereo", audio="first")
    )
    assert [(track.name, track.channels, track.label) for track in sounds(stereo)] == [("a-und-128", 2, "")]
    assert stereo.notes == ["its mono audio becomes stereo"]


def wave(channels: int) -> bytes:
    """A second of silence in that many channels that stand nowhere."""
    size = 48_000 * channels * 2
    head = b"RIFF" + (36 + size).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    values = ((1, 2), (channels, 2), (48_000, 4), (size, 4), (2 * channels, 2), (16, 2))
    told = b"".join(value.to_bytes(length, "little") for value, length in values)
    return head + told + b"data" + size.to_bytes(4, "little") + bytes(size)


FOUND = (
    Audio("ger", "stereo", 9.0),
    Audio("en-GB", "5.1", 9.0, 1, default=True),
    Audio("eng", "mono", 9.0, 2, role="commentary"),
    Audio("fre", "mono", 9.0, 3, trouble="this ffmpeg cannot decode ac4"),
)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [("all", [1, 0, 2]), ("first", [0]), ("none", []), ("en", [1, 2]), ("eng,de", [1, 2, 0]), ("en-gb,en", [1, 2])],
)
def test_which_streams(wanted: str, numbers: list[int]) -> None:
    """All with the main one first, the file's first, or those in languages in the order in which they are named."""
    picked, notes = renditions.chosen(FOUND, wanted, Path("film.mkv"))
    assert [each.number for each in picked] == numbers
    left = ["its audio stream 4 was left out: this ffmpeg cannot decode ac4"]
    assert notes == (left if wanted == "all" else [])


def test_labels_differ() -> None:
    """Streams that are called alike, or not at all, are numbered."""
    streams_ = [replace(FOUND[0], number=n, title=title) for n, title in enumerate(("", "Mix", "", "Mix"))]
    made = renditions.renditions(streams_, ("aac",), "source")
    assert [each.label for each in made] == ["German", "Mix", "German 2", "Mix 2"]
    assert [each.name for each in made] == ["a-de-128", "a-de-128-2", "a-de-128-3", "a-de-128-4"]


def test_names_differ_and_are_names_of_tracks() -> None:
    """Whatever the languages; those that are too long, or look like another's number."""
    tongues = [
        "en",
        "en",
        "en-64",
        "EN",
        "sl-rozaj-biske-1994",
        "sl-rozaj-biske-1995",
        "eng",
        "und",
        "abcdefgh-a1-b2-c3",
    ]
    streams_ = [replace(FOUND[0], number=n, language=each) for n, each in enumerate(tongues)]
    made = renditions.renditions(streams_ * 8, ("aac", "opus"), "source")
    names = [each.name for each in made]
    assert len(set(names)) == len(names)
    assert all(map(is_track, names))
    assert names[:3] == ["a-en-128", "a-en-96-opus", "a-en-128-2"]


# As 5.1 and 9 say it.
LOG = """
Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'film.mp4':
Chapters:
Metadata:
title           : Chapter 1
Stream #0:0[0x1](und): Video: h264 (High) (avc1 / 0x31637661), yuv420p, 64x36, 25 fps (default)
Stream #0:2(pt-BR): Audio: ac3, 48000 Hz, 5.1(side), fltp, 448 kb/s (default) (comment)
Metadata:
title           : a"b\x07
Stream #0:1[0x2](eng): Audio: aac (LC) (mp4a / 0x6134706D), 48000 Hz, mono, fltp, 69 kb/s (visual impaired)
Stream #0:3(x): Audio: none, 0 channels
Stream mapping:
Stream #0:4: Audio: aac
"""


def test_what_is_said_of_streams() -> None:
    """By number: language, kind, dispositions and title; nothing of chapters and of the output."""
    found = streams.described(LOG.strip().split("\n"))
    assert [(each.number, each.kind, each.language, each.title) for each in found] == [
        (0, "Video", "und", ""),
        (1, "Audio", "eng", ""),
        (2, "Audio", "pt-BR", "ab"),
        (3, "Audio", "und", ""),
    ]
    assert [each.has("comment") for each in found] == [False, False, True, False]
    assert found[1].has("descriptions", "visual impaired")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--audio", "fr"), "has no audio in 'fr', it has audio in de, en: say --audio all"),
        (("--audio", "en,"), "has no audio in ''"),
        (("--audio-codec", "mp3"), "'mp3' is not one of 'aac', 'opus'"),
        (("--loudness", "3"), "less than or equal to -9"),
        (("--loudness", "nan"), "loudness"),
        (("--channels", "7.1"), "'7.1' is not one of 'source', 'stereo'"),
    ],
)
def test_bad_options(run: Run, film: Path, tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    """One sentence, an exit code that is not 0, and nothing is made."""
    status, out, err = run("build", film, "--out", tmp_path / "out", *options)
    assert status != 0
    assert out == ""
    assert sentence in re.sub(r"[\s│]+", " ", err)
    assert not (tmp_path / "out").exists()


def test_no_sound_to_choose(run: Run, grey: Path, tmp_path: Path) -> None:
    """A language asked of a video without sound is refused; `first` of nothing is nothing."""
    status, _, err = run("build", grey, "--out", tmp_path, "--audio", "en")
    assert (status, "has no audio in 'en', it has no audio at all" in err) == (1, True)
    assert renditions.chosen((), "first", grey) == ((), [])


def test_an_ffmpeg_without_the_encoder(binary: Ffmpeg, film: Path, tmp_path: Path) -> None:
    """It is said before anything is encoded; what is not asked for is not missed."""
    poor = replace(binary, encoders=binary.encoders - {"libopus"})
    with pytest.raises(ConfigError, match="was built without libopus"):
        package.build(poor, Order(film, tmp_path / "out", "t", "T", audio_codecs=("aac", "opus")))
    assert not (tmp_path / "out").exists()


def test_a_stream_that_cannot_be_decoded(binary: Ffmpeg, run: Run, film: Path, tmp_path: Path) -> None:
    """It is left out with a note; if it is all that is wanted, the build is refused, and says what to do."""
    maps = ("-map", "0:v", "-map", "0:a:0", "-map", "0:a:2", "-c", "copy")
    video = tmp_path / "strange.mov"
    binary.run(["-v", "error", "-i", str(film), *maps, str(video)])
    head, _, rest = video.read_bytes().rpartition(b"sowt")
    video.write_bytes(head + b"ac-4" + rest)
    status, out, err = run("build", video, "--out", tmp_path / "out", "--preset", "ultrafast", "--json")
    assert (status, json.loads(out)["tracks"]) == (0, ["v-36-235", "a-de-128"])
    assert "note: its audio stream 2 was left out: this ffmpeg cannot decode" in err
    status, _, err = run("build", video, "--out", tmp_path / "out", "--audio", "en")
    assert (status, err.count("\n")) == (1, 1)
    assert "has audio that cannot be used (this ffmpeg cannot decode" in err


def test_a_failing_stream_is_named(binary: Ffmpeg, film: Path, tmp_path: Path) -> None:
    """Whatever ffmpeg has against a stream, the sentence says which it was; nothing is left behind."""
    source = probe(binary, film)
    (track, *_) = renditions.renditions(source.audio, ("aac",), "source")
    job = replace(encode.plan(source, (), "ultrafast"), sounds=(replace(track, stream=9),))
    work = package.Work(job, [], tmp_path / FILLING)
    with pytest.raises(OcaError, match=r"audio stream 10, stereo, language de.*--audio"):
        work.run(binary)
    assert list((tmp_path / FILLING).iterdir()) == []
