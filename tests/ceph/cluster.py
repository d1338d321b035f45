"""Ceph's S3 gateway on one node, for as long as a command runs: `cluster.py COMMAND …`, as root.

A monitor, a manager, an OSD on a file and the gateway, all in a temporary directory and on loopback. COMMAND finds
the gateway in OCA_TEST_S3, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

_PATIENCE_S = 180.0


def _free() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Cluster:
    """The processes, their directory, and how to run Ceph's tools against them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.conf = root / "ceph.conf"
        self.gateway = _free()
        self._running: list[subprocess.Popen[bytes]] = []
        self.fsid = str(uuid.uuid4())
        self.monitor = f"v2:127.0.0.1:{_free()}"
        self.conf.write_text(
            f"""[global]
fsid = {self.fsid}
mon host = {self.monitor}
public addr = 127.0.0.1
run dir = {root}
keyring = {root}/keyring
log file = {root}/$name.log
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon pg warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 1
[mon.a]
mon data = {root}/mon
[mgr.a]
mgr data = {root}/mgr
mgr initial modules =
[osd.0]
osd data = {root}/osd
osd objectstore = bluestore
bluestore block size = {2 << 30}
bluestore block db size = 0
bluestore block wal size = 0
osd memory target = {900 << 20}
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{self.gateway}
rgw thread pool size = 32
rgw run sync thread = false
rgw enable usage log = false
rgw dynamic resharding = false
debug rgw = 1
"""
        )

    def run(self, *command: str) -> str:
        """One of Ceph's tools, to its end; its output."""
        done = subprocess.run(
            [command[0], "-c", str(self.conf), *command[1:]], capture_output=True, text=True, timeout=_PATIENCE_S
        )
        if done.returncode:
            raise SystemExit(f"error: {' '.join(command)} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def start(self, *command: str) -> None:
        """One of Ceph's servers, in the foreground of its own process group."""
        name = self.root / f"{Path(command[0]).name}.out"
        with name.open("wb") as out:
            line = [command[0], "-f", "-c", str(self.conf), *command[1:]]
            self._running.append(subprocess.Popen(line, stdout=out, stderr=out, start_new_session=True))

    def begin(self) -> tuple[str, str]:
        """Create it and start it; the keys of a user."""
        for name in ("mon", "mgr", "osd"):
            (self.root / name).mkdir()
        keyring = str(self.root / "keyring")
        every = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
        self.run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        for name in ("client.admin", "mgr.a", "osd.0", "client.rgw"):
            self.run("ceph-authtool", keyring, "--gen-key", "-n", name, *every)
        monmap = str(self.root / "monmap")
        self.run("monmaptool", "--create", "--addv", "a", f"[{self.monitor}]", "--fsid", self.fsid, monmap)
        self.run("ceph-mon", "--mkfs", "-i", "a", "--keyring", keyring, "--monmap", monmap)
        self.start("ceph-mon", "-i", "a")
        self.start("ceph-mgr", "-i", "a")
        self.run("ceph", "osd", "new", osd := str(uuid.uuid4()))
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.start("ceph-osd", "-i", "0")
        self.start("radosgw", "-n", "client.rgw")
        access, secret = "OCATEST", secrets.token_hex(20)
        self.run(
            "radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "oca", "--display-name", "oca",
            "--access-key", access, "--secret-key", secret,
        )  # fmt: skip
        self._wait()
        return access, secret

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.gateway}", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                ended = [process.args for process in self._running if process.poll() is not None]
                if ended or time.monotonic() > deadline:
                    logs = "".join(path.read_text(errors="replace")[-1500:] for path in self.root.glob("*.out"))
                    raise SystemExit(f"error: the gateway does not answer; ended: {ended}\n{logs}") from None
                time.sleep(0.2)

    def end(self) -> None:
        """End all of it, the gateway first."""
        for process in reversed(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM if process.args[0] == "radosgw" else signal.SIGKILL)  # type: ignore[index]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            if process.poll() is None:
                process.kill()
                process.wait(20)


def main(command: list[str]) -> int:
    """Run `command` beside a cluster; its exit status."""
    if not command:
        raise SystemExit("usage: cluster.py COMMAND …")
    if os.geteuid():
        raise SystemExit("error: Ceph's servers are started as root here: use sudo")
    os.environ["PATH"] += ":/usr/sbin"
    missing = [name for name in ("ceph", "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw") if not shutil.which(name)]
    if missing:
        raise SystemExit(f"error: {', '.join(missing)} missing: `scripts/setup s3` installs Ceph")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="oca-ceph-") as folder:
        cluster = Cluster(Path(folder))
        try:
            access, secret = cluster.begin()
            sys.stderr.write(f"Ceph's gateway answers after {time.monotonic() - began:.0f} s\n")
            told = {
                "OCA_TEST_S3": f"http://127.0.0.1:{cluster.gateway}",
                "AWS_ACCESS_KEY_ID": access,
                "AWS_SECRET_ACCESS_KEY": secret,
            }
            return subprocess.run(command, env={**os.environ, **told}).returncode
        finally:
            cluster.end()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
