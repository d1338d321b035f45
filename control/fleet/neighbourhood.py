"""Which other boxes one appliance is told of, so that it can send viewers on while nobody steers. Pure.

The ranking is that of fills: peers of its site, then tiers, then origins. Edges of other sites are left out, for
their uplinks belong to their own viewers.
"""

from __future__ import annotations

from collections.abc import Sequence

from blake3 import blake3

from control.state import Version
from fill.ranking import Holder, sources
from oca.wire import HeldElsewhere, Neighbours

MOST_HOLDERS = 4
"""Peers and tiers named per track; every origin that holds it comes on top."""


class Neighbourhood:
    """Box `me`, what each of `others` holds as a bit per track, and the versions there are: one moment's view."""

    def __init__(self, me: Holder, others: Sequence[tuple[Holder, int]], versions: Sequence[Version]) -> None:
        self._me = me
        holders = [holder for holder, _ in others]
        # Asked once for all, this leaves out whom `me` would never ask, and puts the nearest first.
        self._boxes = sources(me, holders, [], "")
        masks = {holder.appliance: mask for holder, mask in others}
        self._masks = [masks[box.appliance] for box in self._boxes]
        self._holders = {holder.appliance: holder for holder in holders}
        self._versions = versions

    @property
    def generation(self) -> str:
        """A string that is another whenever the message says something else of these boxes."""
        seen = blake3()
        for box, mask in zip(self._boxes, self._masks, strict=True):
            seen.update(f"{box.appliance} {box.url} {box.rank} {box.cost} {mask.bit_length()}\n".encode())
            seen.update(mask.to_bytes(mask.bit_length() // 8 + 1, "little"))
        # A version that leaves the catalog takes its tracks along; one that comes may be held already.
        seen.update("\n".join(version.version for version in self._versions).encode())
        return seen.hexdigest(length=16)

    def message(self) -> Neighbours:
        """All of it. Takes a second for a hundred thousand tracks: call it from a thread."""
        number_of = {box.appliance: number for number, box in enumerate(self._boxes)}
        bits = [mask.to_bytes(mask.bit_length() // 8 + 1, "little") for mask in self._masks]
        held = []
        for version in self._versions:
            near = [number for number, mask in enumerate(self._masks) if mask & version.mask]
            tracks = {}
            for name, bit in version.track_ids.items():
                place, shift = divmod(bit, 8)
                with_it = [n for n in near if place < len(bits[n]) and bits[n][place] >> shift & 1]
                if with_it:
                    found = [self._holders[self._boxes[number].appliance] for number in with_it]
                    ranked = sources(self._me, found, [], f"{version.version}/{name}")
                    chosen = [source for source in ranked if source.rank != "origin"][:MOST_HOLDERS]
                    chosen += [source for source in ranked if source.rank == "origin"]
                    tracks[name] = [number_of[source.appliance] for source in chosen]
            if tracks:
                held.append(
                    HeldElsewhere(
                        title=version.title.id, version=version.version, published=version.published, tracks=tracks
                    )
                )
        return Neighbours(appliance=self._me.appliance, generation=self.generation, boxes=self._boxes, held=held)
