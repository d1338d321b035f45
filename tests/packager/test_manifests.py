"""Every form of manifest over a real server: ffmpeg gets the same pictures and sound by each of them."""

from __future__ import annotations

import re
import shutil
import struct
import sys
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from oca.title import hls, segments
from oca.title import model as title_format
from oca.title.segments import SegmentIndex
from packager.ffmpeg import Ffmpeg
from packager.package import Built
from tests.programs import held, port_of, started

OCA = Path(sys.executable).with_name("oca")
NS = {"": "urn:mpeg:dash:schema:mpd:2011"}
HEAD = re.compile(r'#EXT-X-MAP:URI="([^"]+)"(?:,BYTERANGE="(\d+)@(\d+)")?')
PART = re.compile(r"#EXT-X-BYTERANGE:(\d+)@(\d+)\n(\S+)")


@pytest.fixture(scope="module")
def served(packaged: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL, up to its last slash, of the packaged clip at the program `oca serve`."""
    home = tmp_path_factory.mktemp("box")
    shutil.copytree(packaged.path.parent, home / "store" / "bbb")
    with held() as one, held() as two:
        here, admin = (f"127.0.0.1:{port_of(each)}" for each in (one, two))
        (home / "oca.toml").write_text(
            f'appliance = "me"\nstore = ["{home}/store"]\nurl = "http://{here}"\nlisten = "{here}"\n'
            f'admin = "{admin}"\nworkers = 1\n'
        )
        with started([OCA, "serve", "--config", home / "oca.toml"]) as box:
            assert box.stderr is not None
            said = []
            for line in box.stderr:
                said.append(line)
                if '"event": "serving"' in line:
                    break
            else:
                pytest.fail(f"it ended: {said}")
            yield f"http://{here}/t/bbb/{packaged.version}/"
            box.terminate()
            box.wait(60)


def index_of(packaged: Built, track: str) -> SegmentIndex:
    return segments.decode((packaged.path / f"{track}.idx").read_bytes())


def frames(binary: Ffmpeg, source: str | Path, *arguments: str) -> list[list[tuple[object, ...]]]:
    """Time, duration, size and checksum of all that ffmpeg reads without a complaint, stream by stream, sorted.

    Each stream's times count from its first: that of sound is before 0 in a file, and is not in a manifest.
    """
    lines: list[str] = []
    assert binary.run(["-v", "error", "-i", str(source), *arguments, "-f", "framecrc", "-"], lines.append) == []
    streams: dict[str, list[tuple[int, int, int, str]]] = {}
    for line in lines:
        if not line.startswith("#"):
            number, _, time, duration, size, checksum = line.split(",")[:6]
            stream = streams.setdefault(number, [])
            stream.append((int(time), int(duration), int(size), checksum))
    return sorted([(time - stream[0][0], *what) for time, *what in stream] for stream in streams.values())


def test_a_playlist_of_ranges_plays_as_that_of_segments_does(binary: Ffmpeg, packaged: Built, served: str) -> None:
    """Picture by picture what is in the track file, and of sound what the other playlist gives."""
    small, *_, sound = packaged.title.tracks
    pictures = frames(binary, packaged.path / f"{small.name}.mp4")
    assert [len(each) for each in pictures] == [132]
    assert frames(binary, served + hls.media_name(small, ranges=True)) == pictures
    heard = frames(binary, served + hls.media_name(sound))
    assert frames(binary, served + hls.media_name(sound, ranges=True)) == heard
    assert sum(len(each) for each in heard) >= 247  # of 1024 samples each, at 48 kHz


# Of an MPD one kind at a time: when the pictures have ended, ffmpeg 5.1 drops the last of the sound, in every form.
@pytest.mark.parametrize(("name", "maps"), [("ondemand.mpd", ("0:v", "0:a")), ("master.ranges.m3u8", ("0",))])
def test_a_manifest_of_ranges_gives_all_of_every_track(
    binary: Ffmpeg, packaged: Built, served: str, name: str, maps: tuple[str, ...]
) -> None:
    """Every packet that is in the track files, byte for byte and at the same time."""
    held = [frames(binary, packaged.path / track.files[0], "-c", "copy")[0] for track in packaged.title.tracks]
    assert sorted(len(each) for each in held)[:-1] == [132] * (len(held) - 1)
    got = [each for which in maps for each in frames(binary, served + name, "-map", which, "-c", "copy")]
    assert sorted(got) == sorted(held)


def get(url: str, length: str, start: str) -> bytes:
    """What a player gets that asks for a range; for all of it if there is no length."""
    span = {"Range": f"bytes={start}-{int(start) + int(length) - 1}"} if length else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=span)) as response:
        data: bytes = response.read()
        assert response.status == (206 if length else 200)
        assert len(data) == int(length or len(data))
        return data


@pytest.mark.parametrize("ranges", [False, True])
def test_each_i_frame_range_is_a_picture(
    binary: Ffmpeg, packaged: Built, served: str, tmp_path: Path, ranges: bool
) -> None:
    """With the init segment before it, it decodes to one picture: that which starts the segment."""
    low, *_, high, _ = packaged.title.tracks
    for track in (low, high):
        text = (packaged.path / hls.iframes_name(track, ranges)).read_text()
        starts = [segment.time for segment in index_of(packaged, track.name).segments]  # a tick is a picture of it
        (seen,) = frames(binary, packaged.path / f"{track.name}.mp4")
        head, parts = HEAD.search(text), PART.findall(text)
        assert head is not None
        assert len(parts) == track.segments
        init = get(served + head[1], head[2] or "", head[3] or "")
        for shown, (length, start, name) in zip(starts, parts, strict=True):
            alone = tmp_path / f"{track.name}-{shown}.mp4"
            alone.write_bytes(init + get(served + name, length, start))
            lines: list[str] = []
            binary.run(["-v", "fatal", "-i", str(alone), "-f", "framecrc", "-"], lines.append)
            pictures = [line.split(",")[-1] for line in lines if not line.startswith("#")]
            assert pictures == [seen[shown][-1]], (track.name, shown)


def test_the_ranges_of_the_ondemand_mpd_are_those_of_the_boxes(packaged: Built) -> None:
    """Initialization is all before the sidx, indexRange is the sidx to its last byte."""
    root = ET.parse(packaged.path / "ondemand.mpd")
    found = root.findall(".//SegmentBase/..", NS)
    assert [each.get("id") for each in found] == [track.name for track in packaged.title.tracks]
    for each in found:
        data = (packaged.path / str(each.findtext("BaseURL", None, NS))).read_bytes()
        base, init = each.find("SegmentBase", NS), each.find("SegmentBase/Initialization", NS)
        assert base is not None
        assert init is not None
        first, last = map(int, str(base.get("indexRange")).split("-"))
        assert init.get("range") == f"0-{first - 1}"
        size, kind = struct.unpack_from(">I4s", data, first)
        assert (size, kind) == (last + 1 - first, b"sidx")
        timescale = struct.unpack_from(">I", data, first + 16)[0]
        assert base.get("timescale") == str(timescale)


def test_rates_of_i_frame_playlists(packaged: Built) -> None:
    """What is announced is the peak, over runs of 0.5 to 1.5 targets, and the mean of the I-frames alone."""
    text = (packaged.path / "master.m3u8").read_text()
    rates = r'#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=(\d+),AVERAGE-BANDWIDTH=(\d+),.*URI="(.+?)\.iframes'
    said = re.findall(rates, text)
    for peak, average, name in said:
        first, second = index_of(packaged, name).segments  # of 100 and 32 pictures: too short for a run of its own
        both = -(-8 * 25 * (first.i_frame_bytes + second.i_frame_bytes) // 132)
        assert int(peak) == max(-(-8 * 25 * first.i_frame_bytes // 100), both)
        assert int(average) == both
    assert len(said) == sum(track.kind == "video" for track in packaged.title.tracks)


def test_every_file_that_a_manifest_names_is_listed(packaged: Built) -> None:
    """Nothing is announced that a box would not have: no I-frame playlist, no playlist of ranges."""
    title, _ = title_format.read(packaged.path)
    for master, ranges in (("master.m3u8", False), ("master.ranges.m3u8", True)):
        text = (packaged.path / master).read_text()
        uris = re.findall(r'^[^#\n].*|(?<=URI=")[^"]+', text, re.M)
        videos = [track for track in title.tracks if track.kind == "video"]
        wanted = [hls.media_name(track, ranges) for track in title.tracks]
        wanted += [tiles.playlist for tiles in title.thumbnails]
        assert sorted(uris) == sorted(wanted + [hls.iframes_name(track, ranges) for track in videos])
        assert set(uris) <= set(title.files)
    assert {"manifest.mpd", "ondemand.mpd"} <= set(title.files)
