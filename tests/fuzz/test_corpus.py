"""Every input in the corpus through its target: what fuzzing found once stays fixed. No fuzzer is needed for that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, TARGETS

ROOT = Path(__file__).parents[2]
MOST_FILES, MOST_BYTES = 20, 2048


def inputs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


def shown(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


@pytest.mark.parametrize("path", inputs(CORPUS), ids=shown)
def test_an_input_of_the_corpus_is_handled(path: Path) -> None:
    """It is refused with the documented error, or parsed to something that holds together."""
    TARGETS[path.parent.name].load()(path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_at_all_is_handled(name: str) -> None:
    TARGETS[name].load()(b"")


def test_the_corpus_is_small_and_each_target_has_one() -> None:
    """It is kept for ever, so what does not reach further stays out."""
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    for folder in CORPUS.iterdir():
        sizes = [path.stat().st_size for path in folder.iterdir()]
        assert 0 < len(sizes) <= MOST_FILES, folder
        assert max(sizes) <= MOST_BYTES, folder


def runner(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_the_runner_lists_its_targets() -> None:
    done = runner("--list", "--json")
    assert [row["target"] for row in json.loads(done.stdout)] == list(TARGETS), done.stderr
