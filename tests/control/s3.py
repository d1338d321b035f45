"""An S3 service to test against: moto behind a door that minds the time of URLs, or the one at OCA_TEST_S3."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
from aiohttp import ClientSession, web
from botocore.config import Config
from yarl import URL

from oca.handover import listen
from oca.objectstore import Bucket, Keys, Place
from tests.programs import held, port_of

SECRET = "a-secret-that-nobody-may-see"


@dataclass
class Service:
    """Where it is, and keys that open it."""

    endpoint: str
    keys: Keys = field(default_factory=lambda: Keys("AKIAOCATEST", SECRET))

    def client(self):  # type: ignore[no-untyped-def]
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.keys.access_key_id,
            aws_secret_access_key=self.keys.secret_access_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def place(self) -> Place:
        """A new bucket, and a prefix in it."""
        name = f"oca-{uuid.uuid4().hex[:20]}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return Place(f"s3://{name}/films", self.endpoint)

    def bucket(self, place: Place) -> Bucket:
        return Bucket(place, self.keys)

    def put(self, place: Place, key: str, data: bytes) -> None:
        """Put an object into a bucket, whatever it does to the version it belongs to."""
        client = self.client()
        client.put_object(Bucket=place.bucket, Key=f"{place.prefix}/{key}", Body=data)
        client.close()

    def delete(self, place: Place, key: str) -> None:
        client = self.client()
        client.delete_object(Bucket=place.bucket, Key=f"{place.prefix}/{key}")
        client.close()

    def key_file(self, folder: Path) -> Path:
        path = folder / "s3.toml"
        path.write_text(
            f'access_key_id = "{self.keys.access_key_id}"\nsecret_access_key = "{self.keys.secret_access_key}"\n'
        )
        path.chmod(0o600)
        return path


def _ended(query: URL) -> bool:
    """Whether the time of a presigned URL is over, as every S3 service but moto finds out."""
    given = query.query
    if "X-Amz-Date" not in given:
        return False
    made = datetime.strptime(given["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return datetime.now(UTC) > made + timedelta(seconds=int(given["X-Amz-Expires"]))


async def _door(behind: str, sock, ready: threading.Event, stop: asyncio.Event) -> None:  # type: ignore[no-untyped-def]
    async with ClientSession(auto_decompress=False) as session:

        async def relay(request: web.Request) -> web.StreamResponse:
            if _ended(request.url):
                code = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
                return web.Response(status=403, body=code, content_type="application/xml")
            url = URL(behind + request.raw_path, encoded=True)
            body = await request.read()
            sent = io.BytesIO(body) if body else None
            fields = {name: value for name, value in request.headers.items() if name != "Transfer-Encoding"}
            async with session.request(
                request.method, url, headers=fields, data=sent, allow_redirects=False
            ) as response:
                data = io.BytesIO(await response.read())
                kept = {n: v for n, v in response.headers.items() if n not in ("Transfer-Encoding", "Connection")}
                return web.Response(status=response.status, body=data, headers=kept)

        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{rest:.*}", relay)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, sock).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """The service that the environment names, else one that is started and ended here."""
    named = os.environ.get("OCA_TEST_S3")
    if named:
        yield Service(named, Keys(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]))
        return
    kept = held()
    port = port_of(kept)
    program = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    moto = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    behind = f"http://127.0.0.1:{port}"
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()
    sock = listen("127.0.0.1", 0)
    door = threading.Thread(target=lambda: loop.run_until_complete(_door(behind, sock, ready, stop)))
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(behind, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert moto.poll() is None, "moto ended"
                assert time.monotonic() < deadline, "moto does not answer"
                time.sleep(0.1)
        door.start()
        assert ready.wait(60)
        yield Service(f"http://127.0.0.1:{sock.getsockname()[1]}")
    finally:
        if door.is_alive():
            loop.call_soon_threadsafe(stop.set)
            door.join()
        loop.close()
        moto.terminate()
        try:
            moto.wait(60)
        finally:
            moto.kill()
            moto.wait()
            kept.close()
