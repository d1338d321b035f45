"""Buckets as origins against a real S3 server: publish, register, fill; ended URLs, wrong bytes, what is refused.

The server is moto, or the one that OCA_TEST_S3 names, such as tests/ceph/cluster.py's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner, Result

from control.ctl.origins import register
from control.titles.origins import Origins, OriginSettings
from fill.agent import Agent
from fill.controllers import Controllers
from fill.run import Pace
from oca import wire
from oca.config import ApplianceSettings, FillSettings
from oca.errors import ConfigError, OcaError
from oca.fetch import Fetch, FetchError
from oca.health import Limits
from oca.objectstore import Bucket, Keys, ObjectStoreError, Place, keys
from oca.signed import Signed, unsigned
from oca.store.content import Store
from oca.store.landing import Landing
from oca.title.digest import CHUNK_BYTES
from oca.trust.identity import Identity, Proof
from oca.wire import Source, Sources
from packager import publish
from packager.cli import app as pack
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import Desk, Start
from tests.control.s3 import Service, service

QUIET = Limits(parallel=2, connect_s=60.0, stall_s=60.0, attempts=2, backoff_s=0.01)


@pytest.fixture(scope="module")
def s3() -> Iterator[Service]:
    with service() as found:
        yield found


@pytest.fixture
def place(s3: Service) -> Place:
    return s3.place()


@pytest.fixture
def clip(make_title: MakeTitle, tmp_path: Path) -> MadeTitle:
    """A title with a track of some chunks, so that ranges are asked for; S3 takes no parts as short as these."""
    return make_title(tmp_path / "packaged", v1=[CHUNK_BYTES, 5000], a1=[700], chunk_bytes=3_000_000)


def send(s3: Service, place: Place, made: MadeTitle) -> publish.Published:
    return publish.publish(made.directory, s3.bucket(place), lambda step, done, total: None)


def command(s3: Service, place: Place, folder: Path, directory: Path, *more: str) -> Result:
    arguments = ["publish", str(directory), str(place), "--endpoint", s3.endpoint]
    return CliRunner().invoke(pack, [*arguments, "--key-file", str(s3.key_file(folder)), *more])


def source(s3: Service, place: Place, made: MadeTitle, seconds: float = 600) -> Source:
    """The bucket as a source, as the controller names it."""
    names = ["title.json", *made.title.files]
    objects = s3.bucket(place).sign(made.id, made.version, names, seconds)
    source = Source(appliance="films", url=place.url, rank="origin", objects=objects, objects_s=seconds)
    return wire.decode(wire.encode(Sources(tracks=[[source]])), Sources, "sources").tracks[0][0]


async def bring(fetch: Fetch, made: MadeTitle, to: Path, sources: Sequence[Source], signed: Signed) -> Landing:
    landing = Landing(to / "v1.mp4", made.title.files["v1.mp4"])
    await fetch.file(sources, made.title, made.version, "v1.mp4", landing, signed=signed)
    return landing


@pytest.fixture
async def fetch() -> AsyncIterator[Fetch]:
    async with Fetch(limits=QUIET) as made:
        yield made


def test_publish(s3: Service, place: Place, clip: MadeTitle, tmp_path: Path) -> None:
    """A version goes up whole, with what caches and players need; a repeat sends nothing, a broken one goes on."""
    dry = command(s3, place, tmp_path, clip.directory, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "would send" in dry.output
    assert s3.bucket(place).sizes(clip.id, clip.version) == {}
    done = command(s3, place, tmp_path, clip.directory, "--json")
    assert done.exit_code == 0, done.output
    sizes = s3.bucket(place).sizes(clip.id, clip.version)
    assert sizes == {path.name: path.stat().st_size for path in clip.directory.iterdir()}
    client = s3.client()
    base = f"{place.prefix}/{clip.id}/{clip.version}"
    facts = {name: client.head_object(Bucket=place.bucket, Key=f"{base}/{name}") for name in sizes}
    client.close()
    assert facts["v1.mp4"]["ContentType"] == "video/mp4"
    assert facts["manifest.mpd"]["ContentType"] == "application/dash+xml"
    assert {each["CacheControl"] for each in facts.values()} == {"public, max-age=31536000, immutable"}
    assert (
        max(facts.values(), key=lambda each: each["LastModified"])["LastModified"]
        <= (facts["title.json"]["LastModified"])
    ), "title.json comes last"
    assert s3.bucket(place).read(clip.id, clip.version, "title.json") == (clip.bytes_of("title.json"), 1_700_000_000)
    again = command(s3, place, tmp_path, clip.directory)
    assert "nothing, all of it is there" in again.output
    s3.delete(place, f"{clip.id}/{clip.version}/a1.mp4")
    s3.put(place, f"{clip.id}/{clip.version}/a1.idx", b"short")
    assert send(s3, place, clip).sent == ["a1.idx", "a1.mp4"]
    assert send(s3, place, clip).sent == []


def test_a_damaged_version_is_not_published(s3: Service, place: Place, clip: MadeTitle) -> None:
    """What does not match its digests ends the publication, before a title.json says that it is whole."""
    with (clip.directory / "v1.mp4").open("r+b") as file:
        file.seek(CHUNK_BYTES + 10)
        file.write(b"damage")
    with pytest.raises(OcaError, match=r"v1\.mp4 is corrupt in chunk 2"):
        send(s3, place, clip)
    there = s3.bucket(place).sizes(clip.id, clip.version)
    assert "title.json" not in there
    assert "v1.mp4" not in there
    (clip.directory / "a1.mp4").unlink()
    with pytest.raises(OcaError, match="publish a whole version"):
        send(s3, place, clip)


async def test_an_appliance_fills_from_a_bucket(
    s3: Service,
    place: Place,
    clip: MadeTitle,
    start: Start,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Published, registered from the bucket, placed, and filled by presigned URLs alone; and nobody sees a secret."""
    await asyncio.to_thread(send, s3, place, clip)
    key_file = str(s3.key_file(tmp_path))
    films = OriginSettings(
        name="films", bucket=str(place), endpoint=s3.endpoint, site="south", key_file=key_file, look_s=1
    )
    desk: Desk = await start(origins=[films])
    await desk.cover()
    found = await desk.ask("GET", "origins/films")
    assert found["titles"] == [{"title": clip.id, "version": clip.version, "registered": False}]
    url = f"http://{desk.server.host}:{desk.server.port}"
    done = await asyncio.to_thread(register, _controller(url), f"{place}/{clip.id}")
    assert done == {"title": clip.id, "version": clip.version}
    await desk.box("north-1")
    await desk.beat("north-1")
    await desk.plan(("north", "clip", 100))
    rows = (await desk.ask("GET", "fills/sources?appliance=north-1&title=clip&track=v1"))["tracks"][0]["sources"]
    assert [(row["appliance"], row["rank"]) for row in rows] == [("films", 0), ("north-1", None)]
    store = Store([tmp_path / "store"])
    store.prepare()
    settings = ApplianceSettings(
        appliance="north-1", store=[str(store.roots[0])], url="http://127.0.0.1:1", controllers=[url],
        storage_bytes=1 << 30, fill=FillSettings(poll_s=0.2, rate_mbps=100_000),
    )  # fmt: skip
    async with aiohttp.ClientSession() as session:
        agent = Agent(
            settings, store, Controllers(session, "north-1", [url]), is_open=lambda at: True, closes=lambda at: None,
            pace=Pace(reask_s=0.1, patience_s=5, report_s=0.1), limits=QUIET,
        )  # fmt: skip
        assert await agent.look()
    held = store.held(clip.id, clip.version)
    assert held is not None
    assert held.tracks == {"v1", "a1"}
    assert held.published == 1_700_000_000
    assert all((held.directory / path.name).read_bytes() == path.read_bytes() for path in clip.directory.iterdir())
    box = (await desk.ask("GET", "fills"))["appliances"][0]
    assert box["classes"] == {"origin": box["total"]}
    refused = await desk.ask("POST", "appliances", {"id": "films", "site": "x", "url": "http://films.example"}, 409)
    assert "is the name of a bucket" in refused
    assert "holds no version" in await desk.ask("POST", "origins/films/titles", {"title": "none"}, 404)
    told = str(await desk.ask("GET", "origins")) + str(rows) + "".join(capfd.readouterr())
    told += str(await desk.ask("GET", "audit"))
    database = b"".join(path.read_bytes() for path in tmp_path.glob("control.db*"))
    for secret in (s3.keys.secret_access_key, s3.keys.access_key_id, "X-Amz"):
        assert secret not in told
        assert secret.encode() not in database


def _controller(url: str):  # type: ignore[no-untyped-def]
    from control.ctl.client import Controller

    return Controller(url)


async def _until_ended(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as response:
                if response.status == 403:
                    return
            await asyncio.sleep(0.1)


async def test_ended_urls_are_renewed(
    s3: Service, place: Place, clip: MadeTitle, fetch: Fetch, tmp_path: Path
) -> None:
    """A URL whose time is over makes the box ask for others, once, and is held against nobody."""
    await asyncio.to_thread(send, s3, place, clip)
    old, asked = source(s3, place, clip, 1), 0
    await _until_ended(old.objects["v1.mp4"])

    async def ask() -> list[Source]:
        nonlocal asked
        asked += 1
        return [source(s3, place, clip)]

    # By the box's own clock they are good for long yet: only the service knows better.
    trusting = Signed([old], ask, clock=lambda: 0.0)
    landing = await bring(fetch, clip, tmp_path, [old], trusting)
    assert landing.path.read_bytes() == clip.bytes_of("v1.mp4")
    assert asked == 1
    times = iter([0.0, *[1000.0] * 20])
    early = Signed([source(s3, place, clip)], ask, clock=lambda: next(times))
    await early.url(old, "v1.mp4")
    assert asked == 2, "before they end, without a refusal"


async def test_ended_and_no_others(
    s3: Service, place: Place, clip: MadeTitle, fetch: Fetch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With nobody to sign others, one sentence says so, and no signature is in it or in the log."""
    await asyncio.to_thread(send, s3, place, clip)
    old = source(s3, place, clip, 1)
    await _until_ended(old.objects["v1.mp4"])

    async def ask() -> list[Source]:
        raise OcaError("no controller")

    with pytest.raises(FetchError, match="films: it refuses the URL that the controller signed") as failed:
        await bring(fetch, clip, tmp_path, [old], Signed([old], ask))
    assert "X-Amz" not in str(failed.value) + "".join(capfd.readouterr())


async def test_wrong_bytes_in_the_bucket(
    s3: Service, place: Place, clip: MadeTitle, fetch: Fetch, tmp_path: Path
) -> None:
    """A bucket is trusted no more than any source: wrong bytes never count, and a missing object is a sentence."""
    await asyncio.to_thread(send, s3, place, clip)
    wrong = bytearray(clip.bytes_of("v1.mp4"))
    wrong[-1] ^= 1
    await asyncio.to_thread(s3.put, place, f"{clip.id}/{clip.version}/v1.mp4", bytes(wrong))
    from_bucket = source(s3, place, clip)

    async def ask() -> list[Source]:
        return [source(s3, place, clip)]

    with pytest.raises(FetchError, match="films: it sent wrong bytes for chunk 2"):
        await bring(fetch, clip, tmp_path, [from_bucket], Signed([from_bucket], ask))
    await asyncio.to_thread(s3.delete, place, f"{clip.id}/{clip.version}/v1.mp4")
    async with Fetch(limits=QUIET) as another:
        with pytest.raises(FetchError, match="films: it answers 404"):
            await bring(another, clip, tmp_path, [from_bucket], Signed([from_bucket], ask))


async def test_buckets_of_one_service_are_told_apart(
    s3: Service, place: Place, clip: MadeTitle, fetch: Fetch, tmp_path: Path
) -> None:
    """That one bucket lacks a file says nothing of another at the same address."""
    await asyncio.to_thread(send, s3, place, clip)
    empty = await asyncio.to_thread(s3.place)
    objects = s3.bucket(empty).sign(clip.id, clip.version, ["v1.mp4"], 600)
    sources = [
        Source(appliance="empty", url=s3.endpoint, rank="origin", objects=objects, objects_s=600),
        source(s3, place, clip),
    ]

    async def ask() -> list[Source]:
        return sources

    landing = await bring(fetch, clip, tmp_path, sources, Signed(sources, ask))
    assert landing.path.read_bytes() == clip.bytes_of("v1.mp4")


async def test_enrolled_sources_only(s3: Service, place: Place, clip: MadeTitle, tmp_path: Path) -> None:
    """A box that fetches from its fleet alone fetches from a bucket only if it is told that it may."""
    await asyncio.to_thread(send, s3, place, clip)
    given = source(s3, place, clip)

    async def ask() -> list[Source]:
        return [given]

    proof = Proof(Identity.of(tmp_path / "identity"), ("appliance",))
    async with Fetch(limits=QUIET, proof=proof, object_stores=False) as strict:
        with pytest.raises(FetchError, match="set object_stores = true"):
            await bring(strict, clip, tmp_path, [given], Signed([given], ask))
    async with Fetch(limits=QUIET, proof=proof, object_stores=True) as told:
        await bring(told, clip, tmp_path, [given], Signed([given], ask))


def test_what_a_service_refuses_is_one_sentence(s3: Service, place: Place) -> None:
    """No bucket, no service: what and where, and no key in it."""
    absent = Place("s3://no-such-bucket-here/films", s3.endpoint)
    with pytest.raises(ObjectStoreError, match="has no bucket no-such-bucket-here"):
        s3.bucket(absent).sizes("clip", "0" * 32)
    nobody = Bucket(Place("s3://films", "http://127.0.0.1:1"), s3.keys, 2.0)
    with pytest.raises(ObjectStoreError, match=r"127\.0\.0\.1:1 cannot be reached"):
        nobody.titles()
    assert s3.keys.secret_access_key not in repr(s3.keys)


async def test_a_bucket_that_is_away_is_told(start: Start, tmp_path: Path, s3: Service) -> None:
    """The controller serves on, and says what is wrong where operators look."""
    away = OriginSettings(
        name="films", bucket="s3://films", endpoint="http://127.0.0.1:1", key_file=str(s3.key_file(tmp_path))
    )
    desk = await start(origins=[away])
    assert "cannot be reached" in await desk.ask("GET", "origins/films", status=400)
    assert "there is no bucket" in await desk.ask("GET", "origins/series", status=404)


@pytest.mark.parametrize(
    ("bucket", "endpoint", "said"),
    [
        ("films", "", "is no bucket"),
        ("s3://Films", "", "is no bucket"),
        ("s3://films/../other", "", "is no bucket"),
        ("s3://films//x", "", "is no bucket"),
        ("s3://films", "ftp://x", "is no URL of an S3 service"),
        ("s3://films", "http://user:pw@x", "is no URL of an S3 service"),
    ],
)
def test_places_that_are_none(bucket: str, endpoint: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Place(bucket, endpoint)


def test_key_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that others may read, or that are none, are refused without being quoted."""
    path = tmp_path / "s3.toml"
    with pytest.raises(ConfigError, match="cannot read the S3 keys"):
        keys(path)
    path.write_text('access_key_id = "AKIA"\nsecret_access_key = "hush"\n')
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        keys(path)
    path.chmod(0o600)
    assert keys(path) == Keys("AKIA", "hush")
    path.write_text('secret_access_key = "hush')
    with pytest.raises(ConfigError, match="holds no S3 keys") as failed:
        keys(path)
    assert "hush" not in str(failed.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(ConfigError, match="there are no keys for S3"):
        keys(None)


async def test_settings_that_contradict_each_other(start: Start, tmp_path: Path, s3: Service) -> None:
    """Two origins, or an origin and an appliance, of one name."""
    films = OriginSettings(name="films", bucket="s3://films", key_file=str(s3.key_file(tmp_path)))
    with pytest.raises(ConfigError, match="same name"):
        await start(origins=[films, films])
    desk = await start()
    await desk.box("films")
    with pytest.raises(ConfigError, match="has the name of an appliance"):
        Origins.of([films]).check(desk.parts.state.appliances)


def test_keys_of_a_file_are_not_mixed_with_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment has for another bucket would make signatures that no service takes."""
    for name, value in (("SESSION_TOKEN", "of-another"), ("ACCESS_KEY_ID", "OTHER"), ("ENDPOINT", "http://other")):
        monkeypatch.setenv(f"AWS_{name}", value)
    place = Place("s3://films/new", "http://127.0.0.1:1")
    url = Bucket(place, Keys("AKIA", "hush")).sign("clip", "0" * 32, ["v1.mp4"], 60)["v1.mp4"]
    assert url.startswith(f"http://127.0.0.1:1/films/new/clip/{'0' * 32}/v1.mp4?")
    assert "X-Amz-Credential=AKIA%2F" in url
    assert "Token" not in url
    token = Bucket(place, Keys("AKIA", "hush", "a+/=")).sign("clip", "0" * 32, ["v1.mp4"], 60)["v1.mp4"]
    assert "X-Amz-Security-Token=a%2B%2F%3D" in token


def test_no_query_stays_in_a_text() -> None:
    text = "cannot GET https://s3.example/b/k?X-Amz-Signature=abc, url='http://x/y?X-Amz=1'"
    assert unsigned(text) == "cannot GET https://s3.example/b/k url='http://x/y'"
