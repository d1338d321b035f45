"""Opening the database, and the daemon that does: it serves, or says in one sentence why not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from control import lock, migrations
from control.database import DatabaseError, open_database, writing
from control.schema import metadata
from control.state import State
from control.titles.catalog import Catalog
from tests.conftest import MakeTitle
from tests.programs import ran, started

OCA_CONTROL = str(Path(sys.executable).with_name("oca-control"))


def url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


async def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    """A migrated database is not migrated again; it writes ahead, durably, with foreign keys."""
    for names in ([], ["clip"]):
        engine = await open_database(url(tmp_path / "a.db"))
        async with engine.begin() as connection:
            assert list((await connection.execute(text("select name from titles"))).scalars()) == names
            if not names:
                await connection.execute(text("insert into titles values ('clip', 'default', 'clip', 'v', 0)"))
            pragmas = [
                (await connection.execute(text(f"pragma {p}"))).scalar() for p in ("journal_mode", "synchronous")
            ]
            assert pragmas == ["wal", 2]
        await engine.dispose()


async def test_migrations_lead_to_the_schema(tmp_path: Path) -> None:
    """A migrated database has exactly the tables of control.schema: as Alembic compares, and in the same words."""
    engine = await open_database(url(tmp_path / "a.db"))
    async with engine.connect() as connection:
        assert await connection.run_sync(_differences) == []
        migrated = await connection.run_sync(_statements)
        assert migrated.pop("alembic_version")
    await engine.dispose()
    made = create_engine("sqlite://")
    with made.begin() as plain:
        metadata.create_all(plain)
        assert migrated == _statements(plain)
    made.dispose()


def _differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def _statements(connection: Connection) -> dict[str, list[str]]:
    """By name of table or index the words that made it, sorted: the constraints of a table are in no order."""
    rows = connection.execute(text("select name, sql from sqlite_master where sql is not null"))
    return {name: sorted(re.findall(r"[^\s,()]+", sql)) for name, sql in rows if name != "sqlite_sequence"}


def test_migrations_are_statements_that_postgresql_has() -> None:
    """Every table and index is spelt for it, too."""
    written = io.StringIO()
    options = {"as_sql": True, "output_buffer": written}
    with Operations.context(MigrationContext.configure(dialect_name="postgresql", opts=options)):
        for script in reversed([*migrations.scripts().walk_revisions()]):
            script.module.upgrade()
    said = written.getvalue()
    for table in metadata.tables.values():
        assert f"CREATE TABLE {table.name} " in said
        assert all(f"CREATE INDEX {index.name} ON {table.name} " in said for index in table.indexes)
    assert "BYTEA" in said
    assert "SERIAL" in said


async def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """It is one transaction: what has been made before the failure is gone with it."""
    engine = await open_database(url(tmp_path / "a.db"))
    async with writing(engine).begin() as connection:
        tables = (*metadata.tables, "alembic_version")
        await connection.run_sync(metadata.drop_all)
        await connection.execute(text("drop table alembic_version"))
        # The last of the tables that a migration makes is in its way.
        await connection.execute(text("create table pins (id integer)"))
    await engine.dispose()
    with pytest.raises(DatabaseError, match="table pins already exists"):
        await open_database(url(tmp_path / "a.db"))
    with sqlite3.connect(tmp_path / "a.db") as left:
        found = {row[0] for row in left.execute("select name from sqlite_master where type = 'table'")}
    left.close()
    assert found & set(tables) == {"pins"}


async def test_two_programs_open_a_new_database_at_once(tmp_path: Path) -> None:
    """One migrates, the others wait for it, even where they all switch the file to its journal mode at once."""
    engines = []
    for number in range(10):
        one = url(tmp_path / f"{number}.db")
        engines += await asyncio.gather(*(asyncio.to_thread(asyncio.run, _opened(one)) for _ in range(4)))
    assert engines == [[migrations.head()]] * 40


async def _opened(one: str) -> list[str]:
    engine = await open_database(one)
    async with engine.connect() as connection:
        versions = list((await connection.execute(text("select version_num from alembic_version"))).scalars())
    await engine.dispose()
    return versions


async def test_a_database_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """An empty one in its place would look like a catalog without titles; when it is back, it is used again."""
    path = tmp_path / "a #db.db"
    engine = await open_database(url(path))
    await engine.dispose()
    path.rename(tmp_path / "aside")
    with pytest.raises(OperationalError, match="unable to open database file"):
        async with engine.connect():
            pass
    assert not path.exists()
    (tmp_path / "aside").rename(path)
    async with engine.connect() as connection:
        assert (await connection.execute(text("select count(*) from titles"))).scalar() == 0
    await engine.dispose()


def _garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table alembic_version (version_num varchar(32) not null)")
        connection.execute("insert into alembic_version values ('9999')")
    connection.close()


def _not_ours(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("create table titles (id integer)")
    connection.close()


def _directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (_garbage, "cannot be opened: file is not a database"),
        (_newer, f"is of revision 9999, this program knows {migrations.head()}: upgrade oca"),
        (_not_ours, "cannot be opened: table titles already exists"),
        (_directory, "cannot be opened: unable to open database file"),
    ],
)
async def test_databases_that_cannot_be_used(tmp_path: Path, prepare: object, said: str) -> None:
    """Each is one sentence that names the database."""
    assert callable(prepare)
    prepare(tmp_path / "a.db")
    with pytest.raises(DatabaseError, match=said) as caught:
        await open_database(url(tmp_path / "a.db"))
    assert "a.db" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "nonsense",
        "nodialect://x",
        "sqlite:///a.db",
        "sqlite+nodriver:///a.db",
        "postgresql+asyncpg://u:secret@h:port/x",
        "sqlite+aiosqlite:////nowhere/a.db",
    ],
)
async def test_urls_that_cannot_be_used(bad: str) -> None:
    """Each is one sentence without a password."""
    with pytest.raises(DatabaseError) as caught:
        await open_database(bad)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_writers_wait_for_each_other(tmp_path: Path, make_title: MakeTitle) -> None:
    """Two controllers on one database write at once, and both succeed."""
    made = [make_title(tmp_path / "s", name=f"clip{number}") for number in range(8)]
    catalogs = []
    engines = [await open_database(url(tmp_path / "a.db")) for _ in range(2)]
    for engine in engines:
        state = State(engine)
        await state.load()
        catalogs.append(Catalog(engine, state))
    await asyncio.gather(
        *(
            catalogs[number % 2].add_title(
                one.bytes_of("title.json"), {track: one.bytes_of(f"{track}.idx") for track in one.indexes}, 0
            )
            for number, one in enumerate(made)
        )
    )
    assert len(await catalogs[0].changes(100)) == 8
    for engine in engines:
        await engine.dispose()


@pytest.fixture
def taken() -> Iterator[str]:
    """An address where somebody listens already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def settings(tmp_path: Path, **changes: object) -> Path:
    """A controller's settings file."""
    values = {"database": url(tmp_path / "a.db"), "public_url": "http://c.example", "listen": "127.0.0.1:0"} | changes
    path = tmp_path / "control.toml"
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    return path


def run(command: str, path: Path) -> subprocess.CompletedProcess[str]:
    return ran("control.daemon", ["oca-control", command, "--config", str(path)])


def test_migrate(tmp_path: Path) -> None:
    """Twice in a row it ends well and says nothing."""
    for _ in range(2):
        done = run("migrate", settings(tmp_path))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _corrupt_title(tmp_path: Path) -> None:
    assert run("migrate", settings(tmp_path)).returncode == 0
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("insert into titles values ('clip', 'default', 'clip', 'v', 0)")
        connection.execute("insert into versions values ('clip', 'v', 0, 'no title')")
        connection.execute("insert into tracks values (1, 'clip', 'v', 'v1', 'no index')")
    connection.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"databse": "x"}, "databse"),
        ({"heartbeat_s": 0}, "heartbeat_s"),
        ({"public_url": "c.example"}, "public_url"),
        ({"listen": "here"}, "listen"),
        ({"listen": "127.0.0.1:99999"}, "99999"),
        ({"listen": "no-such-host.invalid:1"}, "cannot listen on no-such-host.invalid:1"),
        ({"database": "sqlite+aiosqlite:////nowhere/a.db"}, "/nowhere/a.db"),
        ({"coverage": "/nowhere/coverage.json"}, "cannot read coverage file /nowhere/coverage.json"),
        ({"coverage": __file__}, "test_database.py"),
    ],
)
def test_settings_that_cannot_be_served(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    """One sentence, exit 1."""
    refused(run("serve", settings(tmp_path, **changes)), said)


def refused(done: subprocess.CompletedProcess[str], said: str) -> None:
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_address_in_use(tmp_path: Path, taken: str) -> None:
    """It is named, with what may be wrong."""
    done = run("serve", settings(tmp_path, listen=taken))
    refused(done, f"cannot listen on {taken}: ")
    assert "is another server there?" in done.stderr


def test_corrupt_catalog(tmp_path: Path) -> None:
    """What cannot be read ends the program with a sentence, and does not leave it hanging."""
    _corrupt_title(tmp_path)
    refused(run("serve", settings(tmp_path)), "title clip in the database is corrupt")


def test_usage() -> None:
    """Usage errors exit 2."""
    for arguments in ([], ["serve"], ["serve", "--nonsense"], ["nonsense"]):
        assert ran("control.daemon", ["oca-control", *arguments]).returncode == 2


def test_one_controller_on_a_file(tmp_path: Path) -> None:
    """The second is refused while the first serves, and no longer; operators are made all the time."""
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "a.db")
    assert run("migrate", settings(tmp_path)).returncode == 0
    for number in (1, 2):
        with serving(settings(tmp_path), tmp_path / f"log{number}") as process:
            for name in (tmp_path / "a.db", link):
                done = run("serve", settings(tmp_path, database=url(name)))
                refused(done, f"another controller (process {process.pid}) serves from {tmp_path / 'a.db'}: ")
            made = ["oca-control", "operator", "add", f"me{number}", "--role", "read"]
            assert ran("control.daemon", [*made, "--config", str(settings(tmp_path))]).returncode == 0
            # Whatever way it ends.
            process.kill()
            process.wait(60)
    refused(run("serve", settings(tmp_path, database=url(tmp_path / "no" / "a.db"))), "cannot be opened at")


@contextlib.contextmanager
def serving(path: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A controller that has begun to serve."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [OCA_CONTROL, "serve", "--config", str(path)], stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while b'"serving"' not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.parametrize(
    ("database", "path"),
    [
        ("sqlite+aiosqlite:////x/a.db", "/x/a.db.lock"),
        ("sqlite+aiosqlite:///file:/x/a%20b.db?mode=rw&uri=true", "/x/a b.db.lock"),
        ("sqlite+aiosqlite://", None),
        ("sqlite+aiosqlite:///:memory:", None),
        ("postgresql+asyncpg://u:secret@h:1/x", None),
        ("nonsense", None),
    ],
)
def test_where_the_lock_is(database: str, path: str | None) -> None:
    assert lock.path_of(database) == (Path(path) if path else None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_well(tmp_path: Path, number: signal.Signals) -> None:
    """READY is told when it serves; after the signal it exits with 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        command = [OCA_CONTROL, "serve", "--config", str(settings(tmp_path))]
        with started(command, env=environment) as process:
            assert notify.recv(100) == b"READY=1"
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
            assert notify.recv(100) == b"STOPPING=1"
