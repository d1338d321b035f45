"""CPIX documents (DASH-IF CPIX 2.x): keys, what each is for, and boxes of key systems, as DRM services give them out.

The document is hostile until checked: no document type, so no entities; bounded in bytes and depth.
"""

from __future__ import annotations

import base64
import binascii
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from math import inf, nextafter
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from oca.errors import ConfigError, FormatError
from oca.title.protection import COMMON, Scheme, system_of
from packager.encryption.keys import LABELS, Keys, Rule, Span, hexadecimal, labelled, private

_DEPTH = 32
_MAX_RULES = 1000
_CPIX = "{urn:dashif:org:cpix}"
_SECRET = "{urn:ietf:params:xml:ns:keyprov:pskc}"
_SIGNATURE = "{http://www.w3.org/2000/09/xmldsig#}Signature"
_CLEARKEY = "e2719d58a985b3c9781ab030af78d30e"
_FAIRPLAY = "94ce86fb07ff4f43adb893d2fa968ca2"
_SKD = re.compile(rb"skd://[!#-;=?-\[\]_a-z~%]{1,500}")
# What others call what `keys.LABELS` are for.
_NAMES = {"all": "", "uhd1": "uhd", "uhd2": "uhd"} | {label: label for label in LABELS}


def read(path: Path, scheme: Scheme) -> Keys:
    """The keys of the document at `path`, to be used with `scheme`; ConfigError says what is wrong with it."""
    return parse(private(path), scheme, str(path))


def parse(data: bytes, scheme: Scheme, where: str) -> Keys:
    """The keys of a document; `where` names it in a ConfigError, in which no key is."""
    root = _tree(data, where)
    if root.tag != f"{_CPIX}CPIX":
        raise ConfigError(f"{where} is no CPIX document: its root is not CPIX in the namespace {_CPIX[1:-1]}")
    notes = []
    if root.find(_SIGNATURE) is not None:
        notes.append(f"{where}: its signature was not checked")
    keys: dict[str, str] = {}
    for element in root.iterfind(f"{_CPIX}ContentKeyList/{_CPIX}ContentKey"):
        kid, key = _key(element, scheme, where)
        if keys.setdefault(kid, key) != key:
            raise ConfigError(f"{where}: two keys have the key id {kid}")
        if element.get("explicitIV"):
            notes.append(f"{where}: the IV given with key {kid} is not used, IVs are derived from what is encrypted")
    if not keys:
        raise ConfigError(f"{where}: it has no ContentKey")
    rules: list[Rule] = []
    for element in root.iterfind(f"{_CPIX}ContentKeyUsageRuleList/{_CPIX}ContentKeyUsageRule"):
        rules += _rules(element, keys, where)
        if len(rules) > _MAX_RULES:
            raise ConfigError(f"{where}: it has more than {_MAX_RULES} rules")
    if not rules:
        if len(keys) > 1:
            raise ConfigError(
                f"{where}: it has {len(keys)} keys, and no rules that say which one is for which tracks"
            )
        rules = [Rule(kid) for kid in keys]
    pssh: dict[str, list[str]] = {}
    skd: dict[str, str] = {}
    for element in root.iterfind(f"{_CPIX}DRMSystemList/{_CPIX}DRMSystem"):
        kid, system = _named(element, keys, where), hexadecimal(element.get("systemId", ""), "systemId", where)
        box = _box(element, system, where)
        if box and system not in (COMMON, _CLEARKEY) and box not in pssh.setdefault(kid, []):
            pssh[kid].append(box)
        if system == _FAIRPLAY and (uri := _skd(element, where)):
            skd[kid] = uri
    return Keys(keys, rules, {kid: boxes for kid, boxes in pssh.items() if boxes}, skd, notes)


def _tree(data: bytes, where: str) -> ET.Element:
    """The document as elements, each named {namespace}name."""
    builder, parser = ET.TreeBuilder(), expat.ParserCreate(namespace_separator="}")
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEPTH:
            raise ConfigError(f"{where} is no CPIX document: its elements lie more than {_DEPTH} deep in one another")
        builder.start(_name(name), {_name(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(_name(name))

    def doctype(*_: object) -> NoReturn:
        raise ConfigError(f"{where} has a document type (DOCTYPE), which a CPIX document never needs: remove it")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise ConfigError(f"{where} is not XML: {error}") from None
    return builder.close()


def _name(name: str) -> str:
    return f"{{{name}" if "}" in name else name


def _key(element: ET.Element, scheme: Scheme, where: str) -> tuple[str, str]:
    """Key id and key of a ContentKey."""
    kid = hexadecimal(element.get("kid", ""), "kid of a ContentKey", where)
    wanted = element.get("commonEncryptionScheme", scheme)
    if wanted != scheme:
        raise ConfigError(
            f"{where}: key {kid} is for {wanted[:20]!r}, and {scheme} is asked for: give --encrypt {wanted}"
        )
    secret = element.find(f"{_CPIX}Data/{_SECRET}Secret")
    if secret is not None and secret.find(f"{_SECRET}EncryptedValue") is not None:
        raise ConfigError(
            f"{where}: key {kid} is itself encrypted, for somebody who has a certificate's private key: ask the DRM "
            "service for a document with keys in clear, and keep it as you keep keys"
        )
    value = secret.find(f"{_SECRET}PlainValue") if secret is not None else None
    if value is None:
        raise ConfigError(
            f"{where}: key id {kid} comes without a key: this is what a DRM service is asked, give what it answers"
        )
    key = _base64(value.text, f"key {kid}", where)
    if len(key) != 16:
        raise ConfigError(f"{where}: key {kid} has {len(key)} bytes, and 16 are needed")
    return kid, key.hex()


def _named(element: ET.Element, keys: dict[str, str], where: str) -> str:
    """The key id that an element is about."""
    kid = hexadecimal(element.get("kid", ""), "kid of a rule or a DRMSystem", where)
    if kid not in keys:
        raise ConfigError(f"{where}: something is said of key id {kid}, and there is no such ContentKey")
    return kid


def _rules(element: ET.Element, keys: dict[str, str], where: str) -> Iterator[Rule]:
    """A rule as as many as it takes: filters of one kind are alternatives, one of each kind must be met.

    Those of video and audio are one kind, since each is about its own tracks.
    """
    kid, kinds = _named(element, keys, where), {each.tag.removeprefix(_CPIX) for each in element}
    if "KeyPeriodFilter" in kinds:
        raise ConfigError(f"{where}: key {kid} is for a period only, and keys do not change inside a title")
    if unknown := kinds - {"VideoFilter", "AudioFilter", "BitrateFilter", "LabelFilter"}:
        raise ConfigError(f"{where}: key {kid} is for what {min(unknown)[:40]!r} means, which is not known here")
    videos = [_video(each, kid, where) for each in element.iterfind(f"{_CPIX}VideoFilter")]
    audios = [
        Rule(kid, "audio", channels=_span(each, "Channels", where))
        for each in element.iterfind(f"{_CPIX}AudioFilter")
    ]
    bases = [rule for rule in (*videos, *audios) if rule is not None]
    if not videos and not audios:
        labels = [each.get("label", "") for each in element.iterfind(f"{_CPIX}LabelFilter")]
        words = labels or element.get("intendedTrackType", "all").split("+")
        if unknown := {word for word in words if word.lower() not in _NAMES}:
            raise ConfigError(
                f"{where}: key {kid} is for {min(unknown)[:40]!r}, which says nothing here: give its rule filters, "
                f"or one of {', '.join(_NAMES)}"
            )
        bases = [labelled(_NAMES[word.lower()], kid) for word in words]
    rates = [_span(each, "Bitrate", where) for each in element.iterfind(f"{_CPIX}BitrateFilter")] or [(0, inf)]
    for base in bases:
        for span in rates:
            yield Rule(kid, base.kind, base.pixels, base.frame_rate, base.channels, span)


def _video(element: ET.Element, kid: str, where: str) -> Rule | None:
    """A VideoFilter, None if it is for pictures that are never made here."""
    if "true" in (element.get("hdr"), element.get("wcg")) or "1" in (element.get("hdr"), element.get("wcg")):
        return None
    slowest, fastest = _span(element, "Fps", where)
    # minFps is exclusive: what has 30 frames/s is met by maxFps="30", and not by minFps="30".
    slowest = nextafter(slowest, inf) if element.get("minFps") else slowest
    return Rule(kid, "video", _span(element, "Pixels", where), (slowest, fastest))


def _span(element: ET.Element, of: str, where: str) -> Span:
    values = []
    for name, otherwise in ((f"min{of}", 0.0), (f"max{of}", inf)):
        text = element.get(name)
        if text is not None and not re.fullmatch(r"[0-9]{1,12}", text, re.ASCII):
            raise ConfigError(f"{where}: {name}={text[:40]!r} is not a number")
        values.append(otherwise if text is None else float(text))
    return values[0], values[1]


def _box(element: ET.Element, system: str, where: str) -> str:
    """The pssh box of a DRMSystem in base64, '' if it has none."""
    found = element.find(f"{_CPIX}PSSH")
    if found is None or not (found.text or "").strip():
        return ""
    box = _base64(found.text, "a PSSH", where)
    try:
        said = system_of(box)[0]
    except FormatError as error:
        raise ConfigError(f"{where}: {error}") from None
    if said != system:
        raise ConfigError(f"{where}: the PSSH of system {system} is one of system {said}")
    return base64.b64encode(box).decode()


def _skd(element: ET.Element, where: str) -> str:
    """The URI by which FairPlay asks for a key: out of lines of a playlist, or as versions before 2.3 have it."""
    for name in ("HLSSignalingData", "URIExtXKey"):
        for found in element.iterfind(f"{_CPIX}{name}"):
            if match := _SKD.search(_base64(found.text, name, where)):
                return match[0].decode()
    return ""


def _base64(text: str | None, what: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join((text or "").split()), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{where}: {what} is not in base64") from None
