"""The per-title ladder, on real pictures and with the real metric."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from oca.errors import ConfigError, FormatError, OcaError
from oca.store.verify import verify
from oca.title import model as title_format
from packager import package
from packager.encode.encoders import TUNINGS
from packager.encode.job import plan
from packager.ffmpeg import Ffmpeg
from packager.ladder import analysis, quality
from packager.ladder.rungs import read
from packager.package import Order
from packager.source.probe import probe

Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def small(make: Make, clip: Path) -> Path:
    """Two seconds of the real clip, 384 lines."""
    size = ("-an", "-t", "2", "-vf", "scale=-2:384")
    return make("small.mp4", "-i", str(clip), *size, "-c:v", "libx264", "-crf", "12")


class Told:
    """What ffmpeg is given."""

    def __init__(self) -> None:
        self.commands: list[str] = []

    def with_filter(self, name: str) -> int:
        return sum(name in command for command in self.commands)


def watched(binary: Ffmpeg) -> tuple[Ffmpeg, Told]:
    told = Told()
    return replace(binary, show=told.commands.append), told


@pytest.mark.long
def test_a_per_title_build(binary: Ffmpeg, make: Make, clip: Path, tmp_path: Path) -> None:
    """What was expected is what comes out; killed after the analysis, it is not made again."""
    # Forth, back and forth again, so that a third of it stands for all.
    there = "scale=-2:384,trim=end_frame=17,split=3[a][b][c];[b]reverse[d];[a][d][c]concat=3,setpts=N/25/TB"
    even = make("even.mp4", "-i", str(clip), "-an", "-vf", there, "-c:v", "libx264", "-crf", "12")
    order = Order(even, tmp_path, "t", "T", preset="ultrafast", ladder="per-title")
    seeing, told = watched(binary)

    def stop(step: str, done: int, total: int) -> None:
        if step == "encode":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        package.build(seeing, order, stop)
    # Three sizes at two or three quantizers, and all tunings at one.
    assert 3 + 4 < told.with_filter("libvmaf") <= 3 * 3 + 4
    told.commands.clear()
    built = package.build(seeing, order)
    assert told.with_filter("libvmaf") == len(built.title.tracks), "what is finished is measured, once"
    assert verify(built.path).problems == []
    assert title_format.read(built.path)[0] == built.title
    tracks = built.title.tracks
    assert 3 <= len(tracks) <= 10
    for one, other in pairwise(tracks):
        assert one.average_bandwidth < other.average_bandwidth
        assert one.height <= other.height
        assert other.quality["vmaf"] - one.quality["vmaf"] == pytest.approx(6, abs=3)
    for track in tracks:
        expected = float(track.reason.split()[2])
        assert track.quality["vmaf"] == pytest.approx(expected, abs=2)
        assert track.average_bandwidth == pytest.approx(1000 * int(track.name.split("-")[2]), rel=0.15)
    assert tracks[-1].quality["vmaf"] <= 96


def test_the_tuning_that_takes_least() -> None:
    """At equal quality, and by more than chance."""

    def trial(tuning: str, kbps: float, value: float = 70.0) -> analysis.Trial:
        return analysis.Trial("h264", 384, 30.0, kbps, value, tuning)

    def best(*others: analysis.Trial) -> str:
        return analysis.tuning_of([trial("", 100), *others], quality.VMAF)

    assert best(trial("one", 95), trial("other", 90)) == "other"
    assert best(trial("one", 99), trial("other", 120)) == "", "that is chance"
    assert best(trial("one", 95, 66.0), trial("other", 105, 74.0)) == "other"
    assert best(trial("one", 110, 71.0)) == ""


def test_no_trial_is_made_twice(binary: Ffmpeg, small: Path, tmp_path: Path) -> None:
    """What the comparison of tunings has shown of a size is not tried again; a single stretch stands for all here."""
    seeing, told = watched(binary)
    job = plan(probe(binary, small), (), "ultrafast")
    assert len(analysis.stretches(job)) == 1
    found = analysis.trials(seeing, job, ("h264",), quality.VMAF, tmp_path, 2)
    encoded = [command for command in told.commands if "libx264" in command]
    # Of the tunings one is taken, and what the others showed is not among the trials of the ladder.
    assert len(encoded) == len(found) + len(TUNINGS["h264"])
    assert len({(each.lines, each.crf) for each in found}) == len(found)


@pytest.mark.long
def test_an_interrupted_analysis_ends_at_once(binary: Ffmpeg, small: Path, tmp_path: Path) -> None:
    """No trial begins after that, and none goes on."""
    seeing, told = watched(binary)
    job = plan(probe(binary, small), (), "ultrafast")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analysis.trials(seeing, job, ("h264",), quality.VMAF, tmp_path, 1, stop)
    assert told.with_filter("libvmaf") <= 2
    assert not (tmp_path / "trials.json").exists()


@pytest.mark.long
def test_the_metric_means_something(binary: Ffmpeg, small: Path, make: Make, tmp_path: Path) -> None:
    """A picture is like itself, and the worse it is the less so, in both metrics, also at other sizes."""
    reference = make("reference.mkv", "-i", str(small), "-c:v", "libx264", "-qp", "0", "-preset", "ultrafast")
    good, bad = (
        make(f"{crf}.mp4", "-i", str(small), "-vf", "scale=-2:240", "-c:v", "libx264", "-crf", str(crf))
        for crf in (20, 45)
    )
    same = Path(shutil.copy(reference, tmp_path))
    # What does not say what its colours mean is no worse for that; what ends sooner is compared up to there.
    raw = make("reference.nut", "-i", str(reference), "-c:v", "rawvideo")
    short = make("short.mkv", "-i", str(reference), "-frames:v", "10", "-c:v", "copy")
    for scale in (quality.VMAF, quality.SSIM):
        told = [quality.measure(binary, scale.metric, good, each, (682, 384), tmp_path) for each in (reference, raw)]
        assert told[0] == pytest.approx(told[1], abs=1e-6)
        assert quality.measure(binary, scale.metric, reference, short, (682, 384), tmp_path) > scale.top
        seen = [
            quality.measure(binary, scale.metric, path, reference, (682, 384), tmp_path) for path in (same, good, bad)
        ]
        assert seen == sorted(seen, reverse=True)
        assert seen[0] > scale.top > seen[1] > seen[2] + 2 * scale.step
    with pytest.raises(quality.QualityError, match="cannot measure"):
        quality.measure(binary, "vmaf", tmp_path / "none.mp4", reference, (682, 384), tmp_path)


@pytest.mark.long
def test_without_vmaf(binary: Ffmpeg, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSIM decides, and it is said."""
    video = make("tiny.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=2", "-c:v", "libx264")
    monkeypatch.setattr(Ffmpeg, "filters", lambda _: frozenset({"ssim"}))
    built = package.build(binary, Order(video, tmp_path, "t", "T", preset="ultrafast", ladder="per-title"))
    assert "this ffmpeg was built without libvmaf: quality was measured as SSIM" in built.notes
    assert all(list(track.quality) == ["ssim-db"] for track in built.title.tracks)


def test_what_stands_for_a_film(binary: Ffmpeg, clip: Path) -> None:
    """A third of every segment of what is short; of a film some stretches of whole segments, spread over it."""
    source = probe(binary, clip)
    for seconds, expected in ((5.28, [(0, 34)]), (7, [(0, 34), (100, 125)]), (0.2, [(0, 2)])):
        job = plan(replace(source, end=seconds, audio=()), (), "medium")
        assert [(part.first, part.end) for part in analysis.stretches(job)] == expected
    film = plan(replace(source, end=7200.0, audio=()), (), "medium")
    parts = analysis.stretches(film)
    assert [part.frames for part in parts] == [100] * 4
    assert all(part.first % 100 == 0 for part in parts)
    assert [round(part.first / film.frames, 2) for part in parts] == [0.12, 0.37, 0.62, 0.87]


def test_trials_that_were_damaged(binary: Ffmpeg, small: Path, tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_text('[{"codec": 1}]')
    job = plan(probe(binary, small), (), "ultrafast")
    with pytest.raises(FormatError, match="remove it"):
        analysis.trials(binary, job, ("h264",), quality.VMAF, tmp_path, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "it is per-title, fixed, or a file"),
        ("[[rungs", "is wrong"),
        ("", "is wrong"),
        ("[[rungs]]\nlines = 720\nkbps = 0", "rungs"),
        ("[[rungs]]\nlines = 721\nkbps = 10", "multiple of 2"),
        ("[[rungs]]\nlines = 720\nkbps = 10\ncodec = 'vp9'", "vp9"),
        ("[[rungs]]\nlines = 720\nkbps = 10\nbitrate = 1", "bitrate"),
        ("[[rungs]]\nlines = 1080\nkbps = 10", "no rung of 720 lines or fewer"),
        ("[[rungs]]\nlines = 720\nkbps = 10\n[[rungs]]\nlines = 720\nkbps = 10", "same lines, rate and codec"),
    ],
)
def test_ladder_files_that_are_wrong(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "ladder.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read(path, 1280, 720)


def test_a_ladder_of_one_s_own(binary: Ffmpeg, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[[rungs]]\nlines = 360\nkbps = 400\n\n[[rungs]]\nlines = 360\nkbps = 200\ncodec = 'av1'\n\n"
        "[[rungs]]\nlines = 2160\nkbps = 9000\n"
    )
    built = package.build(binary, Order(small, tmp_path, "t", "T", preset="ultrafast", ladder=str(path)))
    assert [(track.name, track.width) for track in built.title.tracks] == [("v-360-400", 640), ("v-360-200-av1", 640)]


@pytest.mark.long
def test_analysis_on_the_command_line(run: Run, make: Make, tmp_path: Path) -> None:
    """`ladder --ladder per-title` shows the rungs and draws them; --plot without it is a sentence."""
    video = make("tiny.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=2", "-c:v", "libx264")
    wanted = ("ladder", video, "--ladder", "per-title", "--preset", "ultrafast")
    status, out, err = run(*wanted, "--json", "--plot", tmp_path / "plot.svg")
    assert status == 0
    told = json.loads(out)
    assert all(rung["crf"] and "vmaf" in rung["reason"] for rung in told["rungs"])
    assert json.loads(err.splitlines()[-1])["step"] == "analyse"
    drawn = (tmp_path / "plot.svg").read_text()
    assert drawn.startswith("<?xml")
    for words, sentence in (
        (("ladder", video, "--plot", "x.svg"), "add --ladder per-title"),
        ((*wanted, "--plot", "x.pdf"), "neither .svg nor .png"),
        ((*wanted, "--plot", tmp_path / "none" / "x.svg"), "create it first"),
    ):
        status, _, err = run(*words)
        assert status == 1
        assert sentence in err, shlex.join(map(str, words))
    assert issubclass(quality.QualityError, OcaError)
