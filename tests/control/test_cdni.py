"""What an upstream CDN says, and what of ours it means (RFC 8007)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.triggers import cdni
from control.triggers.cdni import LoopError, Meant, Pattern, Trigger, matches, meant, tokens
from oca.errors import FormatError

ME = "AS64496:0"
V1, V2 = "1" * 32, "2" * 32
CATALOG = {"bunny": (V2, {V1, V2}), "sintel": (V1, {V1})}
BUNNY = (("bunny", V1), ("bunny", V2))


def said(**what: Any) -> bytes:
    trigger = {"type": "purge", "content.urls": ["https://cdn.example/play/bunny"]} | what.pop("trigger", {})
    return json.dumps({"trigger": trigger, "cdn-path": ["AS64500:1"]} | what).encode()


def test_commands_are_read_as_the_standard_writes_them() -> None:
    """The example of RFC 8007 6.1.2, and a cancel as in 6.2.5 (erratum 5064)."""
    pattern = {"pattern": "https://www.example.com/a/b/c/*", "case-sensitive": True}
    command = cdni.parse(said(trigger={"type": "invalidate", "content.patterns": [pattern]}), ME)
    assert command.trigger is not None
    assert command.trigger.type == "invalidate"
    assert command.trigger.content_patterns == [Pattern("https://www.example.com/a/b/c/*", case_sensitive=True)]
    cancel = cdni.parse(b'{"cancel": ["https://dcdn.example.com/triggers/0"], "cdn-path": ["AS64496:1"]}', ME)
    assert (cancel.trigger, cancel.cancel) == (None, ["https://dcdn.example.com/triggers/0"])


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (b"", "no CI/T command"),
        (b"[" * 100_000, "no CI/T command"),
        (b"\xff", "no CI/T command"),
        (said(trigger={"type": "warm"}), "Invalid enum value 'warm'"),
        (said(trigger={"content.urls": []}), "names nothing"),
        (said(trigger={"content.urls": ["x" * 5000]}), "length <= 4096"),
        (said(trigger={"content.urls": ["/play/x"] * 10_001}), "length <= 10000"),
        (said(cancel=["http://x/1"]), "either a trigger or a cancel"),
        (b'{"cdn-path": ["AS1:1"]}', "either a trigger or a cancel"),
        (said(**{"cdn-path": []}), "length >= 1"),
        (said(**{"cdn-path": ["64500"]}), "is not the id of a CDN"),
        (said(trigger={"type": "preposition", "content.patterns": [{"pattern": "*"}]}), "takes no patterns"),
    ],
)
def test_what_is_no_command_is_refused_with_a_sentence(command: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=re.escape(words)):
        cdni.parse(command, ME)


def test_a_command_that_came_through_us_is_a_loop() -> None:
    with pytest.raises(LoopError, match="is a loop"):
        cdni.parse(said(**{"cdn-path": ["AS64500:1", ME]}), ME)


def of(kind: Any, *urls: str, patterns: tuple[Pattern, ...] = ()) -> Meant:
    return meant(Trigger(kind, content_urls=list(urls), content_patterns=list(patterns)), CATALOG)


@pytest.mark.parametrize(
    ("kind", "url", "versions"),
    [
        ("purge", "https://cdn.example/play/bunny", BUNNY),
        ("purge", "https://cdn.example/play/bunny/master.m3u8", BUNNY),
        ("preposition", "https://cdn.example/play/bunny/manifest.mpd?a=1", (("bunny", V2),)),
        ("preposition", f"http://a.example:8080/t/bunny/{V1}/", (("bunny", V1),)),
        ("invalidate", f"//a.example/t/bunny/{V1}/manifest.mpd#t=1", (("bunny", V1),)),
        ("purge", f"/t/bunny/{V1}", (("bunny", V1),)),
        ("purge", f"/t/bunny/{'3' * 32}/", ()),
        ("purge", "/play/nothing", ()),
    ],
)
def test_urls_name_versions(kind: Any, url: str, versions: tuple[tuple[str, str], ...]) -> None:
    """To purge what is not there is no problem."""
    found = of(kind, url)
    assert set(found.versions) == set(versions)
    assert not found.problems


@pytest.mark.parametrize(
    ("kind", "url", "error"),
    [
        ("purge", f"/t/bunny/{V1}/v1.mp4", "ereject"),
        ("purge", f"/t/bunny/{V1}/v1/7.m4s", "ereject"),
        ("purge", "https://cdn.example/", "ereject"),
        ("purge", "play/bunny", "ereject"),
        ("preposition", "/play/nothing", "econtent"),
        ("preposition", f"/t/bunny/{'3' * 32}/", "econtent"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_url(kind: Any, url: str, error: str) -> None:
    found = of(kind, "/play/sintel", url)
    (problem,) = found.problems
    assert (problem.error, problem.content_urls) == (error, [url])


@pytest.mark.parametrize(
    ("pattern", "versions"),
    [
        (Pattern("https://cdn.example/play/b*"), BUNNY),
        (Pattern(f"https://cdn.example/t/bunny/{V1}/*"), (("bunny", V1),)),
        (Pattern("*/manifest.mpd"), (*BUNNY, ("sintel", V1))),
        (Pattern("*://*/PLAY/SINTEL"), (("sintel", V1),)),
        (Pattern("*/PLAY/SINTEL", case_sensitive=True), ()),
        (Pattern("/play/sinte?/*"), (("sintel", V1),)),
        (Pattern("/play/sinte$?"), ()),
        (Pattern("https://cdn.example/t/*/v1.mp4"), ()),
        (Pattern("*"), (*BUNNY, ("sintel", V1))),
    ],
)
def test_patterns_name_versions(pattern: Pattern, versions: tuple[tuple[str, str], ...]) -> None:
    found = of("purge", patterns=(pattern,))
    assert set(found.versions) == set(versions)
    assert not found.problems


def test_what_has_no_meaning_here_is_refused() -> None:
    found = meant(
        Trigger("purge", metadata_urls=["http://m.example/x"], content_patterns=[Pattern("bunny")]), CATALOG
    )
    assert [problem.error for problem in found.problems] == ["ereject", "ereject"]
    assert not found.versions


SIGNS = st.text("ab*?$", max_size=12)


@given(SIGNS, st.text("ab*?$", max_size=12))
def test_patterns_match_as_a_slow_expression_does(pattern: str, text: str) -> None:
    slow, signs = "", iter(pattern)
    for sign in signs:
        slow += {"*": ".*", "?": "."}.get(sign) or re.escape(next(signs, "$") if sign == "$" else sign)
    assert matches(tokens(pattern, fold=False), text) == bool(re.fullmatch(slow, text, re.DOTALL))


def test_no_pattern_takes_long() -> None:
    """An expression with as many stars would take longer than there is time."""
    assert not matches(tokens("*a" * 1000 + "b", fold=False), "a" * 4000)
