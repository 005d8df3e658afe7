"""What the drawings have in common: colours, curves, marks and axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from flwr_splitkd.report.lines import TurnLine
from flwr_splitkd.report.load import RunData

__all__ = ["COLORS", "FAILED", "GAP", "NEUTRAL", "Drawing", "finish", "legend_above", "line", "mark_failures", "short"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""One a series, told apart with any kind of colour vision (Okabe and Ito)."""

FAILED = "#8c1d18"
NEUTRAL = "#6e7681"
"""For what is left over."""
GAP = "#fefefe"
"""The colour behind a drawing, for the gap between areas that touch."""

# More points than these have no marks of their own.
_MOST_MARKS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawing, and which runs have something for it.

    Parameters
    ----------
    title
        Above it.
    draw
        Called with some runs, once for all where they share the drawing.
    shows
        Whether a run has something to show.
    shared
        Whether several runs go into one drawing; otherwise each has its own.
    """

    title: str
    draw: Callable[[Axes, Sequence[RunData]], None]
    shows: Callable[[RunData], bool] = lambda run: True
    shared: bool = True

    def groups(self, runs: Sequence[RunData]) -> list[list[RunData]]:
        """The runs of each drawing with this title; empty if none has anything to show."""
        if self.shared:
            return [list(runs)] if any(self.shows(run) for run in runs) else []
        return [[run] for run in runs if self.shows(run)]


def line(
    axes: Axes, run: RunData, value_of: Callable[[TurnLine], float | None], *, scale: float = 1.0, **style: Any
) -> None:
    """A curve over the turns that trained and have this value."""
    points = [(turn.index, value * scale) for turn in run.training if (value := value_of(turn)) is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="." if len(points) <= _MOST_MARKS else None, linewidth=1.5, **style)


def mark_failures(axes: Axes, runs: Sequence[RunData]) -> None:
    """A cross at the bottom for each turn that came to nothing."""
    failed = [turn.index for run in runs for turn in run.turns if not turn.completed]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "x", color=FAILED, transform=axes.get_xaxis_transform(), label="failed")


def finish(axes: Axes, x: str, y: str, *, whole: bool = True) -> None:
    """Name the axes and what is drawn; `whole` for whole numbers along the horizontal axis."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def legend_above(axes: Axes, *, columns: int) -> None:
    """Move the legend above the drawing, where no mark can be behind it."""
    if axes.get_legend():
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0)


def short(text: str) -> str:
    """A name that fits into a drawing: its begin and its end, which is where names differ."""
    text = text if len(text) <= 20 else f"{text[:9]}…{text[-10:]}"
    # A dollar sign would start mathematics.
    return text.replace("$", r"\$")
