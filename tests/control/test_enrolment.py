"""Enrolment from the operator's code to the box's renewal: the real controller over TLS, the real `oca enrol`."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from sqlalchemy import func, select, text, update

from control import daemon, ocactl, schema
from control.fleet import codes, enrolment
from control.fleet.authority import Authority
from control.fleet.listener import TlsSettings, reached_at
from control.operators import accounts
from control.settings import ApiSettings
from fill.controllers import ControllerError, Controllers
from oca import cli, wire
from oca.config import ApplianceSettings
from oca.counters import Counters
from oca.errors import ConfigError, FormatError
from oca.heartbeat import Reporter
from oca.store import keyfile
from oca.store.content import Store
from oca.trust import codeword, identity, peers
from oca.trust.enrolment import EnrolmentError, enrol, keep, renew_if_due, renewal_due, request_for
from oca.trust.enrolment import owner as box_owner
from oca.trust.identity import Identity, Proof
from oca.trust.revocations import RevocationsFile
from oca.trust.wire_enrolment import Authorities, Certified, CodeMade, Enrolment, Renewal, Revoked
from tests.control.conftest import Desk, Start
from tests.programs import said, started

DAY = 86_400.0
BIN = Path(sys.executable).parent


@dataclass
class Fleet:
    """A controller that listens with TLS, and a place for the files of boxes."""

    desk: Desk
    url: str
    root: Path

    @property
    def authority(self) -> Authority:
        found = self.desk.app[enrolment.DESK].authority
        assert found is not None
        return found

    def files(self, name: str) -> Identity:
        return Identity.of(self.root / name)

    async def code(self, box: str) -> str:
        made = wire.decode(await self._ask("POST", f"appliances/{box}/code", b"", 201), CodeMade, "code")
        assert made.fingerprint == self.authority.fingerprint
        assert made.expires == pytest.approx(time.time() + codes.LIFE_S, abs=60)
        return made.code

    async def enrolled(self, box: str, **more: Any) -> Identity:
        """The files of a box that has just been registered and enrolled."""
        await self.desk.box(box)
        files = self.files(box)
        await self.enrol(files, box, await self.code(box), **more)
        return files

    async def enrol(self, files: Identity, box: str, code: str, **more: Any) -> Any:
        return await enrol(files, box, self.url, code, self.authority.fingerprint, **more)

    async def revoke(self, box: str, body: bytes = b"") -> Revoked:
        return wire.decode(await self._ask("POST", f"appliances/{box}/revoke", body), Revoked, "revoked")

    async def _ask(self, method: str, path: str, body: bytes = b"", status: int = 200) -> bytes:
        got, answer, _ = await self.desk.answer(method, f"/api/v1/{path}", body)
        assert got == status, answer
        return answer

    async def ask(self, method: str, path: str, context: ssl.SSLContext, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body over a TLS connection of its own."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{self.url}/api/v1/{path}", data=body, ssl=context) as answer,
        ):
            return answer.status, await answer.read()

    async def heartbeat(self, context: ssl.SSLContext, box: str) -> int:
        beat = {"format": 1, "appliance": box, "at": 0.0, "started": 0.0, "url": "http://x.example"}
        beat |= {"inventory": "1", "storage_bytes": 1, "used_bytes": 0}
        return (await self.ask("POST", f"appliances/{box}/heartbeat", context, json.dumps(beat).encode()))[0]

    async def renew(self, files: Identity, now: float, **more: Any) -> bool:
        async with aiohttp.ClientSession() as session:
            return await renew_if_due(files, session, ["http://127.0.0.1:1", self.url], now, **more)


StartFleet = Callable[..., Awaitable[Fleet]]


@pytest.fixture
def start_fleet(start: Start, tmp_path: Path) -> StartFleet:
    async def run(api: ApiSettings | None = None, **tls: Any) -> Fleet:
        settings = TlsSettings(
            listen="127.0.0.1:0", urls=("https://127.0.0.1:8443",), state=str(tmp_path / "state"), **tls
        )
        desk = await start(tls=settings, **({"api": api} if api else {}))
        listener = desk.app[enrolment.DESK].listener
        runner = desk.server.runner
        assert listener is not None
        assert runner is not None
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=listener.context).start()
        return Fleet(desk, f"https://127.0.0.1:{runner.addresses[-1][1]}", tmp_path)

    return run


@pytest.fixture
async def fleet(start_fleet: StartFleet) -> Fleet:
    return await start_fleet()


def seen(files: Identity) -> peers.Peer:
    leaf = files.leaf()
    assert leaf is not None
    found = peers.of_certificate(leaf)
    assert found is not None
    return found


def contents(files: Identity) -> dict[str, bytes]:
    folder = files.key.parent
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


async def test_a_box_enrols_and_proves_who_it_is(fleet: Fleet) -> None:
    """Its files are its own, OpenSSL takes them, and the controller knows it by its certificate."""
    said: list[str] = []
    files = await fleet.enrolled("north-1", say=said.append)
    assert [path.name for path in sorted(files.key.parent.iterdir())] == [
        "appliance.key",
        "appliance.pem",
        "authorities.pem",
    ]
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.key.parent.stat().st_mode) == 0o700
    done = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-CAfile", files.authorities, files.certificate],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(said) == 3
    context = identity.client_context(files)
    assert await fleet.heartbeat(context, "north-1") == 200
    assert await fleet.heartbeat(identity.trusting(files.authorities.read_text()), "north-1") == 200
    rows = (await fleet.desk.ask("GET", "audit"))["rows"]
    enrolled = next(row for row in rows if "enrolled, certificate" in row["what"])
    assert (enrolled["kind"], enrolled["who"], enrolled["path"]) == ("appliance", "north-1", "/api/v1/enrol")
    assert f"{seen(files).serial:x}" in enrolled["what"]
    kinds = {(change["kind"], change["subject"]) for change in await fleet.desk.ask("GET", "changes")}
    assert ("certificate", "north-1") in kinds


async def test_a_box_that_claims_to_be_another(fleet: Fleet) -> None:
    """Its certificate says who it is: 403, and nothing is changed. A controller's certificate is no box's."""
    files = await fleet.enrolled("north-1")
    await fleet.desk.box("north-2")
    context = identity.client_context(files)
    assert await fleet.heartbeat(context, "north-2") == 403
    assert (await fleet.desk.ask("GET", "appliances/north-2"))["silent_s"] is None
    state = Path(fleet.desk.settings.tls.state)
    own = Identity(state / "controller.key", state / "controller.pem", state / "authority.pem")
    assert await fleet.heartbeat(identity.client_context(own), "north-1") == 403
    asked = wire.encode(Enrolment(appliance="north-2", code=await fleet.code("north-1"), csr=_csr("north-2")))
    assert (await fleet.ask("POST", "enrol", context, asked))[0] == 403
    renewed = wire.decode(
        (await fleet.ask("POST", "renew", context, wire.encode(_renewal("north-2"))))[1], Certified, "renewed"
    )
    assert renewed.appliance == "north-1"
    assert b"north-2" not in renewed.certificate.encode()


def _csr(box: str = "north-1") -> str:
    return request_for(keyfile.new(), box)


def _renewal(box: str) -> wire.Message:
    return Renewal(csr=_csr(box))


async def test_codes_that_are_not_good(fleet: Fleet) -> None:
    """Wrong, of another box, used, expired, replaced, tried too often: a sentence, no certificate, no other file."""
    desk = fleet.desk
    await desk.box("north-1")
    await desk.box("north-2")
    first, code, other = await fleet.code("north-1"), await fleet.code("north-1"), await fleet.code("north-2")
    files = fleet.files("north-1")
    for box, typed in (
        ("north-1", codeword.new()),
        ("north-1", other),
        ("north-1", first),
        ("north-3", code),
        ("north-2", code),
    ):
        with pytest.raises(EnrolmentError, match=f"answers 403.* this code is not good for appliance {box}"):
            await fleet.enrol(files, box, typed)
    with pytest.raises(FormatError, match="slip in it"):
        await fleet.enrol(files, "north-1", code[:-1] + ("0" if code[-1] != "0" else "1"))
    assert contents(files).keys() == {"appliance.key"}

    await fleet.enrol(files, "north-1", code)
    with pytest.raises(EnrolmentError, match=r"has been used, for another key.*revoke"):
        await fleet.enrol(fleet.files("thief"), "north-1", code)
    engine = desk.parts.state.engine
    async with engine.begin() as connection:
        past = update(schema.enrolments).values(expires=time.time() - 1)
        await connection.execute(past.where(schema.enrolments.c.appliance == "north-2"))
    with pytest.raises(EnrolmentError, match="has expired: make a new one"):
        await fleet.enrol(fleet.files("north-2"), "north-2", other)

    other = await fleet.code("north-2")
    for _ in range(codes.TRIES):
        with pytest.raises(EnrolmentError, match="not good"):
            await fleet.enrol(fleet.files("north-2"), "north-2", codeword.new())
    with pytest.raises(EnrolmentError, match="too many wrong codes"):
        await fleet.enrol(fleet.files("north-2"), "north-2", other)
    await fleet.enrol(fleet.files("north-2"), "north-2", await fleet.code("north-2"))

    refused = [row for row in (await desk.ask("GET", "audit"))["rows"] if row["status"] == 403]
    assert refused
    assert all(code not in json.dumps(row) for row in refused)
    async with engine.connect() as connection:
        stored = [tuple(row) for row in await connection.execute(text("select * from enrolments"))]
    assert codeword.canonical(code) not in str(stored).upper()


async def test_a_code_is_used_once_by_many_at_once(fleet: Fleet) -> None:
    await fleet.desk.box("north-1")
    code = await fleet.code("north-1")
    tries = [fleet.enrol(fleet.files(f"try-{number}"), "north-1", code) for number in range(6)]
    ended = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in ended) == 1, ended
    assert all("has been used" in str(one) for one in ended if isinstance(one, BaseException))


class Eavesdropper:
    """Somebody between: takes TLS connections with a certificate, keeps what is said, answers as the controller."""

    def __init__(self, fleet: Fleet, own: Identity) -> None:
        self.heard = b""
        self._bundle = fleet.authority.bundle
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(own.certificate, own.key)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.heard += await reader.readuntil(b"\r\n\r\n")
                body = wire.encode(Authorities(authorities=self._bundle))
                head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
        writer.close()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        try:
            yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()


async def test_nothing_is_said_to_a_stranger(fleet: Fleet) -> None:
    """A wrong fingerprint, or somebody between who shows the right authority: no code, no key, no file."""
    await fleet.desk.box("north-1")
    code, files = await fleet.code("north-1"), fleet.files("new")
    with pytest.raises(EnrolmentError, match="nothing was sent to it"):
        await enrol(files, "north-1", fleet.url, code, "ab" * 32)
    assert contents(files) == {}

    # Another fleet's box, another fleet's controller, and a box of this very fleet pretend to be the controller.
    strange = Authority(fleet.root / "strange")
    theirs = fleet.root / "theirs"
    theirs.mkdir()
    key = keyfile.new()
    made = strange.issue_controller(key.public_key(), ["https://127.0.0.1"], time.time())
    own = Identity.of(theirs)
    own.key.write_bytes(keyfile.pem(key))
    own.certificate.write_text(made.pem)
    inside = await fleet.enrolled("north-2")
    for pretended, words in ((own, "is not a controller of this fleet"), (inside, "which has no business here")):
        between = Eavesdropper(fleet, pretended)
        async with between.listening() as url:
            with pytest.raises(EnrolmentError, match=words):
                await enrol(files, "north-1", url, code, fleet.authority.fingerprint)
        assert between.heard.count(b"HTTP/1.1") == 1
        assert between.heard.startswith(b"GET /api/v1/authorities HTTP/1.1\r\n")
    assert contents(files) == {}
    with pytest.raises(ConfigError, match="enrolment takes TLS"):
        await enrol(files, "north-1", "http://127.0.0.1:1", code, fleet.authority.fingerprint)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        await enrol(files, "north-1", fleet.url, code, "ab")
    # The code is as good as it was.
    colons = ":".join([fleet.authority.fingerprint[at : at + 2].upper() for at in range(0, 64, 2)])
    await enrol(files, "north-1", fleet.url, code.lower(), colons)


async def test_enrolment_in_clear_is_refused(fleet: Fleet) -> None:
    await fleet.desk.box("north-1")
    asked = wire.encode(Enrolment(appliance="north-1", code=await fleet.code("north-1"), csr=_csr()))
    status, answer, _ = await fleet.desk.answer("POST", "/api/v1/enrol", asked)
    assert (status, b"enrolment takes TLS" in answer) == (400, True)


async def test_interrupted_at_any_point(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever write fails, the same command with the same code gets there, also if the answer was lost."""
    real, writes = keyfile.write, 0

    async def attempt(files: Identity, code: str, fails_at: int) -> None:
        nonlocal writes
        writes = 0

        def failing(*arguments: Any, **more: Any) -> Any:
            nonlocal writes
            writes += 1
            if writes > fails_at:
                raise OSError(28, "No space left on device")
            return real(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(keyfile, "write", failing)
            patch.setattr(keyfile, "write_once", keyfile.write_once if fails_at >= 0 else failing)
            if fails_at > 5:
                await fleet.enrol(files, "north-1", code)
            else:
                with pytest.raises(ConfigError, match="No space left on device"):
                    await fleet.enrol(files, "north-1", code)

    await fleet.desk.box("north-1")
    for fails_at in (-1, 0, 1):
        code, files = await fleet.code("north-1"), fleet.files(f"at{fails_at}")
        await attempt(files, code, fails_at)
        assert not files.certificate.exists()
        with pytest.raises(ConfigError):
            identity.client_context(files)
        await attempt(files, code, 9)
        assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
        before = seen(files).serial
        await attempt(files, code, 9)
        assert seen(files).serial != before
        assert [path.name for path in files.key.parent.iterdir() if path.name.startswith(".")] == []


async def test_what_a_power_cut_leaves(fleet: Fleet) -> None:
    """A certificate whose key still has the name under which it waited is used, and put in order."""
    files = await fleet.enrolled("north-1")
    old = files.key.read_bytes()
    assert await fleet.renew(files, time.time(), new_key=True)
    new = files.key.read_bytes()
    assert new != old
    files.next_key.write_bytes(new)
    files.next_key.chmod(0o600)
    files.key.write_bytes(old)
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    assert not await fleet.renew(files, time.time())
    assert (files.key.read_bytes(), files.next_key.exists()) == (new, False)


async def test_renewal(fleet: Fleet) -> None:
    """Not before it is due, then by the certificate alone; for a new key too; what is open stays open."""
    files = await fleet.enrolled("north-1")
    first, key, now = seen(files), files.key.read_bytes(), time.time()
    assert not await fleet.renew(files, now + 18 * DAY)
    assert not renewal_due(files, now + 18 * DAY)
    assert seen(files) == first
    before = identity.client_context(files)
    assert await fleet.renew(files, now + 22 * DAY)
    second = seen(files)
    assert second.serial != first.serial
    assert files.key.read_bytes() == key
    assert await fleet.heartbeat(before, "north-1") == 200
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    assert await fleet.renew(files, now, new_key=True)
    assert files.key.read_bytes() != key
    assert not files.next_key.exists()
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    with pytest.raises(EnrolmentError, match="has expired: enrol it again"):
        await fleet.renew(files, now + 40 * DAY)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(EnrolmentError, match="no controller in the settings begins with https://"):
            await renew_if_due(files, session, ["http://127.0.0.1:1"], now)
        with pytest.raises(EnrolmentError, match="cannot be reached"):
            await renew_if_due(files, session, ["https://127.0.0.1:1"], now)
        with pytest.raises(ConfigError, match="enrol this box"):
            await renew_if_due(fleet.files("nobody"), session, [fleet.url], now)


async def test_renewal_takes_a_certificate(fleet: Fleet) -> None:
    """Without one it is 401, whatever is asked; with one, a bad request is 400, and there is an end to asking."""
    files = await fleet.enrolled("north-1")
    blind, context = identity.trusting(files.authorities.read_text()), identity.client_context(files)
    asked = wire.encode(_renewal("north-1"))
    assert (await fleet.ask("POST", "renew", blind, asked))[0] == 401
    for body in (b"", b"{", b'{"format": 1, "csr": "x"}', b'{"format": 9, "csr": "x"}', b'{"format": 1, "csr": 7}'):
        assert (await fleet.ask("POST", "renew", context, body))[0] == 400
    async with fleet.desk.parts.state.engine.begin() as connection:
        for number in range(60):
            values = {
                "serial": f"f{number}",
                "appliance": "north-1",
                "key": "x",
                "issued": time.time(),
                "expires": 9e9,
            }
            await connection.execute(schema.certificates.insert().values(**values))
    status, answer = await fleet.ask("POST", "renew", context, asked)
    assert (status, b"try tomorrow" in answer) == (403, True)


async def test_a_revoked_box_is_refused_at_once(fleet: Fleet) -> None:
    """On new connections and on open ones, to renew and to report; until an operator makes it a new code."""
    files, other = await fleet.enrolled("north-1"), await fleet.enrolled("north-2")
    context = identity.client_context(files)
    connector = aiohttp.TCPConnector(ssl=context, limit=1)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def sources() -> int:
            url = f"{fleet.url}/api/v1/appliances/north-1/fill"
            async with session.get(url) as answer:
                await answer.read()
                return answer.status

        assert await sources() == 200
        waiting = await fleet.code("north-1")
        dry = await fleet.revoke("north-1", b'{"format": 1, "dry_run": true}')
        assert (dry.certificates, dry.code, dry.dry_run) == (1, True, True)
        assert await sources() == 200
        done = await fleet.revoke("north-1")
        assert (done.certificates, done.code, done.dry_run) == (1, True, False)
        assert await sources() == 403
    assert await fleet.heartbeat(context, "north-1") == 403
    assert (await fleet.ask("POST", "renew", context, wire.encode(_renewal("north-1"))))[0] == 403
    with pytest.raises(EnrolmentError, match="not good"):
        await fleet.enrol(files, "north-1", waiting)
    assert await fleet.heartbeat(identity.client_context(other), "north-2") == 200
    assert (await fleet.revoke("north-1")).certificates == 0
    again = await fleet.code("north-1")
    with pytest.raises(EnrolmentError, match="--new-key"):
        await fleet.enrol(files, "north-1", again)
    await fleet.enrol(files, "north-1", again, new_key=True)
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    # The old certificate stays what it was, also for a controller that starts now.
    assert await fleet.heartbeat(context, "north-1") == 403
    await fleet.desk.parts.state.load()
    assert await fleet.heartbeat(context, "north-1") == 403


async def test_another_controller_hears_of_a_revocation(fleet: Fleet, start: Start) -> None:
    files = await fleet.enrolled("north-1")
    second = await start()
    assert not second.parts.state.revoked(seen(files))
    await fleet.revoke("north-1")
    async with asyncio.timeout(60):
        while not second.parts.state.revoked(seen(files)):
            await asyncio.sleep(0.05)


async def test_certificates_of_another_authority(fleet: Fleet) -> None:
    """They do not get through the handshake, whatever they say."""
    await fleet.desk.box("north-1")
    strange = Authority(fleet.root / "strange")
    own = fleet.files("strange-box")
    own.key.parent.mkdir()
    keyfile.write(own.key, keyfile.pem(keyfile.new()), 0o600)
    key = keyfile.load(own.key)
    assert key is not None
    own.certificate.write_text(strange.issue(request_for(key, "north-1"), "north-1", "", time.time()).pem)
    own.authorities.write_text(fleet.authority.bundle)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await fleet.heartbeat(identity.client_context(own), "north-1")
    own.authorities.write_text(strange.bundle)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await fleet.heartbeat(identity.client_context(own), "north-1")
    assert (await fleet.desk.ask("GET", "appliances/north-1"))["silent_s"] is None


async def test_the_authority_changes_while_the_fleet_runs(fleet: Fleet) -> None:
    """Boxes hear of the next one daily; the listener takes it up by itself; the old one ends when it is forgotten."""
    files, late = await fleet.enrolled("north-1"), await fleet.enrolled("north-2")
    state, listener = Path(fleet.desk.settings.tls.state), fleet.desk.app[enrolment.DESK].listener
    assert listener is not None
    hand = Authority(state)
    hand.prepare(time.time())
    async with asyncio.timeout(60):
        while len(fleet.authority.trusted) < 2:
            await asyncio.sleep(0.05)
    old = identity.client_context(late)
    assert await fleet.renew(files, time.time())
    assert not await fleet.renew(files, time.time())
    assert files.authorities.read_text().count("BEGIN CERTIFICATE") == 2
    hand.activate(time.time(), force=True)
    listener.refresh(time.time())
    # Who heard of it goes on, with the certificate of the one before; who did not knows no such controller.
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await fleet.heartbeat(old, "north-2")
    was = identity.client_context(files)
    assert await fleet.renew(files, time.time(), anyway=True)
    hand.forget(time.time(), force=True)
    listener.refresh(time.time())
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    with pytest.raises((aiohttp.ClientError, OSError)):
        await fleet.heartbeat(was, "north-1")


async def test_certificates_can_be_required(start_fleet: StartFleet) -> None:
    """Then a box without one is nobody on any listener, and an operator's token still does."""
    fleet = await start_fleet(required=True, api=ApiSettings(open=False))
    _, token = await accounts.add(fleet.desk.parts.state.engine, "ann", "act")
    spec = json.dumps({"id": "north-1", "site": "north", "url": "http://north-1.example"}).encode()
    for body, path in ((spec, ""), (b"", "/north-1/code")):
        status, answer, _ = await fleet.desk.answer("POST", f"/api/v1/appliances{path}", body, token=token)
        assert status == 201
    code = wire.decode(answer, CodeMade, "code").code
    files = fleet.files("north-1")
    await fleet.enrol(files, "north-1", code)
    assert await fleet.heartbeat(identity.client_context(files), "north-1") == 200
    assert await fleet.heartbeat(identity.trusting(files.authorities.read_text()), "north-1") == 401
    path = "/api/v1/appliances/north-1/fill"
    assert (await fleet.desk.answer("GET", path))[0] == 401
    assert (await fleet.desk.answer("GET", path, token=token))[0] == 200
    for call in ("code", "revoke"):
        status, _, _ = await fleet.desk.answer("POST", f"/api/v1/appliances/north-1/{call}", b"")
        assert status == 401
        assert (await fleet.ask("POST", f"appliances/north-1/{call}", identity.client_context(files)))[0] == 401


async def test_without_tls_there_is_no_authority(desk: Desk) -> None:
    """Nothing is made, and whoever asks is told what to do."""
    await desk.box("north-1")
    for path in ("enrol", "renew", "appliances/north-1/code", "appliances/north-1/revoke"):
        assert "[tls] listen in control.toml" in await desk.ask("POST", path, {}, 400)
    found = await desk.ask("GET", "authorities")
    assert (found["authorities"], found["fingerprint"], found["controllers"]) == ("", "", [])


async def test_boxes_that_nobody_registered(fleet: Fleet) -> None:
    assert "ocactl appliance add" in await fleet.desk.ask("POST", "appliances/north-9/code", None, 404)
    assert "ocactl appliance add" in await fleet.desk.ask("POST", "appliances/north-9/revoke", None, 404)
    async with fleet.desk.parts.state.engine.connect() as connection:
        assert (await connection.execute(select(func.count()).select_from(schema.enrolments))).scalar() == 0


@pytest.mark.parametrize(
    ("tls", "public", "found"),
    [
        (TlsSettings(listen="0.0.0.0:8443"), "http://c.example:8800", ("https://c.example:8443",)),
        (TlsSettings(listen="[::]:443"), "https://[2001:db8::1]", ("https://[2001:db8::1]:443",)),
        (TlsSettings(listen="x:1", urls=("https://a", "https://b")), "http://c", ("https://a", "https://b")),
    ],
)
def test_where_controllers_are_reached(tls: TlsSettings, public: str, found: tuple[str, ...]) -> None:
    assert reached_at(tls, public) == found
    with pytest.raises(ValueError, match="https"):
        TlsSettings(urls=("http://c.example",))


async def test_the_controllers_reply_over_tls(fleet: Fleet) -> None:
    """TLS 1.3 only, and no session that could be resumed."""
    files = await fleet.enrolled("north-1")
    port = fleet.url.rpartition(":")[2]

    def shake(old: bool) -> tuple[str | None, bool, bytes]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(files.authorities)
        if old:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", int(port)), 10) as sock,
            context.wrap_socket(sock) as secure,
        ):
            secure.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b""
            while part := secure.recv(4096):
                answer += part
            session = secure.session
            return secure.version(), bool(session and session.has_ticket), answer

    version, ticket, answer = await asyncio.to_thread(shake, False)
    assert (version, ticket, answer[:12]) == ("TLSv1.3", False, b"HTTP/1.1 200")
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(shake, True)


def _run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command in this process, which saves the start of another one."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    unset = {name: value for name, value in os.environ.items() if name != "OCACTL_TOKEN"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(arguments))
        patch.setattr(os, "environ", unset | more)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                {"oca": cli.main, "oca-control": daemon.main, "ocactl": ocactl.main}[arguments[0]]()
            except SystemExit as ended:
                status = int(str(ended.code or 0))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def test_as_an_operator_types_it(tmp_path: Path) -> None:
    """From a controller that nobody has configured but for [tls] to an enrolled box, with the commands printed."""
    (tmp_path / "control.toml").write_text(f"""
database = "sqlite+aiosqlite:///{tmp_path}/control.db"
public_url = "http://127.0.0.1"
listen = "127.0.0.1:0"
[tls]
listen = "127.0.0.1:0"
state = "{tmp_path}/state"
[api]
open = true
""")
    box = tmp_path / "oca.toml"
    box.write_text(f"""
appliance = "north-1"
store = ["{tmp_path}/store"]
url = "http://127.0.0.1:8080"
identity = "{tmp_path}/identity"
""")
    control = ("--config", str(tmp_path / "control.toml"))
    with started([str(BIN / "oca-control"), "serve", *control]) as serving:
        try:
            told = said(serving, "serving")
            at, secure = f"http://127.0.0.1:{told['port']}", f"https://127.0.0.1:{told['tls_port']}"
            add = ("appliance", "add", "north-1", "--site", "north", "--url", "http://127.0.0.1:8080")
            added = _run("ocactl", *add, OCA_CONTROLLER=at)
            assert added.returncode == 0, added.stderr
            typed = added.stdout.splitlines()[-1].split()
            assert typed[:3] == ["sudo", "oca", "enrol"]
            shown_once = dict(zip(typed[3::2], typed[4::2], strict=True))
            assert shown_once.keys() == {"--config", "--user", "--controller", "--code", "--authority"}
            assert _run("ocactl", *add, OCA_CONTROLLER=at).stdout.count("\n") == 1
            shown = json.loads(_run("oca-control", "authority", "show", "--json", *control).stdout)
            assert [(row["fingerprint"], row["state"]) for row in shown] == [(shown_once["--authority"], "signs")]

            # The settings left the port to the kernel, so the address printed is not the one to ask.
            enrolling = ("oca", "enrol", "--config", str(box), "--controller", secure)
            right = (*enrolling, "--code", shown_once["--code"], "--authority", shown_once["--authority"])
            wrong = _run(*enrolling, "--code", shown_once["--code"], "--authority", "00" * 32)
            assert (wrong.returncode, wrong.stdout) == (1, "")
            assert wrong.stderr.splitlines()[-1].startswith("error: ")
            dry = _run(*right, "--dry-run", "--json")
            assert json.loads(dry.stdout)["dry_run"]
            assert not (tmp_path / "identity").exists()
            for _ in range(2):
                done = _run(*right, "--json")
                assert done.returncode == 0, done.stderr
                assert json.loads(done.stdout)["appliance"] == "north-1"
            assert shown_once["--code"] not in done.stderr
            assert "north-1 is enrolled until 20" in _run(*right).stdout
            assert stat.S_IMODE((tmp_path / "identity" / "appliance.key").stat().st_mode) == 0o600
            box.write_text(f'controllers = ["{secure}"]\n' + box.read_text())
            assert "nothing to change" in _run("oca", "renew", "--config", str(box)).stdout
            assert json.loads(_run("oca", "renew", "--config", str(box), "--now", "--json").stdout)["changed"]

            dry = _run("ocactl", "appliance", "revoke", "north-1", "--dry-run", OCA_CONTROLLER=at)
            assert dry.stdout == "4 certificates of appliance north-1 would be revoked\n"
            gone = _run("ocactl", "appliance", "revoke", "north-1", OCA_CONTROLLER=at)
            assert gone.stdout == "4 certificates of appliance north-1 are revoked\n"
            refused = _run("oca", "renew", "--config", str(box), "--now")
            assert (refused.returncode, "is revoked" in refused.stderr) == (1, True)
            code = json.loads(_run("ocactl", "appliance", "code", "north-1", "--json", OCA_CONTROLLER=at).stdout)
            again = _run(*enrolling, "--authority", code["fingerprint"], "--code", code["code"], "--new-key")
            assert again.returncode == 0, again.stderr

            dry = _run("oca-control", "authority", "prepare", "--dry-run", *control)
            assert dry.stdout == "a new authority would be trusted\n"
            made = json.loads(_run("oca-control", "authority", "prepare", "--json", *control).stdout)["fingerprint"]
            early = _run("oca-control", "authority", "activate", *control)
            assert (early.returncode, "hear of it daily" in early.stderr) == (1, True)
            forced = _run("oca-control", "authority", "activate", "--force", *control)
            assert forced.stdout == f"the authority {made} signs\n"
            states = json.loads(_run("oca-control", "authority", "show", "--json", *control).stdout)
            assert [row["state"] for row in states] == ["signs", "former"]
            assert _run("oca-control", "authority", "forget", "--force", *control).returncode == 0
        finally:
            serving.terminate()
            serving.communicate(timeout=60)


def test_who_owns_the_files(tmp_path: Path) -> None:
    """Root gives them to the user that serves; nobody else can, and users that are not there are named."""
    with pytest.raises(ConfigError, match="there is no user 'nobody-of-this-name'"):
        box_owner("nobody-of-this-name")
    assert box_owner("") is None
    if os.geteuid() == 0:
        given = box_owner("nobody")
        assert given is not None
        path = tmp_path / "key"
        assert keyfile.write_once(path, b"x", 0o600, given)
        assert not keyfile.write_once(path, b"y", 0o600)
        assert (path.read_bytes(), path.stat().st_uid, path.stat().st_gid) == (b"x", *given)
    else:
        with pytest.raises(ConfigError, match="only root can give files to root"):
            box_owner("root")


async def test_what_an_enrolled_box_runs_proves_who_it_is(start_fleet: StartFleet, tmp_path: Path) -> None:
    """Its heartbeats and its fill agent get through where a certificate is required, also after it was renewed.

    With the first heartbeat it learns whom to trust no longer.
    """
    fleet = await start_fleet(required=True)
    files, other = await fleet.enrolled("north-1"), await fleet.enrolled("north-2")
    await fleet.revoke("north-2")
    revoked = RevocationsFile(files.revoked)
    settings = ApplianceSettings(
        appliance="north-1",
        store=[str(tmp_path / "store")],
        url="http://127.0.0.1:8080",
        controllers=[fleet.url],
        identity=str(files.key.parent),
    )
    store = Store([tmp_path / "store"])
    store.prepare()
    reporting = asyncio.create_task(Reporter(settings, store, Counters).run())
    try:
        async with asyncio.timeout(60):
            while (await fleet.desk.ask("GET", "appliances/north-1"))["silent_s"] is None:
                await asyncio.sleep(0.05)
            while not revoked(seen(other)):
                await asyncio.sleep(0.05)
    finally:
        reporting.cancel()
    assert not revoked(seen(files))
    proof = Proof(files)
    async with aiohttp.ClientSession() as session:
        for known in (True, True, False):
            asking = Controllers(session, "north-1", [fleet.url], proof if known else None)
            if known:
                assert (await asking.manifest()).plan == 0
            else:
                with pytest.raises(ControllerError, match="certificate"):
                    await asking.manifest()
            before = proof.context()
            assert await fleet.renew(files, time.time(), anyway=True)
            assert proof.context() is not before
    assert Proof(fleet.files("nobody")).context() is True
    # What the supervisor runs takes up another authority by itself.
    Authority(Path(fleet.desk.settings.tls.state)).prepare(time.time())
    keeping = None
    try:
        async with asyncio.timeout(60):
            while len(fleet.authority.trusted) < 2:
                await asyncio.sleep(0.05)
            keeping = asyncio.create_task(keep(files, [fleet.url]))
            while files.authorities.read_text().count("BEGIN CERTIFICATE") < 2:
                await asyncio.sleep(0.05)
    finally:
        if keeping is not None:
            keeping.cancel()
