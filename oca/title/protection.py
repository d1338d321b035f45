"""The protection of a title: which key each track is encrypted with, and what manifests tell players of it.

Common encryption (ISO/IEC 23001-7): `cenc` is AES-CTR over whole slices, `cbcs` AES-CBC over one block in ten. A key
is named by its key id (KID), a UUID. Keys themselves are never here: whoever has a title has no key to it.
"""

from __future__ import annotations

import base64
import binascii
import struct
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from oca.errors import FormatError
from oca.title.location import check_url

Scheme = Literal["cenc", "cbcs"]
Kid = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""A key id as 32 hexadecimal digits."""
Box = Annotated[str, Meta(max_length=100_000)]
"""A pssh box (23001-7 8.1) in base64."""
Skd = Annotated[str, Meta(pattern=r"^skd://[!#-;=?-\[\]_a-z~%]{1,500}\Z")]
"""What FairPlay asks its server for."""

COMMON = "1077efecc0b24d02ace33c1e52e2fb4b"
"""The system id of pssh boxes that list key ids and nothing else, which every browser reads (W3C cenc format)."""
_WIDEVINE = "edef8ba979d64acea3c827dcd51d21ed"
_PLAYREADY = "9a04f07998404286ab92e65be0885f95"
# What DASH-IF gives ClearKey (Guidelines for Implementation: ClearKey), which is another id than that of its boxes.
_CLEARKEY = "e2719d58a985b3c9781ab030af78d30e"
_MP4 = "urn:mpeg:dash:mp4protection:2011"
_CENC = "urn:mpeg:cenc:2013"
_DASHIF = "https://dashif.org/CPS"
# RFC 8216 4.3.2.4, 8216bis 4.4.4.4
_METHODS = {"cbcs": "SAMPLE-AES", "cenc": "SAMPLE-AES-CTR"}
_KID = "{kid}"


class Protection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`kids` are the key ids of all tracks, by name. `pssh` are boxes for key systems by key id, `skd` FairPlay's.

    `clearkey_url` answers ClearKey's licence requests (EME 9.1.3), `key_url` a key as 16 bytes, for HLS players; in
    it `{kid}` stands for the key id. Both are the operator's, who lets in whom he wants.
    """

    scheme: Scheme
    kids: dict[str, Kid]
    pssh: dict[Kid, list[Box]] = {}
    skd: dict[Kid, Skd] = {}
    clearkey_url: str = ""
    key_url: str = ""


def objection(protection: Protection, tracks: Collection[str]) -> str:
    """What is wrong with the protection of a title with these tracks, '' if nothing is."""
    kids = set(protection.kids.values())
    if protection.kids.keys() != set(tracks):
        return "protection gives a key id to other tracks than there are"
    if not kids >= {*protection.pssh, *protection.skd}:
        return "protection has boxes for a key id that no track has"
    try:
        for box in _boxes(protection, protection.pssh):
            system_of(box)
        check_urls(protection.clearkey_url, protection.key_url, kids)
    except FormatError as error:
        return str(error)
    return ""


def check_urls(clearkey_url: str, key_url: str, kids: Collection[str]) -> None:
    """FormatError if one of the URLs, '' for none, is none, or if that of keys is the same for several of `kids`."""
    if clearkey_url:
        check_url(clearkey_url, "the ClearKey URL")
    if key_url:
        check_url(key_url.replace(_KID, "0" * 32), "the key URL")
    if key_url and len(kids) > 1 and _KID not in key_url:
        raise FormatError(f"the key URL {key_url[:200]!r} is the same for {len(kids)} keys: put {_KID} into it")


def common(kids: Iterable[str]) -> bytes:
    """The pssh box that says nothing but these key ids (W3C "cenc" Initialization Data Format 4)."""
    listed = b"".join(map(bytes.fromhex, kids))
    body = struct.pack(">I16sI", 1 << 24, bytes.fromhex(COMMON), len(listed) // 16) + listed + bytes(4)
    return struct.pack(">I4s", 8 + len(body), b"pssh") + body


def pssh_of(protection: Protection, kid: str) -> bytes:
    """All pssh boxes of a track with that key id, the common one first.

    That lists the key ids of all tracks, for hls.js asks for a ClearKey licence only once.
    """
    return common(dict.fromkeys(protection.kids.values())) + b"".join(_boxes(protection, [kid]))


def system_of(box: bytes) -> tuple[str, bytes]:
    """The system id of a pssh box, as 32 hexadecimal digits, and its data; FormatError if it is none (8.1.2)."""
    try:
        size, kind, version, system = struct.unpack_from(">I4sI16s", box)
        start = 28
        if version >> 24:
            start += 4 + 16 * struct.unpack_from(">I", box, start)[0]
        (length,) = struct.unpack_from(">I", box, start)
    except struct.error:
        raise FormatError("protection has a pssh box that is cut off") from None
    if kind != b"pssh" or size != len(box) or start + 4 + length != size:
        raise FormatError("protection has a pssh box that is none: its lengths do not come out even")
    return system.hex(), box[start + 4 :]


def _boxes(protection: Protection, kids: Iterable[str]) -> list[bytes]:
    try:
        return [base64.b64decode(text, validate=True) for kid in kids for text in protection.pssh.get(kid, ())]
    except (binascii.Error, ValueError):
        raise FormatError("protection has a pssh box that is not in base64") from None


def uuid(hexadecimal: str) -> str:
    """32 hexadecimal digits as a UUID is written (RFC 9562 4)."""
    h = hexadecimal
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def descriptors(protection: Protection, kid: str) -> list[ET.Element]:
    """ContentProtection of an adaptation set with that key id (23009-1 5.8.4.1, DASH-IF Content Protection).

    The first says scheme and key id, then come ClearKey and the systems that have pssh boxes.
    """
    first = ET.Element("ContentProtection", schemeIdUri=_MP4, value=protection.scheme)
    first.set("xmlns:cenc", _CENC)
    first.set("cenc:default_KID", uuid(kid))
    clear = ET.Element("ContentProtection", schemeIdUri=f"urn:uuid:{uuid(_CLEARKEY)}", value="ClearKey1.0")
    if protection.clearkey_url:
        # dash.js goes by the prefix, not by the namespace.
        clear.set("xmlns:dashif", _DASHIF)
        licence = ET.SubElement(clear, "dashif:Laurl")
        licence.set("licenseType", "EME-1.0")
        licence.text = protection.clearkey_url
    found = [first, clear]
    for box in _boxes(protection, [kid]):
        system = ET.Element("ContentProtection", schemeIdUri=f"urn:uuid:{uuid(system_of(box)[0])}")
        system.set("xmlns:cenc", _CENC)
        ET.SubElement(system, "cenc:pssh").text = base64.b64encode(box).decode()
        found.append(system)
    if kid in protection.skd:
        found.append(ET.Element("ContentProtection", schemeIdUri="urn:uuid:94ce86fb-07ff-4f43-adb8-93d2fa968ca2"))
    return found


def media_keys(protection: Protection, kid: str) -> list[str]:
    """EXT-X-KEY of a media playlist whose segments are encrypted with that key (RFC 8216 4.3.2.4).

    hls.js takes ClearKey by its name, and asks the licence server that its page configures. Shaka Player knows
    `identity` alone, where the URI is that of the key. If there is none it gets the key id, which is no key, so that
    it does not refuse the playlist before its page can give it the key.
    """
    method = _METHODS[protection.scheme]
    uri = protection.key_url.replace(_KID, kid) or _data(bytes.fromhex(kid))
    found = [f'METHOD={method},URI="{uri}",KEYFORMAT="identity",KEYFORMATVERSIONS="1"']
    if protection.scheme == "cbcs":
        # hls.js would fetch this key, prefer it, and not know what to do with it in fragmented MP4. NONE takes it
        # back before the first segment; Shaka Player reads it all the same. Keys of other formats are not touched by
        # it, but hls.js drops these, too, so they follow.
        found.append("METHOD=NONE")
    return [f"#EXT-X-KEY:{attributes}" for attributes in (*found, *_systems(protection, kid))]


def session_keys(protection: Protection, kids: Iterable[str]) -> list[str]:
    """EXT-X-SESSION-KEY of a multivariant playlist, for each of these key ids (RFC 8216 4.3.4.5).

    Not for `identity`: there players could not tell which key id the key belongs to.
    """
    found = [attributes for kid in dict.fromkeys(kids) for attributes in _systems(protection, kid)]
    return [f"#EXT-X-SESSION-KEY:{attributes}" for attributes in found]


def _systems(protection: Protection, kid: str) -> list[str]:
    """The attributes of a key for each key system: ClearKey, those with pssh boxes, FairPlay."""
    method = _METHODS[protection.scheme]

    def line(uri: str, form: str, known: str = "") -> str:
        return f'METHOD={method},URI="{uri}",{known}KEYFORMAT="{form}",KEYFORMATVERSIONS="1"'

    found = [line(_data(bytes.fromhex(kid)), "org.w3.clearkey")]
    for box in _boxes(protection, [kid]):
        system, data = system_of(box)
        if system == _WIDEVINE:
            found.append(line(_data(box), f"urn:uuid:{uuid(_WIDEVINE)}", f"KEYID=0x{kid.upper()},"))
        elif system == _PLAYREADY:
            found.append(line(_data(data, "charset=UTF-16;"), "com.microsoft.playready"))
    if protection.scheme == "cbcs" and kid in protection.skd:
        found.append(line(protection.skd[kid], "com.apple.streamingkeydelivery"))
    return found


def _data(content: bytes, parameter: str = "") -> str:
    return f"data:text/plain;{parameter}base64,{base64.b64encode(content).decode()}"
