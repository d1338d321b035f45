"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from oca.title import segments
from oca.title.model import read
from tests.bench.programs import DEADLINE_S, appear, gone

BENCH = Path(sys.executable).with_name("oca-bench")
CLIP = Path(__file__).parents[1] / "media" / "bigbuckbunny.mp4"
# Nine rungs, the largest of 1080 lines: a minute on two processors, many where they are busy.
PACKAGED_S = 600
Begin = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """begin(): the demo in tmp_path/demo; what it says is in tmp_path/said."""
    started: list[subprocess.Popen[bytes]] = []

    def demo() -> subprocess.Popen[bytes]:
        command = [BENCH, "demo", CLIP, "--port", "0", "--dir", tmp_path / "demo"]
        with (tmp_path / "said").open("wb") as said:
            process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        started.append(process)
        return process

    yield demo
    for process in started:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()


@pytest.mark.demo
@pytest.mark.long
@pytest.mark.timeout(900)
def test_once_watches_everything_loses_an_appliance_and_watches_it_again(tmp_path: Path) -> None:
    """The last line is one JSON object that counts the first time, the exit code 0, and nothing is left running."""
    command = [BENCH, "demo", CLIP, "--once", "--port", "0", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    (version,) = (path.parent for path in (tmp_path / "demo" / "origin" / "store" / "demo").glob("*/title.json"))
    indexes = [
        segments.decode((version / f"{track.name}.idx").read_bytes(), track.name) for track in read(version)[0].tracks
    ]
    assert last["ok"] is True
    assert last["segments"] == sum(len(index.segments) for index in indexes) == 9 * 15
    assert last["bytes"] == sum(segment.bytes for index in indexes for segment in index.segments)
    assert last["first"] in ("north-1", "north-2"), "the viewer is in the north"
    assert last["after_failure"] != last["first"]
    gone(tmp_path)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "during"),
    [
        pytest.param(signal.SIGINT, "oca-control", marks=pytest.mark.long),
        (signal.SIGTERM, "oca-pack"),
        (signal.SIGKILL, "oca-pack"),
    ],
)
def test_its_end_ends_every_process(tmp_path: Path, begin: Begin, number: int, during: str) -> None:
    """In the middle of its work, too, and even if it cannot do anything about it."""
    process = begin()
    appear(tmp_path, during, seconds=PACKAGED_S)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(DEADLINE_S) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    gone(tmp_path)


@pytest.mark.browser
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_its_page_kills_the_appliance_that_serves_and_both_players_move_on(
    tmp_path: Path, begin: Begin, page: Page
) -> None:
    """By keyboard; the appliance is started again, the demo goes on until Ctrl-C, and then nothing is left."""
    process = begin()
    deadline = time.monotonic() + PACKAGED_S
    while not (found := re.search(r"Watch it +(http://127\.0\.1\.99:\d+/)", (tmp_path / "said").read_text())):
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(found[1])
    patience = 1000 * DEADLINE_S
    both = "Object.values(oca).length === 2 && Object.values(oca)"
    page.wait_for_function(f"{both}.every(each => each.video.currentTime > 2)", timeout=patience)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.evaluate("oca.dash.served.at(-1)")
    button = f"li[data-box={box}] button"
    page.focus(button)
    page.keyboard.press("Enter")
    page.wait_for_function(f"box => {both}.every(each => each.served.at(-1) !== box)", arg=box, timeout=patience)
    assert page.get_attribute(button, "aria-label") == f"Start {box}"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"button[aria-label='Kill {box}']", timeout=patience)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 0
    gone(tmp_path)


@pytest.mark.parametrize(
    ("video", "words"),
    [("none.mp4", "there is no video at"), ("text.mp4", "oca-pack build failed")],
)
def test_a_video_that_is_none_is_one_sentence(tmp_path: Path, video: str, words: str) -> None:
    """And the JSON object says it, too."""
    (tmp_path / "text.mp4").write_text("this is not a video")
    command = [BENCH, "demo", tmp_path / video, "--once", "--port", "0", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["ok"] is False
    assert words in last["error"]


def test_a_directory_with_somebody_s_files_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = subprocess.run([BENCH, "demo", CLIP, "--dir", tmp_path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
