"""Room for what is on its way: bounded in number and bytes, first come first served."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from oca.miss.room import Room


class Traffic:
    """Things that enter a room one after the other; each leaves when it is told to."""

    def __init__(self, room: Room, lengths: Sequence[int]) -> None:
        self.inside: set[int] = set()
        self._ends = [asyncio.Event() for _ in lengths]
        self.tasks = [asyncio.create_task(self._pass(room, number, each)) for number, each in enumerate(lengths)]

    async def _pass(self, room: Room, number: int, length: int) -> None:
        async with room.of(length):
            self.inside.add(number)
            try:
                await self._ends[number].wait()
            finally:
                self.inside.discard(number)

    async def settle(self) -> set[int]:
        """Who is inside once nobody moves any more."""
        for _ in range(20):
            await asyncio.sleep(0)
        return self.inside

    async def leave(self, number: int) -> set[int]:
        self._ends[number].set()
        return await self.settle()

    async def cancel(self, number: int) -> set[int]:
        self.tasks[number].cancel()
        return await self.settle()


@pytest.mark.parametrize(
    ("lengths", "inside"),
    [
        ([1, 1, 1, 1], {0, 1, 2}),
        ([6, 4, 1], {0, 1}),
        ([6, 5, 1], {0}),
        ([50, 1], {0}),
        ([1, 50], {0}),
        ([0, 0, 0, 0], {0, 1, 2}),
    ],
)
async def test_who_is_let_in(lengths: list[int], inside: set[int]) -> None:
    """Three at once, of ten bytes in all; one alone however long, and nobody before who came first."""
    traffic = Traffic(Room(3, 10), lengths)
    assert await traffic.settle() == inside
    for number in range(len(lengths)):
        await traffic.leave(number)
    await asyncio.gather(*traffic.tasks)


async def test_who_gives_up_leaves_no_trace() -> None:
    """Inside or waiting, first in line or not."""
    traffic = Traffic(Room(3, 10), [10, 8, 2, 10])
    assert await traffic.settle() == {0}
    assert await traffic.cancel(1) == {0}
    assert await traffic.cancel(0) == {2}
    assert await traffic.leave(2) == {3}
    assert await traffic.leave(3) == set()
    await asyncio.gather(*traffic.tasks, return_exceptions=True)


async def test_who_gives_up_as_he_is_let_in() -> None:
    """His room goes to the next."""
    traffic = Traffic(Room(1, 10), [1, 1, 1])
    assert await traffic.settle() == {0}
    traffic._ends[0].set()
    while 0 in traffic.inside:
        await asyncio.sleep(0)
    traffic.tasks[1].cancel()
    assert await traffic.settle() == {2}
    await traffic.leave(2)
    await asyncio.gather(*traffic.tasks, return_exceptions=True)
