"""CDNI triggers (RFC 8007): what an upstream CDN says, and which versions of ours it means. Pure.

A version is filled and removed whole, so URLs name it by its directory, one of its manifests, or `/play/<title>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from oca.errors import FormatError

COMMAND = "application/cdni; ptype=ci-trigger-command"
STATUS = "application/cdni; ptype=ci-trigger-status"
COLLECTION = "application/cdni; ptype=ci-trigger-collection"

Kind = Literal["preposition", "invalidate", "purge"]
State = Literal["pending", "active", "complete", "processed", "failed", "cancelling", "cancelled"]
ENDED: frozenset[State] = frozenset({"complete", "processed", "failed", "cancelled"})
COLLECTIONS: Mapping[str, frozenset[State]] = {
    "pending": frozenset({"pending"}),
    "active": frozenset({"active", "cancelling"}),
    "complete": frozenset({"complete", "processed"}),
    "failed": frozenset({"failed", "cancelled"}),
}
"""Which states each collection has, after RFC 8007 5.1.3."""

_MOST = 10_000
_Text = Annotated[str, Meta(min_length=1, max_length=4096)]
_Texts = Annotated[list[_Text], Meta(max_length=_MOST)]
# The id of a CDN provider (RFC 8007 4.6): an autonomous system, and a number that its operator gives.
_CDN = re.compile(r"AS[0-9]{1,10}:[0-9]{1,10}")
_HOST = re.compile(r"(([a-z][a-z0-9+.-]*|\*):)?//[^/]*", re.IGNORECASE)
_OF_TITLE = re.compile(r"/play/([^/]+)(?:/[^/]*)?")
_OF_VERSION = re.compile(r"/t/([^/]+)/([^/]+)(?:/([^/]*))?")
MANIFESTS = ("manifest.mpd", "master.m3u8", "ondemand.mpd", "master.ranges.m3u8", "title.json")


class Pattern(msgspec.Struct, frozen=True, rename="kebab", omit_defaults=True):
    """RFC 8007 5.2.4: `*` is any text, `?` any character, `$` takes the special meaning of what follows."""

    pattern: _Text
    case_sensitive: bool = False
    match_query_string: bool = False


class Trigger(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 8007 5.2.1: what is to be done, to what."""

    type: Kind
    metadata_urls: _Texts = msgspec.field(default_factory=list, name="metadata.urls")
    content_urls: _Texts = msgspec.field(default_factory=list, name="content.urls")
    content_ccid: _Texts = msgspec.field(default_factory=list, name="content.ccid")
    metadata_patterns: list[Pattern] = msgspec.field(default_factory=list, name="metadata.patterns")
    content_patterns: Annotated[list[Pattern], Meta(max_length=100)] = msgspec.field(
        default_factory=list, name="content.patterns"
    )


class Command(msgspec.Struct, frozen=True, rename="kebab"):
    """RFC 8007 5.1.1: a trigger, or the URLs of triggers to cancel, and the CDNs that passed it on."""

    cdn_path: Annotated[list[str], Meta(min_length=1, max_length=64)]
    trigger: Trigger | None = None
    cancel: _Texts | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 8007 5.2.6: what went wrong, and with which URLs or patterns."""

    error: Literal["emeta", "econtent", "eperm", "ereject", "ecdn", "ecanceled"]
    description: str
    metadata_urls: list[str] = msgspec.field(default_factory=list, name="metadata.urls")
    content_urls: list[str] = msgspec.field(default_factory=list, name="content.urls")
    content_patterns: list[Pattern] = msgspec.field(default_factory=list, name="content.patterns")


class LoopError(FormatError):
    """A command that has been here before."""


def parse(data: bytes, me: str) -> Command:
    """Read a command sent to the CDN `me` ("AS64496:0"). FormatError; LoopError if it came through us (4.6)."""
    try:
        command = msgspec.json.decode(data, type=Command)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"this is no CI/T command (RFC 8007 5.1.1): {error}") from None
    for cdn in command.cdn_path:
        if not _CDN.fullmatch(cdn):
            raise FormatError(f"{cdn[:40]!r} in cdn-path is not the id of a CDN, such as AS64496:0")
    if me in command.cdn_path:
        raise LoopError(f"this command came through {me} already: its cdn-path is a loop")
    if (command.trigger is None) == (command.cancel is None):
        raise FormatError("a command has either a trigger or a cancel (RFC 8007 5.1.1)")
    trigger = command.trigger
    if trigger is not None:
        named = msgspec.to_builtins(trigger).keys() - {"type"}
        if not named:
            raise FormatError("the trigger names nothing: give content.urls")
        if trigger.type == "preposition" and (trigger.content_patterns or trigger.metadata_patterns):
            raise FormatError("preposition takes no patterns (RFC 8007 5.2.1): give content.urls")
    return command


@dataclass(frozen=True, slots=True)
class Meant:
    """Versions by (title, version), and what of a trigger means none."""

    versions: tuple[tuple[str, str], ...]
    problems: tuple[Problem, ...]


def meant(trigger: Trigger, catalog: Mapping[str, tuple[str, Iterable[str]]]) -> Meant:
    """The versions that a trigger is about; `catalog` has each title's active version and all of them.

    To remove what is not there is no problem, as it is done.
    """
    problems, found = [], dict[tuple[str, str], None]()
    if trigger.metadata_urls or trigger.metadata_patterns or trigger.content_ccid:
        words = "no CDNI metadata is taken here, so none can be named: give content.urls"
        problems.append(Problem("ereject", words, metadata_urls=trigger.metadata_urls))
    unclear, unknown = [], []
    for url in trigger.content_urls:
        path = path_of(url.partition("?")[0])
        named = _named(path, trigger.type, catalog) if path is not None else None
        if named is None:
            unclear.append(url)
        elif not named:
            unknown.append(url)
        found.update(dict.fromkeys(named or ()))
    if unclear:
        words = "versions are moved whole: name /play/<title>, /t/<title>/<version>/ or a manifest in there"
        problems.append(Problem("ereject", words, content_urls=unclear))
    if unknown and trigger.type == "preposition":
        problems.append(Problem("econtent", "this is not in the catalog", content_urls=unknown))
    lost = []
    for pattern in trigger.content_patterns:
        path = path_of(pattern.pattern)
        if path is None:
            lost.append(pattern)
            continue
        glob = tokens(path, fold=not pattern.case_sensitive)
        for name, versions in _names(trigger.type, catalog):
            if matches(glob, name if pattern.case_sensitive else name.lower()):
                found.update(dict.fromkeys(versions))
    if lost:
        problems.append(Problem("ereject", "a pattern is of a whole URL", content_patterns=lost))
    return Meant(tuple(found), tuple(problems))


def path_of(url: str) -> str | None:
    """The path of a URL or of a pattern of URLs, whatever the host; None if it is neither."""
    host = _HOST.match(url)
    path = (url[host.end() :] if host else url).partition("#")[0]
    return path if path.startswith(("/", "*")) else None


def _named(path: str, kind: Kind, catalog: Mapping[str, tuple[str, Iterable[str]]]) -> list[tuple[str, str]] | None:
    """The versions at a path; None if it names less than one."""
    title = _OF_TITLE.fullmatch(path)
    if title:
        return _of_title(title[1], kind, catalog)
    version = _OF_VERSION.fullmatch(path)
    if version is None or version[3] not in (None, "", *MANIFESTS):
        return None
    known = catalog.get(version[1])
    return [(version[1], version[2])] if known and version[2] in known[1] else []


def _of_title(title: str, kind: Kind, catalog: Mapping[str, tuple[str, Iterable[str]]]) -> list[tuple[str, str]]:
    """What `/play/<title>` means: what viewers get; to remove it, all there is."""
    if title not in catalog:
        return []
    active, versions = catalog[title]
    return [(title, active)] if kind == "preposition" else [(title, version) for version in sorted(versions)]


def _names(
    kind: Kind, catalog: Mapping[str, tuple[str, Iterable[str]]]
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Every path that names versions, and which."""
    for title, (_, versions) in catalog.items():
        whole = _of_title(title, kind, catalog)
        yield from ((f"/play/{title}{rest}", whole) for rest in ("", "/", *(f"/{name}" for name in MANIFESTS)))
        for version in versions:
            yield from ((f"/t/{title}/{version}/{name}", [(title, version)]) for name in ("", *MANIFESTS))


Token = tuple[Literal["one", "any", "this"], str]


def tokens(pattern: str, *, fold: bool) -> list[Token]:
    """A pattern of RFC 8007 5.2.4 taken apart; `fold`ed to lower case."""
    found: list[Token] = []
    signs = iter(pattern.lower() if fold else pattern)
    for sign in signs:
        if sign == "*":
            if found[-1:] != [("any", "")]:
                found.append(("any", ""))
        elif sign == "?":
            found.append(("one", ""))
        else:
            found.append(("this", next(signs, "$") if sign == "$" else sign))
    return found


def matches(glob: Sequence[Token], text: str) -> bool:
    """Whether all of `text` is as `glob` says; in time of at most their lengths' product, whatever they are."""
    at = here = 0
    star, back = -1, 0
    while here < len(text):
        if at < len(glob) and (glob[at][0] == "one" or glob[at] == ("this", text[here])):
            at, here = at + 1, here + 1
        elif at < len(glob) and glob[at][0] == "any":
            star, back, at = at, here, at + 1
        elif star >= 0:
            # The last `*` takes one more.
            back, at = back + 1, star + 1
            here = back
        else:
            return False
    return all(kind == "any" for kind, _ in glob[at:])


def status(row: Mapping[str, Any]) -> dict[str, Any]:
    """A trigger status resource (RFC 8007 5.1.2) of a stored trigger. Times are whole UTC seconds."""
    shown = {"trigger": row["trigger"], "ctime": int(row["ctime"]), "mtime": int(row["mtime"])}
    if row["etime"] is not None:
        shown["etime"] = int(row["etime"])
    return {**shown, "status": row["status"], **({"errors": row["errors"]} if row["errors"] else {})}
