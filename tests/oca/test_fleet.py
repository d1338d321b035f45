"""Boxes that fetch from each other over mutual TLS, on the port that viewers use: real sockets, real certificates."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bench import certificate
from control.fleet.authority import Authority
from oca import wire
from oca.appliance import check_safety
from oca.asking import SourceError
from oca.config import ApplianceSettings, MissSettings
from oca.counters import Counters
from oca.errors import ConfigError
from oca.fetch import Fetch, FetchError
from oca.health import Limits
from oca.http.certificates import Certificates, CertificateSettings, TlsSettings
from oca.http.gate import Gate, TokenSettings
from oca.miss.upstream import Upstreams
from oca.title.digest import digest
from oca.trust import fleet as own_fleet
from oca.trust.fleet import FLEET, Entrance, shown
from oca.trust.identity import Identity, Proof, client_context
from oca.trust.revocations import Revocations, RevocationsFile
from oca.wire import Source
from tests.conftest import MadeTitle, MakeTitle
from tests.oca.conftest import Running, Start
from tests.oca.test_identity import NOW, Fleet
from tests.oca.test_serving import until
from tests.oca.test_token import hmac, key_file

QUICK = Limits(connect_s=60.0, stall_s=60.0, attempts=2, backoff_s=0.01)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, Authority(tmp_path / "state", NOW))


@pytest.fixture
def own_certificates(tmp_path: Path) -> TlsSettings:
    """What viewers are shown."""
    chain, key = certificate.make(tmp_path / "tls", ["localhost", "127.0.0.1"])
    return TlsSettings(certificates=[CertificateSettings(chain=str(chain), key=str(key))], handshake_s=60)


@pytest.fixture
async def guarded(
    start: Start, fleet: Fleet, own_certificates: TlsSettings, make_title: MakeTitle, tmp_path: Path
) -> tuple[Running, MadeTitle]:
    """An enrolled box whose viewers need tokens and come ten a second at most."""
    gate = Gate(TokenSettings(keys=str(key_file(tmp_path / "keys.toml", hmac("1")))))
    tls = Certificates(own_certificates, b"", fleet.box("north-1"))
    running = await start(sweep_s=0.1, tls=tls, gate=gate, requests_per_client=10.0, requests_burst=1)
    return running, make_title(running.root, v1=[3 << 20, 1000])


def source(running: Running, scheme: str = "https") -> Source:
    return Source(appliance="north-1", url=f"{scheme}://127.0.0.1:{running.port}", rank="peer")


def prover(files: Identity) -> Proof:
    found = own_fleet.proof(files, "enrolled")
    assert found is not None
    return found


async def fetched(from_box: Source, made: MadeTitle, proof: Proof | None) -> str:
    """'' if title.json and a track were fetched whole and verified, else why not."""
    async with Fetch(limits=QUICK, proof=proof) as fetch:
        try:
            _, title = await fetch.title([from_box], made.title.id, made.version)
            file = title.files["v1.mp4"]
            _, data = await fetch.chunk([from_box], f"{made.url}/v1.mp4", file, 0)
        except FetchError as error:
            return str(error)
    assert digest(data) == file.chunks[0]
    return ""


async def test_boxes_of_a_fleet_fetch_without_tokens_and_rates(
    guarded: tuple[Running, MadeTitle], fleet: Fleet
) -> None:
    """They prove who they are; the certificate for viewers plays no part in it."""
    running, made = guarded
    proof = prover(fleet.box("north-2"))
    for _ in range(5):
        assert await fetched(source(running), made, proof) == ""
    assert set(running.server.counters.statuses) <= {200, 206}, "nobody was refused"


async def test_nobody_else_fetches(guarded: tuple[Running, MadeTitle], fleet: Fleet, tmp_path: Path) -> None:
    """Neither in clear, nor as a viewer, nor with what another fleet or another role certifies."""
    running, made = guarded
    other = Fleet(tmp_path / "other", Authority(tmp_path / "other" / "state", NOW))
    other.root.mkdir(exist_ok=True)
    assert "400" in await fetched(source(running, "http"), made, None)
    assert "certificate" in await fetched(source(running), made, None)
    for files in (other.box("north-2"), other.box("north-1")):
        assert "certificate verify failed" in await fetched(source(running), made, prover(files))
    assert running.server.counters.statuses.get(200, 0) == 0

    def outcome(context: ssl.SSLContext, name: str = FLEET) -> bytes:
        """What a client gets for its first request; nothing if it is not let in."""
        with contextlib.suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", running.port), 60)
            with context.wrap_socket(sock, server_hostname=name) as secured:
                secured.sendall(f"GET {made.url}/title.json HTTP/1.1\r\nHost: a\r\n\r\n".encode())
                return secured.recv(20)
        return b""

    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    assert await asyncio.to_thread(outcome, anybody) == b"", "the name alone opens nothing"
    assert await asyncio.to_thread(outcome, client_context(fleet.controller(), ("appliance",))) == b""
    assert await asyncio.to_thread(outcome, client_context(fleet.box("late", NOW - 40 * 86400.0))) == b""
    mixed = fleet.box("mixed")
    mixed.authorities.write_text(other.authority.bundle)
    assert (await asyncio.to_thread(outcome, anybody, "localhost")).startswith(b"HTTP/1.1 403 ")
    assert "certificate verify failed" in await fetched(source(running), made, prover(mixed))


async def test_a_box_that_does_not_prove_itself_is_not_fetched_from(
    start: Start, fleet: Fleet, own_certificates: TlsSettings, make_title: MakeTitle
) -> None:
    """No certificate of the fleet, or no TLS at all: another source is used, and the sentence says what to do."""
    strange = await start(tls=Certificates(own_certificates))
    made = make_title(strange.root, v1=[1000])
    proof = prover(fleet.box("north-2"))
    assert "certificate verify failed" in await fetched(source(strange), made, proof)
    assert "give that box [[tls.certificates]]" in await fetched(source(strange, "http"), made, proof)
    assert "oca enrol" in await fetched(source(strange), made, prover(fleet_files(fleet, "nobody")))


def fleet_files(fleet: Fleet, name: str) -> Identity:
    return Identity.of(fleet.root / name)


async def test_what_is_pulled_for_viewers_is_proved_too(guarded: tuple[Running, MadeTitle], fleet: Fleet) -> None:
    running, made = guarded
    got = bytearray()

    async def take(part: bytes) -> None:
        got.extend(part)

    for files, scheme, words in (
        (fleet.box("north-2"), "https", ""),
        (fleet_files(fleet, "nobody"), "https", "not enrolled"),
        (fleet.box("north-2"), "http", "proves nothing"),
    ):
        upstreams = Upstreams(MissSettings(), Counters(), prover(files))
        got.clear()
        try:
            if words:
                with pytest.raises(SourceError, match=words):
                    await upstreams.ask(source(running, scheme), f"{made.url}/title.json", None, take)
            else:
                await upstreams.ask(source(running, scheme), f"{made.url}/title.json", None, take)
                assert bytes(got) == made.bytes_of("title.json")
        finally:
            await upstreams.close()


async def test_enrolled_while_it_serves(
    start: Start, fleet: Fleet, own_certificates: TlsSettings, make_title: MakeTitle
) -> None:
    """The certificate is taken up within a sweep, another one as well; one that is no good changes nothing."""
    files, proof = fleet_files(fleet, "north-1"), prover(fleet.box("north-2"))
    running = await start(sweep_s=0.05, tls=Certificates(own_certificates, b"", files))
    made = make_title(running.root, v1=[1000])
    assert "certificate verify failed" in await fetched(source(running), made, proof)

    async def becomes(wanted: bool) -> None:
        async with asyncio.timeout(60):
            while (await fetched(source(running), made, proof) == "") is not wanted:
                await asyncio.sleep(0.02)

    fleet.box("north-1")
    await becomes(True)
    files.certificate.write_text("no certificate")
    await asyncio.sleep(0.2)
    await becomes(True)
    fleet.box("north-1")
    await asyncio.sleep(0.2)
    await becomes(True)
    files.certificate.unlink()
    await becomes(False)


async def test_a_revoked_box_is_not_let_in(guarded: tuple[Running, MadeTitle], fleet: Fleet) -> None:
    """Its open connections end within a sweep, new ones fail; others are served on."""
    running, made = guarded
    revoked, other = fleet.box("north-2"), fleet.box("north-3")
    assert await fetched(source(running), made, prover(other)) == ""
    peer = await asyncio.to_thread(socket.create_connection, ("127.0.0.1", running.port), 60)
    context = client_context(revoked, ("appliance",))
    secured = await asyncio.to_thread(context.wrap_socket, peer, server_hostname=FLEET)
    with secured:
        ask = f"GET {made.url}/title.json HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        secured.sendall(ask)
        assert (await asyncio.to_thread(secured.recv, 15)) == b"HTTP/1.1 200 OK"
        RevocationsFile(fleet_files(fleet, "north-1").revoked).write(
            wire.encode(Revocations(appliances=frozenset({"north-2"})).message)
        )
        while await asyncio.to_thread(secured.recv, 1 << 16):
            pass  # the rest of the answer, and then the end
    assert running.server.counters.closed["revoked"] == 1
    assert "revoked" not in await fetched(source(running), made, prover(other))
    assert await fetched(source(running), made, prover(revoked)) != ""


async def test_a_revoked_box_is_not_fetched_from(guarded: tuple[Running, MadeTitle], fleet: Fleet) -> None:
    """Before anything is asked of it."""
    running, made = guarded
    mine = fleet.box("north-2")
    assert await fetched(source(running), made, prover(mine)) == ""
    leaf = fleet_files(fleet, "north-1").leaf()
    assert leaf is not None
    RevocationsFile(mine.revoked).write(wire.encode(Revocations(frozenset({leaf.serial_number})).message))
    assert "certificate of appliance north-1 is revoked" in await fetched(source(running), made, prover(mine))


async def test_a_hello_that_comes_byte_by_byte(guarded: tuple[Running, MadeTitle]) -> None:
    """Viewers on bad lines are served as ever; whoever says nothing and goes leaves nothing behind."""
    running, _ = guarded
    assert running.trusted is not None
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    viewer = running.trusted.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        viewer.do_handshake()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    for byte in outgoing.read():
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)
    incoming.write(await reader.read(1 << 16))
    with contextlib.suppress(ssl.SSLWantReadError):
        viewer.do_handshake()
    assert viewer.version() == "TLSv1.3"
    writer.close()
    _, silent = await asyncio.open_connection("127.0.0.1", running.port)
    await asyncio.sleep(0.05)
    silent.close()
    await until(lambda: running.server.counters.open == 0)


def test_settings_that_cannot_work_are_refused(fleet: Fleet, own_certificates: TlsSettings, tmp_path: Path) -> None:
    def settings(**more: object) -> ApplianceSettings:
        made = ApplianceSettings(
            appliance="north-1",
            store=[str(tmp_path / "store")],
            url="https://127.0.0.1:8080",
            tls=own_certificates,
            identity=str(fleet.box("north-1").key.parent),
            sources="enrolled",
        )
        return msgspec.structs.replace(made, **more)

    check_safety(settings())
    for more, words in (
        ({"url": "http://127.0.0.1:8080"}, "proves nothing"),
        ({"identity": str(tmp_path / "nobody")}, "not enrolled"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_safety(settings(**more))
    fleet_files(fleet, "north-1").certificate.write_text("no certificate")
    with pytest.raises(ConfigError, match="enrol this box again"):
        Entrance(fleet_files(fleet, "north-1"))


def test_without_the_setting_anybody_is_asked(fleet: Fleet) -> None:
    assert own_fleet.proof(fleet.box("north-1"), "any") is None
    assert shown(None, "http://anywhere.example") == {}
    asks: Callable[[Proof | None, str], object] = shown
    assert asks(prover(fleet.box("north-1")), "https://anywhere.example") != {}
