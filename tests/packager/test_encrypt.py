"""Encryption: the samples are the clear ones under the right keys, cut at the same times; and keys show nowhere."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import struct
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from msgspec import structs

from oca.errors import ConfigError, FormatError
from oca.title import dash, hls, segments
from oca.title import model as title_format
from oca.title.location import Location
from oca.title.protection import Scheme
from oca.title.segments import SegmentIndex
from packager import ffmpeg, package
from packager.boxes import cmaf, mp4, sealed
from packager.encryption import encrypt, keys
from packager.encryption.encrypt import EncryptError, Encryption, Sealer, first_iv
from packager.encryption.keys import About, Keys
from tests.packager import test_cpix
from tests.packager.test_hls_strict import parsed

KEYS = {
    "1000000000000000000000000000000a": "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf",
    "2000000000000000000000000000000b": "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf",
}
VIDEO, AUDIO = KEYS
GIVEN = (f"video={VIDEO}:{KEYS[VIDEO]}", f"audio={AUDIO}:{KEYS[AUDIO]}")
SCHEMES: tuple[Scheme, ...] = ("cenc", "cbcs")
LADDER = "".join(f'[[rungs]]\nlines = 72\nkbps = 100\ncodec = "{codec}"\n' for codec in ("h264", "hevc", "av1"))
NS = {"": "urn:mpeg:dash:schema:mpd:2011", "cenc": "urn:mpeg:cenc:2013", "dashif": "https://dashif.org/CPS"}
LICENCES, KEY_URL = "https://keys.example/licence", "https://keys.example/key/{kid}"


@pytest.fixture(scope="session")
def shaka() -> encrypt.ShakaPackager:
    """The Shaka Packager that a build would use."""
    return encrypt.find()


@pytest.fixture(scope="session")
def small(make: Any) -> Path:
    """Ten seconds with sound: three segments."""
    pictures, sound = "testsrc2=s=128x72:r=10:d=10", "sine=440:d=10"
    codecs = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac")
    return make("small.mp4", "-f", "lavfi", "-i", pictures, "-f", "lavfi", "-i", sound, *codecs)


@pytest.fixture(scope="session")
def built(
    binary: ffmpeg.Ffmpeg, small: Path, shaka: encrypt.ShakaPackager, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, package.Built]:
    """The same video in three codecs, its sound in two: in clear, and encrypted by each scheme."""
    folder = tmp_path_factory.mktemp("encrypted")
    (folder / "ladder.toml").write_text(LADDER)
    found = {}
    for name in ("clear", *SCHEMES):
        how = None
        if name != "clear":
            scheme: Scheme = "cenc" if name == "cenc" else "cbcs"
            how = Encryption(shaka, scheme, keys.given(GIVEN), LICENCES, KEY_URL)
        options: dict[str, Any] = {"preset": "ultrafast", "ladder": str(folder / "ladder.toml"), "encryption": how}
        options["audio_codecs"] = ("aac", "opus")
        # A comma would end a field of Shaka Packager's.
        order = package.Order(small, folder / "a, store=1", "small", "Small", thumbnails=False, **options)
        found[name] = package.build(binary, order)
    return found


def index_of(built: package.Built, track: str) -> SegmentIndex:
    return segments.decode((built.path / f"{track}.idx").read_bytes())


def inside(data: bytes | memoryview, *path: str) -> memoryview:
    """The body of the first box on a path; of sample entries by where their boxes begin."""
    view = memoryview(data)
    for name in path:
        view = next(body for kind, body in mp4.boxes(view) if kind == name)
        view = view[{"stsd": 8, "encv": 78, "enca": 28, "avc1": 78, "mp4a": 28, "Opus": 28}.get(name, 0) :]
    return view


def samples(data: bytes, index: SegmentIndex) -> Iterator[tuple[bytes, bytes]]:
    """Each sample of a track file, and what senc says of it."""
    moov = bytes(inside(data[: index.init_bytes], "moov"))
    encrypted = b"tenc" in moov
    iv_bytes = inside(moov, *STSD, entry_of(moov), "sinf", "schi", "tenc")[7] if encrypted else 0
    for segment in index.segments:
        moof, (kind, mdat), *more = list(mp4.boxes(data[segment.offset : segment.offset + segment.bytes]))
        assert (kind, more) == ("mdat", [])
        traf = dict(mp4.boxes(inside(moof[1], "traf")))
        flags, count, offset = struct.unpack_from(">IIi", traf["trun"])
        columns = 1 + bool(flags & 0x100) + bool(flags & 0x800)
        rows = struct.unpack_from(f">{columns * count}I", traf["trun"], 12 + 4 * bool(flags & 4))
        sizes = rows[bool(flags & 0x100) :: columns]
        assert offset == len(moof[1]) + 16
        told = aux(traf, data[segment.offset :], iv_bytes, count) if "senc" in traf else [b""] * count
        assert ("saiz" in traf) == ("saio" in traf) == ("senc" in traf)
        assert segment.i_frame_bytes == offset + sizes[0]
        position = 0
        for size, said in zip(sizes, told, strict=True):
            yield bytes(mdat[position : position + size]), said
            position += size
        assert position == len(mdat)


STSD = ("trak", "mdia", "minf", "stbl", "stsd")


def entry_of(moov: bytes) -> str:
    return next(kind for kind, _ in mp4.boxes(inside(moov, *STSD)))


def aux(traf: dict[str, memoryview], segment: bytes, iv_bytes: int, count: int) -> list[bytes]:
    """By saiz and saio; they are what senc holds."""
    flags, usual, of = struct.unpack_from(">IBI", traf["saiz"])
    lengths = [usual] * count if usual else list(traf["saiz"][9:])
    assert (flags, of, len(lengths)) == (0, count, count)
    (entries, position) = struct.unpack(">II", traf["saio"][4:])
    assert entries == 1
    found = [segment[position + sum(lengths[:n]) :][: lengths[n]] for n in range(count)]
    assert struct.unpack_from(">I", traf["senc"], 4) == (count,)
    assert bytes(traf["senc"][8:]) == b"".join(found)
    assert bool(traf["senc"][3] & 2) == any(len(each) > iv_bytes for each in found)
    return found


def decrypted(sample: bytes, said: bytes, scheme: str, tenc: memoryview, key: bytes) -> bytes:
    """A sample in clear (23001-7 9.5, 9.6)."""
    iv_bytes = tenc[7]
    iv = said[:iv_bytes] or bytes(tenc[25 : 25 + tenc[24]])
    spans = [(0, len(sample))]
    if len(said) > iv_bytes:
        spans = list(struct.iter_unpack(">HI", said[iv_bytes + 2 :]))
    crypt, skip = tenc[5] >> 4, tenc[5] & 15
    out, position = bytearray(sample), 0
    counter = Cipher(algorithms.AES(key), modes.CTR(iv.ljust(16, b"\0"))).decryptor() if scheme == "cenc" else None
    for clear, length in spans:
        position += clear
        if counter:
            out[position : position + length] = counter.update(sample[position : position + length])
        else:
            places = [n for n in range(0, length - 15, 16) if not crypt + skip or n // 16 % (crypt + skip) < crypt]
            chained = b"".join(sample[position + n : position + n + 16] for n in places)
            plain = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor().update(chained)
            for number, n in enumerate(places):
                out[position + n : position + n + 16] = plain[16 * number : 16 * number + 16]
        position += length
    assert position == len(sample)
    return bytes(out)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_sample_is_the_clear_one_under_its_key(built: dict[str, package.Built], scheme: str) -> None:
    """H.264, HEVC, AV1, AAC and Opus, decrypted by what init segment and fragments say, and cut at the same times."""
    clear, locked = built["clear"], built[scheme]
    assert [track.name for track in locked.title.tracks] == [track.name for track in clear.title.tracks]
    ivs: dict[str, list[bytes]] = {}
    for track in clear.title.tracks:
        before, index = index_of(clear, track.name), index_of(locked, track.name)
        data = (locked.path / f"{track.name}.mp4").read_bytes()
        times = [(segment.time, segment.duration) for segment in before.segments]
        assert [(segment.time, segment.duration) for segment in index.segments] == times
        assert len(times) == 3
        assert all(segment.offset % 4096 == 0 for segment in index.segments)
        assert [kind for kind, _ in mp4.boxes(data)][:3] == ["ftyp", "moov", "sidx"]
        moov = bytes(inside(data[: index.init_bytes], "moov"))
        assert entry_of(moov) == ("encv" if track.kind == "video" else "enca")
        sinf = inside(moov, *STSD, entry_of(moov), "sinf")
        plain = (clear.path / f"{track.name}.mp4").read_bytes()
        name = entry_of(bytes(inside(plain[: before.init_bytes], "moov")))
        assert (bytes(inside(sinf, "frma")), bytes(inside(sinf, "schm"))[4:8]) == (name.encode(), scheme.encode())
        tenc = inside(sinf, "schi", "tenc")
        kid = VIDEO if track.kind == "video" else AUDIO
        assert tenc[8:24].hex() == kid
        pairs = list(zip(samples(data, index), samples(plain, before), strict=True))
        for (sample, said), (wanted, _) in pairs:
            assert decrypted(sample, said, scheme, tenc, bytes.fromhex(KEYS[kid])) == wanted
            ivs.setdefault(kid, []).append(said[: tenc[7]])
        changed = sum(sample != wanted for (sample, _), (wanted, _) in pairs)
        # Small pictures and silence may fit into what is always in clear.
        assert changed > len(pairs) / 2, track.name
        assert (tenc[7], tenc[5]) == ((8, 0) if scheme == "cenc" else (0, 0x19 if track.kind == "video" else 0))
    if scheme == "cenc":
        assert all(len(set(found)) == len(found) for found in ivs.values()), "an IV serves two samples"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_program_plays_it(
    binary: ffmpeg.Ffmpeg, built: dict[str, package.Built], scheme: str, tmp_path: Path
) -> None:
    """ffmpeg, given the key, decodes the pictures and the sound that it has of the clear files."""

    def shown(path: Path, *given: str) -> list[str]:
        lines: list[str] = []
        binary.run(["-v", "fatal", *given, "-i", str(path), "-f", "framecrc", "-"], lines.append)
        return [line for line in lines if not line.startswith("#")]

    for track in built["clear"].title.tracks:
        key = KEYS[VIDEO if track.kind == "video" else AUDIO]
        path = built[scheme].path / f"{track.name}.mp4"
        assert shown(path, "-decryption_key", key) == shown(built["clear"].path / path.name), track.name


def test_the_same_build_again_gives_the_same_bytes(
    binary: ffmpeg.Ffmpeg, small: Path, shaka: encrypt.ShakaPackager, tmp_path: Path
) -> None:
    """With the same keys the same version, and with another key another, with other IVs."""
    versions = []
    for pair in (f"{VIDEO}:{KEYS[VIDEO]}", f"{VIDEO}:{KEYS[VIDEO]}", f"{AUDIO}:{KEYS[AUDIO]}"):
        how = Encryption(shaka, "cbcs", keys.given([pair]))
        options: dict[str, Any] = {"preset": "ultrafast", "thumbnails": False, "encryption": how}
        found = package.build(binary, package.Order(small, tmp_path, "small", "Small", **options))
        versions.append(found.version)
        (pathless,) = found.path.parent.glob(found.version)
        assert pathless.is_dir()
    assert versions[0] == versions[1] != versions[2]


def test_ivs_lie_apart() -> None:
    """They follow from key id, content and scheme, and what one track has of the counter no other one gets."""
    one = first_iv("cenc", VIDEO, "content", 1000, taken := [])
    assert taken == [(int.from_bytes(one, "big"), 1000)]
    assert first_iv("cenc", VIDEO, "content", 1000, []) == one
    others = [first_iv(*of, 1000, []) for of in (("cenc", VIDEO, "other"), ("cenc", AUDIO, "content"))]
    assert len({one, *others, first_iv("cbcs", VIDEO, "content", 1000, [])[:8]}) == 4
    first = int.from_bytes(one, "big")
    # Each of these would have a sample with the same counter: around it, in it, at its end, and round the corner.
    for start, count in ((first, 1), (first + 999, 5), (first - 4, 5), ((first - 2**63) % 2**64, 2**63 + 1)):
        again = int.from_bytes(first_iv("cenc", VIDEO, "content", 1000, taken := [(start % 2**64, count)]), "big")
        assert again != first
        assert taken[1] == (again, 1000)
    for start in (first + 1000, first - 5):
        assert first_iv("cenc", VIDEO, "content", 1000, [(start % 2**64, 5)]) == one
    assert len(first_iv("cbcs", VIDEO, "content", 1, [(0, 2**64)])) == 16


@pytest.mark.parametrize("scheme", SCHEMES)
def test_opus_is_encrypted_as_well(make: Any, shaka: encrypt.ShakaPackager, scheme: Scheme, tmp_path: Path) -> None:
    sound = make("opus.mp4", "-f", "lavfi", "-i", "sine=440:d=2", "-c:a", "libopus", "-b:a", "64k")
    track, _ = cmaf.write_track([sound], tmp_path / "clear.mp4", [])
    how = Encryption(shaka, scheme, keys.given([f"{AUDIO}:{KEYS[AUDIO]}"]))
    sealer = Sealer(how, how.protection([About("a-und-128", "audio")]), tmp_path, 4)
    found = sealer.seal("a-und-128", tmp_path / "clear.mp4", len(track.samples.sizes))
    _, index = cmaf.write_track([sound], tmp_path / "out.mp4", [], sealed=found)
    data, plain = (tmp_path / "out.mp4").read_bytes(), (tmp_path / "clear.mp4").read_bytes()
    moov = bytes(inside(data[: index.init_bytes], "moov"))
    tenc = inside(moov, *STSD, "enca", "sinf", "schi", "tenc")
    wanted = b"".join(
        decrypted(s, said, scheme, tenc, bytes.fromhex(KEYS[AUDIO])) for s, said in samples(data, index)
    )
    assert wanted in plain
    assert len(wanted) > 10_000


# What manifests say


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_mpd_says_how_it_is_encrypted(built: dict[str, package.Built], scheme: str) -> None:
    """Static ones in both forms, and one made for a viewer; whose tracks with one key can still be switched."""
    read, version = title_format.read(built[scheme].path)
    indexes = {track.name: index_of(built[scheme], track.name) for track in read.tracks}
    places = [Location("a-1", f"http://a-1.example/t/{read.id}/{version}/")]
    texts = [(built[scheme].path / name).read_text() for name in ("manifest.mpd", "ondemand.mpd")]
    for text in (*texts, dash.mpd(read, indexes, places, "http://control.example/steer")):
        sets = ET.fromstring(text).findall(".//AdaptationSet", NS)
        assert [each.get("contentType") for each in sets] == ["video", "video", "video", "audio", "audio"]
        for each in sets:
            kid = VIDEO if each.get("contentType") == "video" else AUDIO
            common, clear = each.findall("ContentProtection", NS)
            assert common.get("schemeIdUri") == "urn:mpeg:dash:mp4protection:2011"
            assert common.get("value") == scheme
            assert str(common.get("{urn:mpeg:cenc:2013}default_KID")).replace("-", "") == kid
            assert clear.get("schemeIdUri") == "urn:uuid:e2719d58-a985-b3c9-781a-b030af78d30e"
            assert clear.findtext("dashif:Laurl", None, NS) == LICENCES
        assert text.count("<dashif:Laurl ") == 5, "dash.js goes by the prefix"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_playlist_says_how_it_is_encrypted(built: dict[str, package.Built], scheme: str) -> None:
    """Of segments, byte ranges and I-frames, with the keys as players want them; and the strict parser agrees."""
    read, version = title_format.read(built[scheme].path)
    method = {"cenc": "SAMPLE-AES-CTR", "cbcs": "SAMPLE-AES"}[scheme]
    for track in read.tracks:
        kid = VIDEO if track.kind == "video" else AUDIO
        plain = base64.b64encode(bytes.fromhex(kid)).decode()
        names = [name for name in read.files if name.startswith(f"{track.name}.") and name.endswith(".m3u8")]
        assert len(names) == (4 if track.kind == "video" else 2)
        for name in names:
            lines = (built[scheme].path / name).read_text().splitlines()
            told = [line for line in lines if line.startswith("#EXT-X-KEY:")]
            uri, data = f"https://keys.example/key/{kid}", f"data:text/plain;base64,{plain}"
            wanted = [
                f'#EXT-X-KEY:METHOD={method},URI="{uri}",KEYFORMAT="identity",KEYFORMATVERSIONS="1"',
                *(["#EXT-X-KEY:METHOD=NONE"] if scheme == "cbcs" else []),
                f'#EXT-X-KEY:METHOD={method},URI="{data}",KEYFORMAT="org.w3.clearkey",KEYFORMATVERSIONS="1"',
            ]
            assert told == wanted
            place = lines.index(told[0])
            assert lines[place - 1].startswith("#EXT-X-MAP:")
            assert lines[place + len(told)].startswith("#EXTINF:")
    indexes = {track.name: index_of(built[scheme], track.name) for track in read.tracks}
    places = [Location(box, f"http://{box}.example/t/{read.id}/{version}/") for box in ("a-1", "b-2")]
    texts = [(built[scheme].path / name).read_text() for name in ("master.m3u8", "master.ranges.m3u8")]
    texts.append(hls.multivariant(read, indexes, places, "http://control.example/steer"))
    for text in texts:
        found = re.findall(r"^#EXT-X-SESSION-KEY:METHOD=(\S+?),URI=\S*?,KEYFORMAT=\"(\S+?)\"", text, re.M)
        assert found == [(method, "org.w3.clearkey")] * 2
    every = [(built[scheme].path / name).read_text() for name in read.files if name.endswith(".m3u8")]
    assert len(parsed([*every, texts[2]])) == len(every) + 1


def test_tracks_with_different_keys_are_sets_between_which_players_may_switch(
    built: dict[str, package.Built],
) -> None:
    read, _ = title_format.read(built["cenc"].path)
    first, *_, sound = read.tracks
    second = structs.replace(first, name="v-72-200")
    assert read.protection
    protection = structs.replace(read.protection, kids={first.name: VIDEO, "v-72-200": AUDIO, sound.name: AUDIO})
    tracks = [first, second, sound]
    indexes = {
        track.name: index_of(built["cenc"], {"v-72-200": first.name}.get(track.name, track.name)) for track in tracks
    }
    made = structs.replace(read, protection=protection, periods=[structs.replace(read.periods[0], tracks=tracks)])
    sets = ET.fromstring(dash.mpd(made, indexes)).findall(".//AdaptationSet", NS)
    switching = [each.find("SupplementalProperty", NS) for each in sets]
    assert [None if each is None else each.get("value") for each in switching] == ["1", "0", None]
    same = structs.replace(protection, kids=dict.fromkeys(protection.kids, VIDEO))
    sets = ET.fromstring(dash.mpd(structs.replace(made, protection=same), indexes)).findall(".//AdaptationSet", NS)
    assert [len(each.findall("Representation", NS)) for each in sets] == [2, 1]


# Keys


def secrets(key: str) -> list[bytes]:
    """A key in every spelling that it might be found in."""
    raw = bytes.fromhex(key)
    return [raw, key.encode(), key.upper().encode(), base64.b64encode(raw), base64.urlsafe_b64encode(raw)[:22]]


def test_keys_show_nowhere(
    run: Any, small: Path, shaka: encrypt.ShakaPackager, tmp_path: Path, monkeypatch: Any
) -> None:
    """Not in what is said and shown, not in any file of the store, nor in any command line."""
    script, seen = tmp_path / "packager", tmp_path / "seen"
    script.write_text(f'#!/bin/sh\ntr "\\0" " " < /proc/$$/cmdline >> {seen}\nexec {shaka.path} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("OCA_SHAKA_PACKAGER", str(script))
    listed = tmp_path / "keys"
    listed.write_text(f"# mine\n\n{VIDEO}:{KEYS[VIDEO]} video # pictures\n{AUDIO.upper()}:{KEYS[AUDIO]}\n")
    listed.chmod(0o600)
    store = tmp_path / "store"
    options = ("--preset", "ultrafast", "--encrypt", "cbcs", "--key-file", listed, "--show-commands", "--title", "x")
    status, out, err = run("build", small, "--out", store, *options, "--clearkey-url", LICENCES, "--key-url", KEY_URL)
    assert status == 0, err
    assert "FLAGS_keys=<secret> " in err
    assert "thumbnails and captions are not encrypted" in err
    told = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    everything = told + out.encode() + err.encode() + seen.read_bytes()
    assert seen.read_text().count("--protection_scheme=cbcs") == 2
    for key in KEYS.values():
        assert not [spelling for spelling in secrets(key) if spelling in everything]
    status, out, _ = run("inspect", store / "x", "--json")
    assert status == 0
    protection = json.loads(out)[0]["protection"]
    assert protection["scheme"] == "cbcs"
    assert protection["kids"] == {"v-72-235": VIDEO, "a-und-64": AUDIO}
    out = run("inspect", store / "x")[1]
    assert "encrypted with cbcs" in out
    assert VIDEO in out.replace("\n", "") or VIDEO[:8] in out
    assert run("verify", store / "x")[0] == 0


def test_a_title_by_a_cpix_document(run: Any, small: Path, tmp_path: Path) -> None:
    """Each track has its key, manifests and init segments the boxes; what was not checked is said."""
    path, box = tmp_path / "keys.xml", test_cpix.box(test_cpix.WIDEVINE)
    rules = test_cpix.rule(test_cpix.ONE, "<VideoFilter/>") + test_cpix.rule(test_cpix.TWO, "<AudioFilter/>")
    systems = test_cpix.system(test_cpix.ONE, test_cpix.WIDEVINE, f"<PSSH>{box}</PSSH>")
    signature = '<Signature xmlns="http://www.w3.org/2000/09/xmldsig#"/>'
    path.write_bytes(
        test_cpix.document(test_cpix.key(test_cpix.ONE) + test_cpix.key(test_cpix.TWO), rules, systems, signature)
    )
    path.chmod(0o600)
    options = ("--preset", "ultrafast", "--no-thumbnails", "--encrypt", "cenc", "--cpix", path, "--json")
    status, out, err = run("build", small, "--out", tmp_path / "store", *options)
    assert status == 0, err
    assert "its signature was not checked" in err
    assert "thumbnails and captions" not in err
    directory = Path(json.loads(out)["path"])
    protection = title_format.read(directory)[0].protection
    assert protection
    assert protection.kids == {"v-72-235": test_cpix.KID, "a-und-64": test_cpix.OTHER}
    assert (directory / "manifest.mpd").read_text().count(f">{box}</cenc:pssh>") == 1
    for name, there in (("v-72-235", True), ("a-und-64", False)):
        assert (base64.b64decode(box) in (directory / f"{name}.mp4").read_bytes()) is there
        assert (box in (directory / f"{name}.m3u8").read_text()) is there


def test_what_shaka_packager_says_is_passed_on_without_the_key(tmp_path: Path, small: Path) -> None:
    script = tmp_path / "packager"
    script.write_text('#!/bin/sh\necho "no good: $FLAGS_keys" | tr a-f A-F >&2\nexit 1\n')
    script.chmod(0o755)
    how = Encryption(encrypt.ShakaPackager(script, "3.8"), "cenc", keys.given([f"{VIDEO}:{KEYS[VIDEO]}"]))
    sealer = Sealer(how, how.protection([About("v1", "video")]), tmp_path, 4)
    with pytest.raises(EncryptError, match=r"track v1 could not be encrypted with cenc: .*no gooD: .*<key>$"):
        sealer.seal("v1", small, 10)


def test_where_shaka_packager_is_looked_for(tmp_path: Path, monkeypatch: Any, shaka: encrypt.ShakaPackager) -> None:
    assert re.fullmatch(r"v3\.\d+\.\S+", shaka.version)
    monkeypatch.setenv("OCA_SHAKA_PACKAGER", str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"cannot be run as Shaka Packager.*pip install 'oca\[drm\]'"):
        encrypt.find()
    other = tmp_path / "packager"
    for said in ("packager version v2.6.1-x", "hello"):
        other.write_text(f"#!/bin/sh\necho {said}\n")
        other.chmod(0o755)
        monkeypatch.setenv("OCA_SHAKA_PACKAGER", str(other))
        with pytest.raises(ConfigError, match=r"does not say that it is Shaka Packager 3\.0 or newer"):
            encrypt.find()
    monkeypatch.delenv("OCA_SHAKA_PACKAGER")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    other.write_text("#!/bin/sh\necho packager version v3.0.0-x-release\n")
    assert encrypt.find().path == other
    other.unlink()
    with pytest.raises(ConfigError, match=r"not on this machine: pip install 'oca\[drm\]'"):
        encrypt.find()


LINE = f"{VIDEO}:{KEYS[VIDEO]}"
BAD = [
    (("--key", LINE), "add --encrypt cenc or cbcs"),
    (("--clearkey-url", LICENCES), "add --encrypt cenc or cbcs"),
    (("--encrypt", "cenc"), "give one of these"),
    (("--encrypt", "cenc", "--key", LINE, "--key-file", "k"), "give one of these"),
    (("--encrypt", "cenc", "--key", f"{VIDEO}:abc"), "key number 1: the key is not 32 hexadecimal digits"),
    (("--encrypt", "cenc", "--key", f"{VIDEO[1:]}:{KEYS[VIDEO]}"), "the key id is not 32 hexadecimal digits"),
    (("--encrypt", "cenc", "--key", KEYS[VIDEO]), "there is no colon"),
    (("--encrypt", "cenc", "--key", f"night={LINE}"), "cannot be for 'night': use video, audio, sd, hd, uhd"),
    (("--encrypt", "cenc", "--key", f"{KEYS[VIDEO]}={LINE}"), "cannot be for what is said there"),
    (("--encrypt", "cenc", "--key", LINE, "--key", f"sd={VIDEO}:{KEYS[AUDIO]}"), "two keys with the key id"),
    (("--encrypt", "cenc", "--key", LINE, "--key", f"{AUDIO}:{KEYS[AUDIO]}"), "two keys for all tracks"),
    (("--encrypt", "cenc", "--key", f"video={LINE}"), "no key for the track a-und-64: give one that is for audio"),
    (("--encrypt", "cenc", "--key", f"uhd={LINE}", "--key", f"audio={LINE}"), "no key for the track v-72-235"),
    (("--encrypt", "cenc", "--key", LINE, "--clearkey-url", "keys"), "the ClearKey URL 'keys' is not an absolute"),
    (("--encrypt", "cenc", "--key", LINE, "--key-url", 'http://k/"'), "the key URL"),
    (
        ("--encrypt", "cenc", *("--key", GIVEN[0], "--key", GIVEN[1]), "--key-url", "http://k/key"),
        "put {kid} into it",
    ),
    (("--encrypt", "cenc", "--cpix", "nothing.xml"), "cannot read the keys in nothing.xml"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_bad_options_are_refused_before_anything_is_encoded(
    run: Any, small: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    status, out, err = run("build", small, "--out", tmp_path / "store", *arguments)
    assert (status, out) == (1, "")
    assert said in " ".join(err.split())
    assert not [key for key in KEYS.values() if key in err]
    assert not list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "it is not text"),
        (b"# nothing\n", "gives no key"),
        (f"{LINE} video please".encode(), "line 1: there are 3 words"),
        (f"\n{LINE}x".encode(), "line 2: the key is not 32"),
        ("".join(f"{n:032x}:{n:032x}\n" for n in range(1001)).encode(), "more than the 1000 allowed"),
    ],
)
def test_bad_files_of_keys_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=re.escape(said)):
        keys.read(path)


def test_the_key_that_is_for_less_is_taken() -> None:
    kids = {label: f"{number:032x}" for number, label in enumerate(("", "video", "hd"), 1)}
    found = keys.given(f"{label}={kid}:{kid}" if label else f"{kid}:{kid}" for label, kid in kids.items())
    assert found.kid(About("v", "video", 640 * 360)) == kids["video"]
    assert found.kid(About("v", "video", 1280 * 720)) == kids["hd"]
    assert found.kid(About("v", "video", 3840 * 2160)) == kids["video"]
    assert found.kid(About("a", "audio", channels=2)) == kids[""]
    assert isinstance(found, Keys)
    assert kids["hd"] not in repr(found).replace(f"kid='{kids['hd']}'", "")


# What the other program writes is hostile, too


@pytest.fixture(scope="module")
def written(built: dict[str, package.Built], shaka: encrypt.ShakaPackager, tmp_path_factory: Any) -> bytes:
    """A file of Shaka Packager's."""
    folder = tmp_path_factory.mktemp("written")
    clear = folder / "clear.mp4"
    shutil.copy(built["clear"].path / f"{built['clear'].title.tracks[0].name}.mp4", clear)
    how = Encryption(shaka, "cenc", keys.given([f"{VIDEO}:{KEYS[VIDEO]}"]))
    sealer = Sealer(how, how.protection([About("v1", "video")]), folder, 4)
    return sealer.seal("v1", clear, 100).path.read_bytes()


def test_a_file_that_is_not_what_was_asked_for_is_refused(written: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.mp4"

    def refused(data: bytes, scheme: str = "cenc", kid: str = VIDEO) -> str:
        path.write_bytes(data)
        with pytest.raises(FormatError) as caught:
            sealed.read(path, scheme, kid)
        return str(caught.value)

    path.write_bytes(written)
    assert len(sealed.read(path, "cenc", VIDEO).sizes) == 100
    assert "it is encrypted with b'cenc'" in refused(written, "cbcs")
    assert f"key id {VIDEO}" in refused(written, kid=AUDIO)
    assert "no encrypted samples" in refused(b"")
    assert "no encrypted samples" in refused(written[: written.index(b"moof") - 4])
    assert "leaves the file" in refused(written[:-1000])
    assert "senc is about 0 samples" in refused(written.replace(b"senc", b"free", 1))
    assert "takes 1073741824 bytes" in refused(struct.pack(">I4s", 1 << 30, b"moof") + bytes(100))
    assert "claims 4 bytes" in refused(struct.pack(">I4s", 4, b"free") + bytes(100))
    assert "'traf'" in refused(written.replace(b"traf", b"free", 1))
    trun, senc = written.index(b"trun") + 4, written.index(b"senc") + 4
    assert "claims" in refused(written[: trun + 4] + b"\x7f\xff\xff\xff" + written[trun + 8 :])
    assert "where its samples are" in refused(written[: trun + 3] + b"\x00" + written[trun + 4 :])
    assert "senc is about" in refused(written[: senc + 4] + bytes(4) + written[senc + 8 :])
    assert "says more of a sample" in refused(written[: senc + 16] + b"\xff\xff" + written[senc + 18 :])


def test_samples_of_something_else_are_not_taken(written: bytes, make: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.mp4"
    path.write_bytes(written)
    found = sealed.read(path, "cenc", VIDEO)
    other = make("opus.mp4", "-f", "lavfi", "-i", "sine=440:d=2", "-c:a", "libopus", "-b:a", "64k")
    with pytest.raises(FormatError, match="other samples than were to be encrypted"):
        cmaf.write_track([other], tmp_path / "out.mp4", sealed=found)
