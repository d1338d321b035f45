"""The outlook of a fill: how long it takes, and whether the windows are long enough for it. Pure.

Times are seconds, instants UTC epoch seconds, rates bit/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from fill.window import Window

# A fill that is not done after so many windows is not going to be.
_MOST_WINDOWS = 366


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is to come to a box: bytes, how long they take, in how many windows, and when the last one is there.

    `ends` and `rate_bps` are None if nobody knows: the box has not told of its windows, or its line lets nothing by.
    """

    appliance: str
    bytes: int
    rate_bps: int | None
    seconds: float
    windows: int
    ends: float | None

    @property
    def fits(self) -> bool:
        """Whether all of it comes in the window that is open, or in the next."""
        return self.bytes == 0 or (self.ends is not None and self.windows <= 1)


def outlook(box: str, missing: int, rate_bps: int, line_s: float, window: Window, now: float) -> Outlook:
    """The outlook for a box that lacks `missing` bytes and may fetch `rate_bps`.

    `line_s` is how long the line of its site needs for what all boxes of the site lack, each byte once.
    """
    seconds = max(8 * missing / rate_bps if rate_bps else 0.0, line_s) if missing else 0.0
    ends, windows = finish(window, now, seconds)
    return Outlook(box, missing, rate_bps, seconds, windows, ends)


def finish(window: Window, at: float, seconds: float) -> tuple[float | None, int]:
    """When work of so many seconds is done that may begin at `at`, in windows only; and in how many of them."""
    if seconds <= 0:
        return at, 0
    if window.always:
        return at + seconds, 1
    for number in range(1, _MOST_WINDOWS + 1):
        opens = at if window.is_open(at) else window.opens(at)
        closes = window.closes(at if opens is None else opens)
        if opens is None or closes is None:
            break
        if opens + seconds <= closes:
            return opens + seconds, number
        seconds -= closes - opens
        at = closes
    return None, _MOST_WINDOWS
