"""Captions: what is read, what is refused, and that nothing is lost on the way into a sidecar or into segments."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packager.captions import cues as captions
from packager.captions import webvtt
from packager.captions.cues import Captions
from packager.captions.webvtt import CaptionsError, Content, Cue
from packager.ffmpeg import Ffmpeg

FULL = """WEBVTT - the title
Kind: captions
Language: en

NOTE for the translator,
of two lines

STYLE
::cue(.loud) { color: red }

REGION
id:top
lines:3

first
00:01.000 --> 00:00:02.500 position:10%,line-left align:start size:35.5% line:0
- <v Mary>Hello, <b>you <i>there</i></b>
- <00:00:01.500>Hi &amp; bye

00:00:02.500 --> 100:00:04.000\tregion:top
مرحبا\u2028\u00a0
"""
CUES = (
    Cue(
        *(1000, 2500, "- <v Mary>Hello, <b>you <i>there</i></b>\n- <00:00:01.500>Hi &amp; bye"),
        *("position:10%,line-left align:start size:35.5% line:0", "first"),
    ),
    Cue(2500, 360_004_000, "مرحبا\u2028\u00a0", "region:top"),
)
BLOCKS = ("STYLE\n::cue(.loud) { color: red }", "REGION\nid:top\nlines:3")


def vtt(text: str) -> Content:
    return captions.parse(text.encode(), "f.vtt")


def srt(text: str) -> Content:
    return captions.parse(text.encode(), "f.srt", srt=True)


def times(content: Content) -> list[tuple[int, int, str]]:
    return [(cue.start, cue.end, cue.text) for cue in content.cues]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_all_of_webvtt_that_is_shown_is_kept(tmp_path: Path, ends: str, mark: str) -> None:
    """Ids, settings, tags, styles and regions are; comments and what stands in the header are not."""
    path = tmp_path / "a.vtt"
    path.write_bytes((mark + FULL.replace("\n", ends)).encode())
    assert captions.read(path, "pt-BR") == Captions("pt-BR", CUES, BLOCKS)


def test_the_sidecar_is_one_canonical_file() -> None:
    """Byte for byte: times with hours, one empty line between blocks, one line end at the end."""
    assert captions.sidecar(Captions("en", CUES, BLOCKS)) == (
        "WEBVTT\n\nSTYLE\n::cue(.loud) { color: red }\n\nREGION\nid:top\nlines:3\n\nfirst\n"
        "00:00:01.000 --> 00:00:02.500 position:10%,line-left align:start size:35.5% line:0\n"
        "- <v Mary>Hello, <b>you <i>there</i></b>\n- <00:00:01.500>Hi &amp; bye\n\n"
        "00:00:02.500 --> 100:00:04.000 region:top\nمرحبا\u2028\u00a0\n"
    )


@pytest.mark.parametrize(
    ("text", "cues", "note"),
    [
        ("00:01.000-->00:02.000\na\0b", [(1000, 2000, "a\ufffdb")], None),
        # An arrow ends a cue, and a header, without an empty line.
        ("00:01.000 --> 00:02.000\na\n00:02.000 --> 00:03.000\nb", [(1000, 2000, "a"), (2000, 3000, "b")], None),
        ("00:01.000 --> 00:02.000\n00:02.000 --> 00:03.000\nb", [(2000, 3000, "b")], "line 3: a cue without text"),
        (" STYLE\n::cue {}\n\n00:01.000 --> 00:02.000\na", [(1000, 2000, "a")], "line 3: text that belongs to no"),
        ("id\nlost\n00:01.000 --> 00:02.000\na", [(1000, 2000, "a")], "line 3: text that belongs to no cue"),
        ("00:01.000 --> 00:02.000\na\n\nlost", [(1000, 2000, "a")], "line 6: text that belongs to no cue"),
        ("00:02.000 --> 00:02.000\na", [], "line 3: a cue that ends no later"),
        ("00:02.000 --> 00:03.000\n \t", [], "line 3: a cue without text"),
        ("00:02.000 --> 00:03.000", [], "line 3: a cue without text"),
        (
            "00:05.000 --> 00:06.000\nb\n\n00:01.000 --> 00:07.000\na",
            [(1000, 7000, "a"), (5000, 6000, "b")],
            "sorted",
        ),
        ("00:01.000 --> 00:02.000 align:middle size:101% x\na", [(1000, 2000, "a")], "line 3: a cue setting"),
        ("00:01.000 --> 00:02.000\na\n\nSTYLE\n::cue {}", [(1000, 2000, "a")], "line 6: a style or a region"),
    ],
)
def test_what_the_parser_of_the_standard_passes_over_is_passed_over(
    text: str, cues: list[tuple[int, int, str]], note: str | None
) -> None:
    """It is told with the line, unless nothing is lost."""
    found = vtt("WEBVTT\n\n" + text)
    assert times(found) == cues
    assert not any(cue.settings for cue in found.cues)
    assert (note in found.notes[0]) if note else found.notes == ()


def test_an_id_never_hides_a_cue() -> None:
    """Players take a cue for one they have if they know its id, and readers take keywords for other blocks."""
    cue = "\n00:01.000 --> 00:02.000\na\n\n"
    found = vtt("WEBVTT\n\nx" + cue + "x" + cue + "NOTE" + cue + "STYLES" + cue + " y" + cue)
    assert [cue.id for cue in found.cues] == ["x", "", "", "", "y"]
    assert found.notes == (
        "line 8: a cue id that was used before, or that is a keyword, was left out (3 such in all)",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "f.vtt, line 1: this is not WebVTT"),
        ("WEBVTTX\n\n", "f.vtt, line 1: this is not WebVTT"),
        ("1\n00:00:01,000 --> 00:00:02,000\na", "SubRip goes by the name of .srt"),
        ("WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:900000,LOCAL:00:00:00.000\n\n", "f.vtt, line 2: X-TIMESTAMP-MAP makes this"),
        (
            "WEBVTT\n\n00:00:01,000 --> 00:00:02,000\na",
            "f.vtt, line 3: '00:00:01,000 --> 00:00:02,000' is not a timing",
        ),
        ("WEBVTT\n\nid\n00:01.000 --> 00:02\na", "f.vtt, line 4: "),
        ("WEBVTT\n\n00:01.000 --> 00:60.000\na", "is not a timing"),
        ("WEBVTT\n\n00:01.000 --> 00:02.0000\na", "is not a timing"),
        ("WEBVTT\n\n0:01.000 --> 0:02.000\na", "is not a timing"),
        ("WEBVTT\n\n12345678:00:01.000 --> 00:02.000\na", "is not a timing"),
        ("WEBVTT\n\n٠٠:01.000 --> 00:02.000\na", "is not a timing"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000x\na", "is not a timing"),
        ("WEBVTT\n\nNOTE a --> b", "f.vtt, line 3: 'NOTE a --> b' is not a timing"),
    ],
)
def test_a_wrong_header_or_timing_is_refused(text: str, sentence: str) -> None:
    """With the file and the line."""
    with pytest.raises(CaptionsError) as caught:
        vtt(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_subrip_becomes_webvtt() -> None:
    """Numbers go, what is special in WebVTT is escaped, i, b, u and the place stay, empty lines go."""
    found = srt(
        "\ufeff\n1\n00:00:01,000 --> 00:00:02,500  X1:10 X2:20 Y1:1 Y2:-2\n"
        '<I>Hello</I> <font color="#fff">R&D</font> &amp; a < b\n\nanother line\n1984\n\n'
        "2\n 1:00:03.000 --> 01:00:04,000\n{\\an8}{\\c&H00&}up\n<font>\n\n"
        "00:00:03,000 --> 00:00:04,000\n<b><u>no number</b>\n3\n"
        "00:00:05,000 --> 00:00:06,000\n{\\an4}{kept} <x>\n\n4\n00:00:07,000 --> 00:00:08,000\n{\\an2}\n"
    )
    assert found.cues == (
        Cue(1000, 2500, "<i>Hello</i> R&amp;D &amp; a &lt; b\nanother line\n1984"),
        Cue(3000, 4000, "<b><u>no number</b>"),
        Cue(5000, 6000, "{kept} &lt;x&gt;", "line:50%,center align:left"),
        Cue(3_603_000, 3_604_000, "up", "line:0"),
    )
    assert found.notes == (
        "line 21: a cue without text was left out",
        "cues that were not in order of time were sorted",
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hello\n\n1\n00:00:01,000 --> 00:00:02,000\na", "f.srt, line 1: 'hello' is text before any timing"),
        ("hello", "f.srt, line 1: 'hello' is text before any timing"),
        ("1\n00:00:01,000 -> 00:00:02,000\na", "f.srt, line 1: '1' is text before any timing"),
        ("1\n00:00:01,000 --> 00:00:02\na", "f.srt, line 2: '00:00:01,000 --> 00:00:02' is not a timing"),
    ],
)
def test_what_is_not_subrip_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(CaptionsError) as caught:
        srt(text)
    assert sentence in str(caught.value)


def test_what_a_file_says_counts_for_more_than_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.SRT"
    path.write_text("WEBVTT\n\n00:01.000 --> 00:02.000\n&amp;", "utf-8")
    assert captions.read(path, "en").cues == (Cue(1000, 2000, "&amp;"),)
    path.write_text("00:00:01,000 --> 00:00:02,000\n&", "utf-8")
    assert captions.read(path, "en").cues == (Cue(1000, 2000, "&amp;"),)


ONE = b"WEBVTT\n\n00:01.000 --> 00:02.000\n"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (ONE + b"caf\xe9", "f, line 4: this is not UTF-8"),
        (ONE.replace(b"\n", b"\r\n") + b"ok\rcaf\xe9", "f, line 5: this is not UTF-8"),
        ("WEBVTT".encode("utf-16"), "f, line 1: this is not UTF-8"),
        (ONE + b"x" * 4097, "f, line 4: it is longer than 4096 characters"),
        (ONE + b"x\n" * (4 << 20), "f is longer than 8388608 bytes"),
        (ONE + b"x\n\n00:00.000-->00:01.000\n" * 100_000 + b"x", "f, line 300003: there are more than 100000 cues"),
        (b"WEBVTT\n" + b"\nSTYLE\n" + b"/* */\n" * 20_000, "f, line 3: styles and regions are longer"),
    ],
    ids=["latin1", "line", "utf16", "long line", "long", "cues", "styles"],
)
def test_hostile_files_are_bounded(data: bytes, sentence: str) -> None:
    with pytest.raises(CaptionsError) as caught:
        captions.parse(data, "f")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("head", "filler"),
    [
        ("<", " "),
        ("<font", " "),
        ("", "<font "),
        ("{\\", "x"),
        ("", "{\\"),
        ("</", "b"),
        ("", "\u00a0"),
        ("", "0"),
        ("", "a:"),
    ],
)
def test_no_line_is_slow_to_convert(head: str, filler: str) -> None:
    """A thousand of the worst lines; if one took quadratic time, all would be over the test's time limit."""
    line = (head + filler * 4096)[:4000]
    srt("00:00:01,000 --> 00:00:02,000\n" + f"{line}\n" * 1000)
    vtt("WEBVTT\n\n" + f"00:01.000 --> 00:02.000 {line}\n{line}\n" * 400)


@pytest.mark.parametrize("language", ["", "e", "en_US", "en-", "en\n", "e" * 9, "en" + "-abcdefgh" * 4])
def test_what_is_no_language_is_refused(tmp_path: Path, language: str) -> None:
    with pytest.raises(CaptionsError, match="is no language: give a BCP 47 tag"):
        captions.read(tmp_path / "a.vtt", language)


def test_a_path_that_holds_no_captions_is_refused(tmp_path: Path) -> None:
    """Nothing there, a pipe that nobody writes to, no permission, no cue."""
    with pytest.raises(CaptionsError, match="there is no file"):
        captions.read(tmp_path / "a.vtt", "en")
    os.mkfifo(tmp_path / "b.vtt")
    with pytest.raises(CaptionsError, match="there is no file"):
        captions.read(tmp_path / "b.vtt", "en")
    path = tmp_path / "c.vtt"
    path.write_text("WEBVTT\n", "utf-8")
    with pytest.raises(CaptionsError, match=r"c\.vtt has no cue that could be shown"):
        captions.read(path, "en")


def test_cues_past_the_end_are_cut_or_dropped() -> None:
    """The end is told to the millisecond below, so no cue outlasts the pictures."""
    cues = (Cue(0, 1000, "a"), Cue(500, 5000, "b"), Cue(1333, 1334, "c"), Cue(2000, 3000, "d"))
    found, notes = captions.trimmed(Captions("en", cues, BLOCKS), Fraction(4, 3))
    assert found == Captions("en", (cues[0], replace(cues[1], end=1333)), BLOCKS)
    assert notes == [
        "2 cue(s) begin after the end of the pictures, 00:00:01.333: they were dropped",
        "1 cue(s) last longer than the pictures, until 00:00:01.333: they were cut",
    ]
    assert captions.trimmed(found, Fraction(4, 3)) == (found, [])


def test_a_segment_is_a_whole_webvtt_file() -> None:
    """With the map of times, styles and regions; with no cue, when nobody speaks; and with full times in both."""
    found = captions.segments(
        Captions("en", (Cue(1000, 3000, "a", "line:0", "1"),), BLOCKS[:1]), [Fraction(2), Fraction(3)], Fraction(4)
    )
    head = "WEBVTT\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n\nSTYLE\n::cue(.loud) { color: red }\n"
    cue = "\n1\n00:00:01.000 --> 00:00:03.000 line:0\na\n"
    assert found == [head + cue, head + cue, head]


def test_segments_need_cuts_that_rise_and_cues_that_fit() -> None:
    some = Captions("en", (Cue(0, 1001, "a"),))
    for cuts in ([0], [1, 1], [2], [3, 1]):
        with pytest.raises(ValueError, match="rise"):
            captions.segments(some, [Fraction(cut) for cut in cuts], Fraction(2))
    with pytest.raises(ValueError, match="past the end"):
        captions.segments(some, [], Fraction(1))


def test_segments_of_lasting_cues_are_bounded() -> None:
    """A small file must not become a huge title."""
    hours = Captions("en", tuple(Cue(0, 36_000_000, "x" * 4000) for _ in range(100)))
    with pytest.raises(CaptionsError, match="the captions in en would be longer than"):
        captions.segments(hours, [Fraction(n) for n in range(1, 36_000, 2)], Fraction(36_000))


# What a text may consist of: any character, and what means something to one of the parsers.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")
WORDS = "<b> </b> <i.loud> &amp; & <00:00:01.000> -- > NOTE STYLE REGION WEBVTT 12 X-TIMESTAMP-MAP=MPEGTS:0 مرحبا"
PIECES = st.sampled_from([*WORDS.split(), " ", "\t", "\u2028", "\ufeff", "\u00a0"])
LINES = st.lists(CHARACTERS | PIECES, min_size=1, max_size=8).map("".join).filter(lambda line: "-->" not in line)
TEXTS = st.lists(LINES, min_size=1, max_size=3).map("\n".join).filter(lambda text: text.strip(" \t\f\n") != "")
IDS = LINES.map(lambda line: line.strip(" \t\f")).filter(
    lambda line: not line.startswith(("WEBVTT", "NOTE", "STYLE", "REGION"))
)
SETTINGS = st.lists(
    st.sampled_from(["line:-1", "align:start", "position:33.3%,center", "size:100%", "vertical:rl", "region:a"]),
    unique=True,
).map(" ".join)


@st.composite
def cue_lists(draw: st.DrawFn, latest: int = 20_000) -> tuple[Cue, ...]:
    """Up to a dozen cues by rising start, each with an id of its own or none."""
    ids = draw(st.lists(IDS, unique=True, max_size=12))
    spans = st.tuples(st.integers(0, latest - 1), st.integers(1, latest)).map(
        lambda s: (s[0], min(s[0] + s[1], latest))
    )
    return tuple(
        Cue(start, end, draw(TEXTS), draw(SETTINGS), name)
        for (start, end), name in zip(sorted(draw(st.lists(spans, max_size=12))), ids + [""] * 12, strict=False)
    )


@settings(max_examples=50)
@given(cue_lists(400_000_000), st.sampled_from([(), BLOCKS]))
def test_a_sidecar_reads_as_what_it_was_written_from(cues: tuple[Cue, ...], blocks: tuple[str, ...]) -> None:
    assert vtt(captions.sidecar(Captions("en", cues, blocks))) == Content(cues, blocks)


@settings(max_examples=50)
@given(cue_lists(), st.sets(st.fractions(0, 20, max_denominator=1001).filter(bool)).map(sorted))
def test_every_cue_is_in_every_segment_it_overlaps_and_in_no_other(
    cues: tuple[Cue, ...], cuts: list[Fraction]
) -> None:
    """With all that it is; so nothing is lost, and a player shows each cue for as long as it should."""
    end = Fraction(20_001, 1000)
    found = captions.segments(Captions("en", cues), cuts, end)
    assert len(found) == len(cuts) + 1
    for text, begins, ends in zip(found, [Fraction(0), *cuts], [*cuts, end], strict=True):
        shown = vtt(text.replace("\nX-TIMESTAMP-MAP=MPEGTS:0,LOCAL:00:00:00.000\n", "\n", 1)).cues
        assert shown == tuple(cue for cue in cues if cue.start < ends * 1000 and cue.end > begins * 1000)


@settings(max_examples=50)
@given(cue_lists(), st.fractions(0, 20))
def test_trimming_changes_nothing_before_the_end(cues: tuple[Cue, ...], seconds: Fraction) -> None:
    """At every millisecond of the presentation the same cues are shown as before; after it, none."""
    found, notes = captions.trimmed(Captions("en", cues), seconds)
    ends = int(seconds * 1000)
    assert all(cue.end <= seconds * 1000 for cue in found.cues)
    assert bool(notes) == (found.cues != cues)
    moments = {moment for cue in cues for moment in (cue.start, cue.end - 1) if moment < ends}
    for moment in moments:
        assert [(c.start, c.text) for c in found.cues if c.start <= moment < c.end] == [
            (c.start, c.text) for c in cues if c.start <= moment < c.end
        ]


TOKENS = (
    "WEBVTT 00:00:01.000 00:02.000 00:00:03,000 --> NOTE STYLE REGION ::cue{} id:a line:0 1 <i> </font> {\\an7} &"
)
SOUP = st.lists(
    st.sampled_from(TOKENS.split())
    | st.sampled_from(["00:00:01.000 --> 00:00:05.000", "00:00:01,000 --> 00:00:05,000", "\nSTYLE\na:b\n"])
    | st.sampled_from(["\n", "\n\n", "\r\n", "\r", " ", "a\n", " line:0\n", "\0", "\u00a0", "\ufeff"]),
    max_size=30,
).map(lambda pieces: "".join(pieces).encode())
BYTES = st.binary(max_size=200) | SOUP | SOUP.map(b"WEBVTT\n\n".__add__) | st.binary().map(ONE.__add__)


@given(BYTES, st.booleans())
def test_bytes_are_read_or_refused_with_a_sentence(data: bytes, srt: bool) -> None:
    """And what was read from anything at all is written so that it reads the same, with nothing left out."""
    try:
        found = captions.parse(data, "f", srt)
    except CaptionsError as error:
        sentence = str(error)
    else:
        sentence = "f, line 1: none"
        assert list(found.cues) == sorted(found.cues, key=lambda cue: cue.start)
        assert vtt(captions.sidecar(Captions("en", found.cues, found.blocks))) == Content(found.cues, found.blocks)
    assert sentence.startswith("f, line ")
    assert "\n" not in sentence


def as_ffmpeg_sees(binary: Ffmpeg, path: Path, codec: str = "copy") -> tuple[Cue, ...]:
    """What ffmpeg's reader makes of a file, by way of its WebVTT writer."""
    lines: list[str] = []
    binary.run(["-loglevel", "error", "-i", str(path), "-c", codec, "-f", "webvtt", "pipe:1"], lines.append)
    return webvtt.parse(lines, "ffmpeg").cues


@pytest.fixture(params=["ours", "/usr/bin/ffmpeg"])
def reader(request: pytest.FixtureRequest, binary: Ffmpeg) -> Ffmpeg:
    """The ffmpeg that a build uses, and the system's, which is years older."""
    if request.param == "ours":
        return binary
    if not Path(request.param).exists():
        pytest.skip("there is no ffmpeg of the system")
    return Ffmpeg(Path(request.param), "")


def test_ffmpeg_sees_the_same_cues_in_a_sidecar(reader: Ffmpeg, binary: Ffmpeg, tmp_path: Path) -> None:
    """Ids, times, settings and text. ffmpeg 5.1 stops reading at a style, so it gets none."""
    cues = (*CUES, Cue(360_005_000, 360_005_001, "<b>x</b>\n 2 \n3", "line:-1 vertical:rl", "42"))
    path = tmp_path / "a.vtt"
    blocks = BLOCKS if reader is binary else ()
    path.write_text(captions.sidecar(Captions("en", cues, blocks)), "utf-8")
    assert as_ffmpeg_sees(reader, path) == cues


def test_ffmpeg_sees_the_same_cues_in_every_segment(reader: Ffmpeg, tmp_path: Path) -> None:
    cues = tuple(Cue(n * 700, n * 700 + 1500, f"cue {n}", "", f"id {n}") for n in range(20))
    path = tmp_path / "a.vtt"
    cuts = [Fraction(4), Fraction(8)]
    for n, text in enumerate(captions.segments(Captions("en", cues), cuts, Fraction(15))):
        path.write_text(text, "utf-8")
        first, last = 4000 * n, (4000, 8000, 15_000)[n]
        assert as_ffmpeg_sees(reader, path) == tuple(cue for cue in cues if cue.start < last and cue.end > first)


def test_ffmpeg_reads_subrip_as_we_do(reader: Ffmpeg, tmp_path: Path) -> None:
    """Times and text of what needs no conversion."""
    path = tmp_path / "a.srt"
    path.write_bytes(
        "".join(
            f"{n}\r\n00:0{n}:00,00{n} --> 01:0{n}:59,999\r\nGrüße <i>{n}</i>\r\n- zwei\r\n\r\n" for n in range(1, 10)
        ).encode("utf-8-sig")
    )
    seen = as_ffmpeg_sees(reader, path, "webvtt")
    assert seen == captions.read(path, "de").cues
    assert len(seen) == 9
