"""TLS between the parts of a fleet: over real sockets, on uvloop and on plain blocking sockets alike."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509

from control.fleet.authority import LIFE_S, Authority
from oca.errors import ConfigError, FormatError
from oca.store import keyfile
from oca.trust import identity, peers
from oca.trust.enrolment import request_for
from oca.trust.identity import Identity, ServerContext

NOW = float(int(time.time()))
Hello = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Fleet:
    """An authority, and the files of those whom it knows."""

    root: Path
    authority: Authority

    def box(self, name: str, now: float = NOW, url: str = "http://127.0.0.1") -> Identity:
        return self.write(name, lambda key: self.authority.issue(request_for(key, name), name, url, now).pem)

    def controller(self) -> Identity:
        urls = ["https://127.0.0.1"]
        return self.write("controller", lambda key: self.authority.issue_controller(key.public_key(), urls, NOW).pem)

    def write(self, folder: str, made: Callable[[keyfile.PrivateKey], str]) -> Identity:
        files = Identity.of(self.root / folder)
        files.key.parent.mkdir(exist_ok=True)
        key = keyfile.new()
        keyfile.write(files.key, keyfile.pem(key), 0o600)
        keyfile.write(files.certificate, made(key).encode(), 0o644)
        keyfile.write(files.authorities, self.authority.bundle.encode(), 0o644)
        return files


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, Authority(tmp_path / "state", NOW))


@asynccontextmanager
async def listening(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that tells everybody who they are; its port."""

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(1)
            seen = identity.presented(writer.get_extra_info("ssl_object"))
            who = "nobody" if seen is None else f"{seen.role} {seen.id}".strip()
            writer.write(who.encode() + b"\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    server = await asyncio.start_server(hello, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def told(port: int, context: ssl.SSLContext) -> str:
    """What the server says we are; whatever refuses us is an OSError, at the handshake or at the first byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"?")
        said = (await reader.readline()).decode().strip()
        if not said:
            raise ConnectionResetError("refused without a word")
        return said
    finally:
        writer.close()


async def test_both_ends_prove_who_they_are(fleet: Fleet) -> None:
    """Boxes and controllers meet; each sees the other by its certificate, wherever it was reached."""
    one, two, control = fleet.box("north-1"), fleet.box("north-2", url="http://elsewhere.example"), fleet.controller()
    async with listening(identity.server_context(one).context) as port:
        assert await told(port, identity.client_context(two)) == "appliance north-2"
        assert await told(port, identity.client_context(control, ("appliance",))) == "controller"
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=identity.client_context(two))
        assert identity.peer(writer.get_extra_info("ssl_object")) == "north-1"
        found = identity.presented(writer.get_extra_info("ssl_object"))
        leaf = one.leaf()
        assert leaf is not None
        assert found == peers.of_certificate(leaf)
        writer.close()
        assert reader is not None


async def test_who_is_not_let_in(fleet: Fleet, tmp_path: Path) -> None:
    """No certificate, another fleet's, an expired one, one that is not valid yet, a role that is not wanted."""
    server = fleet.box("north-1")
    strange = Fleet(tmp_path / "strange", Authority(tmp_path / "strange" / "state", NOW))
    theirs = strange.box("north-2")
    theirs.authorities.write_text(fleet.authority.bundle)
    expired, early = fleet.box("old", now=NOW - LIFE_S - 7200), fleet.box("early", now=NOW + 7200)
    control = fleet.controller()
    async with listening(identity.server_context(server).context) as port:
        trusting = identity.trusting(server.authorities.read_text(), ("appliance",))
        for context in (trusting, *map(identity.client_context, (theirs, expired, early))):
            with pytest.raises(OSError, match=r"(?i)alert|certificate|refused|reset|closed|eof|pipe|lost"):
                await told(port, context)
        with pytest.raises(ssl.SSLCertVerificationError, match="is of appliance north-1, which has no business here"):
            await told(port, identity.client_context(control, ("controller",)))
    async with listening(identity.server_context(server, ("appliance",)).context) as port:
        assert await told(port, identity.client_context(fleet.box("north-3"))) == "appliance north-3"
        with pytest.raises(OSError, match=r"(?i)alert|refused|reset|closed|eof|pipe|lost"):
            await told(port, identity.client_context(control))


async def test_servers_that_are_not_believed(fleet: Fleet, tmp_path: Path) -> None:
    """Of another fleet, expired, or with an authority's name and none of its keys."""
    client = fleet.box("north-1")
    strange = Fleet(tmp_path / "strange", Authority(tmp_path / "strange" / "state", NOW))
    for files in (strange.box("north-2"), fleet.box("old", now=NOW - LIFE_S - 7200)):
        async with listening(identity.server_context(files).context) as port:
            with pytest.raises(ssl.SSLCertVerificationError):
                await told(port, identity.client_context(client))


async def test_without_a_certificate_where_it_is_optional(fleet: Fleet) -> None:
    """The connection stands, and is nobody's; a bad certificate is still refused."""
    server, box = fleet.controller(), fleet.box("north-1")
    optional = ServerContext(server, ("appliance",), required=False)
    async with listening(optional.context) as port:
        assert await told(port, identity.trusting(box.authorities.read_text())) == "nobody"
        assert await told(port, identity.client_context(box)) == "appliance north-1"
        with pytest.raises(OSError, match=r"(?i)alert|refused|reset|closed|eof|pipe|lost"):
            await told(port, identity.client_context(fleet.box("old", now=NOW - LIFE_S - 7200)))


async def test_files_that_change_are_taken_up(fleet: Fleet) -> None:
    """A new certificate is shown, a new authority is trusted and a former one is not, on the same listener."""
    server, client = fleet.box("north-1"), fleet.box("north-2")
    made = identity.server_context(server)
    assert not made.refresh()
    async with listening(made.context) as port:
        before = identity.client_context(client)
        assert await told(port, before) == "appliance north-2"
        fleet.authority.prepare(NOW)
        fleet.authority.activate(NOW, force=True)
        fleet.box("north-1")
        later = fleet.box("north-3")
        with pytest.raises(OSError, match=r"(?i)alert|refused|reset|closed|eof|certificate"):
            await told(port, identity.client_context(later))
        assert made.refresh()
        assert await told(port, identity.client_context(later)) == "appliance north-3"
        with pytest.raises(ssl.SSLCertVerificationError):
            await told(port, before)
        client.authorities.write_text(fleet.authority.bundle)
        assert await told(port, identity.client_context(client)) == "appliance north-2"
        fleet.authority.forget(NOW, force=True)
        server.authorities.write_text(fleet.authority.bundle)
        assert made.refresh()
        with pytest.raises(OSError, match=r"(?i)alert|refused|reset|closed|eof|pipe|lost"):
            await told(port, identity.client_context(client))
        assert await told(port, identity.client_context(later)) == "appliance north-3"

        server.certificate.write_text("rubbish")
        with pytest.raises(ConfigError, match="enrol this box again"):
            made.refresh()
        assert not made.refresh()
        assert await told(port, identity.client_context(later)) == "appliance north-3"


def test_plain_sockets_are_held_to_the_same(fleet: Fleet) -> None:
    """Code that owns its sockets gets the same checks from the same contexts."""
    one, two, control = fleet.box("north-1"), fleet.box("north-2"), fleet.controller()
    context = identity.server_context(one, ("appliance",)).context
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(3):
                accepted, _ = server.accept()
                with accepted:
                    accepted.settimeout(60)
                    try:
                        with context.wrap_socket(accepted, server_side=True) as secure:
                            seen.append(identity.peer(secure) or "?")
                            secure.sendall(b"x")
                    except OSError as error:
                        seen.append(str(error))

        thread = threading.Thread(target=serve)
        thread.start()
        for files, roles in ((two, ("appliance",)), (control, ("appliance",)), (two, ("controller",))):
            shaking = identity.client_context(files, roles)
            with socket.create_connection(server.getsockname(), 60) as sock:
                try:
                    with shaking.wrap_socket(sock) as secure:
                        secure.recv(1)
                except OSError as error:
                    seen.append(f"client: {error}")
        thread.join(60)
    assert "north-2" in seen
    assert any("is of a controller, which has no business here" in one for one in seen)
    assert any(one.startswith("client: ") and "is of appliance north-1" in one for one in seen)


def test_files_that_are_missing_or_wrong(fleet: Fleet, tmp_path: Path) -> None:
    """A sentence that names the file and says what to do."""
    nobody = Identity.of(tmp_path / "nobody")
    with pytest.raises(ConfigError, match="cannot read the fleet's authorities"):
        identity.client_context(nobody)
    box = fleet.box("north-1")
    key, leaf = box.key.read_bytes(), box.certificate.read_bytes()
    box.certificate.unlink()
    with pytest.raises(ConfigError, match="enrol this box with `oca enrol`"):
        identity.client_context(box)
    box.certificate.write_bytes(leaf)
    box.key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"mode 0644\): chmod 600"):
        identity.client_context(box)
    keyfile.write(box.key, keyfile.pem(keyfile.new()), 0o600)
    with pytest.raises(ConfigError, match="is missing, or not the key of"):
        identity.server_context(box)
    box.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="not a private key in PEM form"):
        identity.client_context(box)
    box.key.write_bytes(key)
    for data in (b"", b"rubbish", b"\xff\xfe"):
        box.authorities.write_bytes(data)
        with pytest.raises(ConfigError, match="authorities"):
            identity.client_context(box)
    box.key.unlink()
    box.key.mkdir()
    with pytest.raises(ConfigError, match="cannot read the key"):
        keyfile.load(box.key)


def test_who_is_nobody(fleet: Fleet) -> None:
    """Nothing that is no TLS connection, or whose handshake is not done, is anybody."""
    assert identity.peer(None) is None
    assert identity.peer(object()) is None
    context = identity.client_context(fleet.box("north-1"))
    assert identity.peer(context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())) is None
    with pytest.raises(FormatError, match="the list holds no certificates"):
        peers.certificates(b"", "the list")
    root = fleet.authority.trusted[0]
    assert isinstance(root, x509.Certificate)
    assert peers.of_certificate(root) is None
