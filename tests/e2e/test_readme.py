"""The README works: every command of its steps, as printed, in one shell."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from bench.fleet import free_ports

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_the_steps_of_the_readme_work_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) >= 7
    # A step that fails ends the servers too: they would keep the output open.
    steps = "\n".join(blocks).replace("/tmp/oca", str(tmp_path / "oca"))
    # Somebody's servers may be listening where the README's do.
    printed = sorted(set(re.findall(r"127\.0\.0\.1:(\d+)", steps)))
    for port, free in zip(printed, free_ports("127.0.0.1", 0), strict=False):
        steps = steps.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
    script = f"trap 'kill $(jobs -p) 2>&-' EXIT; set -euo pipefail\n{steps}"
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            said, _ = shell.communicate(timeout=220)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, said[-4000:]
    assert re.search(r"1 appliances hold what the plan wants; fetched \S+ \S+ from origin", said), said[-4000:]
    assert "127.0.0.1 is in zone berlin, by 127.0.0.0/8 from coverage" in said
    sent = int(re.search(r'way="sendfile"} (\d+)', said)[1])
    copied = int(re.search(r'way="copy"} (\d+)', said)[1])
    assert sent > 10 * copied
