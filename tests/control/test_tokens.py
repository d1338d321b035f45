"""Tokens on a controller: carried on by everything a viewer is sent; and the commands that make them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cbor2 import CBORTag

from oca.http.gate import Gate, TokenSettings
from oca.http.token import Asked
from tests.conftest import MadeTitle, MakeTitle
from tests.control.conftest import NORTH, Desk, Start
from tests.oca.test_token import base64url, hmac, key_file, made

OCACTL = Path(sys.executable).with_name("ocactl")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return key_file(tmp_path / "keys.toml", hmac())


@pytest.fixture
async def guarded(start: Start, keys: Path, make_title: MakeTitle, tmp_path: Path) -> tuple[Desk, MadeTitle]:
    desk = await start(trusted_proxies=["127.0.0.1"], tokens=TokenSettings(keys=str(keys)))
    title = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(title)
    await desk.box("north-1")
    await desk.tell("north-1", (title, "v1 a1"))
    return desk, title


def paths(title: MadeTitle) -> list[str]:
    steer = title.url.replace("/t/", "/steer/")
    return ["/play/clip", "/play/clip/manifest.mpd", "/play/clip/master.m3u8", steer, f"{title.url}/v1/1.m4s"]


async def test_every_viewers_url_needs_a_token(guarded: tuple[Desk, MadeTitle]) -> None:
    """One that allows the title allows its page, manifests and steering; another one does not."""
    desk, title = guarded
    now = int(time.time())
    good = made({4: now + 60, 312: {3: {1: "/t/clip/"}}})
    bad = [made({4: now - 1}), made({312: {3: {1: "/t/other/"}}}), good[:-3] + "AAA", "x"]
    for path in paths(title):
        for begin in ("", *(f"/c/{token}" for token in bad)):
            status, body, _ = await desk.answer("GET", begin + path, viewer=NORTH)
            assert (status, "error" in json.loads(body)) == (403, True), begin + path
        assert (await desk.answer("GET", f"/c/{good}{path}", viewer=NORTH))[0] in (200, 302)
        assert (await desk.answer("GET", f"{path}?CAT={good}", viewer=NORTH))[0] in (200, 302)
    assert (await desk.answer("GET", "/healthz"))[0] == 200


async def test_what_a_viewer_is_sent_carries_the_token_on(guarded: tuple[Desk, MadeTitle]) -> None:
    """So a player needs to know nothing of it, wherever it goes."""
    desk, title = guarded
    token = made({4: int(time.time()) + 60})
    for name in ("manifest.mpd", "master.m3u8"):
        for asked in (f"/c/{token}/play/clip/{name}", f"/play/clip/{name}?CAT={token}"):
            _, body, _ = await desk.answer("GET", asked, viewer=NORTH)
            urls = re.findall(r"https?://[^\s\"<]+", body.decode())
            ours = [url for url in urls if "/t/" in url or "/steer/" in url]
            assert len(ours) >= 2
            assert all(f"/c/{token}/" in url for url in ours), ours
    _, body, _ = await desk.answer("GET", f"/c/{token}{paths(title)[3]}", viewer=NORTH)
    assert f"/c/{token}/steer/" in json.loads(body)["RELOAD-URI"]
    _, _, fields = await desk.answer("GET", f"/c/{token}{title.url}/v1/1.m4s?x=1", viewer=NORTH)
    assert fields["Location"] == f"http://north-1.example/c/{token}{title.url}/v1/1.m4s?x=1"


async def test_without_keys_nobody_needs_one(desk: Desk, make_title: MakeTitle, tmp_path: Path) -> None:
    title = make_title(tmp_path / "s")
    await desk.cover()
    await desk.register(title)
    await desk.box("north-1")
    await desk.tell("north-1", (title, "v1 a1"))
    for path in paths(title):
        assert (await desk.answer("GET", path, viewer=NORTH))[0] in (200, 302)
        assert (await desk.answer("GET", f"/c/whatever{path}", viewer=NORTH))[0] in (200, 302)


# Commands


def ocactl(*words: str | Path, code: int = 0) -> tuple[str, str]:
    done = subprocess.run([OCACTL, "token", *words], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["hmac", "es256"])
def test_from_a_key_to_a_viewer(tmp_path: Path, kind: str) -> None:
    """A key is made, a token is minted, a gate lets it in; the next key is added and the first one holds on."""
    keys, signing = tmp_path / "keys.toml", tmp_path / "signing.toml"
    halves = [] if kind == "hmac" else ["--signing", signing]
    mints = keys if kind == "hmac" else signing
    ocactl("new-key", keys, "--kid", "one", "--kind", kind, *halves)
    assert keys.stat().st_mode & 0o777 == 0o600
    keys.chmod(0o640)
    first = ocactl("mint", "--keys", mints, "--title", "clip", "--for", "2h")[0].strip()
    ocactl("new-key", keys, "--kid", "two", "--kind", kind, *halves)
    assert keys.stat().st_mode & 0o777 == 0o640
    found: Any = json.loads(ocactl("mint", "--keys", mints, "--for", "30m", "--network", "192.0.2.0/24", "--json")[0])
    assert found["kid"] == "two"
    gate = Gate(TokenSettings(keys=str(keys)))
    now = time.time()
    for token, path, client, good in (
        (first, "/t/clip/x", "198.51.100.1", True),
        (first, "/t/other/x", "198.51.100.1", False),
        (found["token"], "/t/other/x", "192.0.2.7", True),
        (found["token"], "/t/other/x", "198.51.100.1", False),
    ):
        assert (gate.admit(token, Asked(path, client), now) == "") is good
    assert gate.admit(first, Asked("/t/clip/x", "::1"), now + 7201) == "the token has expired"
    assert json.loads(ocactl("inspect", first, "--keys", keys, "--json")[0])["verdict"] == "good"
    refused = json.loads(ocactl("inspect", first, "--keys", keys, "--path", "/t/other/x", "--json", code=1)[0])
    assert refused["verdict"] == "the token is for other content"
    assert json.loads(ocactl("inspect", first, "--json")[0])["claims"]["catu"] == {"3": {"1": "/t/clip/"}}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_key_file_keeps_its_owner(keys: Path) -> None:
    """Root adds a key; the service, which is somebody else, must still be able to read the file."""
    os.chown(keys, 12345, 23456)
    ocactl("new-key", keys, "--kid", "two")
    found = keys.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12345, 23456, 0o640)


@pytest.mark.parametrize(
    "claims",
    [
        b"\xa1\x03\xd8\x1c\x81\xd8\x1d\x00",  # holds itself
        cbor2.dumps({311: [CBORTag(52, [24, 10**12]), CBORTag(54, [999, b""]), CBORTag(52, [8, bytes(9)])]}),
        cbor2.dumps({10**5000: 1, 4: float("nan"), "x": [None, True]}),
        cbor2.dumps({1: 10**5000}),
        cbor2.dumps({"x": CBORTag(30, [1, 10**5000])}),
    ],
    ids=["cycle", "prefixes", "label", "integer", "fraction"],
)
def test_whatever_a_token_says_is_shown(claims: bytes) -> None:
    """Nobody has vouched for it yet."""
    token = cbor2.dumps(CBORTag(17, [b"\xa1\x01\x05", {4: b"k"}, claims, bytes(32)]))
    shown, _ = ocactl("inspect", base64url(token), "--json")
    assert json.loads(shown)["verdict"] == "not verified"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["new-key", "K", "--kid", "a b"], "is no id of a key"),
        (["new-key", "K", "--kid", "k1"], "has a key 'k1' already"),
        (["new-key", "K", "--kid", "k2", "--kind", "rot13"], "is no kind of key"),
        (["new-key", "K", "--kid", "k2", "--kind", "es256"], "two halves"),
        (["new-key", "K", "--kid", "k2", "--kind", "es256", "--signing", "K"], "must not hold the private half"),
        (["new-key", "/proc/none/keys.toml", "--kid", "k2"], "cannot write /proc/none/keys.toml"),
        (["mint", "--keys", "K", "--for", "2 weeks"], "is not a time"),
        (["mint", "--keys", "K", "--for", "0s"], "is not a time"),
        (["mint", "--keys", "K", "--for", "2h", "--kid", "k9"], "has no key 'k9'"),
        (["mint", "--keys", "K", "--for", "2h", "--title", "../x"], "is no id of a title"),
        (["mint", "--keys", "K", "--for", "2h", "--path", "/play/x"], "must begin with /t/"),
        (["mint", "--keys", "K", "--for", "2h", "--network", "192.0.2.1/24"], "is no prefix"),
        (["mint", "--keys", "/none", "--for", "2h"], "cannot read token keys"),
        (["inspect", "abc"], "neither COSE_Mac0 nor COSE_Sign1"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(keys: Path, words: list[str], sentence: str) -> None:
    before = keys.read_bytes()
    _, said = ocactl(*(str(keys) if word == "K" else word for word in words), code=1)
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert keys.read_bytes() == before
