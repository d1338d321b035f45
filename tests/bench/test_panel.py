"""The demo's panel: who may kill what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from pytest_aiohttp.plugin import AiohttpClient

from bench import panel
from bench.fleet import Box, Fleet, Program
from oca import players

BOXES = ("north-1", "north-2")


class Sleepers(Fleet):
    """A fleet whose appliances do nothing."""

    def _serve(self, box: str) -> None:
        self.programs[box] = Program(box, ["/bin/sleep", "600"], self.directory / "logs" / box)
        self.programs[box].start()

    def _fill(self, box: str) -> None:
        self.programs[f"{box}-fill"] = Program(box, ["/bin/sleep", "600"], self.directory / "logs" / box)
        self.programs[f"{box}-fill"].start()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Sleepers(tmp_path) as made:
        for box in (*BOXES, "origin"):
            made.boxes[box] = Box(box, "north", "edge", "", "", tmp_path, tmp_path)
            made._serve(box)
            made._fill(box)
        yield made


@pytest.fixture
async def client(fleet: Fleet, aiohttp_client: AiohttpClient) -> TestClient:
    made = panel.Panel(fleet, BOXES, "demo", "<Demo>", "127.0.1.99")
    return await aiohttp_client(made.application(), headers={"Host": f"127.0.1.99:{fleet.port}"})


async def token(client: TestClient) -> str:
    async with client.get("/") as answer:
        found = re.search(r'const token = "([\w-]+)";', await answer.text())
    assert found
    return found[1]


async def running(client: TestClient) -> list[str]:
    async with client.get("/boxes") as answer:
        return [box["id"] for box in (await answer.json())["boxes"] if box["running"]]


async def test_the_buttons_kill_and_start_an_appliance(fleet: Fleet, client: TestClient) -> None:
    """Server and fill agent, as often as wanted; it does not count as a program that ended by itself."""
    headers = {"X-Token": await token(client)}
    before = fleet.programs["north-1"].process
    for deed, left in (("kill", ["north-2"]), ("kill", ["north-2"]), ("start", list(BOXES)), ("start", list(BOXES))):
        async with client.post(f"/boxes/north-1/{deed}", headers=headers) as answer:
            assert answer.status == 200
            assert [box["id"] for box in (await answer.json())["boxes"] if box["running"]] == left
        assert [fleet.programs[name].running for name in ("north-1", "north-1-fill")] == [len(left) == 2] * 2
        fleet.check()
    assert fleet.programs["north-1"].process is not before


async def test_nobody_kills_without_the_token_of_the_page(fleet: Fleet, client: TestClient) -> None:
    """Nor with GET, what is not offered, or from a page whose name was made to lead here; answers are JSON."""
    good = {"X-Token": await token(client)}
    for method, path, headers, status in (
        ("POST", "/boxes/north-1/kill", {}, 403),
        ("POST", "/boxes/north-1/kill", {"X-Token": "ü"}, 403),
        ("POST", f"/boxes/north-1/kill?token={good['X-Token']}", {}, 403),
        ("GET", "/boxes/north-1/kill", good, 405),
        ("POST", "/boxes/north-1/drain", good, 404),
        ("POST", "/boxes/origin/kill", good, 404),
        ("POST", "/boxes/north-1/kill", {**good, "Host": "evil.example"}, 421),
        ("GET", "/", {"Host": "evil.example"}, 421),
    ):
        async with client.request(method, path, headers=headers) as answer:
            assert (answer.status, answer.content_type) == (status, "application/json"), path
            assert (await answer.json())["error"]
            assert "Access-Control-Allow-Origin" not in answer.headers
    assert await running(client) == list(BOXES)
    assert fleet.is_running("origin")


async def test_the_page_is_the_controller_s_with_buttons(
    fleet: Fleet, client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its players ask the controller for manifests; no other page may put it into a frame."""
    monkeypatch.setattr(players, "SCRIPTS", tmp_path)
    (tmp_path / players.HLS_JS).write_text("Hls")
    async with client.get("/") as answer:
        text = await answer.text()
        assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert "<h1>&lt;Demo&gt;</h1>" in text
    assert f'const base = "{fleet.controller}/play/demo" ||' in text
    assert "{{" not in text
    assert 'id="boxes"' in text
    (script,) = re.findall(r'src="(assets/hls[^"]+)"', text)
    async with client.get(f"/{script}") as answer:
        assert await answer.text() == "Hls"
