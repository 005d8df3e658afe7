"""What the drawings have in common: colours, curves, marks and axes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from flwr_splitkd.report.lines import TurnLine
from flwr_splitkd.report.load import RunData

__all__ = [
    "COLORS",
    "FAILED",
    "GAP",
    "NEUTRAL",
    "Drawing",
    "curve",
    "finish",
    "legend_above",
    "line",
    "mark_failures",
    "plain",
    "short",
    "timeline",
]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""One a series, told apart with any kind of colour vision (Okabe and Ito)."""

FAILED = "#8c1d18"
NEUTRAL = "#6e7681"
"""For what is left over."""
GAP = "#fefefe"
"""The colour behind a drawing, for the gap between areas that touch."""

Points = Sequence[tuple[float, float]]

# More points than these have no marks of their own.
_MOST_MARKS = 100
# Many devices share one picture: then only every so many rows are named.
_MOST_ROW_LABELS = 20


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
    rows
        How many rows a run has in it, if it grows with them.
    slug
        Names it where letters and digits are needed; made from the title when not given.
    """

    title: str
    draw: Callable[[Axes, Sequence[RunData]], None]
    shows: Callable[[RunData], bool] = lambda run: True
    shared: bool = True
    rows: Callable[[RunData], int] = lambda run: 0
    slug: str = ""

    def groups(self, runs: Sequence[RunData]) -> list[list[RunData]]:
        """The runs of each drawing with this title; empty if none has anything to show."""
        if self.shared:
            return [list(runs)] if any(self.shows(run) for run in runs) else []
        return [[run] for run in runs if self.shows(run)]


def line(
    axes: Axes, run: RunData, value_of: Callable[[TurnLine], float | None], *, scale: float = 1.0, **style: Any
) -> None:
    """A curve over the turns that trained and have this value."""
    curve(axes, [(turn.index, value) for turn in run.training if (value := value_of(turn)) is not None], scale, **style)


def curve(axes: Axes, points: Points, scale: float = 1.0, **style: Any) -> None:
    """A curve through these points, if there are any, their values times `scale`."""
    if points:
        x, y = zip(*points, strict=True)
        marker = "." if len(points) <= _MOST_MARKS else None
        axes.plot(x, [value * scale for value in y], marker=marker, linewidth=1.5, **style)


def timeline(
    axes: Axes,
    groups: Mapping[str, Sequence[tuple[float, str]]],
    failed: Sequence[tuple[float, str]],
    *,
    label: str = "failed",
) -> None:
    """A row for each device, with a mark for each time that it is in a group.

    Parameters
    ----------
    groups
        When, and which device, by what the group is called; each group has a mark of its own.
    failed
        When which device came to nothing: a cross.
    label
        What that is called.
    """
    marks = [*(mark for group in groups.values() for mark in group), *failed]
    devices = sorted({device for _, device in marks}, key=_natural)
    rows = {device: row for row, device in enumerate(devices)}
    for number, (name, group) in enumerate(groups.items()):
        axes.plot(
            [when for when, _ in group],
            [rows[device] for _, device in group],
            "osD^vP"[number % 6],
            color=COLORS[number % len(COLORS)],
            markersize=7 if len(marks) <= 100 else 3,
            label=name,
        )
    if failed:
        x, y = [when for when, _ in failed], [rows[device] for _, device in failed]
        axes.plot(x, y, "x", color=FAILED, markersize=7, label=label)
    every = -(-len(devices) // _MOST_ROW_LABELS) if devices else 1
    axes.set_yticks(range(0, len(devices), every), [short(device) for device in devices[::every]])
    axes.tick_params(axis="y", labelsize=8 if len(devices) > _MOST_ROW_LABELS // 2 else None)
    axes.set_ylim(max(len(devices), 1) - 0.5, -0.5)


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
    return plain(text if len(text) <= 20 else f"{text[:9]}…{text[-10:]}")


def plain(text: str) -> str:
    """A text that is drawn as it is: a dollar sign would start mathematics."""
    return text.replace("$", r"\$")


def _natural(device: str) -> list[tuple[bool, int, str]]:
    """Sorts numbers within names as numbers: orin-2 before orin-10."""
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in re.split(r"(\d+)", device) if p]
