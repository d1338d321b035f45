"""The holdings of a store: every track in it with its size and last use, and the way out for one of them."""

from __future__ import annotations

import structlog

from fill.difference import HeldTrack
from oca.errors import FormatError
from oca.store.content import HeldVersion, Store, is_open

_log = structlog.get_logger()


def holdings(store: Store) -> list[HeldTrack]:
    """Everything held. A version whose title.json is damaged counts as not held, so that it is fetched anew.

    If that is because its disk fails, nothing that the disk holds counts.
    """
    while True:
        usable = store.usable
        found = _found(store)
        store.generation()
        if not set(usable) - set(store.usable):
            return found


def _found(store: Store) -> list[HeldTrack]:
    found: list[HeldTrack] = []
    for title, version in store.versions():
        try:
            held = store.held(title, version)
        except FormatError as error:
            _log.error("a version in the store is damaged", detail=str(error))
            store.blame(title, version)
            continue
        if held is not None:
            found += _tracks(held)
    return found


def _tracks(held: HeldVersion) -> list[HeldTrack]:
    title, version = held.title.id, held.version
    if not held.tracks:
        total = sum(path.stat().st_size for path in held.directory.iterdir())
        return [HeldTrack(title, version, "", total, held.published)]
    return [
        HeldTrack(
            title,
            version,
            track.name,
            held.title.track_bytes(track),
            # The kernel keeps this current to within a day (relatime); a commit sets it to the publication time.
            (held.directory / track.files[0]).stat().st_atime,
        )
        for track in held.title.tracks
        if track.name in held.tracks
    ]


def is_served(store: Store, track: HeldTrack) -> bool:
    """Whether somebody is being sent this track, or was within a minute."""
    directory = store.directory(track.title, track.version)
    return directory is not None and track.track != "" and is_open(directory / f"{track.track}.mp4")


def evict(store: Store, track: HeldTrack) -> None:
    """Remove a track from the store; with the last one its version goes."""
    held = store.held(track.title, track.version)
    if held is not None:
        # Of a version without whole tracks any name will do: nothing that could be served is left of it.
        store.remove_track(held, track.track or held.title.tracks[0].name)
