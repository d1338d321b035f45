"""`oca-fill` as a real process: killed and resumed, stopped, and asked how things stand."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from fill.staging import owned
from oca.config import ApplianceSettings
from oca.store.content import Store
from oca.title.digest import CHUNK_BYTES
from tests.conftest import MakeTitle
from tests.fill.conftest import Controller, StartBox

Program = asyncio.subprocess.Process
StartProgram = Callable[..., Awaitable[Program]]


@pytest.fixture
def config(settings: ApplianceSettings, tmp_path: Path) -> Path:
    """The settings as a file; one chunk in flight at a time, the window closed."""
    path = tmp_path / "oca.toml"
    hour = (time.gmtime().tm_hour + 6) % 24
    path.write_text(
        f'appliance = "north-1"\nstore = ["{settings.store[0]}"]\nurl = "http://127.0.0.1:1"\n'
        f'controllers = ["{settings.controllers[0]}"]\nstorage_bytes = {settings.storage_bytes}\n'
        f'[fill]\nparallel = 1\npoll_s = 0.1\nwindow_start = "{hour:02}:00"\nwindow_hours = 1\n'
    )
    return path


@pytest.fixture
def start_program(config: Path) -> StartProgram:
    """Start oca-fill with the settings: start_program("run", "--once")."""

    async def begin(*arguments: str, settings: bool = True) -> Program:
        named = ["--config", str(config)] if settings else []
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from fill.cli import main; main()", *arguments, *named),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    return begin


async def test_kill_9_and_resume(
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    store: Store,
    start_program: StartProgram,
) -> None:
    """Killed in the middle, the next start fetches only the chunk that was in flight."""
    made = make_title(origin_root, v1=[CHUNK_BYTES, CHUNK_BYTES, 5000], a1=[700])
    origin = await box("origin-1", holds=lambda name, chunk: chunk == 2)
    controller.plan((made, ["a1", "v1"]))
    controller.sources = lambda track: [origin.source()]
    first = await start_program("run", "--now")
    # Chunks are fetched one at a time here: that the third is asked for proves that the second is recorded.
    await origin.held_back.wait()
    first.kill()
    await first.communicate()
    held = store.held(made.id, made.version)
    assert held is not None
    assert held.tracks == {"a1"}
    origin.release.set()
    second = await start_program("run", "--now", "--once")
    _, errors = await second.communicate()
    assert second.returncode == 0, errors
    held = store.held(made.id, made.version)
    assert held is not None
    assert held.tracks == {"a1", "v1"}
    assert (held.directory / "v1.mp4").read_bytes() == made.bytes_of("v1.mp4")
    assert origin.asked("v1.mp4") == [0, 1, 2, 2]
    names = [name for name, _ in origin.log if name != "v1.mp4"]
    assert len(names) == len(set(names))
    done = next(row for row in controller.reports[-1].progress if row.track == "v1")
    assert (done.state, done.bytes - done.fetched["origin-1"]) == ("done", 2 * CHUNK_BYTES)


async def test_a_second_agent_refuses(start_program: StartProgram, store: Store) -> None:
    """In one sentence, which says what to do."""
    with owned(store):
        program = await start_program("run", "--once")
        _, errors = await program.communicate()
    assert (program.returncode, errors.count(b"\n")) == (1, 1)
    assert b"another oca-fill is at work on the store" in errors
    assert b"stop it first" in errors


@pytest.mark.parametrize(
    ("number", "arguments", "status"),
    [
        (signal.SIGTERM, ["--now"], 0),
        (signal.SIGTERM, ["--now", "--once"], 1),
        (signal.SIGINT, ["--now"], 130),
    ],
)
async def test_signals(
    make_title: MakeTitle,
    origin_root: Path,
    box: StartBox,
    controller: Controller,
    start_program: StartProgram,
    number: signal.Signals,
    arguments: list[str],
    status: int,
) -> None:
    """A signal in the middle of a transfer ends the program at once, without a traceback."""
    made = make_title(origin_root)
    origin = await box("origin-1", holds=lambda name, chunk: True)
    controller.plan((made, ["v1"]))
    controller.sources = lambda track: [origin.source()]
    program = await start_program("run", *arguments)
    await origin.held_back.wait()
    program.send_signal(number)
    # The source holds its answer back for good, so who waits for it never ends.
    async with asyncio.timeout(60):
        _, errors = await program.communicate()
    assert program.returncode == status
    assert b"Traceback" not in errors
    assert all(msgspec.json.decode(line)["program"] == "oca-fill" for line in errors.splitlines())


async def test_once_outside_the_window(
    make_title: MakeTitle, origin_root: Path, controller: Controller, start_program: StartProgram
) -> None:
    """One look outside the window fetches nothing and says by its status that something is missing."""
    controller.plan((make_title(origin_root), ["v1"]))
    program = await start_program("run", "--once")
    await program.communicate()
    assert program.returncode == 1
    assert controller.reports[-1].outside_window


async def test_status(
    make_title: MakeTitle, origin_root: Path, controller: Controller, start_program: StartProgram, store: Store
) -> None:
    """Window, missing and staged files, for people and as JSON; an unreachable controller is said, not fatal."""
    made = make_title(origin_root)
    controller.plan((made, ["v1"]))
    (store.staging(made.id, made.version) / "v1.mp4").write_bytes(b"half")
    program = await start_program("status", "--json")
    output, _ = await program.communicate()
    found = msgspec.json.decode(output)
    assert [row["track"] for row in found["missing"]] == ["v1"]
    assert [(row["name"], row["chunks"], row["of"]) for row in found["staging"]] == [("v1.mp4", 0, 1)]
    assert found["window"]["open"] is False
    program = await start_program("status")
    output, _ = await program.communicate()
    for words in (b"1 tracks missing", b"closed until", b"v1.mp4", b"0 of 1"):
        assert words in output
    controller.status = 503
    program = await start_program("status")
    output, _ = await program.communicate()
    assert program.returncode == 0
    assert b"No plan to compare with" in output


async def test_window(start_program: StartProgram, config: Path) -> None:
    """The next opening and closing, in UTC and in local time."""
    program = await start_program("window", "--json")
    output, _ = await program.communicate()
    found = msgspec.json.decode(output)
    assert (found["open"], found["always"]) == (False, False)
    assert found["opens"] < found["closes"]
    assert found["opens_local"].endswith("+00:00")
    program = await start_program("window")
    output, _ = await program.communicate()
    assert b"opens next" in output
    config.write_text(config.read_text().replace("window_hours = 1", "window_hours = 24"))
    program = await start_program("window")
    output, _ = await program.communicate()
    assert b"never closes" in output
    program = await start_program("status")
    output, _ = await program.communicate()
    assert b"Window: always open." in output


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("poll_s = 0.1", 'timezone = "Mars/Olympus"', b"'Mars/Olympus' is not a time zone"),
        ('store = ["', 'store = ["/proc/none', b"cannot be written"),
        ("poll_s = 0.1", "pol_s = 0.1", b"pol_s"),
    ],
)
async def test_bad_settings(start_program: StartProgram, config: Path, old: str, new: str, words: bytes) -> None:
    """What is wrong with the settings or the store is one sentence and status 1."""
    config.write_text(config.read_text().replace(old, new))
    program = await start_program("run", "--once")
    _, errors = await program.communicate()
    assert program.returncode == 1
    assert words in errors
    assert errors.count(b"\n") == 1


async def test_usage(start_program: StartProgram) -> None:
    """A command line that cannot be understood is status 2; help is there for who asks."""
    program = await start_program("run", settings=False)
    await program.communicate()
    assert program.returncode == 2
    program = await start_program("--help", settings=False)
    output, _ = await program.communicate()
    assert program.returncode == 0
    assert b"status" in output
