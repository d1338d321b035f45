"""Several controllers on one PostgreSQL: its tables are made as SQLite's are, and they share what must be shared."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from control.fills import leases
from control.fleet import heard
from control.schema import metadata
from oca import wire
from oca.wire import FillLease
from tests.conftest import MakeTitle
from tests.control import postgresql
from tests.control.conftest import Desk, Start

_NUMBERS = itertools.count()
LINE = 1000


@pytest.fixture(scope="session")
def server() -> Iterator[Path]:
    """The directory with the server's socket."""
    with postgresql.running() as directory:
        yield directory


@pytest.fixture
async def name(server: Path) -> str:
    """A database that is new."""
    made = f"oca{next(_NUMBERS)}"
    await _tell(server, f"CREATE DATABASE {made}")
    return made


@pytest.fixture
async def two(server: Path, name: str, start: Start, monkeypatch: pytest.MonkeyPatch) -> list[Desk]:
    """Two controllers that begin on it at once; leases last however slow this machine is."""
    monkeypatch.setattr(leases, "_GRACE_S", 86_400.0)
    monkeypatch.setattr(leases, "_PATIENCE_S", 100.0)
    url = f"postgresql+asyncpg://oca@/{name}?host={server}"
    return list(await asyncio.gather(start(database=url), start(database=url)))


@contextlib.asynccontextmanager
async def _connected(server: Path, name: str = "postgres") -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(host=str(server), user="oca", database=name)
    try:
        yield connection
    finally:
        await connection.close()


async def _tell(server: Path, *statements: str) -> None:
    async with _connected(server) as connection:
        for statement in statements:
            await connection.execute(statement)


async def _wait(looking: asyncpg.Connection, name: str, waiting: int) -> None:
    """Until so many transactions in the database wait for another."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND wait_event_type = 'Lock'"
    while await looking.fetchval(query) < waiting:
        await asyncio.sleep(0.02)


async def _site(two: list[Desk], boxes: int) -> list[str]:
    """Register the boxes of a site with one controller, and wait until the other knows them and their line."""
    names = [f"north-{number}" for number in range(boxes)]
    for box in names:
        await two[0].box(box)
    await two[0].ask("PUT", "sites/north", {"fill_bps": LINE})
    await two[1].parts.state.catch_up()
    return names


async def _lease(desk: Desk, box: str) -> int:
    _, data, _ = await desk.answer("POST", f"/api/v1/appliances/{box}/fill-lease")
    rate = wire.decode(data, FillLease, "lease").rate_bps
    assert rate is not None
    return rate


async def test_migrations_lead_to_the_schema(two: list[Desk]) -> None:
    async with two[0].parts.state.engine.connect() as connection:
        assert await connection.run_sync(_differences) == []


def _differences(connection: Connection) -> list[object]:
    options = {"compare_type": True, "compare_server_default": True}
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


async def test_one_learns_what_the_other_was_told(two: list[Desk], make_title: MakeTitle, tmp_path: Path) -> None:
    clip = make_title(tmp_path / "s")
    await two[0].cover()
    await two[0].register(clip)
    await two[0].box("north-1")
    await two[0].beat("north-1")
    await two[0].plan(("north", "clip", 100))
    await two[1].parts.state.catch_up()
    assert two[1].parts.state.wanted["north-1"] == two[0].parts.state.wanted["north-1"]
    await two[1].tell("north-1", (clip, "v1 a1"))
    await two[0].parts.state.catch_up()
    assert two[0].parts.state.holds("north-1") == two[1].parts.state.holds("north-1") != 0


async def test_who_was_heard_is_written_by_both(two: list[Desk], server: Path, name: str) -> None:
    """They write the same rows at once, one after the other."""
    await two[0].box("north-1")
    await two[1].parts.state.catch_up()
    for desk in two:
        await desk.beat("north-1")
    async with _connected(server, name) as holding, _connected(server) as looking:
        async with holding.transaction():
            await holding.execute("LOCK TABLE listening")
            writing = [
                asyncio.create_task(heard.write(desk.parts.state.engine, desk.parts.fleet.registry, 7.0))
                for desk in two
            ]
            await _wait(looking, name, len(writing))
        await asyncio.gather(*writing)
        assert await holding.fetchval("SELECT count(*) FROM heartbeats") == 1
        assert await holding.fetchval("SELECT count(*) FROM listening") == 1


async def test_a_line_is_shared_whichever_controller_is_asked(
    two: list[Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await _site(two, 2)
    assert await _lease(two[0], one) == LINE
    assert await _lease(two[1], other) == 0, "all is given away"
    assert await _lease(two[0], one) == LINE // 2
    assert await _lease(two[1], other) == LINE // 2
    assert await _lease(two[1], one) == LINE // 2, "it has come to the other controller"
    # From now on leases have ended as soon as they are given.
    monkeypatch.setattr(leases, "_GRACE_S", -60.0)
    await _lease(two[1], other)
    await _lease(two[0], one)
    assert await _lease(two[1], other) == LINE, "who asks no longer fills no longer"


async def test_boxes_that_ask_at_once_get_no_more_than_the_line(two: list[Desk], server: Path, name: str) -> None:
    boxes = await _site(two, 8)
    async with _connected(server, name) as holding, _connected(server) as looking:
        for _ in range(3):
            async with holding.transaction():
                # All of them are under way before one of them can look.
                await holding.execute("LOCK TABLE leases")
                asking = [asyncio.create_task(_lease(two[n % 2], box)) for n, box in enumerate(boxes)]
                await _wait(looking, name, len(boxes))
            shares = await asyncio.gather(*asking)
            assert 0 < sum(shares) <= LINE
    assert shares == [LINE // 8] * 8, "the first had all of it, then what is its, then so have the others"


async def test_who_cannot_know_what_others_take_gives_what_is_safe(two: list[Desk], server: Path, name: str) -> None:
    one, _ = await _site(two, 2)
    assert await _lease(two[0], one) == LINE
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    await _tell(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", end)
    assert await _lease(two[0], one) == LINE // 2
    await _tell(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert await _lease(two[0], one) == LINE, "it is back"


async def test_a_database_that_does_not_answer_is_away(
    two: list[Desk], server: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = await _site(two, 2)
    monkeypatch.setattr(leases, "_PATIENCE_S", 0.1)
    async with _connected(server, name) as connection, connection.transaction():
        await connection.execute("LOCK TABLE leases")
        assert await _lease(two[0], one) == LINE // 2
    monkeypatch.setattr(leases, "_PATIENCE_S", 100.0)
    assert await _lease(two[0], one) == LINE
