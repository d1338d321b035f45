"""What a simulated player reads from an MPD: locations, rungs and segment URLs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from urllib.parse import urljoin

from oca.errors import FormatError

_NS = "{urn:mpeg:dash:schema:mpd:2011}"


@dataclass(frozen=True, slots=True)
class Rung:
    """One representation: its rate in bit/s, relative URL templates, and the seconds that each segment lasts."""

    id: str
    bandwidth: int
    initialization: str
    media: str
    durations: tuple[float, ...]

    def segment(self, number: int) -> str:
        """Relative URL of segment `number`, from 1."""
        return self.media.replace("$Number$", str(number))


@dataclass(frozen=True, slots=True)
class Presentation:
    """Base URLs in the order of preference, video rungs by ascending rate, and the audio tracks."""

    bases: tuple[str, ...]
    video: tuple[Rung, ...]
    audio: tuple[Rung, ...]

    @property
    def segments(self) -> int:
        """Number of video segments."""
        return len(self.video[0].durations)


def parse(mpd: bytes, url: str) -> Presentation:
    """Read the MPD fetched from `url`; FormatError if it has no video that can be addressed by number."""
    try:
        root = ET.fromstring(mpd)
    except ET.ParseError as error:
        raise FormatError(f"{url} is not an MPD: {error}") from None
    bases = tuple(urljoin(url, (e.text or "").strip()) for e in root.iter(f"{_NS}BaseURL")) or (url,)
    video: list[Rung] = []
    audio: list[Rung] = []
    for group in root.iter(f"{_NS}AdaptationSet"):
        kind = group.get("contentType") or (group.get("mimeType") or "").partition("/")[0]
        rungs = {"video": video, "audio": audio}.get(kind)
        if rungs is not None:  # captions and thumbnails are no rungs
            rungs.extend(_rung(element, group, url) for element in group.iter(f"{_NS}Representation"))
    if not video:
        raise FormatError(f"{url} has no video")
    return Presentation(bases, tuple(sorted(video, key=lambda rung: rung.bandwidth)), tuple(audio))


def _rung(element: ET.Element, group: ET.Element, url: str) -> Rung:
    name = element.get("id", "")
    template = element.find(f"{_NS}SegmentTemplate")
    template = group.find(f"{_NS}SegmentTemplate") if template is None else template
    timeline = None if template is None else template.find(f"{_NS}SegmentTimeline")
    if template is None or timeline is None:
        raise FormatError(f"{url}: representation {name} has no SegmentTemplate with a SegmentTimeline")
    scale = int(template.get("timescale", "1"))
    durations = [
        int(s.get("d", "0")) / scale for s in timeline.iter(f"{_NS}S") for _ in range(int(s.get("r", "0")) + 1)
    ]
    urls = [template.get(key, "").replace("$RepresentationID$", name) for key in ("initialization", "media")]
    return Rung(name, int(element.get("bandwidth", "0")), urls[0], urls[1], tuple(durations))
