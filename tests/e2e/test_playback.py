"""The player page: its players follow steering, carry tokens on, and fit a phone (`test_players`: they play on)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from bench.fleet import Fleet, script

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(300)]


PLAYERS = ("dash", "hls")
# Whether so many appliances have served it, and it has played so many seconds.
PLAYS = """([player, served, seconds]) =>
oca[player].served.length >= served && oca[player].video.currentTime > seconds"""
SERVED, ERRORS = "player => oca[player].served", "player => oca[player].errors"


def order(fleet: Fleet) -> list[str]:
    """The appliances that a viewer on this machine is sent to, nearest first."""
    found = fleet.ocactl("steer", "explain", "--client", "127.0.0.1", "--title", "demo")
    return [row["appliance"] for row in found["candidates"] if row["rank"] is not None]


@pytest.mark.parametrize("player", PLAYERS)
def test_players_follow_steering_away_from_a_drained_appliance(fleet: Fleet, page: Page, player: str) -> None:
    """Nobody dies, steering alone changes its mind: the player moves without an error."""
    first = order(fleet)[0]
    page.goto(f"{fleet.controller}/play/demo?player={player}&buffer=4")
    page.wait_for_function(PLAYS, arg=[player, 1, 2], timeout=60_000)
    assert page.evaluate(SERVED, player) == [first]
    fleet.ocactl("appliance", "drain", first)
    try:
        page.wait_for_function(PLAYS, arg=[player, 2, 2], timeout=60_000)
        assert page.evaluate(SERVED, player)[1] == order(fleet)[0] != first
        assert page.evaluate(ERRORS, player) == []
    finally:
        fleet.ocactl("appliance", "undrain", first)


@pytest.fixture(scope="module")
def guarded(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A second fleet with the same title, whose viewers need tokens."""
    home = tmp_path_factory.mktemp("guarded")
    keys = home / "keys.toml"
    subprocess.run([script("ocactl"), "token", "new-key", str(keys), "--kid", "1"], check=True)
    with Fleet(home, keys=keys) as other:
        other.start_controller()
        for box in ("west-1", "west-2"):
            shutil.copytree(fleet.boxes["origin"].store / "demo", other.add(box, "west").store / "demo")
        other.start(*other.boxes)
        zones = home / "coverage.json"
        place = {"latitude": 52.5, "longitude": 13.4}
        zones.write_text(json.dumps({"coverageZones": {"west": {"network": ["127.0.0.0/8"], "coordinates": place}}}))
        other.ocactl("coverage", "set", str(zones))
        other.ocactl("title", "add", str(other.boxes["west-1"].store / "demo"))
        other.wait_for("both being steered to", lambda: len(order(other)) == 2)
        yield other


def token(fleet: Fleet, *words: str) -> str:
    command = [script("ocactl"), "token", "mint", "--keys", str(fleet.directory / "keys.toml"), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("player", PLAYERS)
def test_players_carry_a_token_on_without_knowing(guarded: Fleet, page: Page, player: str) -> None:
    """Through manifests, segments and steering: the page is the same. Without the token every URL is refused."""
    asked: dict[str, int] = {}
    page.on("response", lambda response: asked.update({response.url: response.status}))
    good = token(guarded, "--title", "demo", "--for", "10m")
    page.goto(f"{guarded.controller}/c/{good}/play/demo?player={player}&buffer=4")
    page.wait_for_function(PLAYS, arg=[player, 1, 5], timeout=60_000)
    first = order(guarded)[0]
    guarded.ocactl("appliance", "drain", first)
    try:
        page.wait_for_function(PLAYS, arg=[player, 2, 5], timeout=60_000)
    finally:
        guarded.ocactl("appliance", "undrain", first)
    assert page.evaluate(ERRORS, player) == []
    content = {url: status for url, status in asked.items() if url.startswith("http:") and "/assets/" not in url}
    assert {url.split("/")[5] for url in content} == {"play", "steer", "t"}
    assert all(status in (200, 206) for status in content.values()), content
    expired, other = token(guarded, "--for", "1s"), token(guarded, "--title", "other", "--for", "10m")
    time.sleep(1.1)
    for url in content:
        assert f"/c/{good}/" in url
        for instead in ("/", f"/c/{expired}/", f"/c/{other}/"):
            assert page.request.get(url.replace(f"/c/{good}/", instead)).status == 403


@pytest.mark.parametrize("width", [360, 1280])
def test_the_player_page_fits_phone_and_desk_and_plays_in_both_players(fleet: Fleet, page: Page, width: int) -> None:
    """Side by side where there is room; no sideways scrolling; everything is named and can be reached by keyboard."""
    page.set_viewport_size({"width": width, "height": 740})
    page.goto(f"{fleet.controller}/play/demo")
    for player in PLAYERS:
        page.wait_for_function(PLAYS, arg=[player, 1, 0.5], timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tops = page.evaluate("[...document.querySelectorAll('video')].map(each => each.getBoundingClientRect().top)")
    assert (len(set(tops)) == 1) == (width > 1000)
    page.wait_for_function("document.querySelector('[aria-label^=dash] .rung').textContent.includes('×')")
    page.focus("#m3u8")
    assert page.evaluate("document.activeElement.id") == "m3u8"
