"""What pictures of a source are like beyond size and rate: interlaced or not, and how their colours are meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# What ffmpeg's filter `showinfo` says of a picture; 5.1 and 9 agree.
_FIELD = re.compile(r"showinfo.* i:([PTB]) ")
_COLOUR = re.compile(r"showinfo.*color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)")
_HDR = {"smpte2084": "PQ, as in HDR10", "arib-std-b67": "HLG"}
# Where nothing is said: high definition is BT.709, what is smaller BT.601 (ITU-R BT.1847, and what players do).
_HIGH_LINES = 720
LOOKED_AT = 25
"""Pictures that `look` is to be shown."""


@dataclass(frozen=True, slots=True)
class Look:
    """`interlaced`: two fields a picture; `matrix`: from what colours are to be made, for the filter `scale`;
    `hdr`: the kind of high dynamic range, '' if the range is standard.
    """

    interlaced: bool
    matrix: str
    hdr: str


def look(lines: Sequence[str], height: int) -> Look:
    """What `showinfo` said, line by line, of the first pictures of a source with `height` lines."""
    fields = [match[1] for line in lines if (match := _FIELD.search(line))]
    colours = next((match for line in lines if (match := _COLOUR.search(line))), None)
    matrix, transfer = (colours[1], colours[3]) if colours else ("unknown", "unknown")
    guess = "bt709" if height >= _HIGH_LINES else "bt601"
    matrix = guess if matrix == "unknown" else "auto"
    # A few progressive pictures are found in interlaced films, and the other way round.
    return Look(2 * sum(field != "P" for field in fields) > len(fields), matrix, _HDR.get(transfer, ""))
