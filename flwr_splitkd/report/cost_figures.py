"""Drawings of what turns cost: seconds by stage, and what a modelled world says of time and energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes

from flwr_splitkd.report.costs import (
    STAGES,
    Point,
    measured_stages,
    modelled,
    modelled_stages,
    progress,
    unit_of,
)
from flwr_splitkd.report.lines import TurnLine
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.style import COLORS, FAILED, GAP, NEUTRAL, finish, legend_above, line, mark_failures, short

__all__ = [
    "draw_modelled_energy",
    "draw_modelled_seconds",
    "draw_progress_by_energy",
    "draw_progress_by_time",
    "draw_seconds",
]

_STAGE_COLORS = dict(zip(STAGES, (*COLORS[:5], NEUTRAL, NEUTRAL), strict=True))
# More bars than these have no gaps between them and their parts.
_MOST_GAPS = 60
# Predictions so many times the longest turn are shown at the upper edge, or no bar could be read.
_MOST_OF_LONGEST = 1.5


def draw_seconds(axes: Axes, runs: Sequence[RunData]) -> None:
    """A bar for each turn of the first run, by what its seconds went into, and what was predicted for it."""
    run = runs[0]
    _bars(axes, run, measured_stages, predictions=not modelled(run))
    mark_failures(axes, [run])
    finish(axes, "turn", "measured seconds")
    legend_above(axes, columns=3)


def draw_modelled_seconds(axes: Axes, runs: Sequence[RunData]) -> None:
    """The same in a modelled world."""
    run = runs[0]
    _bars(axes, run, modelled_stages, predictions=True)
    mark_failures(axes, [run])
    finish(axes, "turn", "modelled seconds")
    legend_above(axes, columns=3)


def draw_progress_by_time(axes: Axes, runs: Sequence[RunData]) -> None:
    """How good the students had become at a modelled time."""
    _progress(axes, runs, lambda point: point.clock_s, "modelled time", "s")


def draw_progress_by_energy(axes: Axes, runs: Sequence[RunData]) -> None:
    """How good the students had become with so much modelled energy, of all devices and the server together."""
    _progress(axes, runs, lambda point: point.energy_j, "modelled energy", "J")


def draw_modelled_energy(axes: Axes, runs: Sequence[RunData]) -> None:
    """Modelled joules of each turn, with one run the device's part too; rings for turns over the planner's bound."""
    everything = [_joules(turn) or 0.0 for run in runs for turn in run.training]
    unit, size = unit_of(max(everything, default=0.0), "J")
    late: list[tuple[float, float]] = []
    for run, color in zip(runs, COLORS, strict=False):
        alone = len(runs) == 1
        line(axes, run, _joules, label="device and server" if alone else short(run.name), color=color, scale=1 / size)
        if alone:
            line(axes, run, _device_joules, label="device", color=COLORS[1], linestyle="--", scale=1 / size)
        overdue = [turn for turn in run.training if turn.modelled and turn.modelled.late]
        late += [(turn.index, joules / size) for turn in overdue if (joules := _joules(turn)) is not None]
    if late:
        x, y = zip(*late, strict=True)
        axes.plot(x, y, "o", color=FAILED, markerfacecolor="none", markersize=9, markeredgewidth=1.5, label="late")
    finish(axes, "turn", f"modelled {unit} per turn")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="plain")
    legend_above(axes, columns=3)


def _bars(
    axes: Axes, run: RunData, stages_of: Callable[[TurnLine], Mapping[str, float] | None], *, predictions: bool
) -> None:
    turns = [(turn, stages) for turn in run.training if (stages := stages_of(turn))]
    if not turns:
        return
    # One shape a stage, however many turns there are: bars and, without a value, what is between them.
    half = 0.4 if len(turns) <= _MOST_GAPS else 0.5
    edges = [edge for turn, _ in turns for edge in (turn.index - half, turn.index + half)]
    below = [0.0] * len(turns)
    for stage in STAGES:
        seconds = [stages.get(stage, 0.0) for _, stages in turns]
        if not any(seconds):
            continue
        above = [low + value for low, value in zip(below, seconds, strict=True)]
        axes.stairs(
            _with_gaps(above, float("nan")),
            edges,
            baseline=_with_gaps(below, 0.0),
            fill=True,
            facecolor=_STAGE_COLORS[stage],
            edgecolor=GAP,
            linewidth=0.6 if len(turns) <= _MOST_GAPS else 0.0,
            label=stage,
        )
        below = above
    axes.set_ylim(0, 1.05 * max(below) or 1.0)
    axes.ticklabel_format(axis="y", style="plain")  # a power of ten above the axis would lie under the legend
    if predictions:
        _mark_predictions(axes, [turn for turn, _ in turns], longest_s=max(below))


def _with_gaps(values: Sequence[float], gap: float) -> list[float]:
    return [one for value in values for one in (value, gap)][:-1]


def _mark_predictions(axes: Axes, turns: Sequence[TurnLine], *, longest_s: float) -> None:
    predicted = [(turn.index, turn.plan.total_s) for turn in turns if turn.plan and turn.plan.total_s is not None]
    top_s = _MOST_OF_LONGEST * longest_s or 1.0
    style = {
        "color": matplotlib.rcParams["text.color"],
        "markerfacecolor": GAP,
        "markersize": 5 if len(turns) <= _MOST_GAPS else 3,
        "markeredgewidth": 1.0 if len(turns) <= _MOST_GAPS else 0.5,
    }
    within = [(index, seconds) for index, seconds in predicted if seconds <= top_s]
    beyond = [index for index, seconds in predicted if seconds > top_s]
    if within:
        x, y = zip(*within, strict=True)
        axes.plot(x, y, "D", label="predicted", **style)
        axes.set_ylim(0, 1.05 * max(longest_s, *y))
    if beyond:
        axes.set_ylim(top=1.1 * axes.get_ylim()[1])  # room for them above the bars
        where = [0.96] * len(beyond)
        axes.plot(beyond, where, "^", transform=axes.get_xaxis_transform(), label="predicted, off the scale", **style)


def _progress(axes: Axes, runs: Sequence[RunData], by: Callable[[Point], float], along: str, base_unit: str) -> None:
    measure, points_of_runs = progress(runs)
    unit, size = unit_of(max((by(point) for points in points_of_runs for point in points), default=0.0), base_unit)
    for number, (run, points) in enumerate(zip(runs, points_of_runs, strict=True)):
        if points:
            axes.plot(
                [by(point) / size for point in points],
                [point.value for point in points],
                "oD"[number % 2] + ("-" if number == 0 else "--"),
                color=COLORS[number % len(COLORS)],
                markersize=4,
                linewidth=1.5,
                label=short(run.name) if len(runs) > 1 else None,
            )
    values = [point.value for points in points_of_runs for point in points]
    if values and 0 < 10 * min(values) < max(values):
        axes.set_yscale("log")
    finish(axes, f"{along}, {unit}", measure, whole=False)
    axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # the first point is at 0


def _joules(turn: TurnLine) -> float | None:
    return turn.modelled.total_j if turn.modelled else None


def _device_joules(turn: TurnLine) -> float | None:
    return turn.modelled.device_j if turn.modelled else None
