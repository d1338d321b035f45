"""The protection of a title: what title.json may say of it, and what players are told for each key system."""

from __future__ import annotations

import base64
import struct
import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest
from msgspec import structs

from oca.errors import FormatError
from oca.title import hls, protection
from oca.title import model as title_format
from oca.title.model import File, Period, Title, Track
from oca.title.protection import Protection
from oca.title.segments import Segment, SegmentIndex

ONE, TWO = "1" * 32, "2" * 32
WIDEVINE, PLAYREADY = "edef8ba979d64acea3c827dcd51d21ed", "9a04f07998404286ab92e65be0885f95"
MARLIN = "5e629af538da4063897797ffbd9902d4"
NS = {"cenc": "urn:mpeg:cenc:2013"}
INDEX = SegmentIndex(25, 900, (Segment(4096, 1000, 0, 100, 90),))


def box(system: str, data: bytes = b"data", kids: tuple[str, ...] = ()) -> str:
    listed = struct.pack(">I", len(kids)) + b"".join(map(bytes.fromhex, kids)) if kids else b""
    body = (
        struct.pack(">I16s", bool(kids) << 24, bytes.fromhex(system)) + listed + struct.pack(">I", len(data)) + data
    )
    return base64.b64encode(struct.pack(">I4s", 8 + len(body), b"pssh") + body).decode()


BOXES = [box(WIDEVINE), box(PLAYREADY, b"header", (ONE,)), box(MARLIN)]
FULL = Protection(
    scheme="cbcs",
    kids={"v1": ONE, "a1": TWO},
    pssh={ONE: BOXES},
    skd={ONE: "skd://one"},
    clearkey_url="https://keys.example/licence?a=1&b=2",
    key_url="https://keys.example/{kid}.key",
)


def titled(said: Protection | msgspec.UnsetType) -> Title:
    """A title with one video track and one of audio."""
    tracks = [
        Track(
            name=name,
            kind="video" if name == "v1" else "audio",
            codecs="avc1.640015",
            timescale=25,
            duration=100,
            segments=1,
            bandwidth=1000,
            average_bandwidth=1000,
            **({"width": 64, "height": 36, "frame_rate": "25"} if name == "v1" else {}),
        )
        for name in ("v1", "a1")
    ]
    files = {name: File(1, "0" * 64, ["0" * 64]) for track in tracks for name in track.files}
    return Title(id="bbb", name="BBB", periods=[Period("p0", tracks)], files=files, protection=said)


def test_title_json_keeps_it() -> None:
    """All of it; and a title without is written as before there was any."""
    assert title_format.decode(title_format.encode(titled(FULL))).protection == FULL
    assert b"protection" not in title_format.encode(titled(msgspec.UNSET))
    assert title_format.decode(title_format.encode(titled(msgspec.UNSET))).protection is msgspec.UNSET


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kids": {"v1": ONE}}, "other tracks than there are"),
        ({"kids": {"v1": ONE, "a1": TWO, "a2": TWO}}, "other tracks than there are"),
        ({"kids": {"v1": ONE.upper() + "A", "a1": TWO}}, "corrupt"),
        ({"kids": {"v1": "x" * 32, "a1": TWO}}, "corrupt"),
        ({"scheme": "cens"}, "corrupt"),
        ({"pssh": {"3" * 32: []}}, "a key id that no track has"),
        ({"skd": {"3" * 32: "skd://x"}}, "a key id that no track has"),
        ({"skd": {ONE: 'skd://"'}}, "corrupt"),
        ({"pssh": {ONE: ["?"]}}, "not in base64"),
        ({"pssh": {ONE: ["AAAA"]}}, "cut off"),
        ({"pssh": {ONE: [box(WIDEVINE)[:-4]]}}, "do not come out even"),
        ({"pssh": {ONE: [base64.b64encode(bytes(40)).decode()]}}, "do not come out even"),
        ({"clearkey_url": 'https://x/"'}, "the ClearKey URL"),
        ({"key_url": "ftp://x/{kid}"}, "the key URL"),
        ({"key_url": "https://x/key"}, "the same for 2 keys"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    data = title_format.encode(titled(structs.replace(FULL, **changes)))
    with pytest.raises(FormatError, match=said):
        title_format.decode(data)


def test_the_boxes_of_a_track() -> None:
    """The common one lists all keys, then come those of its own."""
    found = protection.pssh_of(FULL, ONE)
    common = protection.common([ONE, TWO])
    assert found == common + b"".join(map(base64.b64decode, BOXES))
    assert protection.system_of(common) == (protection.COMMON, b"")
    assert common[28:64].hex() == f"{2:08x}{ONE}{TWO}"
    assert protection.pssh_of(FULL, TWO) == common


def test_what_an_mpd_says_of_each_system() -> None:
    """The scheme, ClearKey, boxes as they are, FairPlay by its name."""
    found = protection.descriptors(FULL, ONE)
    root = ET.fromstring(b"<a>" + b"".join(map(ET.tostring, found)) + b"</a>")
    assert [each.get("schemeIdUri") for each in root] == [
        "urn:mpeg:dash:mp4protection:2011",
        "urn:uuid:e2719d58-a985-b3c9-781a-b030af78d30e",
        "urn:uuid:edef8ba9-79d6-4ace-a3c8-27dcd51d21ed",
        "urn:uuid:9a04f079-9840-4286-ab92-e65be0885f95",
        "urn:uuid:5e629af5-38da-4063-8977-97ffbd9902d4",
        "urn:uuid:94ce86fb-07ff-4f43-adb8-93d2fa968ca2",
    ]
    assert [each.text for each in root.iterfind(".//cenc:pssh", NS)] == BOXES
    assert root[0].get("{urn:mpeg:cenc:2013}default_KID") == "11111111-1111-1111-1111-111111111111"
    assert len(protection.descriptors(FULL, TWO)) == 2
    bare = structs.replace(FULL, clearkey_url="")
    assert list(protection.descriptors(bare, TWO)[1]) == []


def test_what_a_playlist_says_of_each_system() -> None:
    """Those that HLS has a name for; without a URL of keys the key id stands where the key would be."""
    lines = protection.media_keys(FULL, ONE)
    assert [line.partition(":")[2] for line in lines] == [
        'METHOD=SAMPLE-AES,URI="https://keys.example/11111111111111111111111111111111.key",'
        'KEYFORMAT="identity",KEYFORMATVERSIONS="1"',
        "METHOD=NONE",
        'METHOD=SAMPLE-AES,URI="data:text/plain;base64,EREREREREREREREREREREQ==",'
        'KEYFORMAT="org.w3.clearkey",KEYFORMATVERSIONS="1"',
        f'METHOD=SAMPLE-AES,URI="data:text/plain;base64,{BOXES[0]}",KEYID=0x{ONE},'
        'KEYFORMAT="urn:uuid:edef8ba9-79d6-4ace-a3c8-27dcd51d21ed",KEYFORMATVERSIONS="1"',
        'METHOD=SAMPLE-AES,URI="data:text/plain;charset=UTF-16;base64,aGVhZGVy",'
        'KEYFORMAT="com.microsoft.playready",KEYFORMATVERSIONS="1"',
        'METHOD=SAMPLE-AES,URI="skd://one",KEYFORMAT="com.apple.streamingkeydelivery",KEYFORMATVERSIONS="1"',
    ]
    other = structs.replace(FULL, scheme="cenc", key_url="")
    said = "\n".join(protection.media_keys(other, ONE))
    assert "NONE" not in said
    assert "skd://" not in said, "FairPlay has cbcs alone"
    assert said.count("METHOD=SAMPLE-AES-CTR,") == 4
    assert said.count('URI="data:text/plain;base64,EREREREREREREREREREREQ==",') == 2
    assert "keys.example" not in said


def test_a_multivariant_playlist_has_each_key_once() -> None:
    """Of the tracks that are offered, and none for players that know only keys."""
    title = titled(FULL)
    lines = hls.multivariant(title, {"v1": INDEX, "a1": INDEX}).splitlines()
    found = [line for line in lines if line.startswith("#EXT-X-SESSION-KEY:")]
    assert len(found) == 4 + 1
    assert not [line for line in found if "identity" in line or "NONE" in line]
    assert lines.index(found[-1]) < next(n for n, line in enumerate(lines) if line.startswith("#EXT-X-STREAM-INF"))
    assert hls.multivariant(title, {"a1": INDEX}).count("#EXT-X-SESSION-KEY:") == 1
