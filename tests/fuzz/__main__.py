"""Fuzzes the parsers that read hostile bytes: each target in a process of its own, two at once, a minute each.

Guided by coverage where atheris is installed, by chance where it is not. What is found is written to a file, with
the command that repeats it; exit status 1 then. Inputs that reached something new are kept in .cache/fuzz between
runs; what is worth keeping for ever belongs into tests/fuzz/corpus/TARGET.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "fuzz"
# Where targets put their files: thousands a second.
_MEMORY = Path("/dev/shm")
_TELL_S = 10.0
# One input may take this long and this much; far more than any needs, so that a busy machine finds nothing.
_INPUT_S, _MEMORY_MB = 20, 2048
_PULSE = re.compile(r"^#([0-9]+)\t\S+(?:\s+cov: ([0-9]+))?", re.MULTILINE)
_ERRORS = (re.compile(r"=== Uncaught Python exception: ===\n(.+)"), re.compile(r"ERROR: (libFuzzer: .+)"))


@dataclass
class Outcome:
    """What a run of one target came to. `coverage`: branches and comparisons reached, 0 where it is not measured."""

    target: str
    seconds: float
    runs: int
    coverage: int
    failed: str = ""
    """What went wrong, "" if nothing did."""
    input: str = ""
    """The file with the input that did it."""
    repeat: str = ""
    """The command that does it again."""


class Running:
    """One target in its process."""

    def __init__(self, target: Target, seconds: float, guided: bool) -> None:
        self.target = target
        self._folder = CACHE / target.name
        self._found = self._folder / "found"
        kept = self._folder / "corpus"
        for folder in (self._found, kept):
            folder.mkdir(parents=True, exist_ok=True)
        self._before = set(self._found.iterdir())
        folders = [str(folder) for folder in (kept, target.corpus) if folder.is_dir()]
        command = [sys.executable, "-m", "tests.fuzz.one"]
        if guided:
            if target.words:
                words = self._folder / "words"
                words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
                folders.insert(0, f"-dict={words}")
            command += [
                "guided",
                target.name,
                f"-max_total_time={max(1, round(seconds))}",
                f"-max_len={target.longest}",
                f"-artifact_prefix={self._found}/",
                f"-timeout={_INPUT_S}",
                f"-rss_limit_mb={_MEMORY_MB}",
                *folders,
            ]
        else:
            command += ["blind", target.name, str(seconds), str(self._found), *folders]
        self.started = time.monotonic()
        self._log = self._folder / "log"
        # Its own, and removed from here: libFuzzer ends its process without a chance to tidy up.
        self._scratch = tempfile.TemporaryDirectory(prefix="oca-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
        environment = {**os.environ, "TMPDIR": self._scratch.name}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT, env=environment
            )

    @property
    def ended(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    def outcome(self) -> Outcome:
        """What it has come to so far."""
        text = self._log.read_text("utf-8", "replace")
        pulses = _PULSE.findall(text)
        runs, coverage = (int(pulses[-1][0]), max(int(found or 0) for _, found in pulses)) if pulses else (0, 0)
        made = Outcome(self.target.name, round(time.monotonic() - self.started, 1), runs, coverage)
        if self._process.poll():
            said = next((found[1] for pattern in _ERRORS if (found := pattern.search(text))), "")
            last = text.rstrip().rpartition("\n")[2]
            made.failed = said or last or f"it ended with status {self._process.returncode}"
            fresh = sorted(set(self._found.iterdir()) - self._before, key=lambda path: path.stat().st_mtime)
            if fresh:
                made.input = str(fresh[-1].relative_to(ROOT))
                made.repeat = f"{Path(sys.executable)} -m tests.fuzz --only {self.target.name} --repeat {made.input}"
        return made

    def end(self) -> None:
        """End it, if it has not ended by itself, and tidy up."""
        self._process.kill()
        self._process.wait()
        self._scratch.cleanup()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def fuzz(targets: Sequence[Target], seconds: float, jobs: int, guided: bool) -> list[Outcome]:
    """Run them all, telling on stderr how it goes."""
    waiting, running, outcomes = list(targets), list[Running](), list[Outcome]()
    told = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Running(waiting.pop(0), seconds, guided))
            time.sleep(0.1)
            for one in [one for one in running if one.ended]:
                running.remove(one)
                outcomes.append(one.outcome())
                one.end()
                _tell(outcomes[-1], f"{len(outcomes)} of {len(targets)}")
            if time.monotonic() - told >= _TELL_S:
                told = time.monotonic()
                for one in running:
                    _tell(one.outcome(), "…")
    finally:
        for one in running:
            one.end()
    return outcomes


def _tell(outcome: Outcome, where: str) -> None:
    reached = f", coverage {outcome.coverage}" if outcome.coverage else ""
    sys.stderr.write(f"{where:>9}  {outcome.target}: {outcome.runs:,} inputs in {outcome.seconds:.0f} s{reached}\n")
    if outcome.failed:
        sys.stderr.write(f"error: {outcome.target}: {outcome.failed}\n")
    if outcome.repeat:
        sys.stderr.write(f"       repeat it with: {outcome.repeat}\n")
    sys.stderr.flush()


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default: 60)")
    parser.add_argument("--only", action="append", metavar="TARGET", choices=TARGETS, help="may be repeated")
    parser.add_argument("--jobs", type=int, default=2, help="targets at once (default: 2)")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="run one target on one input, without a fuzzer")
    parser.add_argument("--list", action="store_true", help="list the targets")
    parser.add_argument("--json", action="store_true", help="print the list, or the outcome, as JSON")
    asked = parser.parse_args()
    chosen = [target for target in TARGETS.values() if not asked.only or target.name in asked.only]
    if asked.list:
        rows = [{"target": target.name, "about": target.about} for target in chosen]
        sys.stdout.write(
            f"{json.dumps(rows)}\n" if asked.json else "".join(f"{t.name:16} {t.about}\n" for t in chosen)
        )
        return 0
    if asked.repeat:
        if len(chosen) != 1:
            parser.error("--repeat needs --only with one target")
        command = [sys.executable, "-m", "tests.fuzz.one", "repeat", chosen[0].name, str(asked.repeat.resolve())]
        return 1 if subprocess.run(command, cwd=ROOT).returncode else 0
    guided = importlib.util.find_spec("atheris") is not None
    if not guided:
        sys.stderr.write("atheris is not installed here: inputs are made by chance, not guided by coverage\n")
    outcomes = fuzz(chosen, asked.seconds, max(1, asked.jobs), guided)
    if asked.json:
        sys.stdout.write(f"{json.dumps([asdict(outcome) for outcome in outcomes])}\n")
    return 1 if any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
