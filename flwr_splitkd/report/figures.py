"""The curves and the timeline of one run or of several, drawn once for the picture and for the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flwr_splitkd.callbacks import Callback
from flwr_splitkd.report.load import RunData, TurnLine, load_run
from flwr_splitkd.store import RunFolder

__all__ = [
    "COLORS",
    "DRAWINGS",
    "FAILED",
    "FigureFile",
    "draw_bytes",
    "draw_cuts",
    "draw_loss",
    "draw_perplexity",
    "overview",
]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""One a series, told apart with any kind of colour vision (Okabe and Ito)."""

FAILED = "#8c1d18"
_MIB = 1 << 20
# Many devices share one picture: then only every so many rows are named.
_MOST_ROW_LABELS = 25


def draw_loss(axes: Axes, runs: Sequence[RunData]) -> None:
    """What each turn minimised, by turn; with one run, its cross-entropy and KL divergence too."""
    for run, color in zip(runs, COLORS, strict=False):
        _line(axes, run, "loss", label="loss" if len(runs) == 1 else run.name, color=color)
    if len(runs) == 1:
        _line(axes, runs[0], "cross_entropy", label="cross-entropy", color=COLORS[1], linestyle="--")
        _line(axes, runs[0], "kl_divergence", label="KL divergence", color=COLORS[2], linestyle=":")
    _mark_failures(axes, runs)
    _finish(axes, "turn", "nats per label")


def draw_perplexity(axes: Axes, runs: Sequence[RunData]) -> None:
    """Perplexity of the devices' own data in their turns, and on the server where the run evaluated there."""
    for run, color in zip(runs, COLORS, strict=False):
        name = "" if len(runs) == 1 else f"{run.name}: "
        _line(axes, run, "perplexity", label=f"{name}in turns", color=color)
        ends = _ends_of_rounds(run)
        held_out = [
            (ends[r], m["perplexity"]) for r, m in sorted(run.evaluations.items()) if "perplexity" in m and r in ends
        ]
        if held_out:
            x, y = zip(*held_out, strict=True)
            axes.plot(x, y, "D", color=color, markersize=5, markerfacecolor="none", label=f"{name}on the server")
    values = [turn.perplexity for run in runs for turn in run.training if turn.perplexity]
    values += [metrics["perplexity"] for run in runs for metrics in run.evaluations.values() if "perplexity" in metrics]
    if values and max(values) > 10 * min(values):
        axes.set_yscale("log")
    _finish(axes, "turn", "perplexity")


def draw_cuts(axes: Axes, runs: Sequence[RunData]) -> None:
    """A row for each device of the first run: which turns it had, and with which cut; a cross for a failed turn."""
    run = runs[0]
    turns = [turn for turn in run.turns if turn.mode == "train"]
    devices = sorted({turn.device for turn in turns}, key=_natural)
    rows = {device: row for row, device in enumerate(devices)}
    cuts = sorted({turn.cut for turn in turns if turn.cut is not None})
    for number, cut in enumerate(cuts):
        mine = [turn for turn in turns if turn.cut == cut and turn.completed]
        axes.plot(
            [turn.index for turn in mine],
            [rows[turn.device] for turn in mine],
            "osD^vP"[number % 6],
            color=COLORS[number % len(COLORS)],
            markersize=7 if len(turns) <= 100 else 3,
            label=f"cut {cut}",
        )
    failed = [turn for turn in turns if not turn.completed]
    if failed:
        x, y = [turn.index for turn in failed], [rows[turn.device] for turn in failed]
        axes.plot(x, y, "x", color=FAILED, markersize=7, label="failed")
    every = -(-len(devices) // _MOST_ROW_LABELS) if devices else 1
    axes.set_yticks(range(0, len(devices), every), [_short(device) for device in devices[::every]])
    axes.set_ylim(max(len(devices), 1) - 0.5, -0.5)
    _finish(axes, "turn", "device")
    if axes.get_legend():  # above the rows, where no mark can be behind it
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0)


def draw_bytes(axes: Axes, runs: Sequence[RunData]) -> None:
    """Bytes on the data plane by turn: what the device sent and received, hand-over of layers included."""
    for run, color in zip(runs, COLORS, strict=False):
        name = "" if len(runs) == 1 else f"{run.name}: "
        second = COLORS[1] if len(runs) == 1 else color
        _line(axes, run, "uplink_bytes", label=f"{name}up", color=color, scale=1 / _MIB)
        _line(axes, run, "downlink_bytes", label=f"{name}down", color=second, linestyle="--", scale=1 / _MIB)
        if len(runs) == 1:
            handover = "hand-over of layers, within both"
            _line(axes, run, "handover_bytes", label=handover, color=COLORS[2], linestyle=":", scale=1 / _MIB)
    _finish(axes, "turn", "MiB per turn")
    axes.set_ylim(bottom=0)


DRAWINGS: Mapping[str, Callable[[Axes, Sequence[RunData]], None]] = {
    "Loss": draw_loss,
    "Perplexity": draw_perplexity,
    "Bytes": draw_bytes,
    "Cuts": draw_cuts,
}
"""Every drawing by its title."""


def overview(run: RunData) -> Figure:
    """All drawings of a run in one figure."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(run.name)
    for axes, (title, draw) in zip(figure.subplots(2, 2).flat, DRAWINGS.items(), strict=True):
        draw(axes, [run])
        axes.set_title(title, loc="left", fontsize=11)
    return figure


class FigureFile(Callback):
    """Draws ``figure.png`` at the end of a run, of whatever it got to."""

    def __init__(self) -> None:
        self._run: RunFolder | None = None

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        """Remember where."""
        self._run = run

    def on_end(self, error: BaseException | None) -> None:
        """Draw."""
        if self._run is not None and self._run.metrics.exists():
            overview(load_run(self._run.path)).savefig(self._run.figure, dpi=120)


def _line(axes: Axes, run: RunData, name: str, *, scale: float = 1.0, **style: Any) -> None:
    points = [(turn.index, value * scale) for turn in run.training if (value := _value(turn, name)) is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="." if len(points) <= 100 else None, linewidth=1.5, **style)


def _value(turn: TurnLine, name: str) -> float | None:
    value: float | None = getattr(turn, name)
    return value


def _mark_failures(axes: Axes, runs: Sequence[RunData]) -> None:
    failed = [turn.index for run in runs for turn in run.turns if not turn.completed]
    if failed:
        axes.plot(failed, [0.02] * len(failed), "x", color=FAILED, transform=axes.get_xaxis_transform(), label="failed")


def _ends_of_rounds(run: RunData) -> dict[int, int]:
    """Turns that had been served when each round was over."""
    ends = {0: 0}
    for turn in run.turns:
        ends[turn.server_round] = turn.index
    return ends


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)


def _natural(device: str) -> list[tuple[bool, int, str]]:
    """Sorts numbers within names as numbers: orin-2 before orin-10."""
    return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in re.split(r"(\d+)", device) if p]


def _short(text: str) -> str:
    # A dollar sign would start mathematics.
    text = text.replace("$", r"\$")
    return text if len(text) <= 20 else text[:19] + "…"
