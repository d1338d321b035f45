"""The viewer side: manifests in each viewer's order, steering, redirects, the player page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from control.http import client_address
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import NORTH, PUBLIC, SOUTH, Desk, Start


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "viewer"),
    [
        ("192.0.2.1", [], [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], ["203.0.113.1"], "192.0.2.1"),
        ("203.0.113.1", ["198.51.100.7"], ["203.0.113.1"], "198.51.100.7"),
        ("203.0.113.1", [], ["203.0.113.1"], "203.0.113.1"),
        ("203.0.113.1", ["6.6.6.6, 198.51.100.7"], ["203.0.113.1"], "198.51.100.7"),
        ("203.0.113.1", ["6.6.6.6", "198.51.100.7"], ["203.0.113.1"], "198.51.100.7"),
        ("203.0.113.1", ["198.51.100.7, 203.0.113.2"], ["203.0.113.1", "203.0.113.2"], "198.51.100.7"),
        ("203.0.113.1", ["203.0.113.2"], ["203.0.113.1", "203.0.113.2"], "203.0.113.1"),
        ("203.0.113.1", ["198.51.100.7, unknown"], ["203.0.113.1"], "203.0.113.1"),
        ("203.0.113.1", [""], ["203.0.113.1"], "203.0.113.1"),
        ("203.0.113.1", ["2001:db8::7"], ["203.0.113.1"], "2001:db8::7"),
    ],
)
def test_client_address(peer: str, forwarded: list[str], trusted: list[str], viewer: str) -> None:
    """Only trusted proxies are believed, from the right, up to the first address that is not one of them."""
    assert client_address(peer, forwarded, trusted) == viewer


async def served(desk: Desk, make_title: MakeTitle, root: Path) -> MadeTitle:
    """A title that an edge in each of two sites holds, and an origin."""
    made = make_title(root, ranges=True)
    await desk.cover()
    await desk.register(made)
    for name, site, role in (
        ("north-1", "north", "edge"),
        ("south-1", "south", "edge"),
        ("origin", "south", "origin"),
    ):
        await desk.box(name, site, role)
        await desk.tell(name, (made, "v1 a1"))
    return made


def locations(manifest: bytes) -> list[str]:
    """Ids of the locations of a manifest of either kind, in order."""
    found = re.findall(r'serviceLocation="([^"]+)"|PATHWAY-ID="([^"]+)"', manifest.decode())
    return list(dict.fromkeys(dash or hls for dash, hls in found))


MPD, HLS = "application/dash+xml", "application/vnd.apple.mpegurl"
KINDS = {"manifest.mpd": MPD, "ondemand.mpd": MPD, "master.m3u8": HLS, "master.ranges.m3u8": HLS}


@pytest.mark.parametrize("name", KINDS)
async def test_manifests(desk: Desk, make_title: MakeTitle, tmp_path: Path, name: str) -> None:
    """Made for each viewer, kept by nobody, readable by any page, with the boxes in the viewer's order."""
    made = await served(desk, make_title, tmp_path / "s")
    for viewer, order in (
        (NORTH, ["north-1", "south-1", "origin"]),
        (SOUTH, ["south-1", "north-1", "origin"]),
    ):
        status, body, fields = await desk.answer("GET", f"/play/clip/{name}", viewer=viewer)
        assert status == 200
        assert fields["Content-Type"].partition(";")[0] == KINDS[name]
        assert fields["Cache-Control"] == "no-store"
        assert fields["Access-Control-Allow-Origin"] == "*"
        assert locations(body) == order
        assert f"{PUBLIC}/steer/clip/{made.version}".encode() in body
        assert f"http://{order[0]}.example{made.url}/".encode() in body
        assert b"I-FRAME" not in body, "no I-frame playlist is among the files of this title"
        whole_files = (b"SegmentBase" if KINDS[name] == MPD else b"/v1.ranges.m3u8") in body
        assert whole_files == (name in ("ondemand.mpd", "master.ranges.m3u8"))


@pytest.mark.parametrize("name", ["ondemand.mpd", "master.ranges.m3u8"])
async def test_a_form_that_a_version_lacks(desk: Desk, make_title: MakeTitle, tmp_path: Path, name: str) -> None:
    """What was packaged before there were byte ranges is told from what has them."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.box("north-1")
    await desk.tell("north-1", (made, "v1 a1"))
    status, body, _ = await desk.answer("GET", f"/play/clip/{name}")
    assert (status, json.loads(body)) == (404, {"error": f"title clip has no {name}: package it again"})


async def test_other_peers_are_not_believed(start: Start, make_title: MakeTitle, tmp_path: Path) -> None:
    """Without trusted proxies the header changes nothing."""
    desk = await start()
    await served(desk, make_title, tmp_path / "s")
    bodies = [(await desk.answer("GET", "/play/clip/manifest.mpd", viewer=v))[1] for v in (NORTH, SOUTH)]
    assert bodies[0] == bodies[1]


async def test_steering(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """The document names the boxes in the viewer's order, when to ask again, and where."""
    made = await served(desk, make_title, tmp_path / "s")
    for query in ("", "?_DASH_pathway=%22north-1%22&_DASH_throughput=5000", "?_HLS_pathway=../x"):
        status, body, fields = await desk.answer("GET", f"/steer/clip/{made.version}{query}", viewer=SOUTH)
        assert status == 200
        assert json.loads(body) == {
            "VERSION": 1,
            "TTL": desk.settings.steer_ttl_s,
            "RELOAD-URI": f"{PUBLIC}/steer/clip/{made.version}",
            "PATHWAY-PRIORITY": ["south-1", "north-1", "origin"],
        }
        assert fields["Content-Type"].startswith("application/json")
        assert (fields["Cache-Control"], fields["Access-Control-Allow-Origin"]) == ("no-store", "*")


async def test_an_old_version_is_steered_too(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """Who plays it when a new one is activated plays on; new viewers get 503 until somebody holds the new one."""
    made = await served(desk, make_title, tmp_path / "s")
    await desk.register(make_title(tmp_path / "s", seed=2))
    assert (await desk.answer("GET", f"/steer/clip/{made.version}"))[0] == 200
    assert (await desk.answer("GET", f"{made.url}/v1/1.m4s"))[0] == 302
    assert (await desk.answer("GET", "/play/clip/manifest.mpd"))[0] == 503


@pytest.mark.parametrize(
    "rest",
    [
        "v1/1.m4s",
        "a1/init.mp4",
        "v1.mp4",
        "v1.idx",
        "manifest.mpd",
        "master.m3u8",
        "title.json",
        "v1/1.m4s?CMCD=bl%3D21300%2Csid%3D%226e2fb550%22%2Cot%3Dv",
        "v1/1.m4s?a=b+c&a=%C3%A9&empty",
        "v1/1.m4s?x=%0d%0aSet-Cookie:%20y",
    ],
)
async def test_redirects(desk: Desk, make_title: MakeTitle, tmp_path: Path, rest: str) -> None:
    """302 to the nearest holder, with path and query as they came."""
    made = await served(desk, make_title, tmp_path / "s")
    status, body, fields = await desk.answer("GET", f"{made.url}/{rest}", viewer=SOUTH)
    assert (status, fields.get("Location")) == (302, f"http://south-1.example{made.url}/{rest}"), body
    assert (fields["Cache-Control"], fields["Access-Control-Allow-Origin"]) == ("no-store", "*")


async def test_a_redirect_asks_for_no_more_than_its_track(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """A box that holds only that track serves it."""
    made = await served(desk, make_title, tmp_path / "s")
    await desk.box("north-0")
    await desk.tell("north-0", (made, "a1"))
    await desk.ask("PUT", "appliances/north-1/drain", {"draining": True})
    for rest, box in (("a1/1.m4s", "north-0"), ("v1/1.m4s", "south-1"), ("manifest.mpd", "south-1")):
        _, _, fields = await desk.answer("GET", f"{made.url}/{rest}", viewer=NORTH)
        assert fields["Location"] == f"http://{box}.example{made.url}/{rest}"


@pytest.mark.parametrize(
    "path",
    [
        "/play/nothing",
        "/play/nothing/manifest.mpd",
        "/play/nothing/master.m3u8",
        "/play/..%2fclip/manifest.mpd",
        "/steer/clip/0",
        "/steer/clip/{version}0",
        "/steer/nothing/{version}",
        "/t/nothing/{version}/v1/1.m4s",
        "/t/clip/0/v1/1.m4s",
        "/t/clip/{version}/v9/1.m4s",
        "/t/clip/{version}/v1",
        "/t/clip/{version}/v1/",
        "/t/clip/{version}/v1/1/2.m4s",
        "/t/clip/{version}/v1/..%2f..%2fx",
        "/t/clip/{version}/v1/%0d%0aSet-Cookie:%20x=y",
        "/t/clip/{version}/v1.mp4/x",
        "/t/clip/{version}/..%2f..%2fetc",
        "/t/clip/{version}/%00",
        "/t/clip/{version}/",
        "/assets/nothing.js",
        "/assets/..%2fplayer.html",
        "/assets/..%2f..%2fapp.py",
        "/assets/%2fetc%2fpasswd",
        "/assets/.",
        "/assets/" + "x" * 3000,
        "/nothing",
    ],
)
async def test_nothing_there(desk: Desk, make_title: MakeTitle, tmp_path: Path, path: str) -> None:
    """404 with a sentence that any page may read."""
    made = await served(desk, make_title, tmp_path / "s")
    status, body, fields = await desk.answer("GET", path.format(version=made.version))
    assert status == 404, (fields, body)
    assert json.loads(body)["error"]
    assert (fields["Cache-Control"], fields["Access-Control-Allow-Origin"]) == ("no-store", "*")


async def test_nobody_holds_it(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """503 with when to ask again, for all that only a holder could serve; the page itself is there."""
    made = make_title(tmp_path / "s")
    await desk.register(made)
    await desk.box("north-1")
    await desk.tell("north-1", (made, "v1"))
    for path in (
        "/play/clip/manifest.mpd",
        "/play/clip/master.m3u8",
        f"/steer/clip/{made.version}",
        f"{made.url}/a1.mp4",
    ):
        status, body, fields = await desk.answer("GET", path)
        assert (status, fields["Retry-After"]) == (503, "5")
        assert "no appliance holds this content" in json.loads(body)["error"]
    assert (await desk.answer("GET", f"{made.url}/v1.mp4"))[0] == 302
    assert (await desk.answer("GET", "/play/clip"))[0] == 200


async def test_player(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """The page names the title, and no name can be more than text."""
    made = make_title(tmp_path / "s", name="clip")
    hostile = json.loads(made.bytes_of("title.json")) | {"name": "<script>alert('1')</script> & {{name}}"}
    data = json.dumps(hostile).encode()
    await desk.parts.catalog.add_title(data, {track: made.bytes_of(f"{track}.idx") for track in made.indexes}, 0)
    status, body, fields = await desk.answer("GET", "/play/clip")
    assert status == 200
    assert fields["Content-Type"].startswith("text/html")
    assert b"&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; {{name}}" in body
    assert b"<script>alert" not in body


async def test_assets(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The players' scripts, which caches may keep for an hour."""
    (tmp_path / "dash.js").write_text("//")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("control.steering.viewing._ASSETS", tmp_path)
    status, body, fields = await desk.answer("GET", "/assets/dash.js")
    assert (status, body, fields["Cache-Control"]) == (200, b"//", "public, max-age=3600")
    assert (await desk.answer("GET", "/assets/folder"))[0] == 404


async def test_preflight(desk: Desk) -> None:
    """Pages from anywhere may ask with the header fields that players send."""
    for path in ("/play/clip/manifest.mpd", "/steer/clip/0", "/t/clip/0/v1/1.m4s"):
        status, _, fields = await desk.answer("OPTIONS", path)
        assert status == 204
        assert fields["Access-Control-Allow-Origin"] == "*"
        assert "Range" in fields["Access-Control-Allow-Headers"]
        assert fields["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"


async def test_explain(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    """It tells the prefix that matched and every candidate's fate, and agrees with what viewers get."""
    made = await served(desk, make_title, tmp_path / "s")
    found = await desk.ask("GET", f"steer/explain?client={NORTH}&title=clip&track=v1")
    assert found["match"] == {"zone": "north", "prefix": "192.0.2.0/24", "source": "coverage"}
    assert [(row["appliance"], row["rank"]) for row in found["candidates"]] == [
        ("north-1", 0),
        ("south-1", 1),
        ("origin", 2),
    ]
    assert found["version"] == made.version
    assert all(row["reason"] for row in found["candidates"])
    for client in ("203.0.113.1", "nonsense", "", "x" * 3000):
        assert (await desk.ask("GET", f"steer/explain?client={client}&title=clip"))["match"] is None
    for query in ("title=nothing", "title=clip&track=v9", "title=clip&version=0", ""):
        await desk.ask("GET", f"steer/explain?{query}", status=404)


async def test_health(desk: Desk) -> None:
    """It says how much it knows."""
    await desk.box("north-1")
    _, body, _ = await desk.answer("GET", "/healthz")
    assert json.loads(body) == {"ok": True, "titles": 0, "appliances": 1, "plan": 0}


async def test_coverage_from_the_settings(start: Start, tmp_path: Path) -> None:
    """The file named there is in force from the start."""
    path = tmp_path / "coverage.json"
    path.write_text('{"coverageZones": {"west": {"network": ["203.0.113.0/24"]}}}')
    desk = await start(coverage=str(path))
    assert [zone["name"] for zone in await desk.ask("GET", "coverage")] == ["west"]
