"""Finding ffmpeg, and its ways to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from oca.errors import ConfigError
from packager import ffmpeg
from packager.ffmpeg import Ffmpeg, FfmpegError


def script(path: Path, body: str) -> Path:
    """A program that is not ffmpeg."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("echo 'ffmpeg version 4.4.2-0ubuntu0 Copyright'", "version 4.4, and 5.1 or newer is needed.*install ffmpeg"),
        ("echo hello", "does not say that it is ffmpeg"),
        ("echo 'ffmpeg version N-112345-gabcdef Copyright'", "without libx264 and aac"),
        ("exit 3", "ended with status 3"),
        ("echo broken library >&2; exit 1", "broken library"),
    ],
)
def test_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, sentence: str) -> None:
    """A program that cannot do the work is refused at the start, with what to install."""
    monkeypatch.setenv("OCA_FFMPEG", str(script(tmp_path / "ffmpeg", body)))
    with pytest.raises(ConfigError, match=sentence):
        ffmpeg.find()


def test_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong path is said to be one."""
    monkeypatch.setenv("OCA_FFMPEG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="No such file"):
        ffmpeg.find()


def test_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ffmpeg at all: a sentence with how to install one."""
    monkeypatch.delenv("OCA_FFMPEG", raising=False)
    monkeypatch.setattr(ffmpeg, "_bundled", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"there is no ffmpeg.*apt install ffmpeg"):
        ffmpeg.find()


def test_debian(monkeypatch: pytest.MonkeyPatch, clip: Path) -> None:
    """The distribution's ffmpeg is good enough."""
    monkeypatch.setenv("OCA_FFMPEG", "/usr/bin/ffmpeg")
    assert ffmpeg.find().path == Path("/usr/bin/ffmpeg")


def test_stubborn_program_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ignores the request to end is killed when its reader gives up."""
    monkeypatch.setattr(ffmpeg, "_TERMINATE_S", 0.2)
    seen: list[str] = []

    def give_up(line: str) -> None:
        seen.append(line)
        raise KeyboardInterrupt

    stubborn = Ffmpeg(script(tmp_path / "stubborn", "trap '' TERM; echo $$; while :; do :; done"), "")
    with pytest.raises(KeyboardInterrupt):
        stubborn.run([], give_up)
    assert not Path(f"/proc/{seen[0]}").exists()


def test_last_words(tmp_path: Path) -> None:
    """A failure carries the last thing the program said."""
    with pytest.raises(FfmpegError, match="second") as caught:
        Ffmpeg(script(tmp_path / "fails", "echo first >&2; echo second >&2; exit 1"), "").run([])
    assert caught.value.log == ["first", "second"]
