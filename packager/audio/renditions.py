"""The renditions of a title's sound: which audio streams of the source, in which codecs and channels. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packager.source import languages
from packager.source.probe import Audio, SourceError

ALL, FIRST, NONE = "all", "first", "none"
"""What `--audio` may say, if not languages."""
SOURCE, STEREO = "source", "stereo"
"""What `--channels` may say: as the source has them, as far as players know them, or two of everything."""
ENCODERS: Mapping[str, str] = {"aac": "aac", "opus": "libopus"}
"""The encoder of each codec, as ffmpeg calls it."""
RATES: Mapping[str, Mapping[int, int]] = {
    "aac": {1: 64_000, 2: 128_000, 6: 384_000},
    "opus": {1: 48_000, 2: 96_000, 6: 256_000},
}
"""bit/s by codec and number of channels."""
LAYOUTS: Mapping[int, str] = {1: "mono", 2: "stereo", 6: "5.1"}
"""The channel layouts that tracks have, as ffmpeg calls them."""
_TWO = ("stereo", "downmix", "unknown")
# Channels that are not said to stand anywhere, or are for headphones: there is no way to mix them.
_LOOSE = re.compile(r"[0-9]+ channels|binaural")
# Of a language, so much is in a track's name, which has 32 characters: enough for zh-hant-tw.
_TAG = 16
_PURPOSES = {"": "", "commentary": ", commentary", "description": ", audio description"}


@dataclass(frozen=True, slots=True)
class Rendition:
    """One audio track: its name, the source's stream (of audio, from 0), codec and channels, and what menus say.

    `name` tells language and kbit/s, as in `a-en-128`. `language` is BCP 47; `label` and `role` are as in
    `oca.title.model.Track`, `layout` is the source's. Of a `loose` layout the first two channels are taken as they
    are.
    """

    name: str
    stream: int
    codec: str
    channels: int
    language: str
    layout: str
    label: str = ""
    role: str = ""
    reason: str = ""
    loose: bool = False

    @property
    def bps(self) -> int:
        """Mean rate in bit/s."""
        return RATES[self.codec][self.channels]


def chosen(found: Sequence[Audio], wanted: str, where: Path) -> tuple[tuple[Audio, ...], list[str]]:
    """The streams that `wanted` asks for, the one to play unless a viewer chooses another first; and notes.

    `wanted` is "all", "first", "none", or languages with commas between. SourceError if there is none of a language,
    or if nothing that is wanted can be used.
    """
    if wanted == NONE:
        return (), []
    if wanted == ALL:
        # What is no commentary, and of that what the file calls its default, comes first; all else as in the file.
        main = min(found, key=lambda each: (each.role != "", not each.default), default=None)
        picked = [each for each in found if each is main] + [each for each in found if each is not main]
    elif wanted == FIRST:
        picked = list(found[:1])
    else:
        picked = _of_languages(found, wanted, where)
    usable = tuple(each for each in picked if not each.trouble)
    if picked and not usable:
        raise SourceError(
            f"{where} has audio that cannot be used ({picked[0].trouble}): choose another with --audio, or none with "
            "--audio none"
        )
    notes = [
        f"its audio stream {each.number + 1} was left out: {each.trouble}" for each in picked if each not in usable
    ]
    return usable, notes


def _of_languages(found: Sequence[Audio], wanted: str, where: Path) -> list[Audio]:
    picked: list[Audio] = []
    for text in wanted.split(","):
        language = languages.bcp47(text.strip()).lower()
        known = [languages.bcp47(each.language).lower() for each in found]
        mine = [
            each
            for each, tag in zip(found, known, strict=True)
            if language and (tag == language or tag.startswith(f"{language}-"))
        ]
        if not mine:
            there = f"audio in {', '.join(dict.fromkeys(known))}" if known else "no audio at all"
            raise SourceError(
                f"{where} has no audio in {text.strip()[:40]!r}, it has {there}: say --audio all, first, none, or "
                "languages that are there, such as en,de"
            )
        picked += [each for each in mine if each not in picked]
    return picked


def widths(layout: str, channels: str) -> tuple[int, ...]:
    """With how many channels tracks are made of a source's layout, `channels` as in `Order`; the fewest first."""
    if channels == STEREO or layout in _TWO or _LOOSE.fullmatch(layout):
        return (1,) if channels == SOURCE and layout == "1 channels" else (2,)
    return (1,) if layout == "mono" else (2, 6)


def renditions(streams: Sequence[Audio], codecs: Sequence[str], channels: str) -> tuple[Rendition, ...]:
    """The tracks to make of `streams`, of which the first is the main one; of each in every codec.

    A title with one track has no use for a label or a role.
    """
    made: list[Rendition] = []
    labels: set[str] = set()
    spoken: Counter[str] = Counter()
    taken: set[str] = set()
    for place, each in enumerate(streams):
        language = languages.bcp47(each.language)
        label = _free(each.title or _label(language, each.role), labels)
        labels.add(label)
        role = each.role or ("alternate" if place else "main")
        tag = language.lower()[:_TAG].rstrip("-")
        spoken[tag] += 1
        names = _names(tag, codecs, widths(each.channels, channels), spoken[tag])
        while not taken.isdisjoint(names.values()):
            spoken[tag] += 1
            names = _names(tag, codecs, widths(each.channels, channels), spoken[tag])
        taken.update(names.values())
        said = f"audio track {each.number + 1}" if each.number else "first audio track"
        loose = _LOOSE.fullmatch(each.channels) is not None
        reason = f"{said} ({each.channels})"
        for (codec, count), name in names.items():
            made.append(
                Rendition(*(name, each.number, codec, count, language, each.channels, label, role, reason, loose))
            )
    return tuple(made) if len(made) > 1 else tuple(replace(only, label="", role="") for only in made)


def _names(tag: str, codecs: Sequence[str], counts: Sequence[int], number: int) -> dict[tuple[str, int], str]:
    """What the tracks of a stream are called, by codec and channels; `number` tells it from others in a language."""
    again = f"-{number}" if number > 1 else ""
    return {
        (codec, count): f"a-{tag}-{RATES[codec][count] // 1000}{again}" + (f"-{codec}" if codec != "aac" else "")
        for codec in codecs
        for count in counts
    }


def notes(streams: Sequence[Audio], channels: str) -> list[str]:
    """Sentences on what becomes of the channels of `streams`."""
    said = []
    for each in streams:
        which = f"its {each.channels} audio"
        if len(streams) > 1:
            which += f" (stream {each.number + 1}, {languages.bcp47(each.language)})"
        made = widths(each.channels, channels)
        if _LOOSE.fullmatch(each.channels) and each.channels not in ("1 channels", "2 channels"):
            said.append(f"{which} does not say where its channels are: the first two become stereo")
        elif made == (2,) and each.channels not in ("stereo", "unknown"):
            said.append(f"{which} becomes stereo")
        elif 6 in made:
            same = each.channels in ("5.1", "5.1(side)")
            said.append(f"{which} is there in stereo, too" if same else f"{which} becomes 5.1, and stereo")
    return said


def _label(language: str, role: str) -> str:
    name = "Audio" if language == "und" else languages.name(language)
    return name + _PURPOSES[role]


def _free(wanted: str, taken: Collection[str]) -> str:
    """`wanted`, or if that is taken the same with the first number from 2 on that makes it free."""
    number, found = 1, wanted
    while found in taken:
        number += 1
        found = f"{wanted} {number}"
    return found
