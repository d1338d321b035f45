"""`oca-pack play`: a version on disk plays in a real browser, in each player, without any fleet."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from bench.fleet import Fleet, free_ports, script
from tests.programs import port_of

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(300)]
FILES = ("manifest.mpd", "ondemand.mpd", "master.m3u8", "master.ranges.m3u8")


@pytest.fixture
def play() -> Callable[..., tuple[subprocess.Popen[str], str]]:
    """play(path, *options): the program, and its URL."""
    started: list[subprocess.Popen[str]] = []

    def begin(path: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [script("oca-pack"), "play", str(path), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " plays at http://127.0.0.1:" in line, line or process.communicate(timeout=60)
        return process, line.split(" plays at ")[1].split()[0]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_title_on_disk_plays_in_every_player_and_ctrl_c_ends_it(fleet: Fleet, page: Page, play) -> None:
    """By segments and by byte ranges, one after the other in the same page; the port is the one asked for."""
    port = next(free_ports("127.0.0.1", 0))
    process, url = play(fleet.boxes["origin"].store / "demo", "--port", str(port))
    assert url == f"http://127.0.0.1:{port}/"
    refused: list[str] = []
    page.on("response", lambda response: refused.append(response.url) if response.status >= 400 else None)
    page.goto(url)
    assert page.text_content("h1") == "Demo"
    for name in FILES:
        page.click(f"button[data-file='{name}']")
        page.wait_for_function(
            "name => shown.file === name && (shown.video.currentTime > 1 || shown.errors.length)",
            arg=name,
            timeout=60_000,
        )
        assert page.evaluate("shown.errors") == []
        assert page.evaluate("shown.video.webkitDecodedFrameCount") > 0
    assert refused == []
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, ("", ""))


def test_what_cannot_be_played_is_one_sentence(fleet: Fleet, tmp_path: Path) -> None:
    """No title, directories of other names, a missing file, a port that is taken."""
    (version,) = (path for path in (fleet.boxes["origin"].store / "demo").iterdir() if len(path.name) == 32)
    shutil.copytree(version, tmp_path / "renamed")
    cut = shutil.copytree(version, tmp_path / "demo" / version.name)
    next(cut.glob("*.idx")).unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, words in (
            ((tmp_path / "none",), "is no version's and no title's directory"),
            ((tmp_path / "renamed",), "is not named TITLE/VERSION"),
            ((tmp_path / "demo",), "lacks files that it lists"),
            ((version, "--port", port_of(taken)), "cannot listen on 127.0.0.1:"),
        ):
            command = [script("oca-pack"), "play", *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=100)
            assert done.returncode == 1, done
            assert words in done.stderr
            assert done.stderr.count("\n") == 1, done.stderr
