"""The DASH writer: a static MPD from a title and its segment indexes (ISO/IEC 23009-1).

Its form is that of isoff-live:2011, where every segment has a URL (8.4), or that of isoff-on-demand:2011, where
players read the sidx of a track file and then ask for byte ranges of it (8.3).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil

from oca.errors import FormatError
from oca.title import hls
from oca.title.location import Location, check_url
from oca.title.model import Text, Tiles, Title, Track
from oca.title.protection import Protection, descriptors
from oca.title.segments import SegmentIndex

_CHANNELS = "urn:mpeg:dash:23003:3:audio_channel_configuration:2011"
_ROLE = "urn:mpeg:dash:role:2011"
_SWITCHING = "urn:mpeg:dash:adaptation-set-switching:2016"
_DESCRIPTION = ("urn:tva:metadata:cs:AudioPurposeCS:2007", "1")  # for the visually impaired (23009-1 5.8.4.3)
# ChannelConfiguration (23091-3 table 6): up to six it is the number of channels.
_CONFIGURATIONS = {7: 11, 8: 12}
_ROLES = {"subtitles": "subtitle", "captions": "caption", "forced": "forced-subtitle"}
_TILES = "http://dashif.org/guidelines/thumbnail_tile"
# The presentation lasts so much longer than its longest track. Were it rounded below its end, dash.js would seek back
# from there and stay half a second before it.
_BEYOND_S = 0.001
# Characters that XML 1.0 cannot hold, not even escaped (section 2.2).
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def mpd(
    title: Title,
    indexes: Mapping[str, SegmentIndex],
    locations: Sequence[Location] = (),
    steering_url: str | None = None,
    ondemand: bool = False,
) -> str:
    """The MPD as XML text, in the form of the on-demand profile if `ondemand`, else in that of the live profile.

    Offered are the tracks that `indexes` names. Without `locations` its URLs are relative to
    the version; with them there is one BaseURL per location, in rank order.
    """
    offered = [track for track in title.tracks if track.name in indexes]
    longest = max(s.duration / index.timescale for index in indexes.values() for s in index.segments)
    root = ET.Element(
        "MPD",
        {
            "xmlns": "urn:mpeg:dash:schema:mpd:2011",
            "profiles": f"urn:mpeg:dash:profile:isoff-{'on-demand' if ondemand else 'live'}:2011",
            "type": "static",
            "mediaPresentationDuration": _duration(title.seconds + _BEYOND_S),
            # @bandwidth is the peak over segments: with one of them buffered, that rate never falls short (5.3.5.2).
            "minBufferTime": _duration(longest),
            # What the on-demand profile calls a segment is the whole track file.
            "maxSubsegmentDuration" if ondemand else "maxSegmentDuration": _duration(longest),
        },
    )
    ET.SubElement(ET.SubElement(root, "ProgramInformation"), "Title").text = _NOT_XML.sub("\ufffd", title.name)
    for location in locations:
        ET.SubElement(root, "BaseURL", serviceLocation=location.id).text = location.base
    if steering_url is not None:  # ETSI TS 103 998
        if not locations:
            raise FormatError(f"a steered manifest of {title.id} needs at least one location to start from")
        ET.SubElement(
            root,
            "ContentSteering",
            defaultServiceLocation=" ".join(location.id for location in locations),
            queryBeforeStart="true",
        ).text = check_url(steering_url, "steering URL")
    period = ET.SubElement(root, "Period", id=title.periods[0].id, start="PT0S")
    sets = _switchable(offered, indexes, title.protection or None)
    # Of several, players that do not go by language or role otherwise take the one with the highest rate.
    preferred = next((tracks for tracks in sets if tracks[0].kind == "audio" and tracks[0].role == "main"), None)
    for number, tracks in enumerate(sets):
        adaptation = _adaptation_set(period, number, tracks, indexes, ondemand)
        if tracks == preferred:
            adaptation.set("selectionPriority", "2")
        if title.protection:
            _protect(adaptation, title.protection, number, sets)
    for text in title.captions:
        _text_set(period, text, title.files[text.files[0]].bytes, title.seconds)
    for tiles in title.thumbnails:
        _image_set(period, tiles)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _switchable(
    tracks: Sequence[Track], indexes: Mapping[str, SegmentIndex], protection: Protection | None
) -> list[list[Track]]:
    """Sets of tracks between which a player may switch at any segment, in the title's order.

    They agree in kind, codec, language, channels, what is to be heard, and key, and are cut at the same times.
    """
    sets: dict[tuple[object, ...], list[Track]] = {}
    for track in tracks:
        kid = protection.kids[track.name] if protection else ""
        sound = (track.language, track.channels, track.role, track.label)
        key = (track.kind, _codec(track), *sound, kid, _timeline(indexes[track.name]))
        sets.setdefault(key, []).append(track)
    return list(sets.values())


def _timeline(index: SegmentIndex) -> tuple[int, ...]:
    return (index.timescale, index.segments[0].time, *(segment.duration for segment in index.segments))


def _adaptation_set(
    period: ET.Element, number: int, tracks: Sequence[Track], indexes: Mapping[str, SegmentIndex], ondemand: bool
) -> ET.Element:
    first = tracks[0]
    adaptation = ET.SubElement(
        period,
        "AdaptationSet",
        id=str(number),
        contentType=first.kind,
        mimeType=f"{first.kind}/mp4",
    )
    adaptation.set("subsegmentAlignment" if ondemand else "segmentAlignment", "true")
    adaptation.set("subsegmentStartsWithSAP" if ondemand else "startWithSAP", "1")
    if first.kind == "audio":
        adaptation.set("lang", first.language or "und")
        adaptation.set("audioSamplingRate", str(first.sample_rate))
        configuration = _CONFIGURATIONS.get(first.channels, first.channels)
        ET.SubElement(adaptation, "AudioChannelConfiguration", schemeIdUri=_CHANNELS, value=str(configuration))
        if first.label:
            ET.SubElement(adaptation, "Label").text = _NOT_XML.sub("\ufffd", first.label)
        if first.role == "description":
            scheme, value = _DESCRIPTION
            ET.SubElement(adaptation, "Accessibility", schemeIdUri=scheme, value=value)
    else:
        adaptation.set("maxWidth", str(max(track.width for track in tracks)))
        adaptation.set("maxHeight", str(max(track.height for track in tracks)))
        adaptation.set("frameRate", first.frame_rate)
        adaptation.set("sar", "1:1")
    ET.SubElement(adaptation, "Role", schemeIdUri=_ROLE, value=first.role or "main")
    if not ondemand:
        _template(adaptation, indexes[first.name])
    for track in tracks:
        # Who goes by the sidx fetches the padding between segments, too.
        index = indexes[track.name]
        more = hls.peak_rate(index.padded) - hls.peak_rate(index) if ondemand else 0
        representation = ET.SubElement(
            adaptation, "Representation", id=track.name, codecs=track.codecs, bandwidth=str(track.bandwidth + more)
        )
        if track.kind == "video":
            representation.set("width", str(track.width))
            representation.set("height", str(track.height))
        if ondemand:
            _base(representation, track, indexes[track.name])
    return adaptation


def _protect(adaptation: ET.Element, protection: Protection, number: int, sets: Sequence[Sequence[Track]]) -> None:
    """Say how set `number` is encrypted; and with which sets it would be one, if it were not for the keys.

    Players that know no more may still switch between these (23009-1 5.3.3.5).
    """
    first = sets[number][0]
    added = descriptors(protection, protection.kids[first.name])
    others = [
        str(other)
        for other, tracks in enumerate(sets)
        if first.kind == "video" == tracks[0].kind and other != number and _codec(tracks[0]) == _codec(first)
    ]
    if others:
        added.append(ET.Element("SupplementalProperty", schemeIdUri=_SWITCHING, value=",".join(others)))
    place = sum(child.tag == "AudioChannelConfiguration" for child in adaptation)  # the schema has an order
    for element in reversed(added):
        adaptation.insert(place, element)


def _codec(track: Track) -> str:
    return track.codecs.partition(".")[0]


def _text_set(period: ET.Element, text: Text, size: int, seconds: float) -> None:
    """Captions: one WebVTT file of `size` bytes for all `seconds` (5.3.9.1), in a set of its own for its language."""
    adaptation = ET.SubElement(
        *(period, "AdaptationSet"),
        id=str(len(period)),
        contentType="text",
        mimeType="text/vtt",
        lang=text.language,
    )
    ET.SubElement(adaptation, "Label").text = _NOT_XML.sub("\ufffd", text.label)
    ET.SubElement(adaptation, "Role", schemeIdUri=_ROLE, value=_ROLES[text.kind])
    rate = max(1, ceil(8 * size / seconds))
    representation = ET.SubElement(adaptation, "Representation", id=text.name, bandwidth=str(rate))
    ET.SubElement(representation, "BaseURL").text = text.files[0]


def _image_set(period: ET.Element, tiles: Tiles) -> None:
    """Thumbnails: sheets of tiles (DASH-IF IOP 4.3, 6.2.6); who does not know the descriptor leaves the set alone."""
    cells = tiles.columns * tiles.rows
    adaptation = ET.SubElement(
        *(period, "AdaptationSet"), id=str(len(period)), contentType="image", mimeType="image/jpeg"
    )
    ET.SubElement(
        *(adaptation, "SegmentTemplate"),
        timescale=str(tiles.timescale),
        duration=str(cells * tiles.interval),
        media="$RepresentationID$-$Number$.jpg",
        startNumber="1",
    )
    representation = ET.SubElement(
        *(adaptation, "Representation"),
        id=tiles.name,
        bandwidth=str(tiles.bandwidth),
        width=str(tiles.columns * tiles.width),
        height=str(tiles.rows * tiles.height),
    )
    ET.SubElement(representation, "EssentialProperty", schemeIdUri=_TILES, value=f"{tiles.columns}x{tiles.rows}")


def _template(adaptation: ET.Element, index: SegmentIndex) -> None:
    """SegmentTemplate with a run-length coded SegmentTimeline (5.3.9.6)."""
    template = ET.SubElement(
        adaptation,
        "SegmentTemplate",
        timescale=str(index.timescale),
        initialization="$RepresentationID$/init.mp4",
        media="$RepresentationID$/$Number$.m4s",
        startNumber="1",
    )
    timeline = ET.SubElement(template, "SegmentTimeline")
    for position, (ticks, run) in enumerate(groupby(segment.duration for segment in index.segments)):
        s = ET.SubElement(timeline, "S", d=str(ticks))
        if position == 0:
            s.set("t", str(index.segments[0].time))
        if repeats := len(list(run)) - 1:
            s.set("r", str(repeats))


def _base(representation: ET.Element, track: Track, index: SegmentIndex) -> None:
    """The track file, and which bytes of it are init segment and sidx (5.3.9.2)."""
    offset, length = index.sidx
    ET.SubElement(representation, "BaseURL").text = track.files[0]
    base = ET.SubElement(
        representation,
        "SegmentBase",
        timescale=str(index.timescale),
        indexRange=f"{offset}-{offset + length - 1}",
        indexRangeExact="true",
    )
    ET.SubElement(base, "Initialization", range=f"0-{index.init_bytes - 1}")


def _duration(seconds: float) -> str:
    """An xs:duration, to the microsecond."""
    return f"PT{seconds:.6f}".rstrip("0").rstrip(".") + "S"
