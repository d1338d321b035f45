"""The verified fetch against sources that lie, drip, stall and break off, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca.asking import SourceError, check_head
from oca.breaker import Terms
from oca.bucket import BURST_S, Bucket
from oca.clock import Clock
from oca.errors import StoreError
from oca.fetch import Fetch, FetchError
from oca.health import Health, Limits, pause_s, quickest, too_slow
from oca.store.landing import Landing, claimed_chunks, record_of
from oca.title import model as title_format
from oca.title.digest import CHUNK_BYTES, digest, version_of
from oca.title.model import File
from oca.wire import Source
from tests.clock import Jumping
from tests.conftest import MadeTitle, MakeTitle

SOON = Limits(parallel=2, connect_s=60.0, stall_s=60.0, chunk_s=120.0, attempts=2, backoff_s=0.01, rest_s=60.0)
# For sources that are to be found too slow; on a busy machine honest ones may be, too.
HASTY = replace(SOON, stall_s=1.0, chunk_s=2.0)


@dataclass
class Asked:
    """One request: its path, the bytes asked for, and where the answer goes. `end` is exclusive."""

    path: str
    ranged: bool
    start: int
    end: int
    data: bytes
    writer: asyncio.StreamWriter

    @property
    def honest(self) -> tuple[str, bytes]:
        body = self.data[self.start : self.end]
        if not self.ranged:
            return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n", body
        return (
            f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n"
            f"Content-Range: bytes {self.start}-{self.end - 1}/{len(self.data)}\r\n\r\n",
            body,
        )

    async def send(self, head: str, body: bytes) -> None:
        self.writer.write(head.encode() + body)
        await self.writer.drain()


Behaviour = Callable[[Asked], Awaitable[None]]


async def honest(asked: Asked) -> None:
    await asked.send(*asked.honest)


async def wrong_bytes(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(head, body[:-1] + bytes([body[-1] ^ 1]))


async def breaks_off(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(head, body[: len(body) // 2])
    asked.writer.close()


async def resets(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(head, body[: len(body) // 2])
    asked.writer.transport.abort()


async def stalls(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(head, body[: len(body) // 2])
    await asyncio.Event().wait()


async def drips(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(head, b"")
    for number in range(len(body)):
        await asked.send("", body[number : number + 1])
        await asyncio.sleep(0.02)


async def refuses(asked: Asked) -> None:
    await asked.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"")


async def lacks(asked: Asked) -> None:
    await asked.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"")


async def redirects(asked: Asked) -> None:
    await asked.send("HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", b"")


async def redirects_in_a_loop(asked: Asked) -> None:
    await asked.send(f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {asked.path}\r\nContent-Length: 0\r\n\r\n", b"")


async def ignores_range(asked: Asked) -> None:
    await asked.send(f"HTTP/1.1 200 OK\r\nContent-Length: {len(asked.data)}\r\n\r\n", asked.data)


async def other_range(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(re.sub(r"bytes \d+", "bytes 1", head), body)


async def no_range(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(re.sub(r"Content-Range.*\r\n", "", head), body)


async def longer(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(re.sub(r"Content-Length: \d+", f"Content-Length: {len(body) + 9}", head), body + b"more than")


async def endless(asked: Asked) -> None:
    head, _ = asked.honest
    await asked.send(re.sub(r"Content-Length: \d+", "Transfer-Encoding: chunked", head), b"")
    with contextlib.suppress(ConnectionError):
        while True:
            await asked.send("10000\r\n", bytes(0x10000) + b"\r\n")


async def shorter(asked: Asked) -> None:
    head, _ = asked.honest
    await asked.send(re.sub(r"Content-Length: \d+", "Transfer-Encoding: chunked", head), b"3\r\nabc\r\n0\r\n\r\n")


async def zipped(asked: Asked) -> None:
    head, body = asked.honest
    await asked.send(head.replace("\r\n", "\r\nContent-Encoding: gzip\r\n", 1), body)


async def gibberish(asked: Asked) -> None:
    await asked.send("SSH-2.0-OpenSSH_9.2\r\n", b"")
    asked.writer.close()


@dataclass
class Box:
    """A source on an ephemeral port that serves the files of a made title as its behaviour says."""

    made: MadeTitle
    name: str
    behave: Behaviour = honest
    port: int = 0
    log: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def source(self) -> Source:
        rank: Literal["peer", "origin"] = "peer" if self.name.startswith("peer") else "origin"
        return Source(appliance=self.name, url=f"http://127.0.0.1:{self.port}", rank=rank)

    def chunks(self, name: str) -> list[int]:
        """Which chunks of a file were asked for, in order of number."""
        return sorted(start // CHUNK_BYTES for path, start, _ in self.log if path.endswith(f"/{name}"))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = head.split()[1]
                data = self.made.bytes_of(path.rpartition("/")[2])
                match = re.search(r"Range: bytes=(\d+)-(\d+)", head)
                start, end = (int(match[1]), int(match[2]) + 1) if match else (0, len(data))
                self.log.append((path, start, end))
                await self.behave(Asked(path, match is not None, start, end, data, writer))
        writer.close()


StartBox = Callable[..., Awaitable[Box]]


@pytest.fixture
async def box(made: MadeTitle) -> AsyncIterator[StartBox]:
    """Start a source: box("peer", stalls)."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def begin(name: str, behave: Behaviour = honest, content: MadeTitle = made) -> Box:
        made_box = Box(content, name, behave)

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.create_task(made_box.serve(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        made_box.port = server.sockets[0].getsockname()[1]
        servers.append(server)
        return made_box

    yield begin
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="session")
def published() -> list[MadeTitle]:
    """The titles made so far, because making them is what takes long."""
    return []


@pytest.fixture
def made(make_title: MakeTitle, published: list[MadeTitle], tmp_path_factory: pytest.TempPathFactory) -> MadeTitle:
    """A title with a track of three chunks, the last a short one. Not to be changed by a test."""
    if not published:
        root = tmp_path_factory.mktemp("published")
        published.append(make_title(root, "clip", v1=[CHUNK_BYTES, CHUNK_BYTES, 5000], a1=[700]))
    return published[0]


@pytest.fixture
def landing(made: MadeTitle, tmp_path: Path) -> Landing:
    return Landing(tmp_path / "v1.mp4", made.title.files["v1.mp4"])


async def bring(fetch: Fetch, made: MadeTitle, landing: Landing, *boxes: Box) -> dict[str, int]:
    """Fetch v1.mp4; bytes by who gave them ("" for what was there)."""
    given_by: dict[str, int] = {}

    def note(source: Source | None, amount: int) -> None:
        name = source.appliance if source else ""
        given_by[name] = given_by.get(name, 0) + amount

    await fetch.file([each.source for each in boxes], made.title, made.version, "v1.mp4", landing, note)
    return given_by


async def test_each_chunk_once(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """A file arrives as it was published, each chunk asked for once and by its exact range."""
    origin = await box("origin")
    async with Fetch(limits=SOON) as fetch:
        assert await bring(fetch, made, landing, origin) == {"origin": made.title.files["v1.mp4"].bytes}
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")
    assert origin.chunks("v1.mp4") == [0, 1, 2]


FAULTS = [
    (wrong_bytes, "wrong bytes for chunk [0-2]", "bad"),
    (breaks_off, "", "retry"),
    (resets, "", "retry"),
    (stalls, "imeout", "retry"),
    (drips, "too slow", "retry"),
    (refuses, "answers 503", "retry"),
    (gibberish, "", "retry"),
    (shorter, "sent 3 bytes instead of", "retry"),
    (lacks, "answers 404", "absent"),
    (redirects, "redirects", "absent"),
    (redirects_in_a_loop, "redirects", "absent"),
    (ignores_range, "ignores Range", "bad"),
    (other_range, "announces the range", "bad"),
    (no_range, "announces the range 'nothing'", "bad"),
    (longer, "announces .* instead of", "bad"),
    (endless, "more than the", "bad"),
    (zipped, "encodes the content as gzip", "bad"),
]


# To be found too slow takes seconds.
SLOW = (stalls, drips)


@pytest.mark.parametrize(
    ("fault", "words", "verdict"),
    [pytest.param(*row, id=row[0].__name__, marks=[pytest.mark.long] if row[0] in SLOW else []) for row in FAULTS],
)
async def test_fault(
    made: MadeTitle, landing: Landing, box: StartBox, fault: Behaviour, words: str, verdict: str
) -> None:
    """A source at fault gives nothing that counts, is named in the error, and is not asked again and again."""
    peer = await box("peer-1", fault)
    limits = HASTY if fault in SLOW else SOON
    async with Fetch(limits=limits) as fetch:
        with pytest.raises(FetchError, match=f"no source gives .*v1.mp4: peer-1: .*{words}"):
            await bring(fetch, made, landing, peer)
        # Two chunks in flight, and as many attempts as the verdict allows.
        assert len(peer.log) <= (2 * limits.attempts if verdict == "retry" else 2)
        assert claimed_chunks(landing.path) == (0, 3)
        assert landing.path.stat().st_size == made.title.files["v1.mp4"].bytes
        # The next best source makes up for it; meanwhile a peer with a temporary fault rests, a bad one is done for.
        origin = await box("origin")
        asked = len(peer.log)
        given_by = await bring(fetch, made, landing, peer, origin)
        assert given_by == {"origin": made.title.files["v1.mp4"].bytes}
        assert verdict == "absent" or len(peer.log) == asked
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")


async def test_connection_refused(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """A source that is not there costs a few attempts, not the file."""
    gone, origin = Box(made, "gone", port=1), await box("origin")
    async with Fetch(limits=SOON) as fetch:
        assert set(await bring(fetch, made, landing, gone, origin)) == {"origin"}


async def test_a_hiccup_does_not_change_the_source(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """One temporary failure is followed by another attempt at the same, best source."""

    async def hiccup(asked: Asked) -> None:
        await (refuses if len(peer.log) == 1 else honest)(asked)

    peer, origin = await box("peer", hiccup), await box("origin")
    async with Fetch(limits=SOON) as fetch:
        assert set(await bring(fetch, made, landing, peer, origin)) == {"peer"}
    assert len(peer.log) == 4


@pytest.mark.long
async def test_peers_share_the_work(make_title: MakeTitle, tmp_path: Path, box: StartBox) -> None:
    """All of the best rank give at once, a slow one less; a worse rank is not asked while a better works."""
    made = make_title(tmp_path / "many", v1=[CHUNK_BYTES] * 10)
    landing = Landing(tmp_path / "v1.mp4", made.title.files["v1.mp4"])

    async def slow(asked: Asked) -> None:
        await asyncio.sleep(0.5)
        await honest(asked)

    peers = [await box(f"peer-{number}", slow if number == 2 else honest, made) for number in range(3)]
    origin = await box("origin", honest, made)
    async with Fetch(limits=Limits(parallel=4)) as fetch:
        given_by = await bring(fetch, made, landing, *peers, origin)
    chunks = {name: round(amount / CHUNK_BYTES) for name, amount in given_by.items()}
    assert chunks.keys() <= {"peer-0", "peer-1", "peer-2"}
    assert min(chunks["peer-0"], chunks["peer-1"]) >= 2
    assert chunks.get("peer-2", 0) <= 3
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ([], None),
        ([Health(), Health()], 0),
        ([Health(in_flight=1), Health()], 1),
        ([Health(rate=10.0), Health(rate=30.0)], 1),
        ([Health(rate=10.0), Health(rate=30.0, in_flight=2)], 0),
        ([Health(rate=10.0, in_flight=1), Health(rate=30.0, in_flight=2)], 1),
        ([Health(rate=10.0), Health()], 0),
        ([Health(rate=10.0, in_flight=1), Health()], 1),
        ([Health(rate=1e9, resume_at=5.0), Health(rate=1.0, in_flight=9)], 1),
        ([Health(resume_at=5.0)], 0),
        ([Health(rate=1e9, resume_at=4.0), Health(rate=1.0)], 0),
    ],
)
def test_who_is_asked_next(known: list[Health], chosen: int | None) -> None:
    """Who is likely to have sent it first; who rests after a failure only when nobody else can."""
    sources = [Source(appliance=f"peer-{n}", url=f"http://p{n}.example", rank="peer") for n in range(len(known))]
    assert quickest(list(zip(sources, known, strict=True)), 4.5) == (None if chosen is None else sources[chosen])


@pytest.mark.parametrize("alone", [False, True])
async def test_a_source_that_fails_every_other_time(made: MadeTitle, box: StartBox, alone: bool) -> None:
    """Its circuit opens, and who is worse takes over; who is alone is waited for, and tried again."""

    async def every_other(asked: Asked) -> None:
        await (refuses if len(peer.log) % 2 else honest)(asked)

    peer, origin = await box("peer", every_other), await box("origin")
    sources = [peer.source] if alone else [peer.source, origin.source]
    time = Jumping()
    limits = replace(SOON, attempts=3, circuit=Terms(requests=5, window_s=3600, rest_s=60))
    async with Fetch(limits=limits, clock=time.clock) as fetch:
        for _ in range(12):
            file = made.title.files["a1.mp4"]
            _, data = await fetch.chunk(sources, f"{made.url}/a1.mp4", file, 0)
            assert data == made.bytes_of("a1.mp4")
    assert (len(peer.log), len(origin.log)) == ((24, 0) if alone else (5, 10))
    assert (time.at - 1000 > 60) is alone


@pytest.mark.parametrize("alone", [False, True])
async def test_a_slow_source_is_left_only_for_another(
    made: MadeTitle, landing: Landing, box: StartBox, alone: bool
) -> None:
    """Who is alone is stayed with, each chunk asked for once, far beyond the time that a chunk may take."""
    time = Jumping()

    async def slowly(asked: Asked) -> None:
        head, body = asked.honest
        await asked.send(head, b"")
        # So often that it is slow even if the one who waits misses some of it.
        for part in range(0, len(body), CHUNK_BYTES // 64):
            time.at += 30
            await asked.send("", body[part : part + CHUNK_BYTES // 64])
            await asyncio.sleep(0)

    peer, origin = await box("peer", slowly), await box("origin")
    limits = replace(SOON, parallel=1, attempts=1, rest_s=1e6, least_bytes_per_s=1.0)
    async with Fetch(limits=limits, clock=time.clock) as fetch:
        given_by = await bring(fetch, made, landing, peer, *([] if alone else [origin]))
    assert given_by == {"peer" if alone else "origin": made.title.files["v1.mp4"].bytes}
    assert peer.chunks("v1.mp4") == ([0, 1, 2] if alone else [0])
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")


@pytest.mark.parametrize(
    ("rate", "others", "left"),
    [
        (50e3, [], False),
        (1e3, [], True),
        (50e3, [Health()], True),
        (50e3, [Health(rate=90e3)], False),
        (50e3, [Health(rate=90e3), Health(rate=110e3)], True),
        (50e3, [Health(failures=1), Health(rate=1e9, failures=1)], False),
        (50e3, [Health(bad=True)], False),
    ],
)
def test_when_a_slow_source_is_left(rate: float, others: list[Health], left: bool) -> None:
    """For one that may be much quicker; at a drip for nobody."""
    assert too_slow(Limits(), rate, others, 0.0) is left


def test_the_numbers_of_a_circuit_are_those_of_all_circuits() -> None:
    assert Limits().circuit == Terms(requests=20, window_s=10, percent=50, rest_s=5)


@given(st.integers(1, 8), st.floats(0, 1))
def test_back_off_doubles_varies_and_ends_in_a_rest(failures: int, chance: float) -> None:
    """Boxes that failed together do not come again together."""
    limits = Limits(attempts=7, backoff_s=0.25, rest_s=60.0)
    pause = pause_s(limits, failures, chance)
    if failures >= 7:
        assert pause == 60.0
    else:
        assert 0.5 <= pause / (0.25 * 2 ** (failures - 1)) <= 1.5
        assert pause_s(limits, failures, 0.0) < pause_s(limits, failures, 1.0)


async def test_rest_ends(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """A source that was given up is tried again after its rest."""
    peer = await box("peer", refuses)
    time = Jumping()
    async with Fetch(limits=SOON, clock=time.clock) as fetch:
        for _ in range(2):
            with pytest.raises(FetchError, match="503"):
                await bring(fetch, made, landing, peer)
        peer.behave = honest
        time.at += SOON.rest_s
        assert set(await bring(fetch, made, landing, peer)) == {"peer"}


async def test_bad_for_the_whole_run(made: MadeTitle, tmp_path: Path, box: StartBox) -> None:
    """Who sent wrong bytes once is not asked for another file in the same run."""
    liar, origin = await box("liar", wrong_bytes), await box("origin")
    sources = [liar.source, origin.source]
    async with Fetch(limits=SOON) as fetch:
        for name in ("a1.mp4", "a1.idx", "master.m3u8"):
            place = Landing(tmp_path / name, made.title.files[name])
            await fetch.file(sources, made.title, made.version, name, place)
            assert place.path.read_bytes() == made.bytes_of(name)
    assert len(liar.log) == 1


async def test_resume_fetches_only_the_rest(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """What an earlier attempt verified is not fetched again, by another run with another source either."""

    async def first_only(asked: Asked) -> None:
        await (honest if asked.start == 0 else refuses)(asked)

    broken, origin = await box("broken", first_only), await box("origin")
    async with Fetch(limits=replace(SOON, parallel=1)) as fetch:
        with pytest.raises(FetchError):
            await bring(fetch, made, landing, broken)
    async with Fetch(limits=SOON) as fetch:
        given_by = await bring(fetch, made, landing, origin)
    assert given_by == {"": CHUNK_BYTES, "origin": CHUNK_BYTES + 5540}
    assert origin.chunks("v1.mp4") == [1, 2]
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")


async def test_cancelled_and_resumed(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """A fetch cut off in the middle goes on with what it had."""
    waiting = asyncio.Event()

    async def hangs_on_the_second(asked: Asked) -> None:
        if asked.start == CHUNK_BYTES:
            waiting.set()
            await asyncio.Event().wait()
        await honest(asked)

    origin = await box("origin", hangs_on_the_second)
    async with Fetch(limits=replace(SOON, parallel=1)) as fetch:
        task = asyncio.create_task(bring(fetch, made, landing, origin))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        origin.behave = honest
        await bring(fetch, made, landing, origin)
    assert origin.chunks("v1.mp4") == [0, 1, 1, 2]


def flip_a_byte(landing: Landing) -> None:
    with landing.path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))


def claim_too_much(landing: Landing) -> None:
    landing.settle(0, bytes(CHUNK_BYTES))
    with record_of(landing.path).open("ab") as record:
        record.write(b"\xff\xff\xff\xff\x00\x00")  # a chunk there is none of, and half a claim


def lose_the_record(landing: Landing) -> None:
    record_of(landing.path).unlink()


def record_of_another_file(landing: Landing) -> None:
    data = bytearray(record_of(landing.path).read_bytes())
    data[10] ^= 1
    record_of(landing.path).write_bytes(data)


def truncate(landing: Landing) -> None:
    with landing.path.open("r+b") as file:
        file.truncate(1000)


def link(landing: Landing) -> None:
    other = landing.path.with_name("other")
    landing.path.rename(other)
    landing.path.symlink_to(other)


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (flip_a_byte, [0]),
        (claim_too_much, [0]),
        (lose_the_record, [0, 1, 2]),
        (record_of_another_file, [0, 1, 2]),
        (truncate, [0, 1, 2]),
        (link, [0, 1, 2]),
    ],
)
async def test_resume_trusts_nothing(
    made: MadeTitle, landing: Landing, box: StartBox, damage: Callable[[Landing], None], again: list[int]
) -> None:
    """Chunks that are not on disk as published are fetched again, whatever the record claims."""
    async with Fetch(limits=SOON) as fetch:
        await bring(fetch, made, landing, await box("first"))
        damage(landing)
        second = await box("second")
        await bring(fetch, made, landing, second)
    assert second.chunks("v1.mp4") == again
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")
    assert not landing.path.is_symlink()


async def test_empty_file(make_title: MakeTitle, tmp_path: Path, box: StartBox) -> None:
    """A file of no bytes is asked for without a range, and arrives."""
    made = make_title(tmp_path / "published")
    (made.directory / "empty.vtt").write_bytes(b"")
    origin = await box("origin", content=made)
    file = File(0, digest(b""), [digest(b"")])
    title = msgspec.structs.replace(made.title, files={**made.title.files, "empty.vtt": file})
    async with Fetch(limits=SOON) as fetch:
        place = Landing(tmp_path / "empty.vtt", file)
        await fetch.file([origin.source], title, made.version, "empty.vtt", place)
    assert place.path.read_bytes() == b""


async def test_one_chunk(made: MadeTitle, box: StartBox) -> None:
    """A single chunk can be had in memory, verified, with the name of who gave it."""
    liar, origin = await box("liar", wrong_bytes), await box("origin")
    async with Fetch(limits=SOON) as fetch:
        source, data = await fetch.chunk(
            [liar.source, origin.source], f"{made.url}/v1.mp4", made.title.files["v1.mp4"], 1
        )
    assert source == origin.source
    assert data == made.bytes_of("v1.mp4")[CHUNK_BYTES : 2 * CHUNK_BYTES]


async def test_title_certifies_itself(made: MadeTitle, box: StartBox) -> None:
    """title.json comes from whoever has the right one."""
    liar, endless_box, origin = await box("liar", wrong_bytes), await box("endless", endless), await box("origin")
    sources = [liar.source, endless_box.source, origin.source]
    async with Fetch(limits=SOON) as fetch:
        data, title = await fetch.title(sources, made.id, made.version)
        assert version_of(data) == made.version
        assert title == made.title
        with pytest.raises(FetchError, match=r"liar: its title.json is not .*; endless: it sends more than"):
            await fetch.title(sources[:2], made.id, made.version)
        with pytest.raises(FetchError, match="is of title clip, not other"):
            await fetch.title(sources, "other", made.version)
        with pytest.raises(FetchError, match="no source for"):
            await fetch.title([], made.id, made.version)


async def test_title_that_is_unusable(make_title: MakeTitle, tmp_path: Path, box: StartBox) -> None:
    """A title.json that is the right one and yet corrupt is an error that no other source is asked about."""
    made = make_title(tmp_path)
    data = title_format.encode(made.title).replace(b'"clip"', b'"../x"')
    (made.directory / "title.json").write_bytes(data)
    first, second = await box("first", content=made), await box("second", content=made)
    async with Fetch(limits=SOON) as fetch:
        with pytest.raises(FetchError, match=r"title id '../x' is not an id"):
            await fetch.title([first.source, second.source], made.id, version_of(data))
    assert second.log == []


@pytest.fixture
def small_files(landing: Landing) -> Iterator[None]:
    """No file may grow beyond 1 MiB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_full_disk(made: MadeTitle, landing: Landing, box: StartBox, small_files: None) -> None:
    """A disk without room is found before anything is fetched, and nothing of the file stays behind."""
    origin = await box("origin")
    async with Fetch(limits=SOON) as fetch:
        with pytest.raises(StoreError, match=r"cannot write .*v1.mp4: File too large; free space"):
            await bring(fetch, made, landing, origin)
    assert origin.log == []
    assert list(landing.path.parent.iterdir()) == []


async def test_place_that_cannot_be_written(made: MadeTitle, tmp_path: Path, box: StartBox) -> None:
    """A staging directory that went away is a sentence, before and during the fetch."""
    landing = Landing(tmp_path / "gone" / "v1.mp4", made.title.files["v1.mp4"])
    with pytest.raises(StoreError, match=r"cannot write .*gone/v1.mp4: No such file"):
        landing.settle(0, b"")
    with pytest.raises(StoreError, match=r"cannot write .*gone/v1.mp4: No such file"):
        landing.claims()
    assert not landing.holds(0)
    (tmp_path / "v1.mp4").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*/v1.mp4: Is a directory"):
        Landing(tmp_path / "v1.mp4", made.title.files["v1.mp4"]).claims()


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 3)), min_size=1), st.integers(1, 100_000))
def test_bucket_keeps_the_rate(takes: list[tuple[int, float]], rate: int) -> None:
    """However takes come, over any stretch no more passes than rate × time and one burst."""
    now, taken = 0.0, 0
    bucket = Bucket(rate, Clock(lambda: now))
    for amount, pause in takes:
        assert taken <= rate * (now + BURST_S) + 1
        now += bucket.reserve(amount) + pause
        taken += amount


async def test_rate_cap(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """The cap holds over all chunks in flight together: within a hundredth over half a minute."""
    origin = await box("origin")
    time = Jumping()
    wanted_s = 30.0
    async with Fetch(
        Bucket(made.title.files["v1.mp4"].bytes / wanted_s, time.clock), SOON, clock=time.clock
    ) as fetch:
        await bring(fetch, made, landing, origin)
    assert wanted_s - BURST_S - 0.01 <= time.at - 1000 <= wanted_s * 1.01


async def test_back_off_is_waited_for(made: MadeTitle, landing: Landing, box: StartBox) -> None:
    """Twice as long after each failure, and by as much more or less as chance says."""
    asked: list[float] = []
    time = Jumping()

    async def fails_thrice(asked_for: Asked) -> None:
        asked.append(time.at)
        await (refuses if len(asked) < 4 else honest)(asked_for)

    origin = await box("origin", fails_thrice)
    limits = replace(SOON, parallel=1, attempts=9, backoff_s=1.0)
    async with Fetch(limits=limits, clock=time.clock, chance=lambda: 0.25) as fetch:
        await bring(fetch, made, landing, origin)
    assert [after - before for before, after in pairwise(asked)][:3] == pytest.approx([0.75, 1.5, 3.0])


@pytest.mark.parametrize(
    ("status", "fields", "verdict"),
    [
        (206, {"Content-Range": "bytes 10-19/100"}, None),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "10"}, None),
        (206, {"Content-Range": "bytes 10-19/100", "Content-Length": "11"}, "bad"),
        (206, {"Content-Range": "bytes 10-19/*"}, "bad"),
        (206, {"Content-Range": "bytes 10-19/101"}, "bad"),
        (206, {"Content-Range": "bytes 10-20/100"}, "bad"),
        (206, {"Content-Range": "bytes */100"}, "bad"),
        (206, {}, "bad"),
        (200, {}, "bad"),
        (416, {}, "absent"),
        (308, {"Location": "ftp://x/"}, "absent"),
        (410, {}, "absent"),
        (429, {}, "retry"),
        (500, {}, "retry"),
    ],
)
def test_heads(status: int, fields: dict[str, str], verdict: str | None) -> None:
    """A head is taken only if it announces exactly the bytes asked for."""
    if verdict is None:
        check_head(status, fields, (10, 10, 100))
        return
    with pytest.raises(SourceError) as caught:
        check_head(status, fields, (10, 10, 100))
    assert caught.value.verdict == verdict


async def test_chunks_are_as_long_as_the_title_says(make_title: MakeTitle, tmp_path: Path, box: StartBox) -> None:
    """They are asked for one by one; what a record claims of chunks of another length counts for nothing."""
    made = make_title(tmp_path / "short", v1=[20_000, 5000], chunk_bytes=7001)
    file = made.title.files["v1.mp4"]
    landing = Landing(tmp_path / "v1.mp4", file)
    other = Landing(landing.path, msgspec.structs.replace(file, chunk_bytes=CHUNK_BYTES))
    other.claims()
    other.claim([0])
    assert landing.claims() == []
    landing.settle(1, made.bytes_of("v1.mp4")[7001:14_002])
    assert claimed_chunks(landing.path) == (1, 4)
    origin = await box("origin", content=made)
    async with Fetch(limits=SOON) as fetch:
        assert await bring(fetch, made, landing, origin) == {"": 7001, "origin": file.bytes - 7001}
    assert sorted(start for path, start, _ in origin.log if path.endswith("v1.mp4")) == [0, 14_002, 21_003]
    assert landing.path.read_bytes() == made.bytes_of("v1.mp4")
