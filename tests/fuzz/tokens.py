"""Targets: Common Access Tokens, from the text in a request to what their claims allow."""

from __future__ import annotations

import base64
import functools
import tempfile
from pathlib import Path
from urllib.parse import unquote

from oca.http.gate import find, split
from oca.http.token import Asked, Grant, TokenError, evaluate
from oca.http.tokenkeys import MOST_TOKEN, Keys, claims_of, open_token
from tests.fuzz.check import refused

NOW = 1_700_000_000.0
# Of fuzzing alone: whoever has it can make tokens for nobody.
KEYS = f"""[[keys]]
kid = "k1"
kind = "hmac"
secret = "{base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")}"
"""
_PATHS = ("/t/clip/0123456789abcdef0123456789abcdef/v1/1.m4s", "/", "", "/t/\udcff/x", "//..")
_CLIENTS = ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1%eth0", "nobody")


@functools.cache
def keys() -> Keys:
    """Keys that the seeds in the corpus are made with."""
    with tempfile.TemporaryDirectory(prefix="oca-fuzz-") as folder:
        path = Path(folder) / "keys.toml"
        path.write_text(KEYS)
        path.chmod(0o600)
        return Keys(path)


def token(data: bytes) -> None:
    """The text of a token."""
    text = data.decode("latin-1")
    try:
        claims_of(text)
    except TokenError as error:
        refused(error)
    try:
        claims, kid = open_token(text, keys(), NOW)
    except TokenError as error:
        refused(error)
        return
    assert len(text) <= MOST_TOKEN
    assert text.rstrip("=").replace("-", "").replace("_", "").isalnum(), "a second spelling"
    _hold(claims, kid)


def claims(data: bytes) -> None:
    """What a token says whose signature is good: the payload is hostile, but it is sealed with our key."""
    from cwt import COSE, COSEKey

    sealed = COSE.new().encode(
        data,
        COSEKey.from_symmetric_key(bytes(range(32)), alg="HS256", kid=b"k1"),
        protected={1: 5},
        unprotected={4: b"k1"},
    )
    text = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
    try:
        found, kid = open_token(text, keys(), NOW)
    except TokenError as error:
        refused(error)
        return
    _hold(found, kid)


def _hold(found: object, kid: bytes) -> None:
    """Hold claims against requests: whatever they are, there is an answer."""
    try:
        grant = evaluate(found, kid, geography=True)
    except TokenError as error:
        refused(error)
        return
    assert isinstance(grant, Grant)
    for path in _PATHS:
        for client in _CLIENTS:
            asked = Asked(path, client, "GET", "https", "[2001:db8::1]:8443", "a=\udcff")
            for now in (NOW, 0.0):
                why = grant.refusal(asked, now, lambda address: "DE" if address == "192.0.2.1" else "")
                assert why == grant.refusal(asked, now, lambda address: ""), "the second time it is another"
            assert now < grant.ends or why, "an expired token is good"


def found_in_request(data: bytes) -> None:
    """Lines: the target, fields, and cookies, which begin with a ';'."""
    target, *lines = data.decode("utf-8", "surrogateescape").split("\n")
    fields, cookies = [x for x in lines if x[:1] != ";"], [x for x in lines if x[:1] == ";"]
    text, bare = find(target, fields, cookies)
    assert not text.endswith("="), "padding makes two tokens of one"
    if text and text != "several":
        said = "\n".join([target, unquote(target), *lines])
        assert text in said, "a token that nobody sent"
    lead, rest = split(target)
    if lead:
        assert target == f"/c/{lead}{target[3 + len(lead) : len(target) - len(rest)]}{rest}"
        assert rest.startswith("/")
        assert text in (lead, "several"), "of two tokens the other counts"
    assert not any(part.partition("=")[0] == "CAT" for part in bare.partition("?")[2].split("&")), "it is kept"
