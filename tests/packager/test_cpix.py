"""CPIX documents: what is taken from them, and what is refused."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import pytest

from oca.errors import ConfigError
from packager.encryption import cpix
from packager.encryption.keys import About, Keys

ONE, TWO = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
KID, OTHER = ONE.replace("-", ""), TWO.replace("-", "")
KEY = "000102030405060708090a0b0c0d0e0f"
PLAIN = base64.b64encode(bytes.fromhex(KEY)).decode()
WIDEVINE, PLAYREADY = "edef8ba9-79d6-4ace-a3c8-27dcd51d21ed", "9a04f079-9840-4286-ab92-e65be0885f95"
FAIRPLAY = "94ce86fb-07ff-4f43-adb8-93d2fa968ca2"
SD = About("v-360-500", "video", 640 * 360, 25.0, bps=500_000)
HD = About("v-1080-5000", "video", 1920 * 1080, 30.0, bps=5_000_000)
UHD = About("v-2160-9000", "video", 3840 * 2160, 60.0, bps=9_000_000)
STEREO = About("a-en-128", "audio", channels=2, bps=128_000)
SURROUND = About("a-en-384", "audio", channels=6, bps=384_000)


def key(kid: str = ONE, attributes: str = "", value: str = f"<p:PlainValue>{PLAIN}</p:PlainValue>") -> str:
    return f'<ContentKey kid="{kid}" {attributes}><Data><p:Secret>{value}</p:Secret></Data></ContentKey>'


def rule(kid: str, filters: str = "", attributes: str = "") -> str:
    return f'<ContentKeyUsageRule kid="{kid}" {attributes}>{filters}</ContentKeyUsageRule>'


def document(keys: str, rules: str = "", systems: str = "", more: str = "") -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<CPIX xmlns="urn:dashif:org:cpix" xmlns:p="urn:ietf:params:xml:ns:keyprov:pskc" version="2.3">'
        f"<ContentKeyList>{keys}</ContentKeyList><DRMSystemList>{systems}</DRMSystemList>"
        f"<ContentKeyUsageRuleList>{rules}</ContentKeyUsageRuleList>{more}</CPIX>"
    ).encode()


def box(system: str, data: bytes = b"data") -> str:
    body = struct.pack(">I16sI", 0, bytes.fromhex(system.replace("-", "")), len(data)) + data
    return base64.b64encode(struct.pack(">I4s", 8 + len(body), b"pssh") + body).decode()


def system(kid: str, of: str, inside: str) -> str:
    return f'<DRMSystem kid="{kid}" systemId="{of}">{inside}</DRMSystem>'


def parse(data: bytes) -> Keys:
    return cpix.parse(data, "cenc", "keys.xml")


def test_one_key_without_rules_is_for_all() -> None:
    found = parse(document(key()))
    assert found.keys == {KID: KEY}
    assert {found.kid(track) for track in (SD, HD, UHD, STEREO)} == {KID}
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("one", "two", "of_one", "of_two"),
    [
        ("<VideoFilter/>", "<AudioFilter/>", [SD, HD, UHD], [STEREO, SURROUND]),
        ('<VideoFilter maxPixels="442368"/>', '<VideoFilter minPixels="442369"/>', [SD], [HD, UHD]),
        ('<VideoFilter maxFps="30"/>', '<VideoFilter minFps="30"/>', [SD, HD], [UHD]),
        ('<AudioFilter maxChannels="2"/>', '<AudioFilter minChannels="3"/>', [STEREO], [SURROUND]),
        ("<AudioFilter/><VideoFilter/>", '<VideoFilter hdr="true"/><VideoFilter wcg="1"/>', [SD, UHD, STEREO], []),
        (
            '<VideoFilter maxPixels="442368"/><VideoFilter minPixels="4000000"/>',
            "<AudioFilter/>",
            [SD, UHD],
            [STEREO],
        ),
        ('<BitrateFilter maxBitrate="600000"/>', '<BitrateFilter minBitrate="600001"/>', [SD, STEREO], [HD]),
        (
            '<VideoFilter/><BitrateFilter maxBitrate="600000"/>',
            '<VideoFilter/><BitrateFilter minBitrate="1000000"/><BitrateFilter minBitrate="700000"/>',
            [SD],
            [HD],
        ),
        ('<LabelFilter label="SD"/>', '<LabelFilter label="HD"/><LabelFilter label="audio"/>', [SD], [HD, STEREO]),
    ],
)
def test_filters_choose_tracks(one: str, two: str, of_one: list[About], of_two: list[About]) -> None:
    """Filters of a kind are alternatives; a rate is asked of what others have chosen."""
    found = parse(document(key(ONE) + key(TWO), rule(ONE, one) + rule(TWO, two)))
    assert [found.kid(track) for track in of_one] == [KID] * len(of_one)
    assert [found.kid(track) for track in of_two] == [OTHER] * len(of_two)


def test_intended_types_count_where_there_are_no_filters() -> None:
    rules = rule(ONE, attributes='intendedTrackType="SD+HD"') + rule(TWO, attributes='intendedTrackType="AUDIO"')
    found = parse(document(key(ONE) + key(TWO), rules))
    assert [found.kid(track) for track in (SD, HD, STEREO)] == [KID, KID, OTHER]
    with pytest.raises(ConfigError, match="no key for the track v-2160-9000"):
        found.kid(UHD)


def test_a_track_with_two_keys_is_refused() -> None:
    found = parse(document(key(ONE) + key(TWO), rule(ONE, "<VideoFilter/>") + rule(TWO)))
    with pytest.raises(ConfigError, match="v-360-500 has 2 keys"):
        found.kid(SD)


def test_what_key_systems_need() -> None:
    """pssh boxes of all but those that are written anyway, once; FairPlay's URI from either place."""
    lines = base64.b64encode(b'#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://one?x=1",KEYFORMAT="f"').decode()
    found = parse(
        document(
            key(ONE) + key(TWO),
            rule(ONE, "<VideoFilter/>") + rule(TWO, "<AudioFilter/>"),
            system(ONE, WIDEVINE, f"<PSSH>\n {box(WIDEVINE)}\n</PSSH>") * 2
            + system(ONE, PLAYREADY, f"<PSSH>{box(PLAYREADY, b'')}</PSSH><ContentProtectionData/>")
            + system(ONE, FAIRPLAY, f'<HLSSignalingData playlist="media">{lines}</HLSSignalingData>')
            + system(TWO, FAIRPLAY, f"<URIExtXKey>{base64.b64encode(b'skd://two').decode()}</URIExtXKey>")
            + system(TWO, FAIRPLAY, "<PSSH/>")
            + system(TWO, "e2719d58-a985-b3c9-781a-b030af78d30e", "")
            + system(
                TWO,
                "1077efec-c0b2-4d02-ace3-3c1e52e2fb4b",
                f"<PSSH>{box('1077efec-c0b2-4d02-ace3-3c1e52e2fb4b')}</PSSH>",
            ),
        )
    )
    assert found.pssh == {KID: [box(WIDEVINE), box(PLAYREADY, b"")]}
    assert found.skd == {KID: "skd://one?x=1", OTHER: "skd://two"}


def test_what_is_left_out_is_said() -> None:
    signature = '<Signature xmlns="http://www.w3.org/2000/09/xmldsig#"/>'
    found = parse(
        document(key(ONE, 'explicitIV="AAAAAAAAAAAAAAAAAAAAAA==" commonEncryptionScheme="cenc"'), more=signature)
    )
    assert len(found.notes) == 2
    assert "signature" in found.notes[0]
    assert f"the IV given with key {KID} is not used" in found.notes[1]


BOMB = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><CPIX xmlns="urn:dashif:org:cpix">&c;</CPIX>'
BAD = [
    (b"", "is not XML"),
    (b"<CPIX", "is not XML"),
    (b'<?xml version="1.0" encoding="nonsense"?><CPIX/>', "is not XML"),
    (BOMB, "document type"),
    (BOMB.decode().encode("utf-16"), "document type"),
    (b"<a>" * 40 + b"</a>" * 40, "deep"),
    (b"<CPIX/>", "no CPIX document"),
    (b"<html xmlns='urn:dashif:org:cpix'/>", "no CPIX document"),
    (document(""), "no ContentKey"),
    (document(key("abc")), "kid of a ContentKey is not 32 hexadecimal digits"),
    (document(key(value="<p:PlainValue>!</p:PlainValue>")), "not in base64"),
    (document(key(value=f"<p:PlainValue>{PLAIN[:8]}</p:PlainValue>")), "has 6 bytes"),
    (document(key(value="<p:EncryptedValue/>")), "itself encrypted"),
    (document(f'<ContentKey kid="{ONE}"/>'), "comes without a key"),
    (document(key(attributes='commonEncryptionScheme="cbcs"')), "give --encrypt cbcs"),
    (document(key() + key(value=f"<p:PlainValue>{'A' * 22}==</p:PlainValue>")), "two keys have the key id"),
    (document(key(ONE) + key(TWO)), "no rules"),
    (document(key(), rule(TWO)), "there is no such ContentKey"),
    (document(key(), rule(ONE, '<KeyPeriodFilter periodId="1"/>')), "do not change inside a title"),
    (document(key(), rule(ONE, "<MoodFilter/>")), "MoodFilter"),
    (document(key(), rule(ONE, attributes='intendedTrackType="NIGHT"')), "'NIGHT', which says nothing"),
    (document(key(), rule(ONE, '<VideoFilter minPixels="-1"/>')), "minPixels='-1' is not a number"),
    (document(key(), rule(ONE, "<BitrateFilter/>" * 1001)), "more than 1000 rules"),
    (document(key(), systems=system(TWO, WIDEVINE, "")), "there is no such ContentKey"),
    (document(key(), systems=system(ONE, "Widevine", "")), "systemId is not 32"),
    (document(key(), systems=system(ONE, WIDEVINE, "<PSSH>AAAA</PSSH>")), "cut off"),
    (document(key(), systems=system(ONE, WIDEVINE, f"<PSSH>{box(PLAYREADY)}</PSSH>")), "is one of system 9a04f079"),
    (document(key(), systems=system(ONE, FAIRPLAY, "<URIExtXKey>?</URIExtXKey>")), "not in base64"),
]


@pytest.mark.parametrize(("data", "match"), BAD)
def test_bad_documents_are_refused(data: bytes, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        parse(data)
    assert "keys.xml" in str(caught.value)
    assert PLAIN not in str(caught.value)


def test_a_document_is_read_from_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    path = tmp_path / "keys.xml"
    path.write_bytes(document(key()))
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        cpix.read(path, "cenc")
    path.chmod(0o600)
    assert cpix.read(path, "cenc").keys == {KID: KEY}
    with pytest.raises(ConfigError, match="No such file"):
        cpix.read(tmp_path / "nothing", "cenc")
    os.truncate(path, 2 << 20)
    with pytest.raises(ConfigError, match="longer than"):
        cpix.read(path, "cenc")
