"""TLS on the content listener: handshakes, certificates, and every byte; real sockets, OpenSSL on the other side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import certificate
from oca.errors import ConfigError
from oca.http import openssl
from oca.http.certificates import Certificates, CertificateSettings, TlsSettings, valid_until
from oca.http.handshake import ALERT
from tests.conftest import MadeTitle, MakeTitle
from tests.oca.conftest import Running, Start
from tests.oca.test_appliance import OCA, Appliance
from tests.oca.test_appliance import until as until_seen
from tests.oca.test_cold import put_anew
from tests.oca.test_serving import closed, until

BIG = 12 << 20
SECRET = bytes(range(32))


@pytest.fixture
def secured() -> bool:
    return True


def listed(folder: Path, *names: str, kind: certificate.Kind = "ecdsa", days: float = 30) -> CertificateSettings:
    chain, key = certificate.make(folder, names, kind, days)
    return CertificateSettings(chain=str(chain), key=str(key))


def trusting(*certificates: CertificateSettings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for one in certificates:
        context.load_verify_locations(one.chain)
    return context


def talk(port: int, context: ssl.SSLContext, name: str = "localhost", **more: Any) -> ssl.SSLSocket:
    """A blocking connection whose handshake is done; to be used in a thread, beside the server's loop."""
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 60), server_hostname=name, **more)


def fetch(sock: ssl.SSLSocket, path: str) -> bytes:
    """Ask for `path` and read until the server closes."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while part := sock.read(1 << 16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return body


async def subject(port: int, context: ssl.SSLContext, name: str) -> tuple[str, str]:
    """Host name and kind of key of the certificate that a client is shown who asks for `name`."""

    def look() -> tuple[str, str]:
        context.check_hostname = False
        with talk(port, context, name) as sock:
            shown = sock.getpeercert()
            assert shown
            names: Any = shown["subjectAltName"]
            der = sock.getpeercert(binary_form=True)
            assert der
            return names[0][1], "rsa" if len(der) > 600 else "ecdsa"

    return await asyncio.to_thread(look)


@pytest.fixture
async def big(start: Start, make_title: MakeTitle) -> tuple[Running, MadeTitle]:
    running = await start(sweep_s=0.1)
    return running, make_title(running.root, v1=[BIG, 1000, 64 << 10])


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("cipher", ["", "ECDHE+CHACHA20", "ECDHE+AES128"])
async def test_every_byte_arrives(big: tuple[Running, MadeTitle], version: ssl.TLSVersion, cipher: str) -> None:
    """Whatever is agreed on; the connection ends with close_notify, so that nobody could have cut it short."""
    running, made = big
    assert running.trusted is not None
    running.trusted.minimum_version = running.trusted.maximum_version = version
    if cipher:
        running.trusted.set_ciphers(cipher)
    running.trusted.set_alpn_protocols(["h2", "http/1.1"])

    def ask() -> bytes:
        assert running.trusted is not None
        with talk(running.port, running.trusted, suppress_ragged_eofs=False) as sock:
            assert sock.selected_alpn_protocol() == "http/1.1"
            return fetch(sock, f"{made.url}/v1/1.m4s")

    assert await asyncio.to_thread(ask) == made.segment("v1", 1)
    name = "TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3"
    counters = running.server.counters
    assert list(counters.tls) in ([f"{name} user no"], [f"{name} kernel no"])
    assert counters.sendfile_bytes + counters.encrypted_bytes == BIG


async def test_head_and_first_bytes_share_a_record(big: tuple[Running, MadeTitle]) -> None:
    """A small answer is one record; one of 64 KiB is five, the last of which is short."""
    running, made = big
    assert running.trusted is not None
    running.trusted.maximum_version = ssl.TLSVersion.TLSv1_2  # whose records show their kind on the wire

    def sizes(path: str) -> list[int]:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        assert running.trusted is not None
        session = running.trusted.wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", running.port), 60) as sock:
            while True:
                try:
                    session.do_handshake()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    incoming.write(sock.recv(1 << 16))
                else:
                    break
            session.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            sock.sendall(outgoing.read())
            data = b""
            while part := sock.recv(1 << 16):
                data += part
        found = []
        while data:
            length = int.from_bytes(data[3:5], "big")
            if data[0] == 23:
                found.append(length)
            data = data[5 + length :]
        return found

    assert len(await asyncio.to_thread(sizes, f"{made.url}/v1/2.m4s")) == 1
    assert len(await asyncio.to_thread(sizes, f"{made.url}/v1/3.m4s")) == 5
    assert len(await asyncio.to_thread(sizes, "/no/such/thing")) <= 2


async def test_a_slow_reader_gets_every_byte(big: tuple[Running, MadeTitle]) -> None:
    """OpenSSL is offered again what the socket did not take, thousands of times."""
    running, made = big

    def crawl() -> bytes:
        assert running.trusted is not None
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        raw.connect(("127.0.0.1", running.port))
        with running.trusted.wrap_socket(raw, server_hostname="localhost") as sock:
            sock.sendall(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while part := sock.read(20_000):
                data += part
                if len(data) % 7 == 0:
                    time.sleep(0.002)
            return data

    data = await asyncio.to_thread(crawl)
    assert data.partition(b"\r\n\r\n")[2] == made.segment("v1", 1)


async def test_requests_ahead_are_answered_in_order(big: tuple[Running, MadeTitle]) -> None:
    running, made = big
    client = await running.connect(limit=BIG + 1000)
    numbers = [1, 2, 3, 2, 1]
    client.send("".join(f"GET {made.url}/v1/{number}.m4s HTTP/1.1\r\nHost: a\r\n\r\n" for number in numbers))
    for number in numbers:
        assert (await client.receive()).body == made.segment("v1", number)


@pytest.mark.long
async def test_cold_content_waits_for_the_disk_and_not_the_loop(
    big: tuple[Running, MadeTitle], unblocked: Any
) -> None:
    running, made = big
    put_anew(running, made.directory / "v1.mp4")
    client = await running.connect(limit=BIG + 1000)
    assert (await client.ask(f"{made.url}/v1/1.m4s")).body == made.segment("v1", 1)
    assert running.server.counters.cold_reads > 0


async def test_a_file_that_became_shorter_breaks_the_connection(big: tuple[Running, MadeTitle]) -> None:
    running, made = big
    client = await running.connect(limit=1 << 16)
    client.send(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n")
    await client.reader.readuntil(b"\r\n\r\n")
    os.truncate(made.directory / "v1.mp4", 6 << 20)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        assert len(await client.reader.readexactly(BIG)) < BIG
    await until(lambda: closed(running, "truncated") == 1)


async def test_a_client_that_has_said_all_is_still_answered(big: tuple[Running, MadeTitle]) -> None:
    """close_notify ends one direction only (RFC 8446 6.1)."""
    running, made = big

    def ask() -> bytes:
        assert running.trusted is not None
        # Not a socket of ssl's: where the answer comes first, that cannot say that nothing more will come.
        came, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = running.trusted.wrap_bio(came, going, server_hostname="localhost")
        with socket.create_connection(("127.0.0.1", running.port), 60) as sock:

            def until_done(step: Callable[[], Any]) -> Any:
                while True:
                    try:
                        return step()
                    except ssl.SSLWantReadError:
                        sock.sendall(going.read())
                        part = sock.recv(1 << 16)
                        assert part, "it closed before it had said that nothing more will come"
                        came.write(part)

            until_done(tls.do_handshake)
            tls.write(f"GET {made.url}/v1/1.m4s HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.unwrap()
            sock.sendall(going.read())
            data = b""
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while True:
                    data += until_done(lambda: tls.read(1 << 16))
        return data

    assert (await asyncio.to_thread(ask)).endswith(made.segment("v1", 1))


@pytest.mark.parametrize(
    ("settings", "version", "good"),
    [
        ({}, ssl.TLSVersion.TLSv1_1, False),
        ({}, ssl.TLSVersion.TLSv1_2, True),
        ({"minimum": "1.3"}, ssl.TLSVersion.TLSv1_2, False),
        ({"minimum": "1.3"}, ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
async def test_old_versions_are_refused(
    start: Start,
    own_certificate: CertificateSettings,
    settings: dict[str, Any],
    version: ssl.TLSVersion,
    good: bool,
) -> None:
    running = await start(tls=Certificates(TlsSettings(certificates=[own_certificate], **settings)))
    context = trusting(own_certificate)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    if good:
        (await asyncio.to_thread(talk, running.port, context)).close()
    else:
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(talk, running.port, context)
        await until(lambda: closed(running, "handshake-failed") == 1)


@pytest.mark.parametrize("ciphers", ["AES256-GCM-SHA384", "ECDHE-RSA-AES256-SHA384:ECDHE-ECDSA-AES256-SHA384"])
async def test_ciphers_without_forward_secrecy_or_authentication_are_refused(
    start: Start, tmp_path: Path, ciphers: str
) -> None:
    rsa = listed(tmp_path / "rsa", "localhost", kind="rsa")
    running = await start(tls=Certificates(TlsSettings(certificates=[rsa])))
    context = trusting(rsa)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(talk, running.port, context)


async def test_who_speaks_http_in_clear_is_told(big: tuple[Running, MadeTitle]) -> None:
    running, _ = big
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"this port speaks HTTPS only" in answer
    writer.close()
    assert closed(running, "handshake-failed") == 1
    assert running.server.counters.open == 0


@pytest.mark.long
@pytest.mark.parametrize("words", [b"", b"\x16", b"\x16\x03\x01\x02", b"\x16\x03\x01\xff\xff", bytes(600)])
async def test_a_handshake_that_does_not_go_on_ends(
    start: Start, own_certificate: CertificateSettings, words: bytes
) -> None:
    """Nothing, a byte, half a record, a record too long, rubbish: refused at once, or after the handshake's time."""
    own = await start(sweep_s=0.05, tls=Certificates(TlsSettings(certificates=[own_certificate], handshake_s=0.3)))
    reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
    writer.write(words)
    with contextlib.suppress(ConnectionResetError):
        await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await until(lambda: own.server.counters.open == 0)
    assert closed(own, "handshake-failed") + closed(own, "handshake-timeout") == 1


@pytest.mark.long
async def test_clients_that_vanish_in_the_handshake_leave_nothing_behind(
    big: tuple[Running, MadeTitle], unblocked: Any
) -> None:
    running, _ = big
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for number in range(50):
        with socket.create_connection(("127.0.0.1", running.port)) as sock:
            sock.send(b"\x16\x03\x01"[: number % 4])
            if number % 2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await until(lambda: running.server.counters.accepted >= 50 and running.server.counters.open == 0)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)  # noqa: PTH208


async def test_one_connection_too_many_gets_an_alert(start: Start, make_title: MakeTitle) -> None:
    """It costs no handshake, and a client knows that it was meant."""
    running = await start(connections_per_client=1, exempt=[])
    first = await running.connect()
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    assert await reader.read() == ALERT
    writer.close()
    with pytest.raises(ssl.SSLError, match="INTERNAL_ERROR"):
        await running.connect()
    assert (await first.ask("/nothing")).status == 404


# Sessions


async def resumes(context: ssl.SSLContext, session: ssl.SSLSession | None, port: int) -> tuple[bool, ssl.SSLSession]:
    def ask() -> tuple[bool, ssl.SSLSession]:
        with talk(port, context, session=session) as sock:
            sock.sendall(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            sock.read(1)  # tickets come before the answer
            assert sock.session is not None
            return bool(sock.session_reused), sock.session

    return await asyncio.to_thread(ask)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_begun_with_one_worker_is_resumed_by_another(
    start: Start, own_certificate: CertificateSettings, version: ssl.TLSVersion
) -> None:
    """If they have the same secret, and not otherwise."""
    settings = TlsSettings(certificates=[own_certificate])
    one, two = [await start(tls=Certificates(settings, SECRET)) for _ in range(2)]
    stranger = await start(tls=Certificates(settings, bytes(32)))
    context = trusting(own_certificate)
    context.minimum_version = context.maximum_version = version
    reused, session = await resumes(context, None, one.port)
    assert not reused
    reused, session = await resumes(context, session, two.port)
    assert reused
    assert sum(count for key, count in two.server.counters.tls.items() if key.endswith(" yes")) == 1
    reused, _ = await resumes(context, session, stranger.port)
    assert not reused


def test_what_python_does_not_offer_is_there() -> None:
    """On an interpreter whose OpenSSL cannot be reached all else works; CI's is not one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert openssl.share_tickets(context, bytes(openssl.TICKET_KEY_BYTES))
    assert not openssl.share_tickets(context, b"short")


def test_without_openssl_at_hand_nothing_breaks(
    monkeypatch: pytest.MonkeyPatch, own_certificate: CertificateSettings
) -> None:
    monkeypatch.setattr(openssl, "_libssl", None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert not openssl.share_tickets(context, bytes(openssl.TICKET_KEY_BYTES))
    Certificates(TlsSettings(certificates=[own_certificate]), SECRET)


# Certificates


async def test_the_name_asked_for_chooses_the_certificate(start: Start, tmp_path: Path) -> None:
    """Exact names before wildcards, a wildcard for one label only; the first for everybody else."""
    first, second, wild, rsa = (
        listed(tmp_path / "1", "one.example"),
        listed(tmp_path / "2", "two.example", "www.wild.example"),
        listed(tmp_path / "3", "*.wild.example"),
        listed(tmp_path / "4", "one.example", kind="rsa"),
    )
    every = [first, second, wild, rsa]
    running = await start(tls=Certificates(TlsSettings(certificates=every)))
    context = trusting(*every)
    for name, expected in {
        "one.example": "one.example",
        "TWO.example": "two.example",
        "www.wild.example": "two.example",
        "a.wild.example": "*.wild.example",
        "a.b.wild.example": "one.example",
        "wild.example": "one.example",
        "other.example": "one.example",
        "127.0.0.1": "one.example",
    }.items():
        assert await subject(running.port, context, name) == (expected, "ecdsa"), name
    # For the same names there are two: whoever cannot verify one gets the other.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aRSA+ECDHE+AESGCM")
    assert await subject(running.port, context, "one.example") == ("one.example", "rsa")


async def test_a_new_certificate_is_taken_up_and_no_connection_ends(start: Start, tmp_path: Path) -> None:
    old = listed(tmp_path / "live", "localhost")
    new = listed(tmp_path / "new", "localhost", "new.example", days=60)
    running = await start(tls=Certificates(TlsSettings(certificates=[old])), sweep_s=0.05)
    client = await running.connect()
    expiry = valid_until(TlsSettings(certificates=[old]))
    before = trusting(old)
    # As ACME clients do it, one file after the other: for a moment they do not belong together.
    shutil.move(new.chain, old.chain)
    await asyncio.sleep(0.2)
    assert (await subject(running.port, before, "localhost"))[0] == "localhost"
    shutil.move(new.key, old.key)
    after = ssl.create_default_context(cafile=old.chain)

    async def renewed() -> bool:
        with contextlib.suppress(ssl.SSLError):
            await asyncio.to_thread(lambda: talk(running.port, after, "new.example").close())
            return True
        return False

    async with asyncio.timeout(60):
        while not await renewed():
            await asyncio.sleep(0.05)
    assert (await client.ask("/nothing")).status == 404
    assert valid_until(TlsSettings(certificates=[old])) != expiry


def test_tickets_are_sealed_anew_after_hours(
    own_certificate: CertificateSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All workers arrive at the same key, at the same time, without a word."""
    keys: list[bytes] = []
    monkeypatch.setattr(openssl, "share_tickets", lambda _, key: keys.append(key))
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    settings = TlsSettings(certificates=[own_certificate])
    one, two = Certificates(settings, SECRET), Certificates(settings, SECRET)
    now += 3600 * 6
    assert not one.refresh()
    assert not two.refresh()
    assert not one.refresh()
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [2, 2]


def _no_chain(one: CertificateSettings) -> str:
    Path(one.chain).unlink()
    return f"cannot read the certificate {one.chain}: No such file"


def _no_key(one: CertificateSettings) -> str:
    Path(one.key).unlink()
    return f"cannot read the key {one.key}: No such file"


def _not_pem(one: CertificateSettings) -> str:
    Path(one.chain).write_text("hello")
    return f"{one.chain} is not a certificate in PEM form"


def _not_a_key(one: CertificateSettings) -> str:
    Path(one.key).write_text("hello")
    return f"the key {one.key} cannot be used with the certificate {one.chain}"


def _another_key(one: CertificateSettings) -> str:
    other = listed(Path(one.chain).parent / "other", "localhost")
    shutil.move(other.key, one.key)
    return f"the key {one.key} is not the key of the certificate {one.chain}"


def _a_passphrase(one: CertificateSettings) -> str:
    command = ["openssl", "pkey", "-in", one.key, "-aes256", "-passout", "pass:x", "-out", one.key + ".new"]
    subprocess.run(command, check=True)
    shutil.move(one.key + ".new", one.key)
    return f"the key {one.key} has a passphrase"


@pytest.mark.parametrize("harm", [_no_chain, _no_key, _not_pem, _not_a_key, _another_key, _a_passphrase])
def test_a_certificate_that_is_no_good_is_one_sentence(own_certificate: CertificateSettings, harm: Any) -> None:
    settings = TlsSettings(certificates=[own_certificate])
    good = Certificates(settings)
    expected = harm(own_certificate)
    with pytest.raises(ConfigError) as caught:
        Certificates(settings)
    assert str(caught.value).startswith(expected)
    with pytest.raises(ConfigError):
        good.refresh()
    assert not good.refresh(), "said once"
    one, other = socket.socketpair()
    good.wrap(one).close()
    other.close()


# The whole program


@pytest.fixture
def box(tmp_path: Path, own_certificate: CertificateSettings) -> Iterator[Appliance]:
    """An appliance with two workers that speaks TLS."""
    made = Appliance(tmp_path, [], 2)
    told = made.settings.read_text().replace('url = "http:', 'url = "https:')
    names = f"chain = {json.dumps(own_certificate.chain)}\nkey = {json.dumps(own_certificate.key)}\n"
    made.settings.write_text(f"{told}[[tls.certificates]]\n{names}")
    yield made
    made.end()


async def test_an_appliance_serves_over_tls(
    box: Appliance, make_title: MakeTitle, own_certificate: CertificateSettings
) -> None:
    """Its workers resume each other's sessions; metrics say who encrypted, and until when certificates are valid."""
    made = make_title(box.store)
    await asyncio.to_thread(box.start)
    context = trusting(own_certificate)
    reused, session = await resumes(context, None, box.port)
    again = []
    for _ in range(20):
        reused, session = await resumes(context, session, box.port)
        again.append(reused)
    assert again == [True] * 20

    def ask() -> bytes:
        with talk(box.port, context) as sock:
            return fetch(sock, f"{made.url}/v1/1.m4s")

    assert await asyncio.to_thread(ask) == made.segment("v1", 1)
    metric = re.compile(r'^oca_tls_connections_total{version="TLSv1.3",way="(user|kernel)",resumed="yes"} 20$', re.M)
    await asyncio.to_thread(until_seen, lambda: metric.search(box.metrics()) is not None)
    until = int(valid_until(TlsSettings(certificates=[own_certificate]))[own_certificate.chain])
    assert f'oca_certificate_expiry_seconds{{file="{own_certificate.chain}"}} {until}' in box.metrics()
    assert await asyncio.to_thread(box.stop) == 0


def test_settings_that_cannot_work_are_refused(box: Appliance, own_certificate: CertificateSettings) -> None:
    """Before anything listens: by `oca check`, and so by a reload too."""

    def check() -> str:
        command = [str(OCA), "check", "--config", str(box.settings)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100).stderr

    assert check() == ""
    told = box.settings.read_text()
    box.settings.write_text(told.replace('url = "https:', 'url = "http:'))
    assert "with [[tls.certificates]] viewers need one with https://" in check()
    box.settings.write_text(told)
    Path(own_certificate.key).unlink()
    assert check().startswith("error: cannot read the key")
