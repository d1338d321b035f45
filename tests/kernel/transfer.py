"""Runs in the machine: `oca serve` over TLS, every byte compared, and the kernel's own count of what it encrypted.

One line per version and cipher; an AssertionError says what does not hold. With `--bench`, processor time instead,
beside nginx (`tests.kernel.cost`).
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench import fleet, rivals
from bench.fleet import FleetError, free_ports
from bench.rivals import Content, Served, Tls
from oca.errors import guarded
from oca.http import openssl
from tests.kernel import cost
from tests.kernel.tls_stat import taken_over

BIG, SMALL = 2 << 20, 64 << 10
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CASES = [
    (TLS13, "TLS_AES_128_GCM_SHA256"),
    (TLS13, "TLS_AES_256_GCM_SHA384"),
    (TLS13, "TLS_CHACHA20_POLY1305_SHA256"),
    (TLS12, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (TLS12, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (TLS12, "ECDHE-ECDSA-CHACHA20-POLY1305"),
]
_PATIENCE_S = 240.0


def kernel_has(cipher: str) -> bool:
    """Whether the kernel has the algorithm that a cipher of TLS needs."""
    if "CHACHA20" not in cipher:
        return True
    return subprocess.run(["modprobe", "-q", "chacha20poly1305"], check=False).returncode == 0


def metric(port: int, name: str, *labels: str) -> float:
    """A metric of the server, all of its samples that have these labels added up."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_PATIENCE_S) as response:
        lines = response.read().decode().splitlines()
    samples = [line for line in lines if re.match(rf"{name}[ {{]", line) and all(label in line for label in labels)]
    return sum(float(line.rpartition(" ")[2]) for line in samples)


def handshakes(port: int, *labels: str) -> float:
    """TLS connections that the server has counted."""
    return metric(port, "oca_tls_connections_total", *labels)


def until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for something that the server tells of once a second."""
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {_PATIENCE_S:.0f} s"
        time.sleep(0.1)


def offering(tls: Tls, version: ssl.TLSVersion, cipher: str) -> ssl.SSLContext:
    """A client that can do this only."""
    context = tls.trusted()
    context.minimum_version = context.maximum_version = version
    if version is TLS12:
        context.set_ciphers(cipher)
        return context
    # Python's ssl module leaves the choice among the ciphers of TLS 1.3 out.
    library, pointer = openssl._libssl, openssl._pointer(context)
    assert library is not None, "OpenSSL cannot be reached"
    assert pointer is not None, "this Python keeps its SSL_CTX elsewhere"
    library.SSL_CTX_set_ciphersuites.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    assert library.SSL_CTX_set_ciphersuites(pointer, cipher.encode()) == 1, f"OpenSSL has no {cipher}"
    return context


def connect(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None, receive_bytes: int = 0
) -> ssl.SSLSocket:
    """A connection that takes an end without close_notify for an error."""
    raw = socket.socket()
    if receive_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.settimeout(_PATIENCE_S)
    raw.connect(("127.0.0.1", port))
    return context.wrap_socket(raw, server_hostname="localhost", session=session, suppress_ragged_eofs=False)


def requests(content: Content) -> list[tuple[str, str, bytes]]:
    """URL path, Range (or ""), and the body that must come: whole tracks, heads, segments, ranges of both."""
    found = []
    for size, count in content.counts.items():
        track = f"{content.url}/s{size}"
        whole = (content.store / f"{track.removeprefix('/t/')}.mp4").read_bytes()
        head = len(whole) - size * count
        found += [(f"{track}.mp4", "", whole), (f"{track}/init.mp4", "", whole[:head])]
        found += [(f"{track}.mp4", "bytes=1-1", whole[1:2]), (f"{track}.mp4", "bytes=-70001", whole[-70001:])]
        found += [(f"{track}.mp4", f"bytes={size - 1}-", whole[size - 1 :])]
        for number, path in enumerate(content.paths(size)):
            segment = whole[head + number * size :][:size]
            found += [(path, "", segment), (path, "bytes=1000-40000", segment[1000:40001])]
    return found


def fetch(sock: ssl.SSLSocket, wanted: list[tuple[str, str, bytes]]) -> int:
    """Ask for everything on one connection, one after the other, and compare; bytes of all bodies."""
    client = http.client.HTTPConnection("localhost")
    client.sock = sock
    for path, span, expected in wanted:
        client.request("GET", path, headers={"Range": span} if span else {})
        response = client.getresponse()
        body = response.read()
        assert response.status == (206 if span else 200), f"{path} {span}: {response.status} {response.reason}"
        assert body == expected, f"{path} {span} over {sock.version()} is not what was published"
    return sum(len(expected) for _, _, expected in wanted)


def last(sock: ssl.SSLSocket, path: str, expected: bytes, slowly: bool = False) -> None:
    """Ask for the last time; the body must be followed by close_notify, so that nobody could have cut it short."""
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    data = b""
    while part := sock.read(8 << 10 if slowly else 1 << 16):
        data += part
        if slowly and len(data) % 5 == 0:
            time.sleep(0.001)
    assert data.partition(b"\r\n\r\n")[2] == expected, f"{path} is not what was published"


@contextlib.contextmanager
def serving(content: Content, home: Path, tls: Tls, kernel: bool) -> Iterator[tuple[Served, int]]:
    """The server, and the port of its metrics."""
    ports = free_ports("127.0.0.1", 0)
    admin = next(ports)
    home.mkdir()
    try:
        served = rivals.oca(content, home, (next(ports), admin), "0", tls=tls, kernel=kernel)
    except FleetError:
        print((home / "oca.log").read_text())
        raise
    try:
        yield served, admin
    finally:
        served.stop()


def prove(served: Served, admin: int, tls: Tls, content: Content, version: ssl.TLSVersion, cipher: str) -> None:
    """Fetch all with one cipher; the kernel and the server must agree on who encrypted."""
    way, wanted = "kernel" if kernel_has(cipher) else "user", requests(content)
    labels = (f'version="{"TLSv1.3" if version is TLS13 else "TLSv1.2"}"', f'way="{way}"', 'resumed="no"')
    context, count, counted = offering(tls, version, cipher), taken_over(), handshakes(admin, *labels)
    with connect(served.port, context) as sock:
        total = fetch(sock, wanted)
        last(sock, wanted[0][0], wanted[0][2])
        used = f"{sock.version()} {(sock.cipher() or ('nothing',))[0]}"
    total += len(wanted[0][2])
    assert used.endswith(cipher), f"asked for {cipher}, got {used}"
    taken = taken_over() - count
    if way == "user":
        assert taken == 0
        print(f"{used}: {total / 1e6:.1f} MB encrypted by the server (not in this kernel), every byte right")
    else:
        assert taken == 1, f"{used}: the kernel took over {taken} connections instead of 1"
        print(f"{used}: {total / 1e6:.1f} MB sent as ciphertext by the kernel (TlsTxSw +1), every byte right")
    until(f"one more handshake with {', '.join(labels)}", lambda: handshakes(admin, *labels) == counted + 1)


def kernel_on(content: Content, home: Path, tls: Tls) -> None:
    """What must hold with `kernel = true`, which is the default."""
    before = taken_over()
    with serving(content, home, tls, True) as (served, admin):
        # Whoever looked whether it answers has to be counted before we count.
        until("the first handshake", lambda: handshakes(admin, 'way="kernel"') == taken_over() - before > 0)
        for version, cipher in CASES:
            prove(served, admin, tls, content, version, cipher)
        path, _, expected = requests(content)[0]
        for version in (TLS12, TLS13):
            context = tls.trusted()
            context.minimum_version = context.maximum_version = version
            with connect(served.port, context) as sock:
                last(sock, path, expected)
                session = sock.session
            count = taken_over()
            with connect(served.port, context, session, receive_bytes=8 << 10) as sock:
                last(sock, path, expected, slowly=True)
                assert sock.session_reused
                name = sock.version()
            assert taken_over() == count + 1
            print(f"{name} resumed, to a slow reader: {len(expected) / 1e6:.1f} MB by the kernel, every byte right")
        total = taken_over() - before
        until(f"{total} connections counted", lambda: handshakes(admin, 'way="kernel"') == total)
        user = handshakes(admin, 'way="user"')
        assert user == sum(not kernel_has(cipher) for _, cipher in CASES)
        assert handshakes(admin, 'way="kernel"', 'resumed="yes"') == 2
        assert user or metric(admin, "oca_sent_bytes_total", 'way="encrypt"') == 0
        sent = metric(admin, "oca_sent_bytes_total", 'way="sendfile"')
        print(
            f"server and kernel count {total} connections that the kernel encrypts; {sent / 1e6:.1f} MB by sendfile"
        )


def _counted(admin: int, labels: tuple[str, ...]) -> bool:
    return handshakes(admin, *labels) > 0


def kernel_off(content: Content, home: Path, tls: Tls) -> None:
    """What must hold with `kernel = false`."""
    before = taken_over()
    with serving(content, home, tls, False) as (served, admin):
        for version in (TLS13, TLS12):
            context, wanted = tls.trusted(), requests(content)
            context.minimum_version = context.maximum_version = version
            with connect(served.port, context) as sock:
                total = fetch(sock, wanted)
                used = f"{sock.version()} {(sock.cipher() or ('nothing',))[0]}"
            labels = (f'version="{used.partition(" ")[0]}"', 'way="user"')
            until("the handshake", partial(_counted, admin, labels))
            print(f"{used} with kernel = false: {total / 1e6:.1f} MB encrypted by the server, every byte right")
        assert taken_over() == before, "the kernel took connections over though it was told not to"
        assert handshakes(admin, 'way="kernel"') == 0
        assert metric(admin, "oca_sent_bytes_total", 'way="sendfile"') == 0


def main() -> None:
    """All of it; an assertion fails the run."""
    fleet.READY_S = _PATIENCE_S  # all may be emulated
    if sys.argv[1:] == ["--bench"]:
        cost.compare()
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        content, tls = rivals.make_content(home, {BIG: 2, SMALL: 3}), Tls.make(home)
        kernel_on(content, home / "kernel", tls)
        kernel_off(content, home / "user", tls)


if __name__ == "__main__":
    guarded(main)
