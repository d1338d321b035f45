"""What has waited for a disk takes its turn: nothing is left undone, and nobody else waits for more than a piece."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial

import pytest

from oca.http import turns
from oca.http.turns import PIECE, Turns
from tests.conftest import MakeTitle
from tests.oca.conftest import Start
from tests.oca.test_cold import put_anew

STEP_S = 1 / 1024


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time that passes when it is told to."""
    at = [1000.0]
    monkeypatch.setattr(turns, "monotonic", lambda: at[0])

    def passes(seconds: float) -> None:
        at[0] += seconds

    return passes


async def rounds(count: int = 1) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def working(waiting: Turns, steps: int, clock: Callable[[float], None]) -> list[int]:
    """Steps that take STEP_S each; those that have been taken."""
    taken: list[int] = []

    def take(number: int) -> None:
        taken.append(number)
        clock(STEP_S)

    for number in range(steps):
        waiting.add(partial(take, number))
    return taken


async def test_one_step_is_taken_in_a_round_in_their_order(clock: Callable[[float], None]) -> None:
    taken, before = working(Turns(), 5, clock), 0
    assert taken == []
    while len(taken) < 5:
        await rounds()
        assert before <= len(taken) <= before + 1
        before = len(taken)
    assert taken == [0, 1, 2, 3, 4]


async def test_a_round_that_took_others_long_gives_a_fifth_to_those_who_wait(clock: Callable[[float], None]) -> None:
    taken = working(Turns(), 100, clock)
    while not taken:
        await rounds()
    before = len(taken)
    clock(40 * STEP_S)
    await rounds()
    assert len(taken) - before == 10


async def test_a_step_may_ask_for_another_and_one_that_fails_stops_nobody(clock: Callable[[float], None]) -> None:
    waiting, taken = Turns(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: taken.append(str(context["exception"])))

    def fails() -> None:
        raise OSError("gone")

    waiting.add(fails)
    waiting.add(lambda: waiting.add(lambda: taken.append("third")))
    waiting.add(lambda: taken.append("second"))
    await rounds(9)
    assert taken == ["gone", "second", "third"]
    waiting.add(lambda: taken.append("later"))
    await rounds(2)
    assert taken[3:] == ["later"]


async def test_content_from_a_disk_is_sent_in_pieces_and_arrives_whole(
    start: Start, make_title: MakeTitle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in memory is sent in one go. Looked at is how each begins: a socket that is full lets others go on."""
    running = await start()
    sizes = [700_000, 65_536, 300_000, 2 * PIECE]
    made = make_title(running.root, v1=sizes)
    sendfile, sent = os.sendfile, list[int]()

    def noted(out: int, descriptor: int, offset: int, count: int) -> int:
        if threading.current_thread() is threading.main_thread():
            sent.append(count)
        return sendfile(out, descriptor, offset, count)

    monkeypatch.setattr("os.sendfile", noted)
    client = await running.connect()
    for number, size in enumerate(sizes, 1):
        put_anew(running, made.directory / "v1.mp4")
        for most in (PIECE, size):
            sent.clear()
            assert (await client.ask(f"{made.url}/v1/{number}.m4s")).body == made.segment("v1", number)
            assert sent[0] == min(most, size)
    assert running.server.in_flight == 0
