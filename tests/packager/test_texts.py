"""Captions in titles: what is asked for, what a source has inside, and what is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from oca.store.content import FILLING
from oca.store.verify import verify
from oca.title import model as title_format
from packager import package
from packager.captions import cues as captions
from packager.captions import embedded, texts
from packager.captions.cues import Asked, Captions
from packager.captions.embedded import Stream
from packager.captions.webvtt import CaptionsError, Cue
from packager.encode.job import Job
from packager.ffmpeg import Ffmpeg
from packager.package import Built, Order
from packager.source import languages
from packager.source.probe import Source

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=10:d=3")
ENGLISH = "1\n00:00:01,000 --> 00:00:02,000\n<i>Hello</i> there\n"


def job(seconds: int, rate: Fraction = Fraction(30000, 1001), loops: int = 0) -> Job:
    frames = int(seconds * rate)
    return Job(Source(Path("film.mp4"), 64, 36, rate, seconds, None, ()), (), "medium", frames, loops, 0)


def parsed(data: bytes) -> list[tuple[int, int, str]]:
    lines = data.decode().replace("X-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n", "")
    return [(cue.start, cue.end, cue.text) for cue in captions.parse(lines.encode(), "made").cues]


@pytest.mark.parametrize(("segment", "pictures"), [(2.0, 1800), (4.0, 1800), (7.0, 1890), (90.0, 2697)])
def test_segments_begin_where_those_of_video_do(segment: float, pictures: int) -> None:
    """After a minute or so, of whatever length video has."""
    whole = replace(job(600), segment=segment)
    bounds = texts._bounds(whole, 1)
    assert bounds[1] == pictures
    assert all(first % whole.gop == 0 for first in bounds[:-1])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("en=film.srt", Asked(Path("film.srt"), "en")),
        ("pt-BR=a=b.vtt", Asked(Path("a=b.vtt"), "pt-BR")),
        ("en:captions=x", Asked(Path("x"), "en", "captions")),
        ("en:forced:Signs=x", Asked(Path("x"), "en", "forced", "Signs")),
        ("en:Director: part 1=x", Asked(Path("x"), "en", "subtitles", "Director: part 1")),
        ("en:subtitles:forced=x", Asked(Path("x"), "en", "subtitles", "forced")),
        ("en: =x", Asked(Path("x"), "en")),
    ],
)
def test_what_is_asked_for(text: str, found: Asked) -> None:
    """Kind and label may be left out, in any combination."""
    assert captions.asked(text) == found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("film.srt", "'film.srt' names no captions: give LANGUAGE=FILE"),
        ("en=", "names no captions"),
        ("=film.srt", "'' is no language"),
        ("e n=film.srt", "'e n' is no language"),
        ('en:a"b=film.srt', "is no name for a menu"),
        ("en:a\nb=film.srt", "is no name for a menu"),
        (f"en:{'x' * 101}=film.srt", "is no name for a menu"),
    ],
)
def test_what_cannot_be_asked_for(text: str, sentence: str) -> None:
    with pytest.raises(CaptionsError, match=re.escape(sentence)):
        captions.asked(text)


@pytest.mark.parametrize(
    ("tag", "short", "name"),
    [
        ("eng", "en", "English"),
        ("ger", "de", "German"),
        ("deu", "de", "German"),
        ("por-BR", "pt-BR", "Portuguese (BR)"),
        ("nb", "nb", "Norwegian Bokmål"),
        ("zh-Hant-TW", "zh-Hant-TW", "Chinese (Hant-TW)"),
        ("und", "und", "und"),
        ("tlh", "tlh", "tlh"),
    ],
)
def test_languages(tag: str, short: str, name: str) -> None:
    """Manifests get the shortest code (RFC 5646 2.2.1), menus a name, and what is not known stays as it is."""
    assert (languages.bcp47(tag), languages.name(tag)) == (short, name)


def test_captions_with_the_same_label_are_refused(tmp_path: Path) -> None:
    """A menu would show two of that name; other kinds have other names by themselves."""
    for name in "ab":
        (tmp_path / f"{name}.srt").write_text(ENGLISH)
    both = [f"{tmp_path}/{name}.srt" for name in "ab"]
    found = texts.given([f"en={both[0]}", f"eng:captions={both[1]}", f"en:Director={both[1]}", "source"])
    assert [each.label for each in found] == ["English", "English, captions", "Director"]
    assert [each.language for each in found] == ["en"] * 3
    with pytest.raises(CaptionsError, match="two captions would be 'English' in the menu"):
        texts.given([f"en={both[0]}", f"eng={both[1]}"])


def test_files_and_their_names() -> None:
    """A sidecar has all, segments begin every 15 segments of video, and no name is used twice."""
    cues = (Cue(1000, 3000, "a"), Cue(59_000, 130_000, "b"), Cue(149_000, 200_000, "c"))
    one, two = Captions("en", cues, where="1.srt", label="x"), Captions("en", cues[:1], label="y", kind="forced")
    made, notes = texts.made([one, two, Captions("EN-2", cues[:1], label="z")], job(150))
    assert [each.text.name for each in made] == ["c-en", "c-en-2", "c-en-2-2"]
    assert notes == ["1.srt: 1 cue(s) last longer than the pictures, until 00:02:29.983: they were cut"]
    names = [name for each in made for name in each.files]
    assert len(set(names)) == len(names) == 3 * 5
    files = made[0].files
    assert [name for name in files if name.endswith(".vtt")] == ["c-en.1.vtt", "c-en.2.vtt", "c-en.3.vtt", "c-en.vtt"]
    a, b, c = (1000, 3000, "a"), (59_000, 130_000, "b"), (149_000, 149_983, "c")
    assert parsed(files["c-en.vtt"]) == [a, b, c]
    assert [parsed(files[f"c-en.{number}.vtt"]) for number in (1, 2, 3)] == [[a, b], [b], [b, c]]
    playlist = files["c-en.m3u8"].decode()
    lasts = [float(each) for each in re.findall(r"#EXTINF:([\d.]+),", playlist)]
    assert lasts[:2] == [60.06, 60.06], "120 pictures a segment of video, 15 of these"
    assert sum(lasts) == pytest.approx(float(job(150).seconds), abs=1e-5)
    sizes = [len(files[f"c-en.{number}.vtt"]) for number in (1, 2, 3)]
    assert made[0].text.average_bandwidth == -(-8 * sum(sizes) // job(150).seconds)
    ends = [sizes[0] / 60.06, sizes[1] / 60.06, (sizes[1] + sizes[2]) / sum(lasts[1:])]  # the last alone is short
    assert made[0].text.bandwidth == pytest.approx(8 * max(ends), abs=1)
    assert "#EXT-X-TARGETDURATION:60\n" in playlist


def test_very_long_titles_have_longer_segments() -> None:
    """title.json lists every file: 24 h in 30 languages are fewer than 10,000, not 43,000."""
    film = job(86_400, Fraction(25))
    every = Captions("en", (Cue(0, 1000, "a"),))
    made, _ = texts.made([every] * 30, film)
    assert 8_000 < sum(len(each.files) for each in made) < 10_000
    assert "#EXT-X-TARGETDURATION:300\n" in made[0].files["c-en.m3u8"].decode()


def test_captions_of_a_loop_are_shown_once() -> None:
    _, notes = texts.made([Captions("en", (Cue(0, 1000, "a"),))], job(10, loops=2))
    assert notes == ["the captions are shown the first time that it is played, and not again"]


def test_a_published_title(subtitled: Built) -> None:
    """It lists its captions, every file of them is there and sound, and what was changed is said."""
    held, _ = title_format.read(subtitled.path)
    said = [(text.name, text.kind, text.language, text.label) for text in held.captions]
    assert said == [
        ("c-en", "subtitles", "en", "English"),
        ("c-de", "captions", "de", "Für Taube"),
        ("c-en-2", "forced", "en", "English, forced"),
    ]
    assert verify(subtitled.path).problems == []
    assert subtitled.notes == [
        "en.srt: 1 cue(s) begin after the end of the pictures, 00:03:30.000: they were dropped",
        "en.srt: 1 cue(s) last longer than the pictures, until 00:03:30.000: they were cut",
        "de.vtt: 1 cue(s) begin before those in front of them end: players show them together",
        "de.vtt: 1 cue(s) begin before those in front of them end: players show them together",
    ]
    assert {f"c-en.{number}.vtt" for number in (1, 2, 3, 4)} < set(held.files)
    assert "c-en.5.vtt" not in held.files
    assert set(held.shared_files) >= {name for text in held.captions for name in text.files}


def test_inspect_shows_captions_and_thumbnails(run: Run, subtitled: Built) -> None:
    status, out, _ = run("inspect", subtitled.path)
    assert status == 0
    assert re.search("c-de .*WebVTT.*de, Für Taube", out)
    assert re.search("i-36 .*JPEG.*64x36, 27 pictures", out)
    (told,) = json.loads(run("inspect", subtitled.path, "--json")[1])
    assert [each["label"] for each in told["captions"]] == ["English", "Für Taube", "English, forced"]
    assert told["thumbnails"][0]["count"] == 27


# As 5.1 and 9 say it, with what a hostile file may put there.
LOG = """
Input #0, matroska,webm, from 'Stream #0:9(eng): Subtitle: subrip':
Metadata:
title           : The film
Duration: 00:00:09.00, start: 0.000000, bitrate: 160 kb/s
Stream #0:0: Video: h264 (High), yuv420p(tv, progressive), 160x90 [SAR 1:1 DAR 16:9], 25 fps, 25 tbr, 1k tbn
Metadata:
title           : no captions
Stream #0:1(eng): Subtitle: subrip (srt) (default)
Metadata:
title           : Director's
: Stream #0:8(eng): Subtitle: subrip
Stream #0:2[0x3](ger): Subtitle: mov_text (tx3g / 0x67337874), 0 kb/s (default) (forced) (hearing impaired)
Stream #0:3: Subtitle: hdmv_pgs_subtitle (hearing impaired)
Metadata:
title           : a"b
Stream #0:4(fre): Attachment: ttf
Metadata:
title           : font.ttf
Stream mapping:
Stream #0:7(eng): Subtitle: subrip
"""


def test_what_a_source_has_inside() -> None:
    """Number, codec, language, kind and title of streams of captions; nothing of others, or of the output."""
    found = embedded.streams(LOG.strip().split("\n"))
    assert found == [
        Stream(1, "subrip", "en", "subtitles", "Director's"),
        Stream(2, "mov_text", "de", "forced"),
        Stream(3, "hdmv_pgs_subtitle", "und", "captions", "ab"),
    ]
    texts, notes = embedded.usable(found, "film.mkv")
    assert texts == found[:2]
    assert notes == [
        "film.mkv, stream 3 has hdmv_pgs_subtitle captions, which cannot become WebVTT: they were left out"
    ]
    with pytest.raises(ValueError, match="more of it than is kept"):
        embedded.streams(LOG.strip().split("\n")[1:])


@pytest.fixture
def srt(tmp_path: Path) -> Path:
    path = tmp_path / "in.srt"
    path.write_text(ENGLISH)
    return path


def test_captions_inside_matroska(binary: Ffmpeg, tmp_path: Path, srt: Path) -> None:
    """SubRip, WebVTT and ASS; two that are called alike are numbered, and given ones come first."""
    video = tmp_path / "in.mkv"
    kinds = ("-c:s:0", "srt", "-c:s:1", "webvtt", "-c:s:2", "ass")
    told = ("-metadata:s:s:0", "language=eng", "-metadata:s:s:1", "language=eng", "-metadata:s:s:2", "title=Signs")
    maps = (*("-i", str(srt)) * 3, "-map", "0:v", "-map", "1", "-map", "2", "-map", "3")
    binary.run(["-v", "error", *PICTURES, *maps, *kinds, *told, "-disposition:s:2", "forced", str(video)])
    order = Order(video, tmp_path / "out", "t", "T", preset="ultrafast", captions=("source", f"en={srt}"))
    built = package.build(binary, order)
    said = [(text.name, text.kind, text.language, text.label) for text in built.title.captions]
    assert said == [
        ("c-en", "subtitles", "en", "English"),
        ("c-en-2", "subtitles", "en", "English 2"),
        ("c-en-3", "subtitles", "en", "English 3"),
        ("c-und", "forced", "und", "Signs"),
    ]
    for text in built.title.captions:
        ((start, end, words),) = parsed((built.path / f"{text.name}.vtt").read_bytes())
        assert (start, end, words) == (1000, 2000, "<i>Hello</i> there")
    assert built.notes == []
    assert package.build(binary, order).version == built.version


def test_captions_inside_mp4(binary: Ffmpeg, run: Run, tmp_path: Path, srt: Path) -> None:
    """mov_text is taken, but for captions without a cue."""
    video, empty = tmp_path / "in.mp4", tmp_path / "empty.srt"
    empty.write_text("1\n00:00:01,000 --> 00:00:02,000\n<b></b>\n")
    maps = ("-i", str(srt), "-i", str(empty), *("-map", "0:v", "-map", "1", "-map", "2"), "-c:s", "mov_text")
    binary.run(["-v", "error", *PICTURES, *maps, "-metadata:s:s:0", "language=fre", str(video)])
    arguments = ("--preset", "ultrafast", "--captions", "source", "--no-thumbnails", "--out", tmp_path / "out")
    status, out, err = run("build", video, *arguments)
    assert status == 0
    assert "note: in.mp4, stream 2 has no cue that could be shown: it was left out\n" in err
    (told,) = json.loads(run("inspect", Path(out.split()[-1]), "--json")[1])
    assert [each["label"] for each in told["captions"]] == ["French"]
    assert told["thumbnails"] == []


def test_a_source_without_captions(binary: Ffmpeg, clip: Path) -> None:
    """It is said, and the title is built without."""
    assert embedded.read(binary, clip) == ([], ["bigbuckbunny.mp4 has no captions in it"])


def test_captions_inside_what_is_no_video(binary: Ffmpeg, srt: Path) -> None:
    with pytest.raises(CaptionsError, match=r"cannot read the captions in .*in\.srt"):
        embedded.read(binary, srt)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("en={folder}/late.srt", "late.srt: all cues begin after the end of the pictures, 00:00:05.280"),
        ("en={folder}/none.srt", "there is no file"),
        ("en={folder}/bad.vtt", "bad.vtt, line 1: this is not WebVTT"),
        ("english captions={folder}/late.srt", "is no language"),
    ],
)
def test_bad_captions(run: Run, clip: Path, tmp_path: Path, asked: str, sentence: str) -> None:
    """One sentence, exit 1, and nothing is encoded or published."""
    (tmp_path / "late.srt").write_text("1\n00:01:00,000 --> 00:01:01,000\nLate\n")
    (tmp_path / "bad.vtt").write_text("no captions")
    out = tmp_path / "out"
    status, stdout, err = run("build", clip, "--out", out, "--captions", asked.format(folder=tmp_path))
    assert (status, stdout, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert sentence in err
    assert not out.exists() or not list((out / FILLING).iterdir())
