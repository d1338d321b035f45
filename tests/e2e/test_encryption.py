"""Encrypted titles play in real players, with ClearKey, by personalised manifests; without keys they do not."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Page

from bench.fleet import Fleet
from packager import ffmpeg, package
from packager.encryption import encrypt, keys

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.timeout(300)]
NODE = Path(__file__).parents[2] / "node_modules"
SCRIPTS = (
    "dashjs/dist/modern/umd/dash.all.min.js",
    "hls.js/dist/hls.min.js",
    "shaka-player/dist/shaka-player.compiled.js",
)
KEYS = {
    "10000000000000000000000000000001": "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
    "20000000000000000000000000000002": "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
}
VIDEO, AUDIO = KEYS
CLIP = (*("-f", "lavfi", "-i", "testsrc2=s=128x72:r=25:d=4"), *("-f", "lavfi", "-i", "sine=440:d=4"))
# Each tells of what goes wrong in `window.said`, and has the element in `window.video`.
START = """
window.said = [];
window.video = document.createElement("video");
video.muted = true;
document.body.prepend(video);
video.addEventListener("error", () => said.push("element: " + video.error.message));
"""
DASH = (
    START
    + """
const player = dashjs.MediaPlayer().create();
player.on("error", event => said.push(event.error.message || event.error));
if (keys) player.setProtectionData({ "org.w3.clearkey": { clearkeys: keys } });
player.initialize(video, url, true);
"""
)
HLS = (
    START
    + """
const player = new Hls({
  emeEnabled: true, drmSystems: { "org.w3.clearkey": { licenseUrl: licences } } });
player.on(Hls.Events.ERROR, (name, data) => { if (data.fatal) said.push(data.details + " " + data.error); });
player.loadSource(url);
player.attachMedia(video);
video.play();
"""
)
SHAKA_PLAYER = (
    START
    + """
const player = new shaka.Player();
if (keys) player.configure({ drm: { clearKeys: keys } });
player.addEventListener("error", event => said.push("shaka " + event.detail.code));
player.attach(video).then(() => player.load(url)).then(() => video.play()).catch(
  error => said.push("shaka " + (error.code || error)));
"""
)


def spelled(hexadecimal: str) -> str:
    """As EME has keys and key ids: base64url without padding (9.1.3)."""
    return base64.urlsafe_b64encode(bytes.fromhex(hexadecimal)).rstrip(b"=").decode()


class Licences(BaseHTTPRequestHandler):
    """ClearKey's licence server (EME 9.1.3, 9.1.4) at /licence, keys as bytes at /key/KID; below /refused neither."""

    def do_OPTIONS(self) -> None:
        self.answer(204, b"")

    def do_GET(self) -> None:
        refused = self.path.startswith("/refused")
        self.answer(403 if refused else 200, b"" if refused else bytes.fromhex(KEYS[self.path.rpartition("/")[2]]))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        found = []
        for kid in asked["kids"]:
            key = KEYS[base64.urlsafe_b64decode(kid + "==").hex()]
            found.append({"kty": "oct", "kid": kid, "k": spelled(key)})
        said = json.dumps({"keys": found, "type": "temporary"}).encode()
        self.answer(*((403, b"") if self.path.startswith("/refused") else (200, said)))

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        for name in ("Origin", "Headers", "Methods"):
            self.send_header(f"Access-Control-Allow-{name}", "*")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def licences() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Licences) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, licences: str) -> Iterator[Fleet]:
    """A box with the clip encrypted by each scheme, also where keys are refused or have no URL."""
    home, binary, program = tmp_path_factory.mktemp("encryption"), ffmpeg.find(), encrypt.find()
    binary.run(["-v", "error", *CLIP, "-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac", f"{home}/clip.mp4"])
    given = keys.given([f"video={VIDEO}:{KEYS[VIDEO]}", f"audio={AUDIO}:{KEYS[AUDIO]}"])
    with Fleet(home / "fleet") as fleet:
        fleet.start_controller()
        store = fleet.add("west-1", "west").store
        for scheme in ("cenc", "cbcs"):
            for kind, base in (("", licences), ("-refused", f"{licences}/refused"), ("-bare", "")):
                name = scheme + kind
                urls = (f"{base}/licence", f"{base}/key/{{kid}}") if base else ()
                how = encrypt.Encryption(program, scheme, given, *urls)
                options = {"preset": "ultrafast", "thumbnails": False, "encryption": how}
                package.build(binary, package.Order(home / "clip.mp4", store, name, name, **options))
        fleet.start("west-1")
        zones = home / "coverage.json"
        place = {"latitude": 52.5, "longitude": 13.4}
        zones.write_text(json.dumps({"coverageZones": {"west": {"network": ["127.0.0.0/8"], "coordinates": place}}}))
        fleet.ocactl("coverage", "set", str(zones))
        for name in (each + kind for each in ("cenc", "cbcs") for kind in ("", "-refused", "-bare")):
            fleet.ocactl("title", "add", str(store / name))
            asked = ("steer", "explain", "--client", "127.0.0.1", "--title", name)
            fleet.wait_for(
                "steering",
                lambda asked=asked: any(c["rank"] is not None for c in fleet.ocactl(*asked)["candidates"]),
            )
        yield fleet


def start(
    page: Page, fleet: Fleet, title: str, player: str, name: str, licences: str, given: dict[str, str] | None = None
) -> None:
    """Open the title by the manifest `name` that is made for this viewer, in a player that is `given` keys or not."""
    base = f"{fleet.controller}/play/{title}"
    # Not the title's page: its own player, stopped or not, may leave keys of its own at the element, which Shaka
    # Player then takes for those that it has set itself, and waits for a key for ever.
    page.goto(f"{fleet.controller}/healthz")
    for script in SCRIPTS:
        page.add_script_tag(path=NODE / script)
    page.evaluate(f"([url, licences, keys]) => {{{player}}}", [f"{base}/{name}", licences, given])


PLAYERS = [
    pytest.param(DASH, "manifest.mpd", id="dash.js"),
    pytest.param(SHAKA_PLAYER, "manifest.mpd", id="shaka-dash"),
    pytest.param(SHAKA_PLAYER, "master.m3u8", id="shaka-hls"),
    pytest.param(HLS, "master.m3u8", id="hls.js"),
]


@pytest.mark.parametrize("scheme", ["cenc", "cbcs"])
@pytest.mark.parametrize(("player", "name"), PLAYERS)
def test_an_encrypted_title_plays(
    served: Fleet, page: Page, licences: str, player: str, name: str, scheme: str
) -> None:
    """To the end, picture and sound; the keys come from where the manifest says."""
    start(page, served, scheme, player, name, f"{licences}/licence")
    page.wait_for_function("video.currentTime > 3 || said.length", timeout=60_000)
    assert page.evaluate("said") == []
    seen = page.evaluate("[video.webkitDecodedFrameCount, video.webkitAudioDecodedByteCount, !!video.mediaKeys]")
    assert seen[0] > 25
    assert seen[1] > 1000
    assert seen[2], "it was not encrypted"


@pytest.mark.parametrize("scheme", ["cbcs"])
@pytest.mark.parametrize(("player", "name"), PLAYERS[:3:2])
def test_the_page_may_have_the_keys(
    served: Fleet, page: Page, licences: str, player: str, name: str, scheme: str
) -> None:
    """Manifests without any URL of keys are good for players that are given the keys."""
    given = {spelled(kid): spelled(key) for kid, key in KEYS.items()} if player is DASH else KEYS
    start(page, served, f"{scheme}-bare", player, name, licences, given)
    page.wait_for_function("video.currentTime > 3 || said.length", timeout=60_000)
    assert page.evaluate("said") == []


@pytest.mark.parametrize("scheme", ["cenc", "cbcs"])
@pytest.mark.parametrize(("player", "name"), PLAYERS)
def test_without_keys_it_does_not(
    served: Fleet, page: Page, licences: str, player: str, name: str, scheme: str
) -> None:
    """The player says that it cannot, and nothing is shown."""
    start(page, served, f"{scheme}-refused", player, name, f"{licences}/refused/licence")
    page.wait_for_function("said.length", timeout=60_000)
    assert page.evaluate("video.currentTime") < 1
