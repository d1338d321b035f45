"""The channel from a child process up to its supervisor: counters once a second; its end means that it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

import msgspec

from oca.counters import Counters

TELL_S = 1.0
# How long a child that is to end may take to finish what it is doing: a 2 MiB segment at 1 Mbit/s takes 17 s.
DRAIN_S = 20.0


def ending(channel: socket.socket) -> asyncio.Event:
    """An event that is set when this process is to end: at SIGTERM, or when the supervisor is gone."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def heard() -> None:
        # The supervisor never writes: a readable channel means that it is gone.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            channel.recv(1)
        loop.remove_reader(channel.fileno())
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    # A Ctrl-C in a terminal reaches the whole process group; it is for the supervisor to say what happens.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_reader(channel.fileno(), heard)
    return stop


def send(channel: socket.socket, counters: Counters) -> None:
    """One packet with all counters; a supervisor too busy to take it gets the next one."""
    with contextlib.suppress(BlockingIOError, ConnectionError):
        channel.send(msgspec.msgpack.encode(counters))


async def tell(channel: socket.socket, counters: Callable[[], Counters]) -> None:
    """Send the counters until cancelled; the first packet says that this process is at work."""
    while True:
        send(channel, counters())
        await asyncio.sleep(TELL_S)
