"""Real players in a real browser play the steered title, and go on when the appliance that serves them dies."""

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
LOOK = "[video.currentTime, video.duration, oca.served, oca.errors]"
AHEAD = """(() => { const b = video.buffered, t = video.currentTime;
for (let i = 0; i < b.length; i++) if (b.start(i) <= t + 0.1 && b.end(i) > t) return b.end(i) - t; return 0; })()"""


def revive(fleet: Fleet, box: str) -> None:
    """Start a killed appliance again, and wait until viewers may be sent to it."""
    fleet.programs[f"{box}-fill"].stop()
    fleet.start(box)
    fleet.wait_for(f"{box} being steered to", lambda: box in order(fleet))


def order(fleet: Fleet) -> list[str]:
    """The appliances that a viewer on this machine is sent to, nearest first."""
    found = fleet.ocactl("steer", "explain", "--client", "127.0.0.1", "--title", "demo")
    return [row["appliance"] for row in found["candidates"] if row["rank"] is not None]


# A player reads one segment beyond its limit, so 4 s keep it below the 8 s in which a death must be felt.
@pytest.mark.parametrize("player", ["dash", "hls"])
def test_a_title_plays_to_its_end_although_its_appliance_dies(fleet: Fleet, page: Page, player: str) -> None:
    """kill -9 half way: the player moves to the next appliance by itself, stalls at most once, and ends."""
    fleet.wait_for("all appliances being steered to", lambda: len(order(fleet)) == 4)
    page.goto(f"{fleet.controller}/play/demo?player={player}&buffer=4")
    killed, stalls, ahead, last, moved_at = "", 0, [], -1.0, time.monotonic()
    stalled = False
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        now, duration, served, errors = page.evaluate(LOOK)
        assert killed or errors == []
        if now > last:
            last, moved_at, stalled = now, time.monotonic(), False
        elif last > 0 and now < duration - 0.5 and not stalled and time.monotonic() - moved_at > 0.5:
            stalls, stalled = stalls + 1, True
        if duration and now >= duration - 0.3:
            break
        ahead.append(page.evaluate(AHEAD))
        if not killed and now > 12:
            killed = served[-1]
            assert killed.startswith("north-"), f"steering sends viewers to the nearest site first, not to {served}"
            fleet.programs[killed].kill()
        page.wait_for_timeout(200)
    else:
        pytest.fail(f"stopped at {last:.1f} s of {duration}: served by {served}, errors {errors}")
    assert page.text_content("#problem") == "", "what the death caused is over"
    assert max(ahead) < 8.5, "a longer buffer would hide the death"
    assert killed
    assert served[-1] != killed, "the rest came from somebody else"
    # Its neighbour, unless the machine is so busy that this one was taken for dead as well.
    fleet.wait_for("its neighbour being steered to", lambda: order(fleet)[0] in {"north-1", "north-2"} - {killed})
    assert stalls <= 1
    revive(fleet, killed)


def test_players_follow_steering_away_from_a_drained_appliance(fleet: Fleet, page: Page) -> None:
    """Nobody dies, steering alone changes its mind: the player moves without an error."""
    first = order(fleet)[0]
    page.goto(f"{fleet.controller}/play/demo?player=dash&buffer=4")
    page.wait_for_function("oca.served.length > 0 && video.currentTime > 2", timeout=60_000)
    assert page.evaluate("oca.served") == [first]
    fleet.ocactl("appliance", "drain", first)
    try:
        page.wait_for_function("oca.served.length > 1", timeout=60_000)
        assert page.evaluate("oca.served[1]") == order(fleet)[0] != first
        assert page.evaluate("oca.errors") == []
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


@pytest.mark.parametrize("player", ["dash", "hls"])
def test_players_carry_a_token_on_without_knowing(guarded: Fleet, page: Page, player: str) -> None:
    """Through manifests, segments and steering: the page is the same. Without the token every URL is refused."""
    asked: dict[str, int] = {}
    page.on("response", lambda response: asked.update({response.url: response.status}))
    good = token(guarded, "--title", "demo", "--for", "10m")
    page.goto(f"{guarded.controller}/c/{good}/play/demo?player={player}&buffer=4")
    page.wait_for_function("oca.served.length > 0 && video.currentTime > 5", timeout=60_000)
    first = order(guarded)[0]
    guarded.ocactl("appliance", "drain", first)
    try:
        page.wait_for_function("oca.served.length > 1", timeout=60_000)
    finally:
        guarded.ocactl("appliance", "undrain", first)
    assert page.evaluate("oca.errors") == []
    content = {url: status for url, status in asked.items() if url.startswith("http:") and "/assets/" not in url}
    assert {url.split("/")[5] for url in content} == {"play", "steer", "t"}
    assert all(status in (200, 206) for status in content.values()), content
    expired, other = token(guarded, "--for", "1s"), token(guarded, "--title", "other", "--for", "10m")
    time.sleep(1.1)
    for url in content:
        assert f"/c/{good}/" in url
        for instead in ("/", f"/c/{expired}/", f"/c/{other}/"):
            assert page.request.get(url.replace(f"/c/{good}/", instead)).status == 403


def test_the_player_page_fits_a_phone_and_can_be_worked_by_keyboard(fleet: Fleet, page: Page) -> None:
    """No sideways scrolling at 360 pixels; Tab and Enter switch the player."""
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{fleet.controller}/play/demo")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.focus("button[data-player=hls]")
    page.keyboard.press("Enter")
    assert page.get_attribute("button[data-player=hls]", "aria-pressed") == "true"
    page.wait_for_function("oca.kind == 'hls' && video.currentTime > 0.5", timeout=60_000)
