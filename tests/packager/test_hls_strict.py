"""The playlists are right by the strictest parser there is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from oca.title import hls, segments
from oca.title import model as title
from oca.title.location import Location

ROOT = Path(__file__).parents[2]
SCRIPT = """
const HLS = require("hls-parser");
HLS.setOptions({ strictMode: true, silent: true });
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(texts.map((text) => {
  const list = HLS.parse(text);
  if (list.isMasterPlaylist) {
    const subtitles = list.variants.filter((v) => v.subtitles.length)
      .map((v) => v.subtitles.map((s) => [s.name, s.language, s.forced]));
    return { variants: list.variants.filter((v) => !v.isIFrameOnly).length,
             iframes: list.variants.filter((v) => v.isIFrameOnly).length,
             ...(subtitles.length ? { subtitles } : {}) };
  }
  return { seconds: list.segments.reduce((sum, s) => sum + s.duration, 0), iframes: !!list.isIFrame,
           ranges: list.segments.filter((s) => s.byterange).map((s) => [s.byterange.offset, s.byterange.length]),
           map: (list.segments[0].map || {}).byterange || null };
})));
"""


def parsed(texts: list[str]) -> list[dict[str, Any]]:
    """What hls-parser in strict mode makes of playlists: numbers of variants, or seconds, ranges and the map's."""
    done = subprocess.run(
        ["node", "-e", SCRIPT], input=json.dumps(texts), capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_playlist_of_a_packaged_title_is_strictly_right(packaged) -> None:
    directory = packaged.path
    read, _ = title.read(directory)
    videos = [track for track in read.tracks if track.kind == "video"]
    names = ["master.m3u8", "master.ranges.m3u8"]
    assert (
        parsed([(directory / name).read_text() for name in names])
        == [{"variants": len(videos), "iframes": len(videos)}] * 2
    )
    names = [name for name in read.files if name.endswith(".m3u8") and not name.startswith(("master.", "i-"))]
    assert len(names) == 2 * len(read.tracks) + 2 * len(videos)
    found = dict(zip(names, parsed([(directory / name).read_text() for name in names]), strict=True))
    for track in read.tracks:
        index = segments.decode((directory / f"{track.name}.idx").read_bytes())
        init = {"offset": 0, "length": index.init_bytes}
        whole = [[s.offset, s.bytes] for s in index.segments]
        heads = [[s.offset, s.i_frame_bytes] for s in index.segments]
        wanted = {
            hls.media_name(track): (False, [], None),
            hls.media_name(track, ranges=True): (False, whole, init),
        }
        if track in videos:
            wanted[hls.iframes_name(track)] = (True, [[0, length] for _, length in heads], None)
            wanted[hls.iframes_name(track, ranges=True)] = (True, heads, init)
        for name, (iframes, ranges, start) in wanted.items():
            assert found[name].pop("seconds") == pytest.approx(track.seconds, abs=0.001)
            assert found[name] == {"iframes": iframes, "ranges": ranges, "map": start}, name


def test_playlists_with_captions_and_thumbnails(subtitled) -> None:
    """Every variant has every language, at every location; segments last as long as the pictures, sheets too."""
    read, version = title.read(subtitled.path)
    indexes = {t.name: segments.decode((subtitled.path / f"{t.name}.idx").read_bytes()) for t in read.tracks}
    places = [Location(box, f"http://{box}.example:8080/t/{read.id}/{version}/") for box in ("a-1", "b-2")]
    texts = [(subtitled.path / name).read_text() for name in ("master.m3u8", "master.ranges.m3u8")]
    texts.append(hls.multivariant(read, indexes, places, "http://control.example/steer/x/y"))
    assert [each["variants"] for each in parsed(texts)] == [1, 1, 2]
    said = [["English", "en", False], ["Für Taube", "de", False], ["English, forced", "en", True]]
    assert [each["subtitles"] for each in parsed(texts)] == [[said], [said], [said, said]]
    lists = [text.files[1] for text in read.captions] + [tiles.playlist for tiles in read.thumbnails]
    found = parsed([(subtitled.path / name).read_text() for name in lists])
    assert [each["seconds"] for each in found] == pytest.approx([210] * 4)


def test_a_personalised_playlist_has_every_variant_at_every_location(packaged) -> None:
    read, version = title.read(packaged.path)
    indexes = {t.name: segments.decode((packaged.path / f"{t.name}.idx").read_bytes()) for t in read.tracks}
    places = [Location(box, f"http://{box}.example:8080/t/{read.id}/{version}/") for box in ("a-1", "b-2")]
    text = hls.multivariant(read, indexes, places, "http://control.example/steer/x/y")
    each = 2 * sum(track.kind == "video" for track in read.tracks)
    assert parsed([text]) == [{"variants": each, "iframes": each}]


def test_a_title_of_before_there_were_i_frame_playlists(packaged) -> None:
    """What the controller makes of its title.json is a playlist without them, as right as ever."""
    read, _ = title.read(packaged.path)
    old = structs.replace(read, files={n: file for n, file in read.files.items() if "iframes" not in n})
    indexes = {t.name: segments.decode((packaged.path / f"{t.name}.idx").read_bytes()) for t in read.tracks}
    text = hls.multivariant(old, indexes)
    assert parsed([text]) == [{"variants": sum(track.kind == "video" for track in read.tracks), "iframes": 0}]
