"""The servers that are compared, each started with the same content on one processor."""

from __future__ import annotations

import os
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import certificate
from bench.compiler import compiled
from bench.disk import forget
from bench.fleet import Fleet, FleetError, script
from bench.processor import descendants, process_s
from oca.residency import Residency
from oca.store.content import Store
from oca.title import model as title
from oca.title import segments
from oca.title.digest import file_digest, version_of
from oca.title.model import File, Period, Title, Track
from oca.title.segments import Segment, SegmentIndex

# The packager starts every segment on a page of the track file.
_INIT = 4096

_NGINX = """
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log;
worker_rlimit_nofile 65536;
{user}
{threads}
events {{ worker_connections 16384; multi_accept on; }}
http {{
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 75s;
    keepalive_requests 100000000;
    open_file_cache max=4096 inactive=600s;
    open_file_cache_valid 600s;
    open_file_cache_errors on;
    {aio}
    types {{ video/iso.segment m4s; }}
    default_type application/octet-stream;
    access_log {home}/access.log combined buffer=256k flush=1s;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    add_header Access-Control-Allow-Origin *;
    add_header Cache-Control "public, max-age=31536000, immutable";
    {tls}
    server {{ listen 127.0.0.1:{port} backlog=4096{ssl}; root {root}; location = /status {{ stub_status; }} }}
}}
"""

# Which of our own certificates, and the sizes that were fastest here; where the kernel has TLS, nginx uses it too.
_NGINX_TLS = """
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:tls:16m;
    ssl_buffer_size {ssl_buffer};
    output_buffers {output_buffers};
    {options}
"""
_OCA_TLS = """
[tls]
kernel = {kernel}
[[tls.certificates]]
chain = "{chain}"
key = "{key}"
"""


@dataclass(frozen=True)
class Tls:
    """A certificate with its key, for whoever serves over TLS."""

    chain: Path
    key: Path

    @classmethod
    def make(cls, home: Path) -> Tls:
        """A fresh one (ECDSA with P-256) for this machine."""
        return cls(*certificate.make(home, ["localhost", "127.0.0.1"]))

    def trusted(self) -> ssl.SSLContext:
        """How a client trusts it."""
        return ssl.create_default_context(cafile=str(self.chain))

    def cipher(self, port: int) -> str:
        """Version and cipher that a client with OpenSSL's defaults gets there."""
        with (
            socket.create_connection(("127.0.0.1", port)) as sock,
            self.trusted().wrap_socket(sock, server_hostname="localhost") as secure,
        ):
            return f"{secure.version()} {(secure.cipher() or ('none',))[0]}"


@dataclass(frozen=True)
class Content:
    """Segments of random bytes: as a title in a store, and as plain files for who cannot slice."""

    store: Path
    files: Path
    url: str
    counts: dict[int, int]
    """Number of segments by their size in bytes; the track of size n is named `s<n>`."""

    def paths(self, size: int) -> list[str]:
        """URL paths of all segments of a size, on an appliance."""
        return [f"{self.url}/s{size}/{number}.m4s" for number in range(1, self.counts[size] + 1)]

    def plain_paths(self, size: int) -> list[str]:
        """The same segments where every one is a file of its own."""
        return [f"/s{size}/{number}.m4s" for number in range(1, self.counts[size] + 1)]

    def forget(self) -> None:
        """Leave nothing of it in memory, so that every server brings it there in its own way."""
        for size in self.counts:
            for path in self._media(size):
                forget(path)

    def in_memory(self, size: int) -> bool:
        """Whether all segments of a size are, for those who slice and for those who do not."""
        for path in self._media(size):
            fd = os.open(path, os.O_RDONLY)
            try:
                length = os.fstat(fd).st_size
                # What comes before the first segment nobody has asked for.
                first = _INIT if path.suffix == ".mp4" else 0
                if Residency(fd, length).resident(first, length - first) < length - first:
                    return False
            finally:
                os.close(fd)
        return True

    def _media(self, size: int) -> list[Path]:
        return [*self.store.rglob(f"s{size}.mp4"), *(self.files / f"s{size}").glob("*.m4s")]


def make_content(home: Path, counts: dict[int, int]) -> Content:
    """Write the content below `home`; the same call gives the same bytes."""
    store, files = Store([home / "store"]), home / "files"
    store.prepare()
    staged = home / "store" / ".filling" / "bench"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    tracks = []
    for size, count in counts.items():
        name, bits = f"s{size}", random.Random(size)
        (files / name).mkdir(parents=True, exist_ok=True)
        rows = [Segment(_INIT + number * size, size, number * 100, 100, size // 2) for number in range(count)]
        with (staged / f"{name}.mp4").open("wb") as whole:
            whole.write(bits.randbytes(_INIT))
            for number in range(1, count + 1):
                data = bits.randbytes(size)
                whole.write(data)
                (files / name / f"{number}.m4s").write_bytes(data)
        (staged / f"{name}.idx").write_bytes(segments.encode(SegmentIndex(25, _INIT, tuple(rows))))
        rate = size * 2
        tracks.append(
            Track(
                name=name,
                kind="video",
                codecs="avc1.64001f",
                timescale=25,
                duration=100 * count,
                segments=count,
                bandwidth=rate,
                average_bandwidth=rate,
            )
        )
    listed = {}
    for path in sorted(staged.iterdir()):
        found = file_digest(path)
        listed[path.name] = File(found.bytes, found.whole, found.chunks)
    data = title.encode(Title(id="bench", name="bench", periods=[Period("0", tracks)], files=listed))
    (staged / "title.json").write_bytes(data)
    version = version_of(data)
    store.publish(staged, "bench", version, 1_700_000_000)
    return Content(home / "store", files, f"/t/bench/{version}", counts)


class Served:
    """A server under test: where it listens, which paths it serves, and what it has cost so far."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        cpu: int | str,
        ready: str,
        home: Path,
        tls: Tls | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self.base = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        log = (home / f"{name}.log").open("ab")
        self._process = subprocess.Popen(
            ["taskset", "-c", str(cpu), *command], stdout=log, stderr=log, start_new_session=True
        )
        log.close()
        try:
            Fleet.wait_until_answering(f"{self.base}{ready}", self._process, name, tls.trusted() if tls else None)
        except FleetError:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Id of its first process."""
        return self._process.pid

    def busy_s(self) -> float:
        """Seconds that all threads of the server have run."""
        return sum(process_s(pid) for pid in descendants(self._process.pid))

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def oca(
    content: Content,
    home: Path,
    ports: tuple[int, int],
    cpu: int | str,
    workers: int = 1,
    more: Sequence[Path] = (),
    limits: str = "",
    tls: Tls | None = None,
    kernel: bool = True,
) -> Served:
    """Our server as it runs in production: metrics, access log and all. `more` are further disks of its store;
    `kernel`: the kernel may encrypt."""
    settings = home / "oca.toml"
    roots = ", ".join(f'"{root}"' for root in (content.store, *more))
    settings.write_text(
        f'appliance = "bench"\nstore = [{roots}]\nurl = "http{"s" if tls else ""}://localhost:{ports[0]}"\n'
        f'listen = "127.0.0.1:{ports[0]}"\nadmin = "127.0.0.1:{ports[1]}"\nworkers = {workers}\n'
        f'access_log = "{home / "oca-access.log"}"\n[limits]\n{limits}\n'
        + (_OCA_TLS.format(chain=tls.chain, key=tls.key, kernel=str(kernel).lower()) if tls else "")
    )
    command = [script("oca"), "serve", "--config", str(settings)]
    return Served("oca", command, ports[0], cpu, content.paths(min(content.counts))[0], home, tls)


def nginx(
    content: Content,
    home: Path,
    port: int,
    cpu: int,
    *,
    threads: bool = False,
    ready: str = "",
    tls: Tls | None = None,
    tuning: tuple[str, str] = ("16k", "1 256k"),
) -> Served:
    """Debian's nginx, tuned for static segments as well as we know how; with `threads`, its thread pool for disks.

    `tuning` is its ssl_buffer_size and output_buffers.
    """
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise FleetError("nginx is missing: install it with `apt-get install nginx-light`")
    name = "nginx-threads" if threads else "nginx"
    own = home / name
    own.mkdir(exist_ok=True)
    (own / "nginx.conf").write_text(
        _NGINX.format(
            home=own,
            port=port,
            root=content.files,
            # As root it would serve as another user, who may not look into our temporary directory.
            user="user root;" if os.geteuid() == 0 else "",
            threads="thread_pool default threads=32 max_queue=65536;" if threads else "",
            aio="aio threads;" if threads else "",
            ssl=" ssl" if tls else "",
            tls=_nginx_tls(tls, tuning) if tls else "",
        )
    )
    command = [binary, "-c", str(own / "nginx.conf")]
    return Served(name, command, port, cpu, ready or content.plain_paths(min(content.counts))[0], home, tls)


def _nginx_tls(tls: Tls, tuning: tuple[str, str]) -> str:
    # The kernel's TLS module shows itself there once it is loaded.
    options = "ssl_conf_command Options KTLS;" if Path("/proc/net/tls_stat").exists() else ""
    buffer, output = tuning
    return _NGINX_TLS.format(chain=tls.chain, key=tls.key, options=options, ssl_buffer=buffer, output_buffers=output)


def floor(content: Content, home: Path, port: int, cpu: int, size: int) -> Served:
    """A bare sendfile loop in C that answers anything with a segment of `size`."""
    files = [str(path) for path in sorted((content.files / f"s{size}").iterdir())]
    return Served("floor", [str(compiled("floor", home)), str(port), *files], port, cpu, "/", home)
