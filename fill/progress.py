"""The progress of one run of filling: the state of every wanted track, and the reports that tell of it. No I/O."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from fill.difference import Difference, WantedTrack
from oca.wire import FillManifest, FillProgress, FillReport, FillState, Source

Key = tuple[str, str, str]


@dataclass(slots=True)
class TrackProgress:
    """How far one track is; bytes are verified ones, `fetched` counts them by the appliance that gave them."""

    state: FillState = "waiting"
    bytes: int = 0
    total: int = 0
    fetched: dict[str, int] = field(default_factory=dict)
    error: str = ""


class Progress:
    """The state of a run. The first report and the last tell of all tracks, those between of what has changed."""

    def __init__(self, manifest: FillManifest, difference: Difference) -> None:
        self.manifest = manifest
        self.tracks = {track.key: TrackProgress() for track in difference.missing}
        for held in difference.present:
            self.tracks[held.key] = TrackProgress("done", held.bytes, held.bytes)
        self._changed = set(self.tracks)
        self._run = uuid.uuid4().hex
        self._reports = 0

    @property
    def changed(self) -> bool:
        """Whether there is anything that no report has told."""
        return bool(self._changed)

    @property
    def missing(self) -> int:
        """How many wanted tracks are not held yet."""
        return sum(track.state != "done" for track in self.tracks.values())

    def set(self, track: WantedTrack, state: FillState, error: str = "") -> None:
        """`track` has come into `state`."""
        row = self.tracks[track.key]
        if (row.state, row.error) != (state, error):
            row.state, row.error = state, error
            self._changed.add(track.key)

    def begin(self, track: WantedTrack, total: int) -> None:
        """Fetching of `track` begins, `total` bytes in all; an attempt before this one counts no longer."""
        row = self.tracks[track.key]
        row.state, row.bytes, row.total, row.error = "fetching", 0, total, ""
        self._changed.add(track.key)

    def add(self, track: WantedTrack, source: Source | None, amount: int) -> None:
        """`amount` more bytes of `track` are verified; from `source`, or found on disk."""
        row = self.tracks[track.key]
        row.bytes += amount
        if source is not None:
            row.fetched[source.appliance] = row.fetched.get(source.appliance, 0) + amount
        self._changed.add(track.key)

    def report(self, at: float, *, finished: bool = False, outside_window: bool = False) -> FillReport:
        """The report to send now; what it tells counts as told, until `untold` says otherwise."""
        keys: Iterable[Key] = self.tracks if finished else [key for key in self.tracks if key in self._changed]
        rows = [self._row(key) for key in keys]
        self._changed.clear()
        self._reports += 1
        return FillReport(
            appliance=self.manifest.appliance,
            batch=f"{self._run}-{self._reports}",
            plan=self.manifest.plan,
            at=at,
            force=self.manifest.force,
            finished=finished,
            outside_window=outside_window,
            progress=rows,
        )

    def untold(self, report: FillReport) -> None:
        """`report` did not arrive: the next one must tell it all."""
        self._changed.update((row.title, row.version, row.track) for row in report.progress)

    def _row(self, key: Key) -> FillProgress:
        row = self.tracks[key]
        title, version, track = key
        return FillProgress(
            title=title,
            version=version,
            track=track,
            state=row.state,
            bytes=row.bytes,
            total=row.total,
            fetched=dict(row.fetched),
            error=row.error[:500],
        )
