"""Quality over rate as a picture: what was tried of each size, and the rungs that were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from oca.errors import OcaError
from packager.ladder.analysis import Trial
from packager.ladder.quality import Scale
from packager.ladder.rungs import Rung

_WIDTH_IN, _HEIGHT_IN = 7.0, 4.6


def check(path: Path, ladder: str) -> None:
    """OcaError if there will be nothing to draw or no place for it, said before anything is measured."""
    if ladder != "per-title":
        raise OcaError("--plot draws what was measured, and this ladder needs no measuring: add --ladder per-title")
    if path.suffix not in (".svg", ".png"):
        raise OcaError(f"{path} is neither .svg nor .png: name the plot so that its format is known")
    if not path.absolute().parent.is_dir():
        raise OcaError(f"there is no directory {path.absolute().parent} for the plot: create it first")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise OcaError("there is no matplotlib to draw with: pip install 'oca[bench]'") from None


def draw(path: Path, name: str, trials: Sequence[Trial], rungs: Sequence[Rung], scale: Scale) -> None:
    """Write the plot; one line per codec and size, a dot for each rung at its rate and expected quality."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    key = lambda trial: (trial.codec, trial.lines)  # noqa: E731
    for (codec, lines), group in groupby(sorted(trials, key=key), key=key):
        curve = sorted(group, key=lambda trial: trial.kbps)
        label = f"{lines} lines" + (f", {codec}" if codec != "h264" else "")
        axes.plot([t.kbps for t in curve], [t.quality for t in curve], linewidth=1, marker=".", label=label)
    axes.plot(
        [rung.kbps for rung in rungs],
        [rung.quality for rung in rungs],
        linestyle="none",
        marker="o",
        markersize=8,
        markerfacecolor="none",
        markeredgecolor="black",
        label="rungs",
    )
    axes.axhline(scale.top, linewidth=0.8, linestyle=":", color="grey")
    axes.set_xscale("log")
    axes.set_xlabel("kbit/s")
    axes.set_ylabel(scale.metric)
    axes.set_title(name, loc="left", fontsize=10)
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.legend(fontsize=7)
    try:
        figure.savefig(path)
    except OSError as error:
        raise OcaError(f"cannot write the plot {path}: {error.strerror}") from None
