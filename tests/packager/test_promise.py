"""What comes out is held against what was promised; faults are real: an ffmpeg, or a disk, that does otherwise."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from oca.store.content import FILLING, Store
from oca.store.verify import verify
from oca.title import model as title_format
from oca.title.digest import file_digest, version_of
from oca.title.model import File, Title, Track
from packager import package
from packager.ffmpeg import Ffmpeg, find
from packager.package import Built, Order
from packager.promise import PromiseError

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
Change = Callable[[Title], Title]
# A whole chunk of 4 s and another; packets of sound do not end with them.
PICTURES = ("-f", "lavfi", "-i", "testsrc2=s=64x36:r=25:d=5")
SIX = ("-f", "lavfi", "-i", "anullsrc=cl=5.1:r=48000:d=5")
FAST = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "pcm_s16le")


@pytest.fixture
def order(make: Make, tmp_path: Path) -> Order:
    """Five seconds with 5.1, and captions of which the last is too late, in both codecs of sound."""
    video = make("promised.mkv", *PICTURES, *SIX, *FAST)
    cues = ((1, 2), (2, 3), (4, 9), (7, 9))
    srt = tmp_path / "en.srt"
    srt.write_text("".join(f"{n}\n00:00:0{a},000 --> 00:00:0{b},000\nOf {n}\n\n" for n, (a, b) in enumerate(cues, 1)))
    asked = Order(video, tmp_path / "out", "t", "T", preset="ultrafast", chunk=4, thumbnails=False)
    return replace(asked, captions=(f"en={srt}",), audio_codecs=("aac", "opus"))


def lying(binary: Ffmpeg, folder: Path, right: str, wrong: str) -> Ffmpeg:
    """An ffmpeg that takes what it is told for something else."""
    script = folder / "ffmpeg"
    turned = f'for word in "$@"; do told+=("${{word//{right}/{wrong}}}"); done'
    script.write_text(f'#!/bin/bash\ntold=()\n{turned}\nexec {binary.path} "${{told[@]}}"\n')
    script.chmod(0o755)
    return replace(binary, path=script)


def refused(binary: Ffmpeg, order: Order, sentence: str, progress: package.Progress = lambda *_: None) -> None:
    """A build that ends with that one sentence, and leaves nothing behind."""
    with pytest.raises(PromiseError, match=sentence) as caught:
        package.build(binary, order, progress)
    assert re.fullmatch(
        r"what came out is not what was promised: [^\n]*; nothing was published: [^\n]*", str(caught.value)
    )
    assert list((order.out / FILLING).iterdir()) == []
    assert list(Store([order.out]).versions()) == []


def test_what_is_promised_comes(binary: Ffmpeg, order: Order, run: Run) -> None:
    """Nothing is wrong with what is right; captions have all cues but the one that is too late, which is said."""
    built = package.build(binary, order)
    assert [track.channels for track in built.title.tracks] == [0, 2, 6, 2, 6]
    assert {track.seconds for track in built.title.tracks} == {5.0}
    assert (built.path / "c-en.vtt").read_text().count("-->") == 3
    assert any("en.srt: 1 cue(s) begin after the end" in note for note in built.notes)
    assert run("verify", built.path)[0] == 0


def test_what_is_promised_comes_with_debian(order: Order, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old ffmpeg calls all sound stereo where nobody looks: what a decoder gets is what is said."""
    monkeypatch.setenv("OCA_FFMPEG", "/usr/bin/ffmpeg")
    built = package.build(find(), order)
    assert [track.channels for track in built.title.tracks] == [0, 2, 6, 2, 6]
    for track in built.title.tracks[1:]:
        told = ["ffprobe", "-v", "error", "-show_entries", "stream=channels", "-of", "csv=p=0"]
        seen = subprocess.run([*told, built.path / track.files[0]], capture_output=True, text=True, check=True)
        assert int(seen.stdout) == track.channels
    assert run("verify", built.path)[0] == 0


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ("240000", "237600", r": a-und-128 lasts 4\.950 s, not 5\.000 s, and 3 more such; "),
        ("240000", "242400", r": a-und-128 lasts 5\.050 s, not 5\.000 s, and 3 more such; "),
        ("channel_layouts=5.1", "channel_layouts=5.0", r": a-und-384 has 5 channel\(s\), not 6, and 1 more such; "),
        (
            "channel_layouts=stereo",
            "channel_layouts=mono",
            r": a-und-128 has 1 channel\(s\), not 2, and 1 more such; ",
        ),
        ("setpts=PTS-STARTPTS", "setpts=1.1*PTS", r"v-36-\d+ lasts 5\.\d+ s, not 5.000 s, and 1 more such; "),
    ],
)
def test_an_ffmpeg_that_does_otherwise(
    binary: Ffmpeg, order: Order, tmp_path: Path, right: str, wrong: str, sentence: str
) -> None:
    """Sound that is cut, too long or of other channels, and pictures that are shown for longer."""
    refused(lying(binary, tmp_path, right, wrong), order, sentence)
    assert verify(package.build(binary, order).path).problems == []


def test_pictures_that_went_missing(binary: Ffmpeg, order: Order) -> None:
    """A chunk that was whole when it was encoded, and is not when the title is made of it."""

    def cut(step: str, done: int, total: int) -> None:
        if step == "package" and not done:
            (chunk,) = (order.out / FILLING).glob(".build-*/encoded/v-*/00000/media.mp4")
            short = chunk.with_name("short.mp4")
            less = ("-c", "copy", "-frames:v", "120", "-video_track_timescale", "25")
            binary.run(["-loglevel", "error", "-i", str(chunk), *less, str(short)])
            short.replace(chunk)

    refused(binary, order, r"v-36-\d+ has 120 pictures, not 125, and \d more", cut)


@pytest.mark.parametrize("name", ["c-en.vtt", "c-en.1.vtt"])
def test_cues_that_went_missing(binary: Ffmpeg, order: Order, name: str) -> None:
    """Captions, as a whole or in segments, that are not all there."""

    def cut(step: str, done: int, total: int) -> None:
        if step == "package" and not done:
            (path,) = (order.out / FILLING).glob(f".build-*/version/{name}")
            path.write_text(path.read_text().rpartition("\n\n")[0] + "\n")

    whole = name == "c-en.vtt"
    refused(
        binary, order, r"c-en has 2 cue\(s\), not 3" if whole else "has 3 cues, its segments have 2, or others", cut
    )


def relisted(built: Built, folder: Path, change: Change, files: Mapping[str, bytes] | None = None) -> Path:
    """A copy of a version with another title.json and other `files`, every byte of which is as is said."""
    copy = shutil.copytree(built.path, folder / built.version)
    title = change(built.title)
    listed = dict(title.files)
    for name, content in (files or {}).items():
        (copy / name).write_bytes(content)
        found = file_digest(copy / name, title.chunk_bytes)
        listed[name] = File(found.bytes, found.whole, found.chunks, title.chunk_bytes)
    data = title_format.encode(structs.replace(title, files=listed))
    (copy / "title.json").write_bytes(data)
    moved = copy.rename(copy.with_name(version_of(data)))
    assert verify(moved).problems == []
    return moved


def of_track(number: int, **fields: object) -> Change:
    """Another title.json, in which a track is another."""

    def change(title: Title) -> Title:
        (period,) = title.periods
        tracks: list[Track] = list(period.tracks)
        tracks[number] = structs.replace(tracks[number], **fields)
        return structs.replace(title, periods=[structs.replace(period, tracks=tracks)])

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (of_track(-1, channels=6), r"a-und-128.mp4 has channels 2, not 6, as title.json says"),
        (of_track(-1, codecs="opus"), "a-und-128.mp4 has codecs mp4a.40.2, not opus, as"),
        (of_track(0, width=424), "v-240-235.mp4 has size 426x240, not 424x240, as"),
        (of_track(0, frame_rate="50", height=250), "has size 426x240, not 426x250 and frame rate 25, not 50, as"),
    ],
)
def test_a_title_that_says_otherwise(
    run: Run, packaged: Built, tmp_path: Path, change: Change, sentence: str
) -> None:
    """`verify` reads what tracks hold, too: bytes may be those that are listed, and yet of something else."""
    status, out, err = run("verify", relisted(packaged, tmp_path, change))
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert re.search(sentence, err)


def test_segments_with_other_cues(run: Run, subtitled: Built, tmp_path: Path) -> None:
    """`verify` reads captions twice: as a whole, and in segments."""
    content = (subtitled.path / "c-en.2.vtt").read_bytes().replace(b"Across", b"Beside")
    status, _, err = run("verify", relisted(subtitled, tmp_path, lambda title: title, {"c-en.2.vtt": content}))
    assert status == 1
    assert "c-en.vtt has 3 cues, its segments have 4, or others" in err
    assert err.count("\n") == 1


def test_a_track_of_something_else(run: Run, packaged: Built, tmp_path: Path) -> None:
    """A file that is no track file, or whose fragments leave a gap, is named."""
    whole = (packaged.path / "v-240-235.mp4").read_bytes()
    last = whole.rindex(b"tfdt") + 8
    for number, (content, sentence) in enumerate(
        (
            (whole.replace(b"moov", b"moon"), "v-240-235.mp4 is not a sound track file: 'moov'"),
            (whole[:last] + b"late" + whole[last + 4 :], r"segment 2 begins at tick \d+, the one before it ends at"),
        )
    ):
        path = relisted(packaged, tmp_path / str(number), lambda title: title, {"v-240-235.mp4": content})
        status, _, err = run("verify", path)
        assert status == 1
        assert re.search(sentence, err)
