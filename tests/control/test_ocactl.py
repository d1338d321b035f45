"""`ocactl` against `oca-control`, both as an operator runs them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from control.ctl.client import Controller, ControllerError, fetch, size
from control.ctl.titles import check_named
from control.ocactl import main
from oca import wire
from oca.handover import listen
from oca.http.accesslog import AccessLog
from oca.http.server import Server
from oca.http.slices import Slices
from oca.store.content import Store
from oca.title import model as title
from oca.wire import FillProgress, FillReport
from tests.conftest import MakeTitle
from tests.control.conftest import COVERAGE, demand_csv
from tests.control.test_operator_cli import Done, here, run
from tests.programs import said, started

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a controller in a process of its own."""
    root = tmp_path_factory.mktemp("controller")
    (root / "control.toml").write_text(
        f'database = "sqlite+aiosqlite:///{root}/control.db"\n'
        'public_url = "http://control.example"\nlisten = "127.0.0.1:0"\n[api]\nopen = true\n'
    )
    command = [str(BIN / "oca-control"), "serve", "--config", str(root / "control.toml")]
    with started(command) as process:
        yield f"http://127.0.0.1:{said(process, 'serving')['port']}"
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0


def ocactl(url: str, *arguments: object, run: Callable[[str, Sequence[str], dict[str, str]], Done] = here) -> Done:
    """A command in this process: dozens of starts of another one take minutes on a busy machine."""
    # Not the token of the person who runs the tests.
    own = {"HOME": "/nonexistent", "OCACTL_TOKEN": ""}
    environment = os.environ | own | {"OCA_CONTROLLER": url, "COLUMNS": "200"}
    return run("ocactl", [*map(str, arguments)], environment)


def test_an_operators_day(controller: str, make_title: MakeTitle, tmp_path: Path) -> None:
    """From titles to fills: every command in words and as JSON, the words naming what they are about."""
    made, new = make_title(tmp_path / "s", seed=1), make_title(tmp_path / "s", seed=2)
    other = make_title(tmp_path / "s", name="other", seed=3)
    coverage = tmp_path / "coverage.json"
    coverage.write_text(json.dumps(COVERAGE))
    demand = tmp_path / "demand.csv"
    demand.write_bytes(demand_csv(("north", "clip", 100), ("north", "soon", 1)))
    north = ("--site", "north", "--url", "http://north-1.example")

    def both(*arguments: object, words: str) -> Any:
        """Run a command for a person and for a program; the JSON."""
        for options in ((), ("--json",)):
            done = ocactl(controller, *arguments, *options)
            assert done.returncode == 0, done.stderr
            assert (done.stderr == "") != ("--wait" in arguments)
            if not options:
                for word in words.split():
                    assert word in done.stdout, done.stdout
        return json.loads(done.stdout)

    assert both("title", "list", words="title held") == []
    assert both("title", "add", made.directory, words=f"clip {made.version} active")["version"] == made.version
    both("title", "add", other.directory.parent, words=f"other {other.version}")
    both("title", "add", new.directory, words=new.version)
    both("title", "activate", "clip", made.version, words=f"clip {made.version}")
    assert [title["id"] for title in both("title", "list", words="clip other")] == ["clip", "other"]
    shown = both("title", "show", "clip", words="v1 a1 avc1.64001e 360")
    assert (shown["active"], shown["published"]) == (made.version, 1_700_000_000)

    both("appliance", "add", "north-1", *north, "--storage", "2 GB", "--capacity-gbps", "0.5", words="north-1 north")
    both(
        "appliance",
        "add",
        "origin",
        "--site",
        "north",
        "--url",
        "http://o.example",
        "--role",
        "origin",
        words="origin",
    )
    shown = both("appliance", "show", "north-1", words="north-1 2.0 GB http://north-1.example")
    assert (shown["storage_bytes"], shown["capacity_bps"]) == (2_000_000_000, 500_000_000)
    assert both("appliance", "drain", "north-1", words="north-1 no more viewers")["draining"]
    listed = both("appliance", "list", words="north-1 draining never heard origin")
    assert [(box["id"], box["draining"]) for box in listed] == [("north-1", True), ("origin", False)]
    assert not both("appliance", "undrain", "north-1", words="north-1 viewers again")["draining"]

    assert both("coverage", "set", coverage, words="2 zones") == {"zones": 2}
    assert [zone["name"] for zone in both("coverage", "show", words="north south 53.55")] == ["north", "south"]
    done = both("demand", "import", demand, words="2 observations 101 views soon")
    assert done["unknown_titles"] == ["soon"]
    assert both("demand", "show", words="north clip 100.0")[0]["title"] == "clip"

    assert both("plan", "make", "--dry-run", words="dry run 2 tracks")["plan"] == 0
    assert both("plan", "list", words="plan") == []
    assert both("plan", "make", words="plan 1 2 tracks 1 appliances gap")["plan"] == 2
    assert [plan["id"] for plan in both("plan", "list", words="1 2")] == [2, 1]
    shown = both("plan", "show", words="north-1 clip views a day expected")
    assert {row["title"] for row in shown["rows"]} == {"clip"}
    assert both("plan", "show", "1", words="north-1 clip")["id"] == 1

    (rehearsed,) = both("fill", "run", "--dry-run", words="north-1 to come not known")["appliances"]
    assert (rehearsed["appliance"], rehearsed["order"]) == ("north-1", 0)
    assert both("fill", "run", "--now", words="1 appliances fill now") == {"north-1": 2}
    both("fill", "run", "--now", "--appliance", "origin", words="1 appliances")
    status = both("fill", "status", words="north-1 0/2 ordered")
    assert [(box["appliance"], box["order"]) for box in status["appliances"]] == [("north-1", 2)]
    assert both("fill", "run", "--now", "--wait", "--appliance", "origin", words="nothing") == []
    # Said a second time, nothing is new.
    assert both("fill", "pause", "--appliance", "north-1", words="stop filling north-1") == []
    assert "paused" in ocactl(controller, "fill", "status").stdout
    assert both("fill", "resume", words="may fill again north-1") == []
    assert both("fill", "cancel", "--dry-run", words="would be taken back north-1") == ["north-1"]
    assert both("fill", "cancel", words="taken back north-1") == []

    shown = both(
        "steer", "explain", "--client", "192.0.2.9", "--title", "clip", words="north 192.0.2.0/24 north-1 passed"
    )
    assert shown["match"]["zone"] == "north"
    both("steer", "explain", "--client", "9.9.9.9", "--title", "clip", "--track", "v1", words="no known zone 0 of 1")
    newest = both("changes", "--limit", "3", words="order anybody")
    assert [change["kind"] for change in newest] == ["order"] * 3

    done = ocactl(controller, "fill", "run", "--now", "--wait", "--timeout", "1")
    assert done.returncode == 1
    assert "the fill is not done after 1 s" in done.stderr


def test_waiting_for_a_fill(controller: str, make_title: MakeTitle, tmp_path: Path) -> None:
    """It ends well when all that is wanted is held, telling where it came from, and badly when a box gives up."""
    made = make_title(tmp_path / "s", name="awaited")
    api = Controller(controller)
    (tmp_path / "demand.csv").write_bytes(demand_csv(("west", "awaited", 9)))
    for line in (
        f"title add {made.directory}",
        "appliance add west-1 --site west --url http://w.example --storage 1M",
        f"demand import {tmp_path}/demand.csv",
        "plan make",
    ):
        assert ocactl(controller, *line.split()).returncode == 0

    def report(batch: str, state: Literal["done", "failed"], error: str = "") -> None:
        """Wait for the order, then say how the fill ended, as the box would."""
        order = 0
        while not order:
            order = next(b["order"] for b in api.ask("GET", "fills")["appliances"] if b["appliance"] == "west-1")
        told = FillProgress(
            title=made.id,
            version=made.version,
            track="v1",
            state=state,
            bytes=9,
            total=9,
            fetched={"origin": 9},
            error=error,
        )
        done = FillReport(
            appliance="west-1",
            batch=batch,
            plan=api.ask("GET", "fills")["plan"],
            at=0.0,
            force=order,
            finished=True,
            progress=[told],
        )
        fetch(f"{controller}/api/v1/appliances/west-1/fill-report", "POST", wire.encode(done))

    arguments = ("fill", "run", "--now", "--appliance", "west-1", "--wait")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(ocactl, controller, *arguments, run=run)
        report("a", "failed", "no source has it")
        done = waiting.result()
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == "error: west-1 could not fill: awaited v1: no source has it"
        assert "no source has it" in ocactl(controller, "fill", "status").stdout

        waiting = pool.submit(ocactl, controller, *arguments, run=run)
        report("b", "done")
        held = wire.Inventory(
            appliance="west-1", generation="1", held=[wire.HeldTracks(made.id, made.version, ["v1", "a1"])]
        )
        fetch(f"{controller}/api/v1/appliances/west-1/inventory", "PUT", wire.pack(held))
        done = waiting.result()
        assert done.returncode == 0, done.stderr
        assert done.stdout == "1 appliances hold what the plan wants; fetched 9 B from origin\n"
    assert "complete" in ocactl(controller, "fill", "status").stdout


async def test_a_title_from_an_origin(controller: str, make_title: MakeTitle, tmp_path: Path) -> None:
    """A version's URL on a box that serves it will do; it is published when the origin says."""
    made = make_title(tmp_path / "s", name="remote", published=1_600_000_000)
    with listen("127.0.0.1", 0) as sock:
        serving = asyncio.create_task(Server([sock], Slices(Store([tmp_path / "s"])), AccessLog("")).run())
        origin = f"http://127.0.0.1:{sock.getsockname()[1]}"
        for url in (f"{origin}{made.url}", f"{origin}{made.url}/", f"{origin}{made.url}/title.json"):
            done = await asyncio.to_thread(ocactl, controller, "title", "add", url, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout) == {"title": "remote", "version": made.version}
        refused(
            await asyncio.to_thread(ocactl, controller, "title", "add", f"{origin}/t/no/{made.version}"), "/t/no/"
        )
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
    shown = ocactl(controller, "title", "show", "remote", "--json")
    assert json.loads(shown.stdout)["published"] == 1_600_000_000


def test_the_version_of_a_url_is_checked(make_title: MakeTitle, tmp_path: Path) -> None:
    """By the digest of its title.json, and the title by what it says."""
    made, other = make_title(tmp_path / "s", seed=1), make_title(tmp_path / "s", seed=2)
    data = made.bytes_of("title.json")
    check_named(f"http://o.example{made.url}", data)
    for url in (other.url, f"/t/else/{made.version}", "/t/clip", ""):
        with pytest.raises(ControllerError, match=f"gives title clip version {made.version} .*not what its URL"):
            check_named(f"http://o.example{url}", data)


def test_shells_are_completed() -> None:
    """Each program prints the lines that teach a shell its commands."""
    for program in ("ocactl", "oca", "oca-pack"):
        command = [str(BIN / program), "--show-completion", "bash"]
        environment = os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert f"_{program.upper().replace('-', '_')}_COMPLETE=complete_bash" in done.stdout


def refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    """One line on stderr that says it, nothing on stdout, exit 1."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("title show nothing", "there is no title 'nothing'"),
        ("title show ../appliances", "there is no title '../appliances'"),
        ("title show a?b#c", "there is no title 'a?b#c'"),
        ("title activate nothing 00000000000000000000000000000000", "there is no title 'nothing'"),
        ("title activate nothing 1", "version"),
        ("title add /nowhere", "/nowhere is no title"),
        ("title add {tmp_path}", "is no title"),
        ("title add {tmp_path}/two", "holds 2 versions: name one"),
        ("title add {tmp_path}/bad", "is corrupt"),
        ("title add {tmp_path}/half", "cannot read"),
        ("title add http://127.0.0.1:1/t/x/y", "cannot reach the origin at http://127.0.0.1:1"),
        ("title add ftp://x/y", "is not an http(s) URL"),
        ("title add http://[x/y", "is not a URL"),
        ("title add http://a^b/\x7f", "URL"),
        ("appliance show nobody", "there is no appliance 'nobody'"),
        ("appliance drain nobody", "there is no appliance 'nobody'"),
        ("appliance add x --site s --url http://x --storage lots", "'lots' is not a size"),
        ("appliance add x --site s --url x", "url"),
        ("appliance add X --site s --url http://x", "id"),
        ("appliance add x --site s --url http://x --role boss", "role"),
        ("appliance add x --site s --url http://x --capacity-gbps inf", "capacity"),
        ("coverage set /nowhere", "cannot read /nowhere: No such file"),
        ("coverage set {tmp_path}/bad/title.json", "title.json"),
        ("demand import {tmp_path}", "Is a directory"),
        ("demand import {tmp_path}/demand.csv", "demand.csv line 2"),
        ("plan show 99", "there is no plan 99"),
        ("plan show ../titles", "there is no plan ../titles"),
        ("fill run", "add --now"),
        ("fill run --now --appliance nobody", "nobody"),
        ("steer explain --client 192.0.2.9 --title nothing", "there is no title 'nothing'"),
        (
            "--controller http://127.0.0.1:1 title list",
            "cannot reach the controller at http://127.0.0.1:1: Connection",
        ),
        ("--controller 127.0.0.1:1 title list", "is not an http(s) URL"),
        ("--controller http://127.0.0.1:port title list", "port"),
        ("--controller http://x\ny title list", "'http://x\\ny/api/v1/titles' is not an http(s) URL"),
        ("--controller {silent} title list", "{silent}"),
        ("--controller {garbled} title list", "does not answer as the controller would"),
        ("--controller {stranger} title list", "is no controller"),
    ],
)
def test_failures(
    controller: str,
    others: dict[str, str],
    tmp_path: Path,
    line: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each is one sentence on stderr and exit 1."""
    for number in range(2):
        (tmp_path / "two" / f"{number:032x}").mkdir(parents=True)
    for name, title_json in (("bad", b"{}"), ("half", _title_json())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "title.json").write_bytes(title_json)
    (tmp_path / "demand.csv").write_text("time,region,title,views\nyesterday,north,clip,1\n")
    arguments = [word.format(tmp_path=tmp_path, **others) for word in line.split(" ")]
    # Within this process: starting one for each would take most of the time.
    monkeypatch.setenv("OCA_CONTROLLER", controller)
    monkeypatch.setattr(sys, "argv", ["ocactl", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    refused(subprocess.CompletedProcess(arguments, left.value.code, *capsys.readouterr()), said.format(**others))


def _title_json() -> bytes:
    """A title.json whose files are not there."""
    file = title.File(1, "0" * 64, ["0" * 64])
    track = title.Track(
        name="v1", kind="video", codecs="x", timescale=1, duration=1, segments=1, bandwidth=1, average_bandwidth=1
    )
    files = dict.fromkeys(track.files, file)
    return title.encode(title.Title(id="half", name="half", periods=[title.Period("0", [track])], files=files))


@pytest.fixture(scope="module")
def others() -> Iterator[dict[str, str]]:
    """URLs of servers that are no controllers: by what they answer."""
    answers = {
        "silent": b"",
        "garbled": b"\x16\x03\x01\r\n\r\n",
        "stranger": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html",
    }
    with contextlib.ExitStack() as stack:
        urls = {}
        for name, answer in answers.items():
            sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=_answer, args=(sock, answer), daemon=True).start()
            urls[name] = f"http://127.0.0.1:{sock.getsockname()[1]}"
        yield urls


def _answer(sock: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = sock.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)


@pytest.mark.parametrize(
    "line", ["", "nonsense", "title", "title show", "title list --nonsense", "appliance add x", "changes --limit 0"]
)
def test_usage(line: str) -> None:
    """Usage errors exit 2."""
    assert ocactl("http://127.0.0.1:1", *line.split(), run=run).returncode == 2


def test_size() -> None:
    """Bytes for people, in powers of 1000 as disks are sold."""
    assert [size(count) for count in (0, 999, 1000, 1.5e9, 2e12, 3e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 GB",
        "2.0 TB",
        "3000.0 TB",
    ]
