"""The controller's view of the fleet as decisions see it: candidates, sources, fill manifests. Reads memory only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from blake3 import blake3

from control.fills.leases import LEASE_S, AwayError, Leases, OwnLeases
from control.fleet.neighbourhood import Neighbourhood
from control.fleet.registry import Registry
from control.state import Appliance, State, Version
from control.steering import ranking as steering
from control.steering.coverage import Match
from control.steering.ranking import Candidate, Choice
from control.titles.liveness import Holding, LiveSettings, enough, gates
from control.titles.origins import Origins
from fill.outlook import Outlook, outlook
from fill.ranking import UNKNOWN_COST, Escalation, Holder, Verdict, explain, sources
from fill.window import Window, of
from oca import wire
from oca.config import FillSettings
from oca.errors import ConfigError
from oca.wire import Doomed, FillItem, FillLease, FillManifest, FillReport, FillTerms, Source, Track

# A fill that asked for no lease for so long has ended.
_FILLING_S = 5 * LEASE_S


class Fleet:
    """State and heartbeats together; `live` says when a version may be played from a site."""

    def __init__(
        self,
        state: State,
        registry: Registry,
        live: LiveSettings | None = None,
        origins: Origins | None = None,
        *,
        escalation: Escalation | None = None,
        leases: Leases | None = None,
    ) -> None:
        self.state = state
        self.registry = registry
        self.leases = leases or OwnLeases()
        self.live = live or LiveSettings()
        self.origins = origins or Origins()
        self.escalation = escalation or Escalation()
        self.filling: dict[str, float] = {}
        """When each box that fills last asked for its lease, which it does all the time (time.monotonic())."""
        self._in_vain: dict[str, set[int]] = {}
        # Of what was wanted when State.placements was so many.
        self._digests: tuple[int, dict[str, bytes]] = 0, {}

    def url(self, box: Appliance) -> str:
        """Where the box is reached: as it last said itself, else as registered."""
        beat = self.registry.last(box.id)
        return beat.url if beat is not None else box.url

    def load(self, box: Appliance) -> float:
        """Share of its capacity that the box sends now, 0 if its capacity is not known."""
        beat = self.registry.last(box.id)
        return beat.sending_bps / box.capacity_bps if beat is not None and box.capacity_bps else 0.0

    def choices(self, version: Version, client: Match | None, track: str | None = None) -> list[Choice]:
        """Every appliance ranked, or passed over, for a viewer of a version, or of one track of it."""
        mask = version.mask if track is None else 1 << version.track_ids[track]
        held = {box: (self.state.holds(box) & mask).bit_count() for box in self.state.appliances}
        closed = self.gates(held, mask.bit_count())
        candidates = [
            Candidate(
                appliance=box.id,
                site=box.site,
                role=cast(Any, box.role),
                url=self.url(box),
                alive=self.registry.alive(box.id),
                draining=box.draining,
                held=held[box.id],
                wanted=mask.bit_count(),
                load=self.load(box),
                enough=enough(mask.bit_count(), self.live) if box.role == "edge" else None,
                gate=closed.get(box.site, "") if box.role == "edge" else "",
            )
            for box in self.state.appliances.values()
        ]
        return steering.rank(candidates, client, self.state.coverage, f"{version.title.id}/{version.version}")

    def gates(self, held: Mapping[str, int], wanted: int) -> Mapping[str, str]:
        """By site what keeps a version from being live there, "" for nothing; `held` of its tracks by appliance."""
        registry, boxes = self.registry, self.state.appliances.values()
        edges = [box for box in boxes if box.role == "edge"]
        holdings = [Holding(b.id, b.site, registry.alive(b.id) and not b.draining, held[b.id]) for b in edges]
        return gates(holdings, wanted, self.live)

    def client(self, address: str) -> Match | None:
        """The zone of a viewer's address."""
        return self.state.coverage.match(address)

    def storage_bytes(self, box: Appliance) -> int:
        """Bytes of content the box may hold: as registered, else as it reports, else 0."""
        beat = self.registry.last(box.id)
        return box.storage_bytes or (beat.storage_bytes if beat is not None else 0)

    def wanted_bytes(self, box: str) -> int:
        """Bytes of what an appliance is to hold, by the plan and by pins."""
        wanted = self.state.wanted.get(box, {})
        return sum(
            version.bytes_of(wanted) for title in self.state.titles.values() for version in title.versions.values()
        )

    def pinned_bytes(self, box: str) -> int:
        """Bytes of what an appliance is to hold whatever plans say."""
        return sum(self.state.version(*each).bytes for each in self.state.pins.get(box, ()))

    def fill_manifest(self, box: Appliance) -> FillManifest:
        """What the plan in force wants on the box, the most valuable for its bytes first."""
        return self._manifest(box, self._items(box))

    def fill_generation(self, box: Appliance) -> str:
        """A string that is another whenever the fill manifest is. Cheap enough for every heartbeat."""
        if self._digests[0] != self.state.placements:
            self._digests = self.state.placements, {}
        digests = self._digests[1]
        if box.id not in digests:
            digests[box.id] = blake3(msgspec.json.encode(self._items(box))).digest()
        # All but what may be long is looked at anew: who is alive is nothing that a plan tells.
        rest = wire.encode(self._manifest(box, []))
        return blake3(digests[box.id] + rest).hexdigest(length=16)

    def _items(self, box: Appliance) -> list[FillItem]:
        wanted = self.state.wanted.get(box.id, {})
        items = []
        for title in self.state.titles.values():
            for version in title.versions.values():
                tracks = [t for t in version.title.tracks if version.track_ids[t.name] in wanted]
                if tracks:
                    items.append(
                        FillItem(
                            title=title.id,
                            version=version.version,
                            published=version.published,
                            tracks=[track.name for track in tracks],
                            bytes=sum(version.title.track_bytes(track) for track in tracks),
                            value=sum(wanted[version.track_ids[track.name]] for track in tracks),
                        )
                    )
        items.sort(key=lambda item: (-item.value / max(1, item.bytes), item.title, item.version))
        return items

    def _manifest(self, box: Appliance, items: list[FillItem]) -> FillManifest:
        unknown = self.state.held(box.id).unknown if box.role != "origin" else ()
        here = self._holder(box, box)
        others = [self._holder(other, box) for other in self.state.appliances.values()]
        return FillManifest(
            appliance=box.id,
            plan=self.state.plan,
            items=items,
            force=self.state.orders.get(box.id, 0),
            paused=box.id in self.state.paused,
            doomed=[Doomed(r.title, r.version) for r in unknown if (r.title, r.version) in self.state.doomed],
            boxes=sources(here, others, [], ""),
            uplink_bps=self._safe_share(box.site),
        )

    async def lease(self, box: Appliance) -> FillLease:
        """What a box that is filling may take of its site's line now."""
        self.filling[box.id] = time.monotonic()
        line = self.state.lines.get(box.site)
        try:
            rate = None if line is None else await self.leases.ask(box.site, box.id, line)
        except AwayError:
            rate = self._safe_share(box.site)
        return FillLease(rate_bps=rate, seconds=LEASE_S)

    def _safe_share(self, site: str) -> int | None:
        """What each box keeps to where nobody shares the line out, whoever fills; None without a line, bit/s."""
        line = self.state.lines.get(site)
        boxes = sum(box.site == site and box.role != "origin" for box in self.state.appliances.values())
        return line // max(1, boxes) if line else None

    def note_fill(self, report: FillReport) -> None:
        """Remember which tracks a box has tried in vain: for those it is not the one to wait for."""
        failed = self._in_vain.setdefault(report.appliance, set())
        for row in report.progress:
            title = self.state.titles.get(row.title)
            version = title.versions.get(row.version) if title is not None else None
            number = version.track_ids.get(row.track) if version is not None else None
            if number is not None:
                (failed.add if row.state == "failed" else failed.discard)(number)

    def outlooks(self, wanted: Mapping[str, Iterable[int]], now: float) -> list[Outlook]:
        """How the fills of a plan will go that wants these tracks (ids, by appliance) on boxes."""
        sizes = self._track_bytes()
        missing: dict[Appliance, set[int]] = {}
        for name, tracks in wanted.items():
            box, held = self.state.appliances.get(name), self.state.holds(name)
            if box is not None:
                missing[box] = {track for track in tracks if not held >> track & 1 and track in sizes}
        found = []
        for box in sorted(missing, key=lambda each: each.id):
            line, beat = self.state.lines.get(box.site), self.registry.last(box.id)
            # Once over the line, a track goes from box to box.
            crossing = set().union(*(tracks for mate, tracks in missing.items() if mate.site == box.site))
            line_s = 8 * sum(sizes[track] for track in crossing) / line if line else 0.0
            lacking = sum(sizes[track] for track in missing[box])
            terms = beat.fill if beat is not None else None
            window = _window(terms)
            if terms is None or window is None:
                found.append(Outlook(box.id, lacking, None, 0.0, 0, None))
            else:
                found.append(outlook(box.id, lacking, terms.rate_bps, line_s, window, now))
        return found

    def _track_bytes(self) -> dict[int, int]:
        """Bytes of every track in the catalog, by its id."""
        versions = (version for title in self.state.titles.values() for version in title.versions.values())
        return {
            version.track_ids[track.name]: version.title.track_bytes(track)
            for version in versions
            for track in version.title.tracks
        }

    def sources(self, box: Appliance, track: Track) -> list[Source]:
        """Where the box may fetch a track, best first; nowhere if the catalog does not know it."""
        title = self.state.titles.get(track.title)
        version = title.versions.get(track.version) if title is not None else None
        if version is None or track.track not in version.track_ids:
            return []
        ranked = sources(*self._asked(box, version, track.track), self.escalation)
        return self.origins.signed(ranked, version, track.track)

    def why(self, box: Appliance, version: Version, track: str) -> list[Verdict]:
        """As `sources`, with everybody who is no source, and why."""
        everybody = [self._holder(each, box) for each in self.state.appliances.values()]
        everybody += self.origins.holders(None, lambda site: self._cost(box.site, site))
        return explain(*self._asked(box, version, track), everybody, self.escalation)

    def _asked(self, box: Appliance, version: Version, track: str) -> tuple[Holder, list[Holder], list[Holder], str]:
        """What a ranking is made of: the box, who holds the track, who wants it, and what it is called."""
        number = version.track_ids[track]
        everybody = list(self.state.appliances.values())
        holders = [self._holder(b, box) for b in everybody if self.state.holds(b.id) >> number & 1]
        holders += self.origins.holders(version, lambda site: self._cost(box.site, site))
        wanting = [
            self._holder(b, box)
            for b in everybody
            if number in self.state.wanted.get(b.id, {})
            and not self.state.holds(b.id) >> number & 1
            and number not in self._in_vain.get(b.id, ())
        ]
        return self._holder(box, box), holders, wanting, f"{version.version}/{track}"

    def neighbourhood(self, box: Appliance) -> Neighbourhood:
        """What there is to tell the box of others now."""
        boxes = [other for other in self.state.appliances.values() if not other.draining]
        others = [(self._holder(other, box), self.state.holds(other.id)) for other in boxes]
        versions = [version for title in self.state.titles.values() for version in title.versions.values()]
        return Neighbourhood(self._holder(box, box), others, versions)

    def _holder(self, box: Appliance, seen_from: Appliance) -> Holder:
        cost = self._cost(seen_from.site, box.site)
        filling = self.filling.get(box.id, -math.inf) > time.monotonic() - _FILLING_S
        alive = self.registry.alive(box.id)
        return Holder(box.id, box.site, cast(Any, box.role), self.url(box), alive, cost, filling)

    def _cost(self, here: str, there: str) -> int:
        km = self.state.coverage.distance_km(here, there)
        return UNKNOWN_COST if km is None else round(km)


def _window(terms: FillTerms | None) -> Window | None:
    """When a box may fetch; None if it has not told, or names a time zone that is none."""
    try:
        return of(FillSettings(windows=terms.windows, timezone=terms.timezone)) if terms is not None else None
    except ConfigError:
        return None
