"""Real videos, made by the real encoder once per session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oca.title.digest import digest
from packager import ffmpeg, package
from packager.cli import main

CLIP = Path(__file__).parents[1] / "media" / "bigbuckbunny.mp4"
Make = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def binary() -> ffmpeg.Ffmpeg:
    """The ffmpeg that a build would use."""
    return ffmpeg.find()


@pytest.fixture(scope="session")
def clip() -> Path:
    """The real clip: 132 pictures of 1280x720 at 25/s, AAC 5.1."""
    return CLIP


@pytest.fixture(scope="session")
def make(binary: ffmpeg.Ffmpeg, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(name, *arguments): the file `name` that ffmpeg writes when given `arguments`; made once per session."""
    folder = tmp_path_factory.mktemp("media")

    def made(name: str, *arguments: str) -> Path:
        path = folder / digest(repr(arguments).encode())[:16] / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            binary.run(["-nostdin", "-loglevel", "error", "-y", *arguments, str(path)])
        return path

    return made


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A content store that the session's builds publish into."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def packaged(binary: ffmpeg.Ffmpeg, clip: Path, store: Path) -> package.Built:
    """The real clip as a published title, its sound in stereo, in chunks of 64,000 bytes; nobody may modify it."""
    order = package.Order(clip, store, "bbb", "Big Buck Bunny", preset="ultrafast", channels="stereo")
    return package.build(binary, replace(order, chunk_bytes=64_000))


@pytest.fixture(scope="session")
def grey(make: Make) -> Path:
    """A video of 210 s whose pictures tell their second: the light (Y) of all of it is 16 + 37 * second % 220."""
    told = "color=black:s=64x36:r=10:d=210,geq=lum='16+mod(37*floor(T),220)':cb=128:cr=128"
    return make("grey.mp4", "-f", "lavfi", "-i", told, "-c:v", "libx264", "-preset", "ultrafast", "-qp", "10")


@pytest.fixture(scope="session")
def subtitled(
    binary: ffmpeg.Ffmpeg, grey: Path, store: Path, tmp_path_factory: pytest.TempPathFactory
) -> package.Built:
    """A published title of 210 s with captions in four segments, and with two sheets of thumbnails."""
    folder = tmp_path_factory.mktemp("captions")
    english = ["00:00:01,000 --> 00:00:02,500\n<i>Hello</i> & bye", "00:00:58,000 --> 00:02:04,000\nAcross"]
    late = ["00:03:29,000 --> 00:04:00,000\nThe end", "00:05:00,000 --> 00:05:01,000\nToo late"]
    (folder / "en.srt").write_text("".join(f"{n}\n{cue}\n\n" for n, cue in enumerate([*english, *late], 1)))
    (folder / "de.vtt").write_text("WEBVTT\n\n00:02.000 --> 00:03.000\nGrün\n\n00:02.500 --> 00:04.000\nBlau\n")
    texts = (f"eng={folder}/en.srt", f"de:captions:Für Taube={folder}/de.vtt", f"en:forced={folder}/de.vtt")
    return package.build(
        binary, package.Order(grey, store, "grey", "Grey", preset="ultrafast", captions=texts, chunk=50)
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(*arguments): exit status, standard output and standard error of oca-pack."""

    def ran(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["oca-pack", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return int(caught.value.code or 0), output.out, output.err

    return ran
