"""The HLS writer: multivariant and media playlists from a title and its segment indexes (RFC 8216, 8216bis)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from oca.errors import FormatError
from oca.title.location import Location, check_url
from oca.title.model import Text, Tiles, Title, Track
from oca.title.protection import Protection, media_keys, session_keys
from oca.title.segments import Segment, SegmentIndex

# RFC 8216 section 7: byte ranges need 4, EXT-X-MAP outside I-frame playlists 6; fragmented MP4 came in with 7. What
# of 8216bis is used (steering, VIDEO-RANGE) needs none, for who does not know an attribute ignores it.
_VERSION = 7
# Up to so many channels of sound every device plays as they are.
_NARROW = 2
_CODECS = {"mp4a": "aac"}
_FOR_THE_BLIND = "public.accessibility.describes-video"
# What captions have that subtitles have not: who speaks is written down, and what else is heard (RFC 8216 4.3.4.1).
_FOR_THE_DEAF = "public.accessibility.transcribes-spoken-dialog,public.accessibility.describes-music-and-sound"


def target_duration(index: SegmentIndex) -> int:
    """EXT-X-TARGETDURATION in seconds: the longest segment, rounded to the nearest second (RFC 8216 4.3.3.1)."""
    longest = max(segment.duration for segment in index.segments)
    return max(1, (2 * longest + index.timescale) // (2 * index.timescale))


def peak_rate(index: SegmentIndex) -> int:
    """Peak segment bit rate in bit/s, rounded up (RFC 8216 4.1).

    The largest bit rate of any contiguous set of segments that lasts 0.5 to 1.5 target durations; a track too
    short to hold such a set has its average for a peak.
    """
    target = target_duration(index) * index.timescale
    return max(_rates_of_sets(index.segments, index.timescale, target), default=average_rate(index))


def average_rate(index: SegmentIndex) -> int:
    """Average segment bit rate in bit/s, rounded up (RFC 8216 4.1)."""
    return _rate(sum(segment.bytes for segment in index.segments), index.duration, index.timescale)


def i_frame_rates(index: SegmentIndex) -> tuple[int, int]:
    """Peak and average segment bit rate in bit/s of the I-frame playlist, rounded up (RFC 8216 4.1, 4.3.3.6)."""
    found = _only_i_frames(index)
    return peak_rate(found), average_rate(found)


def _rates_of_sets(segments: Sequence[Segment], timescale: int, target: int) -> Iterator[int]:
    """Bit rate of every contiguous set that lasts 0.5 to 1.5 times `target` ticks."""
    for first in range(len(segments)):
        size = ticks = 0
        for segment in segments[first:]:
            size, ticks = size + segment.bytes, ticks + segment.duration
            if 2 * ticks > 3 * target:
                break
            if 2 * ticks >= target:
                yield _rate(size, ticks, timescale)


def _rate(size: int, ticks: int, timescale: int) -> int:
    return -(-8 * size * timescale // ticks)


def media_name(track: Track, ranges: bool = False) -> str:
    """The file name of the track's media playlist."""
    return f"{track.name}.ranges.m3u8" if ranges else f"{track.name}.m3u8"


def iframes_name(track: Track, ranges: bool = False) -> str:
    """The file name of the track's I-frame playlist."""
    return f"{track.name}.iframes.ranges.m3u8" if ranges else f"{track.name}.iframes.m3u8"


def playlists(track: Track, index: SegmentIndex, protection: Protection | None = None) -> dict[str, str]:
    """Every playlist of the track, by file name: of segments and of byte ranges, and of video the I-frames too."""
    keys = media_keys(protection, protection.kids[track.name]) if protection else ()
    found = {media_name(track, ranges): media(track, index, ranges, keys) for ranges in (False, True)}
    if track.kind == "video":
        found |= {iframes_name(track, ranges): iframes(track, index, ranges, keys) for ranges in (False, True)}
    return found


def media(track: Track, index: SegmentIndex, ranges: bool = False, keys: Sequence[str] = ()) -> str:
    """The media playlist of the track's segments, or with `ranges` of byte ranges of the track file.

    Its URIs are relative to the version. `keys` are lines that say how the segments are encrypted.
    """
    return _segments(track, index, ranges, keys, i_frames=False)


def iframes(track: Track, index: SegmentIndex, ranges: bool = False, keys: Sequence[str] = ()) -> str:
    """The I-frame playlist (RFC 8216 4.3.3.6): byte ranges of the track's segments, or with `ranges` of its file.

    A range is a segment up to the end of its first picture, which is shown until the next segment's. Its URIs are
    relative to the version. Raises FormatError if the index does not say where a segment's first picture ends.
    """
    for number, segment in enumerate(index.segments, 1):
        if segment.i_frame_bytes == 0:
            raise FormatError(f"the index of {track.name} gives segment {number} no I-frame: package it again")
    return _segments(track, _only_i_frames(index), ranges, keys, i_frames=True)


def _only_i_frames(index: SegmentIndex) -> SegmentIndex:
    """The index of what an I-frame playlist lists: every segment ends with its first picture, and lasts as before."""
    return replace(index, segments=tuple(replace(each, bytes=each.i_frame_bytes) for each in index.segments))


def _segments(track: Track, index: SegmentIndex, ranges: bool, keys: Sequence[str], i_frames: bool) -> str:
    """A media playlist of the segments in `index`; `i_frames` says that they are the heads of the real ones."""
    file = track.files[0]
    lines = [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_VERSION}",
        f"#EXT-X-TARGETDURATION:{target_duration(index)}",
        "#EXT-X-MEDIA-SEQUENCE:1",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        *(["#EXT-X-I-FRAMES-ONLY"] if i_frames else []),
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{file}",BYTERANGE="{index.init_bytes}@0"'
        if ranges
        else f'#EXT-X-MAP:URI="{track.name}/init.mp4"',
        *keys,  # after the map, for init segments are never encrypted (RFC 8216 4.3.2.5)
    ]
    for number, segment in enumerate(index.segments, 1):
        lines.append(f"#EXTINF:{segment.duration / index.timescale:.6f},")
        if ranges or i_frames:
            lines.append(f"#EXT-X-BYTERANGE:{segment.bytes}@{segment.offset if ranges else 0}")
        lines.append(file if ranges else f"{track.name}/{number}.m4s")
    lines.append("#EXT-X-ENDLIST")
    return "\n".join(lines) + "\n"


def multivariant(
    title: Title,
    indexes: Mapping[str, SegmentIndex],
    locations: Sequence[Location] = (),
    steering_url: str | None = None,
    ranges: bool = False,
) -> str:
    """The multivariant playlist, of the playlists made with or without `ranges`.

    Offered are the tracks that `indexes` names, at the rates that title.json gives, and of I-frame playlists those
    that it lists as files: versions of old have none. Without `locations` the URIs are relative; with them every
    variant is there once per location, in rank order, with its own audio groups. There is a group for each codec of
    sound, in stereo and in more channels, and every variant is there with each of them.
    """
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{_VERSION}", "#EXT-X-INDEPENDENT-SEGMENTS"]
    if steering_url is not None:
        if not locations:
            raise FormatError(f"a steered playlist of {title.id} needs at least one location to start from")
        server = check_url(steering_url, "steering URL")
        lines.append(f'#EXT-X-CONTENT-STEERING:SERVER-URI="{server}",PATHWAY-ID="{locations[0].id}"')
    offered = [track for track in title.tracks if track.name in indexes]
    if title.protection:
        lines += session_keys(title.protection, (title.protection.kids[track.name] for track in offered))
    audio = [track for track in offered if track.kind == "audio"]
    video = [track for track in offered if track.kind == "video"]
    for location in locations or (None,):
        # Without video the audio tracks are the variants, not renditions of one.
        groups = _groups(audio) if video and audio else {}
        for name, members in groups.items():
            lines += _renditions(name, members, location, ranges)
        lines += [_subtitles(text, location) for text in title.captions]
        for name, members in (groups or {"": []}).items():
            lines += _variants(video or audio, name, members, title.captions, location, ranges)
        for track in video:
            if (name := iframes_name(track, ranges)) in title.files:
                lines.append(_i_frame_variant(track, _uri(name, location), location))
        lines += [_images(tiles, location) for tiles in title.thumbnails]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A quoted-string (RFC 8216 4.2), which has no way to escape a quote or a line break: they are left out."""
    return '"' + "".join(c for c in text if c.isprintable() and c != '"') + '"'


def _groups(audio: Sequence[Track]) -> dict[str, list[Track]]:
    """Groups of audio tracks by what their names end with, '' if there is but one.

    Every group has the same members, each with its own coding of what is to be heard (RFC 8216 4.3.4.1.1): the
    group's if there is that, else the nearest. The variants of a group have codec and width in common.
    """
    heard: dict[tuple[str, str, str], list[Track]] = {}
    for track in audio:
        heard.setdefault((track.language, track.role, track.label or track.name), []).append(track)
    wanted = list(dict.fromkeys((_codec(track), track.channels > _NARROW) for track in audio))
    groups: dict[str, list[Track]] = {}
    for codec, wide in wanted:
        members = [
            max(tracks, key=lambda track: (_codec(track) == codec, (track.channels > _NARROW) == wide))
            for tracks in heard.values()
        ]
        if members in groups.values():
            continue  # nothing is there in this width only
        most = max(t.channels for t in audio if (_codec(t), t.channels > _NARROW) == (codec, wide))
        groups[f"-{_CODECS.get(codec, codec)}-{most}"] = members
    return groups if len(groups) > 1 else {"": next(iter(groups.values()))}


def _codec(track: Track) -> str:
    return track.codecs.partition(".")[0]


def _group(name: str, location: Location | None) -> str:
    return f"audio{name}-{location.id}" if location else f"audio{name}"


def _uri(name: str, location: Location | None) -> str:
    return f"{location.base if location else ''}{name}"


def _renditions(name: str, audio: Sequence[Track], location: Location | None, ranges: bool) -> Iterator[str]:
    """EXT-X-MEDIA of each audio track of a group (RFC 8216 4.3.4.1); names must differ within it."""
    for number, track in enumerate(audio):
        # A player may choose by language what it has not been told not to: nobody wants commentary unasked.
        chosen = "NO" if number and track.role == "commentary" else "YES"
        yield (
            f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="{_group(name, location)}",NAME={_quoted(track.label or track.name)},'
            f"LANGUAGE={_quoted(track.language or 'und')},DEFAULT={'NO' if number else 'YES'},AUTOSELECT={chosen},"
            + (f'CHARACTERISTICS="{_FOR_THE_BLIND}",' if track.role == "description" else "")
            + f'CHANNELS="{track.channels}",URI="{_uri(media_name(track, ranges), location)}"'
        )


def _texts(location: Location | None) -> str:
    return f"subtitles-{location.id}" if location else "subtitles"


def _subtitles(text: Text, location: Location | None) -> str:
    """EXT-X-MEDIA of captions (RFC 8216 4.3.4.1), the same with segments and with byte ranges."""
    return (
        f'#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="{_texts(location)}",NAME={_quoted(text.label)},'
        f"LANGUAGE={_quoted(text.language)},DEFAULT=NO,AUTOSELECT=YES,"
        f"FORCED={'YES' if text.kind == 'forced' else 'NO'},"
        + (f'CHARACTERISTICS="{_FOR_THE_DEAF}",' if text.kind == "captions" else "")
        + f'URI="{_uri(text.files[1], location)}"'
    )


def _images(tiles: Tiles, location: Location | None) -> str:
    """EXT-X-IMAGE-STREAM-INF of thumbnails, by the Image Media Playlist specification that players follow."""
    return (
        f'#EXT-X-IMAGE-STREAM-INF:BANDWIDTH={tiles.bandwidth},RESOLUTION={tiles.width}x{tiles.height},CODECS="jpeg"'
        f'{_pathway(location)},URI="{_uri(tiles.playlist, location)}"'
    )


def _variants(
    variants: Sequence[Track],
    group: str,
    audio: Sequence[Track],
    texts: Sequence[Text],
    location: Location | None,
    ranges: bool,
) -> Iterator[str]:
    """EXT-X-STREAM-INF of each variant with a group of audio (RFC 8216 4.3.4.2).

    Its rates include the heaviest of the group, and the heaviest captions.
    """
    audio_peak = max((track.bandwidth for track in audio), default=0)
    audio_average = max((track.average_bandwidth for track in audio), default=0)
    text_peak = max((text.bandwidth for text in texts), default=0)
    text_average = max((text.average_bandwidth for text in texts), default=0)
    for track in variants:
        codecs = ",".join(dict.fromkeys(each.codecs for each in (track, *audio)))
        line = (
            f"#EXT-X-STREAM-INF:BANDWIDTH={track.bandwidth + audio_peak + text_peak},"
            f"AVERAGE-BANDWIDTH={track.average_bandwidth + audio_average + text_average},"
            f"CODECS={_quoted(codecs)}{_picture(track)}"
        )
        if track.kind == "video":
            line += f",FRAME-RATE={float(Fraction(track.frame_rate)):.3f}"
        if audio:
            line += f',AUDIO="{_group(group, location)}"'
        if texts:
            line += f',SUBTITLES="{_texts(location)}",CLOSED-CAPTIONS=NONE'
        yield line + _pathway(location)
        yield _uri(media_name(track, ranges), location)


def _i_frame_variant(track: Track, uri: str, location: Location | None) -> str:
    """EXT-X-I-FRAME-STREAM-INF of a video track (RFC 8216 4.3.4.3), which has neither a frame rate nor audio."""
    return (
        f"#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH={track.i_frame_bandwidth},"
        f"AVERAGE-BANDWIDTH={track.i_frame_average_bandwidth},"
        f'CODECS={_quoted(track.codecs)}{_picture(track)}{_pathway(location)},URI="{uri}"'
    )


def _picture(track: Track) -> str:
    """The size of a video track's picture; and of H.264 its range, which is never a high one (8216bis 4.4.6.2)."""
    if track.kind != "video":
        return ""
    size = f",RESOLUTION={track.width}x{track.height}"
    return f"{size},VIDEO-RANGE=SDR" if track.codecs.startswith("avc1.") else size


def _pathway(location: Location | None) -> str:
    return f',PATHWAY-ID="{location.id}"' if location is not None else ""
