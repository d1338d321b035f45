"""title.json, the segment index and the messages on the wire: what is written is read, what is broken is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import lz4.frame
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oca import config, wire
from oca.config import ApplianceSettings
from oca.errors import ConfigError, FormatError
from oca.ids import check_id, is_id, is_version
from oca.title import model as title
from oca.title import segments
from oca.title.digest import CHUNK_BYTES, chunk_count, chunk_span, digest, file_digest, version_of
from oca.title.segments import Segment, SegmentIndex


@st.composite
def indexes(draw: st.DrawFn) -> SegmentIndex:
    init = draw(st.integers(1, 5000))
    offset, time, rows = init + draw(st.integers(0, 100)), draw(st.integers(0, 1000)), []
    for _ in range(draw(st.integers(1, 8))):
        size, duration = draw(st.integers(1, 1 << 31)), draw(st.integers(1, 1 << 30))
        rows.append(Segment(offset, size, time, duration, draw(st.integers(0, size))))
        offset, time = offset + size + draw(st.integers(0, 3)), time + duration
    return SegmentIndex(draw(st.integers(1, 1 << 31)), init, tuple(rows))


@given(indexes())
def test_an_index_is_read_as_it_was_written(index: SegmentIndex) -> None:
    assert segments.decode(segments.encode(index)) == index


@given(indexes(), st.data())
def test_a_damaged_index_is_refused_or_consistent(index: SegmentIndex, data: st.DataObject) -> None:
    """Whatever byte is flipped, decoding gives a sentence or an index whose segments do not overlap."""
    raw = bytearray(segments.encode(index))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = segments.decode(bytes(raw))
    except FormatError:
        return
    ends = [found.init_bytes, *(s.offset + s.bytes for s in found.segments)]
    assert all(s.offset >= end for s, end in zip(found.segments, ends, strict=False))


@given(st.binary(max_size=200))
def test_garbage_is_never_an_index(data: bytes) -> None:
    for raw in (data, segments.MAGIC + data, segments.MAGIC + struct.pack("<IIQ", 1, 1 << 31, 1) + data):
        with pytest.raises(FormatError):
            segments.decode(raw)


def test_a_newer_index_is_refused_with_a_sentence() -> None:
    raw = bytearray(segments.encode(SegmentIndex(1, 1, (Segment(1, 1, 0, 1, 1),))))
    raw[6] = ord("2")
    with pytest.raises(FormatError, match=r"v1.idx is of format b'2.x00', this program knows format 1: upgrade oca"):
        segments.decode(bytes(raw), "v1.idx")


GOLDEN = """
4f 43 41 49 44 58 31 00                         magic OCAIDX1 and a zero
30 75 00 00                                     timescale 30,000
02 00 00 00                                     segments: 2
89 03 00 00 00 00 00 00                         bytes of the init segment: 905
00 04 00 00 00 00 00 00  10 00 01 00            segment 1: offset 1,024, bytes 65,552
00 00 00 00 00 00 00 00  e0 d4 01 00            decode time 0, duration 120,032
39 30 00 00                                     its I-frame ends at 12,345
00 10 01 00 01 00 00 00  02 00 00 00            segment 2: offset 2^32 + 69,632, bytes 2
e0 d4 01 00 00 00 00 00  01 00 00 00            decode time 120,032, duration 1
01 00 00 00                                     its I-frame ends at 1
"""


def test_the_bytes_of_an_index() -> None:
    """The layout, little-endian and without padding, written out by hand: other programs read it."""
    data = bytes.fromhex("".join(line[:48] for line in GOLDEN.splitlines()))
    index = SegmentIndex(
        30_000, 905, (Segment(1024, 65_552, 0, 120_032, 12_345), Segment((1 << 32) + 69_632, 2, 120_032, 1, 1))
    )
    assert len(data) == 24 + 2 * 28
    assert segments.encode(index) == data
    assert segments.decode(data) == index


def test_slices_of_an_index() -> None:
    """Segments count from 1, 0 is the init segment, anything else is none."""
    index = SegmentIndex(25, 500, (Segment(540, 10, 0, 100, 5), Segment(550, 20, 100, 100, 5)))
    assert [index.slice(n) for n in (-1, 0, 1, 2, 3)] == [None, (0, 500), (540, 10), (550, 20), None]
    assert (index.track_bytes, index.duration) == (570, 200)


def test_a_title_is_read_as_it_was_written_and_names_its_version(tmp_path: Path, make_title) -> None:
    made = make_title(tmp_path)
    read, version = title.read(made.directory)
    assert (read, version) == (made.title, made.version)
    assert title.encode(read) == made.bytes_of("title.json")
    assert version == version_of(made.bytes_of("title.json")) == made.directory.name
    assert set(read.shared_files) == {"manifest.mpd", "master.m3u8"}
    assert read.seconds == 12.0


BREAKS = [
    (lambda t: t.update(format=2), "format 2"),
    (lambda t: t.update(format="1"), "corrupt"),
    (lambda t: t.pop("format"), "corrupt"),
    (lambda t: t.update(id="../etc"), "not an id"),
    (lambda t: t.update(chunk_bytes=0), "chunk_bytes is 0, not from 4096 .4 KiB. to 67108864 .64 MiB."),
    (lambda t: t.update(chunk_bytes=4095), "chunk_bytes"),
    (lambda t: t.update(chunk_bytes=(64 << 20) + 1), "chunk_bytes"),
    (lambda t: t.update(chunk_bytes=1 << 70), "corrupt"),
    (lambda t: t.update(chunk_bytes=5000), "chunk digests"),
    (lambda t: t.update(periods=[]), "no tracks"),
    (lambda t: t["periods"][0].update(tracks=[]), "no tracks"),
    (lambda t: t["periods"][0]["tracks"].append(t["periods"][0]["tracks"][0]), "same name"),
    (
        lambda t: t["periods"][0]["tracks"][0].update(name="../x"),
        "track name '../x' is not 1 to 32 of a-z, 0-9 and '-'",
    ),
    (lambda t: t["periods"][0]["tracks"][0].update(name="v.1"), "track name"),
    (lambda t: t["periods"][0]["tracks"][0].update(name="-v"), "track name"),
    (lambda t: t["periods"][0]["tracks"][0].update(name="v" * 33), "track name"),
    (lambda t: t["periods"][0]["tracks"][0].update(timescale=0), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(duration=1 << 63), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(width=-1), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(kind="smell"), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(codecs='avc1"x'), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(frame_rate="25/0"), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(frame_rate="25\n"), "corrupt"),
    (lambda t: t["periods"][0]["tracks"][0].update(language='de"'), "corrupt"),
    (lambda t: t["files"].pop("v1.mp4"), "missing from files"),
    (lambda t: t["files"].update({"../x": t["files"]["v1.mp4"]}), "file name"),
    (lambda t: t["files"].update({"title.json": t["files"]["v1.mp4"]}), "itself"),
    (lambda t: t["files"]["v1.mp4"].update(bytes=-1), "corrupt"),
    (lambda t: t["files"]["v1.mp4"].update(chunks=[]), "chunk digests"),
    (lambda t: t["files"]["v1.mp4"].update(digest="x"), "corrupt"),
]


@pytest.mark.parametrize(("spoil", "words"), BREAKS)
def test_a_corrupt_title_is_refused_with_a_sentence(tmp_path: Path, make_title, spoil, words: str) -> None:
    spoilt = json.loads(make_title(tmp_path).bytes_of("title.json"))
    spoil(spoilt)
    with pytest.raises(FormatError, match=words):
        title.decode(json.dumps(spoilt).encode(), "clip/title.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"format":1}'])
def test_what_is_no_title_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^here is"):
        title.decode(data, "here")


def test_the_length_of_chunks_is_the_title_s(tmp_path: Path, make_title) -> None:
    """Any length will do; it is written once, and what a file says of it itself counts for nothing."""
    made = make_title(tmp_path, chunk_bytes=5000)
    file = made.title.files["v1.mp4"]
    read, version = title.read(made.directory)
    assert (read, version) == (made.title, made.version)
    assert title.encode(read).count(b"chunk_bytes") == 1
    assert [file.span(number) for number in range(len(file.chunks))] == [(0, 5000), (5000, 5000), (10_000, 2540)]
    data = made.bytes_of("v1.mp4")
    assert [digest(data[first : first + length]) for first, length in map(file.span, range(3))] == file.chunks
    spoilt = json.loads(made.bytes_of("title.json"))
    spoilt["files"]["v1.mp4"]["chunk_bytes"] = 0
    assert title.decode(json.dumps(spoilt).encode()) == made.title


def test_unknown_fields_are_ignored(tmp_path: Path, make_title) -> None:
    """A later program may add fields without a new format."""
    made = make_title(tmp_path)
    more = json.loads(made.bytes_of("title.json")) | {"mood": "calm"}
    assert title.decode(json.dumps(more).encode()) == made.title


def test_a_missing_title_says_where(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=f"cannot read {tmp_path}/title.json"):
        title.read(tmp_path)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a", True),
        ("v-720-3000", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        (".a", False),
        ("..", False),
    ]
    + [(bad, False) for bad in ("A", "a/b", "a b", "a\n", "a%2e", "ä", "-a", "_a")],
)
def test_ids(text: str, good: bool) -> None:
    assert is_id(text) is good
    if not good:
        with pytest.raises(FormatError, match="title id"):
            check_id(text, "title id")
    assert not is_version(text)


@pytest.mark.parametrize("chunk_bytes", [CHUNK_BYTES, 5000])
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 15_000])
def test_a_file_is_digested_chunk_by_chunk(tmp_path: Path, size: int, chunk_bytes: int) -> None:
    """Chunks cover the file exactly, and each digest is that of its bytes."""
    path, data = tmp_path / "f", bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path.write_bytes(data)
    seen: list[int] = []
    found = file_digest(path, chunk_bytes, seen.append)
    spans = [chunk_span(size, n, chunk_bytes) for n in range(chunk_count(size, chunk_bytes))]
    assert sum(seen) == found.bytes == size == sum(length for _, length in spans)
    assert found.whole == digest(data)
    assert found.chunks == [digest(data[offset : offset + length]) for offset, length in spans]


INVENTORY = wire.Inventory(appliance="n1", generation="7", held=[wire.HeldTracks("t", "0" * 32, ["v1", "a1"])])


def test_a_bulk_message_is_read_as_it_was_written() -> None:
    assert wire.unpack(wire.pack(INVENTORY), wire.Inventory, "inventory") == INVENTORY


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", wire.encode(INVENTORY), wire.pack(INVENTORY)[:-5], lz4.frame.compress(b"x" * (wire.MAX_BODY + 1))],
)
def test_a_bulk_message_that_is_broken_or_a_bomb_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="inventory of n1"):
        wire.unpack(data, wire.Inventory, "inventory of n1")


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"appliance": "../x"}, {"held": "all"}, {"held": [{"title": "t"}]}, {"generation": 7}]
)
def test_a_message_that_is_not_what_it_says_is_refused(change: dict[str, object]) -> None:
    spoilt = json.loads(wire.encode(INVENTORY)) | change
    with pytest.raises(FormatError):
        wire.decode(json.dumps(spoilt).encode(), wire.Inventory, "inventory")


@given(st.binary(max_size=300))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes) -> None:
    """Hostile bytes give a FormatError and nothing else, in every format."""
    for read in (
        lambda: title.decode(data),
        lambda: wire.decode(data, wire.Heartbeat, "heartbeat"),
        lambda: wire.unpack(data, wire.Inventory, "inventory"),
        lambda: segments.decode(data),
    ):
        with pytest.raises(FormatError):
            read()


GOOD = 'appliance = "n1"\nstore = ["/srv/oca"]\nurl = "http://n1.example:8080"\n'


def test_settings_have_defaults(tmp_path: Path) -> None:
    (tmp_path / "oca.toml").write_text(GOOD)
    settings = config.load(tmp_path / "oca.toml", ApplianceSettings)
    assert (settings.listen, settings.fill.window_start, settings.fill.window_hours) == ("0.0.0.0:8080", "02:00", 12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("appliance = ", "is not TOML"),
        (GOOD + "colour = 1\n", "unknown field `colour`"),
        (GOOD + "[fill]\nrate_mbps = -1\n", r" line 5: fill\.rate_mbps: Expected .*, which -1 is not"),
        (GOOD.replace('"n1"', '"N1"'), r" line 1: appliance: "),
        (GOOD.replace("http://n1.example:8080", "n1.example"), r" line 3: url: "),
        (GOOD + 'listen = "8080"\n', r" line 4: listen: "),
        ('appliance = "n1"\n', "missing required field"),
    ],
)
def test_bad_settings_name_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "oca.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        config.load(path, ApplianceSettings)
    assert str(path) in str(error.value)


def test_missing_settings_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read settings"):
        config.load(tmp_path / "none.toml", ApplianceSettings)


def test_every_setting_is_described() -> None:
    """The table of settings is its own documentation: no setting without a description."""
    for kind in (ApplianceSettings, config.FillSettings):
        for name, field in msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"].items():
            assert "description" in field or "$ref" in field, f"{kind.__name__}.{name}"
