"""Figures of a benchmark as a picture: bars with their spread, one panel for each quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oca.errors import OcaError

_COLOURS = {"oca": "#2a6fdb", "nginx": "#d1801b", "nginx-threads": "#e3b35f", "floor": "#8a8f98"}
_WIDTH_IN, _HEIGHT_IN = 4.6, 3.6


@dataclass(frozen=True)
class Bar:
    """A measured value of one server in one group, with the least and the greatest of its runs."""

    group: str
    server: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Bars of one quantity; `log` where they differ by orders of magnitude."""

    title: str
    bars: Sequence[Bar]
    log: bool = False


def check(path: Path) -> None:
    """OcaError if a plot could not be written to `path`, said before anything is measured."""
    if path.suffix not in (".svg", ".png"):
        raise OcaError(f"{path} is neither .svg nor .png: name the plot so that its format is known")
    if not path.absolute().parent.is_dir():
        raise OcaError(f"there is no directory {path.absolute().parent} for the plot: create it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OcaError("plots need matplotlib: install it with `pip install 'oca[bench]'`") from None


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Write a picture with one panel beside the other."""
    # Only here: everything but plots works without it, and it is slow to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN * len(panels), _HEIGHT_IN), layout="constrained")
    figure.suptitle(title)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        groups = list(dict.fromkeys(bar.group for bar in panel.bars))
        servers = list(dict.fromkeys(bar.server for bar in panel.bars))
        width = 0.8 / len(servers)
        for number, server in enumerate(servers):
            own = [bar for bar in panel.bars if bar.server == server]
            places = [groups.index(bar.group) + (number - (len(servers) - 1) / 2) * width for bar in own]
            spread = [[max(0.0, bar.value - bar.low) for bar in own], [max(0.0, bar.high - bar.value) for bar in own]]
            bars = axes.bar(
                places,
                [bar.value for bar in own],
                width,
                yerr=spread,
                capsize=2,
                label=server,
                color=_COLOURS.get(server),
                error_kw={"elinewidth": 0.8},
            )
            axes.bar_label(bars, fmt="%.3g", fontsize=6, padding=2)
        axes.set_xticks(range(len(groups)), groups, fontsize=8)
        axes.set_title(panel.title, fontsize=9)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        if panel.log:
            axes.set_yscale("log")
        if len(servers) > 1:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(path)
