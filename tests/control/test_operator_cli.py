"""`oca-control operator`, and how `ocactl` shows a token: as an operator runs them, against a closed controller."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from control import daemon, ocactl
from control.ctl.client import ControllerError, parse_duration
from control.operators import credential
from tests.programs import said, started

BIN = Path(sys.executable).parent
Done = subprocess.CompletedProcess[str]


def run(program: str, arguments: Sequence[str], environment: dict[str, str]) -> Done:
    """A command in a process of its own."""
    command = [str(BIN / program), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)


def here(program: str, arguments: Sequence[str], environment: dict[str, str]) -> Done:
    """The same in this process, which saves the start of another one."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        patch.setattr(os, "environ", environment)
        patch.setattr(Console, "_environ", environment)  # which is where it looks for COLUMNS
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                {"oca-control": daemon.main, "ocactl": ocactl.main}[program]()
            except SystemExit as ended:
                status = int(str(ended.code or 0))
    return subprocess.CompletedProcess([program, *arguments], status, out.getvalue(), err.getvalue())


@dataclass
class Place:
    """A closed controller, its settings, and an operator's home directory."""

    url: str
    settings: Path
    home: Path
    run: Callable[[str, Sequence[str], dict[str, str]], Done] = here

    def control(self, *arguments: str) -> Done:
        """`oca-control operator …` on the controller's machine."""
        return self.run("oca-control", ["operator", *arguments, "--config", str(self.settings)], dict(os.environ))

    def ocactl(self, *arguments: str, token: str | None = None, url: str = "") -> Done:
        """`ocactl …` as an operator with this token in the environment."""
        unset = {name: value for name, value in os.environ.items() if name != "OCACTL_TOKEN"}
        environment = unset | {"OCA_CONTROLLER": url or self.url, "HOME": str(self.home), "COLUMNS": "250"}
        if token is not None:
            environment["OCACTL_TOKEN"] = token
        return self.run("ocactl", arguments, environment)

    def add(self, name: str, role: str, *more: str) -> str:
        """The token of a new operator."""
        done = self.control("add", name, "--role", role, *more)
        assert done.returncode == 0, done.stderr
        assert credential.is_token(done.stdout.strip())
        assert done.stdout.strip() not in done.stderr
        return done.stdout.strip()


def settings(root: Path, *more: str) -> Path:
    path = root / "control.toml"
    lines = (f'database = "sqlite+aiosqlite:///{root}/control.db"', 'public_url = "http://c.example"')
    path.write_text("\n".join((*lines, 'listen = "127.0.0.1:0"', *more)))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("closed")
    home = root / "home"
    home.mkdir()
    command = [str(BIN / "oca-control"), "serve", "--config", str(settings(root))]
    with started(command) as process:
        yield Place(f"http://127.0.0.1:{said(process, 'serving')['port']}", root / "control.toml", home)
        process.terminate()
        assert process.stderr is not None
        # Not by `communicate`, which loses what reading the first line has read beyond it.
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 0
        assert "the API is open" not in rest
        assert "ocak_" not in rest


def refused(done: Done, said: str) -> None:
    """One line on stderr that says it, nothing on stdout, exit 1."""
    assert (done.returncode, done.stdout) == (1, ""), (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_from_the_first_operator_to_the_last(place: Place) -> None:
    """Made, used, listed and removed while the controller runs, and all of it in the audit log."""
    real = replace(place, run=run)
    refused(real.ocactl("title", "list"), "this takes a token: `oca-control operator add`")
    ann, bob = real.add("ann", "act", "--for", "90d"), place.add("bob", "read")
    add = ("appliance", "add", "north-1", "--site", "north", "--url", "http://x.example")
    assert real.ocactl(*add, token=ann).returncode == 0
    refused(place.ocactl(*add, token=bob), "operator bob may only read")
    assert "north-1" in place.ocactl("appliance", "list", token=bob).stdout

    listed = {a["name"]: a for a in json.loads(place.control("list", "--json").stdout)}
    assert {name: a["role"] for name, a in listed.items()} == {"ann": "act", "bob": "read"}
    assert listed["bob"]["expires"] is None
    assert 89 * 86_400 < listed["ann"]["expires"] - time.time() <= 90 * 86_400
    assert all(a.keys() == {"name", "role", "made", "expires", "used"} for a in listed.values())
    shown = place.control("list").stdout
    assert "ann" in shown
    assert "never" in shown

    dry = place.control("remove", "bob", "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, "operator bob, role read, would be removed\n")
    assert place.ocactl("title", "list", token=bob).returncode == 0
    assert place.control("remove", "bob").stdout == "operator bob, role read, removed\n"
    deadline = time.monotonic() + 60
    while place.ocactl("title", "list", token=bob).returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    refused(place.ocactl("title", "list", token=bob), "this token is not known")

    rows = json.loads(place.ocactl("audit", "--json", token=ann).stdout)
    assert [(row["who"], row["status"]) for row in rows if row["kind"] != "anybody"] == [
        ("local", 0),
        ("bob", 403),
        ("ann", 201),
        ("local", 0),
        ("local", 0),
    ]
    assert {row["status"] for row in rows if row["kind"] == "anybody"} == {401}
    of_ann = json.loads(place.ocactl("audit", "--who", "ann", "--since", "2h", "--json", token=ann).stdout)
    assert [row["what"] for row in of_ann] == ["appliance north-1: registered: site north, edge, http://x.example"]
    table = real.ocactl("audit", "--limit", "2", "--who", "local", token=ann).stdout
    assert "operator bob: removed" in table
    assert "operator bob: added, role read" in table
    assert "operator ann" not in table


def test_json_of_making_one(place: Place) -> None:
    done = place.control("add", "machine", "--role", "read", "--json")
    made = json.loads(done.stdout)
    assert credential.is_token(made.pop("token"))
    assert (made["name"], made["role"], done.stderr) == ("machine", "read", "")
    assert json.loads(place.control("remove", "machine", "--json").stdout)["name"] == "machine"


def test_where_the_token_is_looked_for(place: Place, tmp_path: Path) -> None:
    """--token-file before OCACTL_TOKEN before ~/.config/oca/token; set but empty is none at all."""
    good, wrong = place.add("carl", "read"), credential.new()
    usual = place.home / ".config/oca/token"
    usual.parent.mkdir(parents=True)
    named = tmp_path / "token"
    for path, token in ((usual, wrong), (named, good)):
        path.touch(mode=0o600)
        path.write_text(token + "\n")
    refused(place.ocactl("title", "list"), "this token is not known")
    assert place.ocactl("title", "list", token=good).returncode == 0
    assert place.ocactl("--token-file", str(named), "title", "list", token=wrong).returncode == 0
    refused(place.ocactl("title", "list", token=""), "this takes a token")
    usual.write_text(good)
    assert place.ocactl("title", "list").returncode == 0
    for mode in (0o640, 0o604, 0o660):
        usual.chmod(mode)
        refused(place.ocactl("title", "list"), f"others than you may read the token in {usual} (mode {mode:04o})")
    named.write_text("a\nb")
    refused(place.ocactl("--token-file", str(named), "title", "list"), f"what {named} holds is no token")
    refused(place.ocactl("title", "list", token="ocak_short"), "what $OCACTL_TOKEN holds is no token")
    refused(place.ocactl("--token-file", "/nowhere", "title", "list"), "cannot read the token in /nowhere")
    usual.unlink()


def test_help_needs_no_token(place: Place) -> None:
    assert place.ocactl("--token-file", "/nowhere", "title", "--help").returncode == 0


def test_a_redirect_does_not_carry_the_token_off(place: Place) -> None:
    """Wherever an answer sends ocactl, the token stays between it and the controller that was named."""
    seen: list[tuple[str, str | None]] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(200 if self.path == "/else" else 302)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/else")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    token = credential.new()
    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            place.ocactl("title", "list", token=token, url=f"http://127.0.0.1:{server.server_address[1]}")
        finally:
            server.shutdown()
            thread.join()
    assert seen[0] == ("/api/v1/titles", f"Bearer {token}")
    assert [(path, sent) for path, sent in seen[1:] if sent] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "Ann", "--role", "read"), "name of an operator 'Ann' is not an id"),
        (("add", "local", "--role", "read"), "choose another name"),
        (("add", "dora", "--role", "read", "--for", "soon"), "'soon' is not a time: write 30m, 2h or 90d"),
        (("remove", "nobody"), "there is no operator 'nobody'"),
        (("remove", "nobody", "--dry-run"), "there is no operator 'nobody'"),
    ],
)
def test_what_cannot_be_done(place: Place, arguments: tuple[str, ...], said: str) -> None:
    """One sentence, exit 1, and nothing is stored."""
    refused(place.control(*arguments), said)
    with sqlite3.connect(place.settings.with_name("control.db")) as database:
        assert database.execute("select count(*) from operators where name = 'dora'").fetchone() == (0,)
    database.close()


def test_a_role_must_be_said(place: Place) -> None:
    """Usage errors exit 2."""
    for role in ((), ("--role", "boss")):
        assert place.control("add", "dora", *role).returncode == 2


def test_the_first_operator_may_come_before_the_controller(tmp_path: Path) -> None:
    """The database is made then; one that is no database is told in a sentence."""
    place = Place("", settings(tmp_path), tmp_path)
    place.add("first", "act")
    assert "first" in place.control("list").stdout
    with sqlite3.connect(tmp_path / "control.db") as database:
        assert database.execute("select count(*) from operators").fetchone() == (1,)
    database.close()
    (tmp_path / "control.db").write_bytes(b"this is no database" * 100)
    refused(place.control("list"), "file is not a database")
    (tmp_path / "control.toml").unlink()
    refused(place.control("list"), "cannot read settings")


def test_an_open_controller_says_so(tmp_path: Path) -> None:
    """In its journal, each time that it starts; a wrong token of somebody's own controller is no obstacle."""
    command = [str(BIN / "oca-control"), "serve", "--config", str(settings(tmp_path, "[api]", "open = true"))]
    with started(command) as process:
        port = said(process, "serving")["port"]
        assert process.stderr is not None
        # A machine that is held up is warned of as well.
        warned = next(line for line in map(json.loads, process.stderr) if "the API is open" in line["event"])
        place = Place(f"http://127.0.0.1:{port}", tmp_path / "control.toml", tmp_path)
        assert place.ocactl("title", "list", token=credential.new()).returncode == 0
        process.terminate()
        process.communicate(timeout=60)
    assert warned["level"] == "warning"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("90d", 7_776_000), (" 2w ", 1_209_600)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "5", "-1d", "1.5h", "1y", "0d", "40000d", "1d1h", "٣d", "9" * 5000 + "d"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ControllerError, match="is not a time"):
        parse_duration(text)
