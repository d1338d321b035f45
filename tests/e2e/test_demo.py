"""The demo, as a newcomer runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(sys.executable).with_name("oca-bench")
CLIP = Path(__file__).parents[1] / "media" / "bigbuckbunny.mp4"


def programs(directory: Path) -> list[str]:
    """Command lines of running processes that use this directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(directory) in line and "oca-bench" not in line:
            found.append(line)
    return found


@pytest.mark.demo
@pytest.mark.long
@pytest.mark.timeout(240)
def test_once_watches_everything_loses_an_appliance_and_watches_it_again(tmp_path: Path) -> None:
    """The last line is one JSON object, the exit code 0, and nothing is left running."""
    command = [BENCH, "demo", CLIP, "--once", "--port", "0", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=230)
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["ok"] is True
    assert last["segments"] == 2 * 9 * 15, "all fifteen segments of nine tracks, twice"
    assert last["bytes"] > 1e8
    assert {last["first"], last["after_failure"]} == {"north-1", "north-2"}
    assert last["noticed_s"] < 6, "dead after 3 s without a heartbeat"
    assert programs(tmp_path) == []


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("number", "during"), [(signal.SIGINT, "oca-control"), (signal.SIGTERM, "oca-pack")])
def test_ctrl_c_ends_every_process(tmp_path: Path, number: int, during: str) -> None:
    """In the middle of its work, too."""
    command = [BENCH, "demo", CLIP, "--port", "0", "--dir", tmp_path / "demo"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(during in line for line in programs(tmp_path)):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 0
    assert programs(tmp_path) == []


@pytest.mark.parametrize(
    ("video", "words"),
    [("none.mp4", "there is no video at"), ("text.mp4", "oca-pack build failed")],
)
def test_a_video_that_is_none_is_one_sentence(tmp_path: Path, video: str, words: str) -> None:
    (tmp_path / "text.mp4").write_text("this is not a video")
    command = [BENCH, "demo", tmp_path / video, "--once", "--port", "0", "--dir", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_directory_with_somebody_s_files_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = subprocess.run([BENCH, "demo", CLIP, "--dir", tmp_path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
