"""oca-pack as a person and a script see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from oca.store.content import FILLING
from packager.package import Built

Run = Callable[..., tuple[int, str, str]]


def test_build(run: Run, make: Callable[..., Path], tmp_path: Path) -> None:
    """build publishes, says where on the last line, and with --json in one object."""
    video = make("Small Clip.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=5", "-c:v", "libx264")
    arguments = ("build", video, "--out", tmp_path, "--preset", "ultrafast", "--loop-to", "9")
    status, out, _ = run(*arguments, "--json")
    told = json.loads(out)
    assert status == 0
    assert sorted(told) == ["bytes", "encoded", "path", "pieces", "seconds", "title", "tracks", "version"]
    assert (told["title"], told["tracks"], told["seconds"]) == ("small-clip", ["v-240-235"], 9)
    assert told["bytes"] == sum(f.stat().st_size for f in Path(told["path"]).iterdir() if f.name != "title.json")
    status, out, err = run(*arguments)
    assert (status, out.splitlines()[-1]) == (0, f"published {told['path']}")
    assert "note: it is played 2 times, to 9 s" in err


def test_what_a_program_sees_of_a_build(run: Run, make: Callable[..., Path], tmp_path: Path) -> None:
    """With --json: progress as lines on stderr that come to an end; with --show-commands: what ffmpeg is given."""
    video = make("Small Clip.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=5", "-c:v", "libx264")
    status, _, err = run(
        *("build", video, "--out", tmp_path, "--preset", "ultrafast", "--json", "--show-commands"),
    )
    assert status == 0
    commands = [line for line in err.splitlines() if not line.startswith("{")]
    told = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert len(commands) == 4, "two looks at the source, one encode, and one for the thumbnails"
    assert " -c:v libx264 " in commands[2]
    for step, total in (("encode", 125), ("thumbnails", 1), ("package", 1)):
        of_step = [each for each in told if each["step"] == step]
        done = [each["done"] for each in of_step]
        assert done == sorted(set(done))
        assert (of_step[-1]["done"], of_step[-1]["total"]) == (total, total)
        assert of_step[-1]["seconds_left"] in (0, None)


def test_verify(run: Run, packaged: Built, tmp_path: Path) -> None:
    """verify exits 0 for a sound title, and 1 naming file and chunk after one byte was flipped."""
    assert run("verify", packaged.path.parent)[0] == 0
    copy = shutil.copytree(packaged.path, tmp_path / "bbb" / packaged.version)
    with (copy / "v-720-3000.mp4").open("r+b") as file:
        file.seek(200_000)
        byte = file.read(1)
        file.seek(200_000)
        file.write(bytes([byte[0] ^ 1]))
    status, out, err = run("verify", tmp_path / "bbb")
    assert (status, out) == (1, "")
    assert "v-720-3000.mp4 is corrupt in chunk 3 (bytes 192000 to 255999)" in err
    status, out, _ = run("verify", tmp_path / "bbb", "--json")
    told = json.loads(out)
    assert (status, told["ok"]) == (1, False)
    assert told["versions"][0]["problems"][0]["file"] == "v-720-3000.mp4"


def test_inspect(run: Run, packaged: Built) -> None:
    """inspect lists every track."""
    status, out, _ = run("inspect", packaged.path)
    assert status == 0
    assert all(track.name in out for track in packaged.title.tracks)
    told = json.loads(run("inspect", packaged.path.parent, "--json")[1])
    assert [track["name"] for track in told[0]["tracks"]] == [track.name for track in packaged.title.tracks]


def test_ladder(run: Run, clip: Path) -> None:
    """ladder shows the rungs, with reasons, and encodes nothing."""
    status, out, _ = run("ladder", clip)
    assert status == 0
    assert "v-720-3000" in out
    told = json.loads(run("ladder", clip, "--json")[1])
    assert [rung["kbps"] for rung in told["rungs"]] == [235, 375, 560, 750, 1050, 1750, 2350, 3000]
    assert told["notes"] == ["its 5.1 audio is there in stereo, too"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{folder}/text.mp4"], "not a video"),
        (["{folder}/cut.mp4"], "truncated"),
        (["{folder}/none.mp4"], "there is no file"),
        (["{clip}", "--title", "../x"], "title id '../x' is not an id"),
    ],
)
def test_bad_input(run: Run, clip: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    """Bad input: one sentence, exit 1, nothing published, no staging left."""
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:500_000])
    out = tmp_path / "out"
    filled = [each.format(folder=tmp_path, clip=clip) for each in arguments]
    status, stdout, err = run("build", *filled, "--out", out)
    assert (status, stdout, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ")
    assert sentence in err
    assert not out.exists() or not list((out / FILLING).iterdir())


def test_out_that_is_a_file(run: Run, clip: Path, tmp_path: Path) -> None:
    """A store that cannot be written: one sentence, exit 1."""
    (tmp_path / "out").touch()
    status, _, err = run("build", clip, "--out", tmp_path / "out")
    assert status == 1
    assert "cannot be written" in err


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_corrupt_title(run: Run, tmp_path: Path, command: str) -> None:
    """A corrupt title.json: one sentence, exit 1."""
    (tmp_path / "title.json").write_text('{"format": 99}')
    status, _, err = run(command, tmp_path)
    assert status == 1
    assert "format 99" in err


@pytest.mark.parametrize(
    "arguments", [["build"], ["build", "x", "--out", "y", "--preset", "warp"], ["unknown"], ["ladder", "x", "--loop"]]
)
def test_usage(run: Run, arguments: list[str]) -> None:
    """Wrong usage exits 2."""
    assert run(*arguments)[0] == 2


@pytest.mark.parametrize("command", ["build", "verify", "inspect", "ladder"])
def test_help(run: Run, command: str) -> None:
    """Every command explains itself."""
    status, out, _ = run(command, "--help")
    assert status == 0
    assert "--json" in out
