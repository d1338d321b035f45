"""Common Access Tokens: what each claim allows, what refuses a token, and tokens that others made."""

from __future__ import annotations

import base64
import datetime
import math
import time
from pathlib import Path
from typing import Any

import cbor2
import cwt
import pytest
from cbor2 import CBORTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oca.errors import ConfigError
from oca.http import token as claimed
from oca.http.token import Asked, TokenError, evaluate
from oca.http.tokenkeys import Key, Keys, KeySettings, open_token

NOW = 1_700_000_000.0
SECRET = bytes(range(32))
PATH = "/t/clip/0123456789abcdef0123456789abcdef/v1/1.m4s"


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hmac(kid: str = "k1", secret: bytes = SECRET, **more: Any) -> KeySettings:
    return KeySettings(kid=kid, kind="hmac", secret=base64url(secret), **more)


def key_file(path: Path, *keys: KeySettings) -> Path:
    """A file of keys as an operator writes it."""
    text = ""
    for key in keys:
        text += f'[[keys]]\nkid = "{key.kid}"\nkind = "{key.kind}"\n'
        for name in ("secret", "public", "private"):
            if value := getattr(key, name):
                text += f'{name} = """{value}"""\n'
        for name, at in (("from", key.begins), ("until", key.until)):
            if at is not None:
                text += f"{name} = {at.isoformat()}\n"
    path.write_text(text)
    path.chmod(0o640)
    return path


def made(claims: dict[int, Any], key: KeySettings | None = None) -> str:
    return Key(key or hmac(), "test").make(claims)


@pytest.mark.parametrize(
    ("claims", "asked", "said"),
    [
        ({}, {}, ""),
        ({4: NOW + 1}, {}, ""),
        ({4: NOW}, {}, "the token has expired"),
        ({5: NOW}, {}, ""),
        ({5: NOW + 1}, {}, "the token is not valid yet"),
        ({2: "viewer 7", 6: NOW + 99, 7: b"id"}, {}, ""),
        ({310: 1, 308: 0}, {}, ""),
        ({312: {3: {0: PATH}}}, {}, ""),
        ({312: {3: {1: "/t/clip/"}}}, {}, ""),
        ({312: {3: {1: "/t/other/"}}}, {}, "the token is for other content"),
        ({312: {3: {2: ".m4s"}}}, {}, ""),
        ({312: {3: {2: ".mp4"}}}, {}, "the token is for other content"),
        ({312: {3: {3: "/v1/"}}}, {}, ""),
        ({312: {3: {1: "/t/clip/", 2: ".mpd"}}}, {}, "the token is for other content"),
        ({312: {3: {-1: bytes(32)}}}, {}, "the token is for other content"),
        ({312: {8: {0: ".m4s"}, 7: {0: "1"}, 6: {0: "1.m4s"}}}, {}, ""),
        ({312: {8: {0: ".ts"}}}, {}, "the token is for other URLs"),
        ({312: {5: {2: "/v1"}}}, {}, ""),
        ({312: {0: {0: "https"}}}, {"scheme": "https"}, ""),
        ({312: {0: {0: "https"}}}, {"scheme": "http"}, "the token is for other URLs"),
        ({312: {1: {2: ".cdn.example"}, 2: {0: "8443"}}}, {"host": "A.cdn.example:8443"}, ""),
        ({312: {1: {0: "a.example"}, 2: {0: ""}}}, {"host": "a.example"}, ""),
        ({312: {1: {0: "2001:db8::1"}}}, {"host": "[2001:db8::1]:80"}, ""),
        ({312: {1: {0: "a.example"}}}, {"host": "b.example"}, "the token is for other URLs"),
        ({312: {4: {3: "q=1"}}}, {"query": "q=1"}, ""),
        ({313: ["GET", "HEAD"]}, {}, ""),
        ({313: ["HEAD"]}, {}, "the token is for other methods"),
        ({314: ["h2", "http/1.1"]}, {}, ""),
        ({311: [CBORTag(52, b"\xc0\x00\x02\x01")]}, {"client": "192.0.2.1"}, ""),
        ({311: [CBORTag(52, [24, b"\xc0\x00\x02"])]}, {"client": "192.0.2.200"}, ""),
        ({311: [CBORTag(52, [24, b"\xc0\x00\x02"])]}, {"client": "::ffff:192.0.2.200"}, ""),
        ({311: [CBORTag(52, [24, b"\xc0\x00\x02"])]}, {"client": "192.0.3.1"}, "the token is for other networks"),
        ({311: [CBORTag(54, [32, b"\x20\x01\x0d\xb8"])]}, {"client": "2001:db8::7%eth0"}, ""),
        (
            {311: [CBORTag(54, [32, b"\x20\x01\x0d\xb8"])]},
            {"client": "2001:db9::7"},
            "the token is for other networks",
        ),
        ({311: [64500]}, {}, "the token is for other networks"),
        ({316: ["DE", "AT"]}, {"client": "198.51.100.1"}, ""),
        ({316: ["FR"]}, {"client": "198.51.100.1"}, "the token is for other countries"),
        ({316: ["DE"]}, {"client": "203.0.113.1"}, "the token is for other countries"),
    ],
)
def test_a_claim_allows_this_and_not_that(claims: dict[int, Any], asked: dict[str, str], said: str) -> None:
    grant = evaluate(claims, b"k1", geography=True)
    country = {"198.51.100.1": "DE"}.get
    request = Asked(PATH, asked.pop("client", "192.0.2.1"), **asked)
    for _ in range(2):  # the second time from memory
        assert grant.refusal(request, NOW, lambda address: country(address, "")) == said


def test_a_hash_of_the_path_is_enough() -> None:
    import hashlib

    for value in (hashlib.sha256(PATH.encode()).digest(), hashlib.sha256(PATH.encode()).hexdigest()):
        assert evaluate({312: {3: {-1: value}}}, b"k").refusal(Asked(PATH, "::1"), NOW, str) == ""
    digest = hashlib.new("sha512_256", PATH.encode()).digest()
    assert evaluate({312: {3: {-2: digest}}}, b"k").refusal(Asked(PATH, "::1"), NOW, str) == ""


@pytest.mark.parametrize(
    ("claims", "sentence"),
    [
        ({309: [1]}, "not evaluated here: 309"),
        ({315: {}}, "not evaluated here: 315"),
        ({317: []}, "not evaluated here: 317"),
        ({318: []}, "not evaluated here: 318"),
        ({319: b""}, "not evaluated here: 319"),
        ({321: {}}, "not evaluated here: 321"),
        ({8: {}}, "not evaluated here: 8"),
        ({9999: 1, "mine": 2}, "not evaluated here: 9999, mine"),
        ({308: 1}, "may not be used again"),
        ({308: 2}, "may not be used again"),
        ({310: 2}, "of a version that is not known"),
        ({312: {3: {4: ["/t/.*", ""]}}}, "URI claim that is not evaluated"),
        ({312: {3: {7: "x"}}}, "URI claim that is not evaluated"),
        ({312: {3: {0: 7}}}, "URI claim that is not evaluated"),
        ({312: {9: {0: "x"}}}, "URI claim that is not evaluated"),
        ({312: {3: {}}}, "URI claim that is not evaluated"),
        ({312: "/t/"}, "not a map"),
        ({311: ["192.0.2.0/24"]}, "not addresses or prefixes"),
        ({311: [CBORTag(52, [33, b"\xc0"])]}, "not addresses or prefixes"),
        ({311: [CBORTag(52, b"12345")]}, "not addresses or prefixes"),
        ({313: [1]}, "methods are not words"),
        ({314: ["h2"]}, "for other protocols"),
        ({316: ["DE-BY"]}, "parts of countries"),
        ({4: "tomorrow"}, "not a number"),
        ({4: math.nan}, "not a number"),
        ({4: 10**400}, "not a number"),
        ({5: -(10**400)}, "not a number"),
        ({10**5000: 1}, "not evaluated here: one of no known kind"),
        ({CBORTag(99, 10**5000): 1}, "not evaluated here: one of no known kind"),
        ({"a\r\nb": 1}, r"not evaluated here: 'a\\r\\nb'$"),
        ({5: True}, "not a number"),
        ([1], "not a map"),
        ("x", "not a map"),
    ],
)
def test_what_is_not_understood_refuses(claims: Any, sentence: str) -> None:
    """A restriction that is dropped would be a hole."""
    with pytest.raises(TokenError, match=sentence):
        evaluate(claims, b"k1", geography=True)


def test_countries_need_a_map() -> None:
    with pytest.raises(TokenError, match="no map of countries"):
        evaluate({316: ["DE"]}, b"k1")


@pytest.mark.parametrize(
    ("claims", "required", "good"),
    [
        ({1: "us"}, {"issuer": "us"}, True),
        ({1: "them"}, {"issuer": "us"}, False),
        ({}, {"issuer": "us"}, False),
        ({1: "anybody"}, {}, True),
        ({3: "cdn"}, {"audience": "cdn"}, True),
        ({3: ["other", "cdn"]}, {"audience": "cdn"}, True),
        ({3: "other"}, {"audience": "cdn"}, False),
        ({}, {"audience": "cdn"}, False),
        ({3: "other"}, {}, False),
    ],
)
def test_issuer_and_audience(claims: dict[int, Any], required: dict[str, str], good: bool) -> None:
    """A token that names an audience is for nobody else (RFC 8392 3.1.3)."""
    if good:
        evaluate(claims, b"k", **required)
    else:
        with pytest.raises(TokenError):
            evaluate(claims, b"k", **required)


# Signatures


def keys_of(tmp_path: Path, *keys: KeySettings) -> Keys:
    return Keys(key_file(tmp_path / "keys.toml", *(keys or (hmac(),))))


def pair(kind: str, kid: str) -> tuple[KeySettings, KeySettings]:
    """The signing and the verifying half of a key."""
    private: Any = (
        ec.generate_private_key(ec.SECP256R1()) if kind == "es256" else ed25519.Ed25519PrivateKey.generate()
    )
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    whole = private.private_bytes(pem, form, serialization.NoEncryption()).decode()
    half = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    known: Any = kind
    return KeySettings(kid=kid, kind=known, private=whole), KeySettings(kid=kid, kind=known, public=half)


@pytest.mark.parametrize("kind", ["hmac", "es256", "ed25519"])
def test_every_kind_of_key_makes_and_verifies(tmp_path: Path, kind: str) -> None:
    signs, verifies = (hmac(), hmac()) if kind == "hmac" else pair(kind, "k1")
    keys = keys_of(tmp_path, verifies)
    token = made({1: "us", 4: int(NOW) + 9}, signs)
    assert open_token(token, keys, NOW) == ({1: "us", 4: int(NOW) + 9}, b"k1")
    assert open_token(token + "==", keys, NOW)[1] == b"k1"
    data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for place in range(2, len(data)):  # the tag of a CWT before that may be there or not
        other = base64url(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(TokenError):
            open_token(other, keys, NOW)


def test_tokens_of_another_implementation(tmp_path: Path) -> None:
    """Made by a library in TypeScript: with the tag of a CWT, with its key's id unprotected, and padded or not."""
    secret = bytes.fromhex("403697de87af64611c1d32a05dab0fe1fcb715a86ab435f1ec99192d79569388")
    keys = keys_of(tmp_path, hmac("akamai_key_hs256", secret))
    token = (
        "2D3RhEOhAQWhBFBha2FtYWlfa2V5X2hzMjU2WCijAXgYY29hcDovL2pvbmFzLmV4YW1wbGUuY29tBhpn1JipBRpn1JipWCCX4nQb8SYQ"
        "oa0SFLxE2Rh35DdTjoA9TzOSy1IP9O1BGQ"
    )
    claims, kid = open_token(token, keys, NOW)
    assert claims == {1: "coap://jonas.example.com", 6: 1741985961, 5: 1741985961}
    grant = evaluate(claims, kid, issuer="coap://jonas.example.com")
    assert grant.refusal(Asked("/", "::1"), 1741985960, str) == "the token is not valid yet"
    assert grant.refusal(Asked("/", "::1"), 1741985961, str) == ""
    audience = (
        "2D3RhEOhAQWhBFBha2FtYWlfa2V5X2hzMjU2V6MDgmNvbmVjdHdvBhpn12R8BRpn12R8WCAdnSbUN4KbIvaHLn-q4f4YRpfq6ERYotBy"
        "jbIyZ-EkfQ"
    )
    evaluate(open_token(audience, keys, NOW)[0], kid, audience="two")
    with pytest.raises(TokenError, match="another audience"):
        evaluate(open_token(audience, keys, NOW)[0], kid, audience="three")


def test_tokens_of_the_library_itself(tmp_path: Path) -> None:
    key = cwt.COSEKey.from_symmetric_key(SECRET, alg="HS256", kid="k1")
    token = base64url(cwt.encode({1: "us", 312: {3: {1: "/t/"}}}, key))
    claims, _ = open_token(token, keys_of(tmp_path), time.time())
    assert isinstance(claims, dict)
    assert claims[312] == {3: {1: "/t/"}}


def test_a_key_is_used_only_as_it_is_meant(tmp_path: Path) -> None:
    """A public key is no secret: whoever takes it for one, to seal a token with, is refused."""
    _, verifies = pair("es256", "k1")
    keys = keys_of(tmp_path, verifies)
    forged = cwt.COSE.new().encode(
        cbor2.dumps({1: "us"}),
        cwt.COSEKey.from_symmetric_key(verifies.public.encode(), alg="HS256", kid="k1"),
        protected={1: 5},
        unprotected={4: b"k1"},
    )
    with pytest.raises(TokenError, match="does not use its key as that is meant"):
        open_token(base64url(forged), keys, NOW)
    relabelled = bytes(forged).replace(b"\x43\xa1\x01\x05", b"\x43\xa1\x01\x26").replace(b"\xd1\x84", b"\xd2\x84")
    with pytest.raises(TokenError, match="signature is wrong"):
        open_token(base64url(relabelled), keys, NOW)


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ("", "cut short"),
        ("A" * 4097, "too long"),
        ("not!base64", "not base64url"),
        ("é", "not base64url"),
        ("A" * 40, "neither COSE_Mac0 nor COSE_Sign1"),
        (base64url(bytes.fromhex("d1845fff")), "header is not"),
        (base64url(bytes.fromhex("d184") + b"\x9f" * 3000), "header is not"),
        (base64url(bytes.fromhex("d18443a10105a1044158") + b"\x58\xff"), "cut short"),
        (base64url(bytes.fromhex("d18443a10105a10441584040")), "key is not known"),
        (base64url(bytes.fromhex("d18443a10105a04040")), "which key"),
        (base64url(bytes.fromhex("d18444a1020540a04040")), "more parts than it should have"),
        (base64url(bytes.fromhex("d18443a10205a04040")), "header has fields"),
        (base64url(bytes.fromhex("d18443a10105a104415840") + b"\x40\x00"), "more parts than it should have"),
    ],
)
def test_what_is_no_token_is_refused_before_anything_is_believed(tmp_path: Path, token: str, sentence: str) -> None:
    with pytest.raises(TokenError, match=sentence):
        open_token(token, keys_of(tmp_path), NOW)


@pytest.mark.parametrize("kind", ["hmac", "ed25519"])
def test_a_token_is_written_in_one_way(tmp_path: Path, kind: str) -> None:
    """Rates and what is remembered go by its text: nobody may make many texts of the one token they were given."""
    signs, verifies = (hmac(), hmac()) if kind == "hmac" else pair(kind, "k1")
    keys = keys_of(tmp_path, verifies)
    unpadded = (made({2: "x" * length}, signs) for length in range(1, 4))
    good = next(token for token in unpadded if len(token) % 4)
    data = base64.urlsafe_b64decode(good + "=" * (-len(good) % 4)).removeprefix(b"\xd8\x3d")
    open_token(base64url(data), keys, NOW)
    message, protected = cbor2.loads(data).value, {1: 5 if kind == "hmac" else -8, 4: b"k1"}
    others = [good[:-1] + letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"]
    others += [
        base64url(data[:2] + b"\x58" + data[2:3].replace(b"\x43", b"\x03") + data[3:]),
        base64url(data.replace(b"\xa1\x04\x42k1", b"\xa1\x04\x58\x02k1")),
        base64url(data.replace(b"\xa1\x04\x42k1", b"\xb8\x01\x04\x42k1")),
        base64url(data.replace(b"\xa1\x04\x42k1", b"\xa1\x18\x04\x42k1")),
    ]
    for other in set(others) - {good}:
        with pytest.raises(TokenError):
            open_token(other, keys, NOW)
    key = cwt.COSEKey.from_symmetric_key(SECRET, alg="HS256", kid="k1")
    if kind == "hmac":  # a key that is named in what is sealed is not named once more outside
        sealed = cwt.COSE.new().encode(message[2], key, protected=protected)
        open_token(base64url(sealed), keys, NOW)
        with pytest.raises(TokenError, match="says twice which key"):
            open_token(base64url(sealed.replace(b"\xa0", b"\xa1\x04\x41x", 1)), keys, NOW)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.one_of(st.text(), st.binary().map(base64url), st.binary().map(lambda data: base64url(b"\xd1\x84" + data))))
def test_any_text_is_refused_with_a_sentence(tmp_path: Path, token: str) -> None:
    with pytest.raises(TokenError):
        open_token(token, keys_of(tmp_path), NOW)


claim_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from((10**400, -(10**400))),
        st.floats(),
        st.text(max_size=9),
        st.binary(max_size=20),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers(-3, 10), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.integers(1, 10) | st.integers(305, 325), claim_values))
def test_any_claims_are_a_grant_or_a_sentence(claims: dict[int, Any]) -> None:
    """Signed, but by whom? A grant then answers every request, whatever it asks."""
    try:
        grant = evaluate(claims, b"k", geography=True)
    except TokenError:
        return
    assert isinstance(grant.refusal(Asked(PATH, "192.0.2.1", host="a:1", query="x"), NOW, lambda _: "DE"), str)


def test_claims_that_are_no_cbor(tmp_path: Path) -> None:
    key = cwt.COSEKey.from_symmetric_key(SECRET, alg="HS256", kid="k1")
    for payload in (b"\xff", b"\x9f" * 2000, b"", b"\xa1\x01"):
        token = cwt.COSE.new().encode(payload, key, protected={1: 5}, unprotected={4: b"k1"})
        with pytest.raises(TokenError):
            evaluate(open_token(base64url(token), keys_of(tmp_path), NOW)[0], b"k1")


# Key files


def test_a_key_holds_in_its_time(tmp_path: Path) -> None:
    begins, ends = (datetime.datetime.fromtimestamp(NOW + s, datetime.UTC) for s in (-10, 10))
    keys = keys_of(tmp_path, hmac(begins=begins, until=ends))
    token = made({})
    for now, good in ((NOW - 11, False), (NOW - 10, True), (NOW + 9, True), (NOW + 10, False)):
        if good:
            open_token(token, keys, now)
        else:
            with pytest.raises(TokenError, match="not in use at this time"):
                open_token(token, keys, now)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no file of token keys: Object missing required field `keys`"),
        ("keys = []", "Expected `array` of length >= 1"),
        ("[[keys]]\nkid = 'a'\nkind = 'rot13'", "Invalid enum value 'rot13'"),
        ("[[keys]]\nkid = 'a'\nkind = 'hmac'\nsecert = 'x'", "unknown field `secert`"),
        ("[[keys]]\nkid = 'a'\nkind = 'hmac'\nsecret = 'c2hvcnQ'", "less than 32 bytes"),
        (f"[[keys]]\nkid = 'a'\nkind = 'hmac'\nsecret = '{'+/' * 24}'", "is not a key of kind hmac"),
        ("[[keys]]\nkid = 'a'\nkind = 'hmac'\nuntil = 2026-12-31T00:00:00", "with a timezone component"),
        ("[[keys]]\nkid = 'a'\nkind = 'es256'", "neither public nor private"),
        ("[[keys]]\nkid = 'a'\nkind = 'es256'\npublic = 'x'", "is not a key of kind es256"),
        ("not toml", "is no file of token keys"),
    ],
)
def test_a_key_file_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=sentence) as caught:
        Keys(path)
    assert "\n" not in str(caught.value)


def test_keys_are_kept_to_oneself(tmp_path: Path) -> None:
    path = key_file(tmp_path / "keys.toml", hmac())
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"can be read by everybody on this machine: chmod o= "):
        Keys(path)
    with pytest.raises(ConfigError, match="cannot read token keys"):
        Keys(tmp_path / "none")
    with pytest.raises(ConfigError, match="two keys with one kid"):
        Keys(key_file(tmp_path / "two.toml", hmac(), hmac()))
    signs, _ = pair("ed25519", "k")
    with pytest.raises(ConfigError, match="is not a key of kind es256"):
        Keys(key_file(tmp_path / "wrong.toml", KeySettings(kid="k", kind="es256", private=signs.private)))


def test_only_a_private_half_makes_tokens() -> None:
    signs, verifies = pair("ed25519", "k")
    made({}, signs)
    with pytest.raises(TokenError, match="only verifies"):
        made({}, verifies)


def test_every_label_is_what_the_registry_says() -> None:
    """CTA-5007-B and IANA's registry of CBOR Web Token claims."""
    assert (claimed.CATREPLAY, claimed.CATPOR, claimed.CATV, claimed.CATNIP) == (308, 309, 310, 311)
    assert (claimed.CATU, claimed.CATM, claimed.CATALPN, claimed.CATGEOISO3166) == (312, 313, 314, 316)
    assert (claimed.CATIFDATA, claimed.CATIF, claimed.CATR) == (320, 322, 323)
