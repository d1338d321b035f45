"""The difference between what the plan wants on a box and what the box holds. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from oca.wire import FillManifest


@dataclass(frozen=True, slots=True)
class WantedTrack:
    """A track that the plan wants here; `published` is its version's publication time in UTC seconds."""

    title: str
    version: str
    track: str
    published: int

    @property
    def key(self) -> tuple[str, str, str]:
        """Title, version and track."""
        return self.title, self.version, self.track


@dataclass(frozen=True, slots=True)
class HeldTrack:
    """A track in the store: its bytes, and when it was last used in UTC seconds.

    An empty `track` stands for a version of which no track is whole: a fill was given up, or its bytes are damaged.
    """

    title: str
    version: str
    track: str
    bytes: int
    used: float

    @property
    def key(self) -> tuple[str, str, str]:
        """Title, version and track."""
        return self.title, self.version, self.track


@dataclass(frozen=True, slots=True)
class Difference:
    """What is missing, most valuable first; what is wanted and here; what may go, least recently used first."""

    missing: tuple[WantedTrack, ...]
    present: tuple[HeldTrack, ...]
    surplus: tuple[HeldTrack, ...]


def difference(manifest: FillManifest, held: Iterable[HeldTrack]) -> Difference:
    """Compare. An empty manifest is no plan to hold nothing: it finds neither missing nor surplus tracks.

    Without a plan things may be wanted all the same (pins of an upstream CDN); then nothing is surplus.
    """
    if not manifest.items:
        return Difference((), (), ())
    wanted = {
        (item.title, item.version, track): WantedTrack(item.title, item.version, track, item.published)
        for item in manifest.items
        for track in item.tracks
    }
    here = {track.key: track for track in held}
    arriving = {key[:2] for key in wanted}
    surplus = [track for key, track in here.items() if key not in wanted and (track.track or key[:2] not in arriving)]
    return Difference(
        missing=tuple(track for key, track in wanted.items() if key not in here),
        present=tuple(here[key] for key in wanted if key in here),
        # Of tracks idle for equally long the largest goes first, so that the fewest go.
        surplus=()
        if manifest.plan == 0
        else tuple(sorted(surplus, key=lambda track: (track.used, -track.bytes, track.key))),
    )


def make_room(surplus: Sequence[HeldTrack], need: int, free: int) -> list[HeldTrack] | None:
    """The first of `surplus` that must go so that `need` bytes fit where `free` are; None if all are not enough."""
    leaving = []
    for track in surplus:
        if need <= free:
            break
        leaving.append(track)
        free += track.bytes
    return leaving if need <= free else None
