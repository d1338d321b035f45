"""How many connections each client has on this box, counted by all its workers together.

SO_REUSEPORT spreads the connections of one client over the workers, so none of them knows. Each writes its own
counts into memory that all of them share, and reads the sum: no lock, no message, nobody to ask. Workers that look at
the same moment may all let a connection in, so a limit can be overshot by as many as there are workers.

Clients are counted in buckets that a keyed hash chooses, in two rows; the smaller of the two is never less than a
client's own count and hardly ever more (count-min sketch, Cormode and Muthukrishnan 2005). The key is secret, so that
nobody can choose addresses that fall into somebody else's buckets.
"""

from __future__ import annotations

import mmap
import os
import secrets
import socket
from collections.abc import Iterable
from hashlib import blake2b

from oca.errors import OcaError

# Two generations of the most workers that the settings allow: old ones drain beside new ones. The memory is sparse,
# so places that nobody has cost nothing.
PLACES = 512
_MAGIC = b"ocacens1"
_SECRET = 16
_ROWS, _BUCKETS = 2, 1 << 15
# Layout: magic, secret, number of places to read (u32 at byte 24); from byte 4096 on, per place, connections and
# bytes in flight (u64 each); from byte 65536 on, per place, the rows of its buckets (u32 each).
_TOTALS = 4096
_REGIONS = 1 << 16
_REGION = 4 * _ROWS * _BUCKETS
_SIZE = _REGIONS + PLACES * _REGION
_READ = 24 // 4  # as an index of u32
_MAPPED = bytes(10) + b"\xff\xff"


def packed(address: str) -> bytes:
    """The 4 bytes of an IPv4 address or the 16 of an IPv6 one; IPv4 in IPv6 (RFC 4291 2.5.5.2) is IPv4.

    Raises OSError if it is neither.
    """
    if ":" not in address:
        return socket.inet_pton(socket.AF_INET, address)
    data = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return data[12:] if data.startswith(_MAPPED) else data


def client_of(address: bytes) -> bytes:
    """Who is counted as one: an IPv4 address, or the /64 of an IPv6 one, which a single subscriber has whole."""
    return address if len(address) == 4 else address[:8]


class Census:
    """The memory as the supervisor sees it: it makes it, gives workers a place in it, clears that of a dead one."""

    def __init__(self, fd: int = -1, taken: Iterable[int] = ()) -> None:
        """New memory, or with `fd` that of the program image before us, in which workers have the places `taken`.

        Memory that is laid out in another way, because that image is of another version, is replaced by new.
        """
        if fd >= 0 and not _fits(fd):
            os.close(fd)
            fd, taken = -1, ()
        if fd < 0:
            fd = os.memfd_create("oca-census", os.MFD_CLOEXEC)
            os.ftruncate(fd, _SIZE)
            os.pwrite(fd, _MAGIC + secrets.token_bytes(_SECRET), 0)
        os.set_inheritable(fd, False)
        self.fd = fd
        self._map = mmap.mmap(fd, _SIZE)
        self._numbers = memoryview(self._map).cast("I")
        self._totals = memoryview(self._map)[_TOTALS:_REGIONS].cast("Q")
        self.taken = set(taken)
        """Places that workers have."""
        self._announce()

    def admit(self) -> int:
        """A place for a new worker; OcaError if there is none."""
        place = next((number for number in range(PLACES) if number not in self.taken), -1)
        if place < 0:
            raise OcaError(f"more than {PLACES} workers at once, drained ones included: set fewer workers")
        self.taken.add(place)
        self._announce()
        return place

    def strike(self, place: int) -> None:
        """A worker has ended, perhaps without a word: what it counted is no more."""
        self._totals[2 * place] = self._totals[2 * place + 1] = 0
        self._map.madvise(mmap.MADV_REMOVE, _REGIONS + place * _REGION, _REGION)
        self.taken.discard(place)
        self._announce()

    def close(self) -> None:
        """Let go of the descriptor; workers keep theirs."""
        os.close(self.fd)

    def _announce(self) -> None:
        self._numbers[_READ] = max(self.taken, default=-1) + 1


class Ledger:
    """The memory as one worker sees it: it writes in its own `place` and reads all."""

    def __init__(self, fd: int, place: int) -> None:
        """OcaError if what is behind `fd` is no census."""
        if not _fits(fd) or not 0 <= place < PLACES:
            raise OcaError("the count of connections was laid out by another version: restart the appliance")
        memory = memoryview(mmap.mmap(fd, _SIZE))
        self._secret = bytes(memory[len(_MAGIC) : len(_MAGIC) + _SECRET])
        self._numbers = memory.cast("I")
        self._totals = memory[_TOTALS:_REGIONS].cast("Q")
        self._place = place
        self._own = (_REGIONS + place * _REGION) // 4

    def buckets(self, client: bytes) -> tuple[int, ...]:
        """Where a client (`client_of`) is counted, one bucket of each row."""
        digest = blake2b(client, key=self._secret, digest_size=4).digest()
        first = int.from_bytes(digest[:2], "little") % _BUCKETS
        return first, _BUCKETS + int.from_bytes(digest[2:], "little") % _BUCKETS

    def enter(self, buckets: tuple[int, ...]) -> None:
        """A connection has begun; without buckets it counts in the total alone."""
        self._totals[2 * self._place] += 1
        for bucket in buckets:
            self._numbers[self._own + bucket] += 1

    def leave(self, buckets: tuple[int, ...]) -> None:
        """A connection that entered has ended."""
        self._totals[2 * self._place] -= 1
        for bucket in buckets:
            self._numbers[self._own + bucket] -= 1

    def publish(self, in_flight: int) -> None:
        """Tell all workers how many bytes of answers wait in this one."""
        self._totals[2 * self._place + 1] = in_flight

    def of_client(self, buckets: tuple[int, ...]) -> int:
        """Connections that a client has on this box; 0 without buckets."""
        numbers, step = self._numbers, _REGION // 4
        end = _REGIONS // 4 + numbers[_READ] * step
        return min((sum(numbers[_REGIONS // 4 + bucket : end : step]) for bucket in buckets), default=0)

    @property
    def connections(self) -> int:
        """Connections open on this box."""
        return sum(self._totals[0 : 2 * self._numbers[_READ] : 2])

    @property
    def in_flight(self) -> int:
        """Bytes of answers that wait for their readers on this box, as last published."""
        return sum(self._totals[1 : 2 * self._numbers[_READ] : 2])


def alone() -> Ledger:
    """The ledger of a server that is the only one of its box."""
    census = Census()
    try:
        return Ledger(census.fd, census.admit())
    finally:
        census.close()


def _fits(fd: int) -> bool:
    """Whether the memory behind a descriptor is laid out as here."""
    try:
        return os.fstat(fd).st_size == _SIZE and os.pread(fd, len(_MAGIC), 0) == _MAGIC
    except OSError:
        return False
