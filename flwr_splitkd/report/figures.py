"""The curves and the timeline of one run or of several, drawn once for the picture and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flwr_splitkd.callbacks import Callback
from flwr_splitkd.report.chain import is_chain
from flwr_splitkd.report.chain_figures import chain_drawings
from flwr_splitkd.report.cost_figures import (
    draw_modelled_energy,
    draw_modelled_seconds,
    draw_progress_by_energy,
    draw_progress_by_time,
    draw_seconds,
)
from flwr_splitkd.report.costs import has_progress, modelled, timed
from flwr_splitkd.report.load import RunData, load_run
from flwr_splitkd.report.style import (
    COLORS,
    Drawing,
    finish,
    legend_above,
    line,
    mark_failures,
    plain,
    short,
    timeline,
)
from flwr_splitkd.store import RunFolder

__all__ = ["DRAWINGS", "FigureFile", "draw_bytes", "draw_cuts", "draw_loss", "draw_perplexity", "overview"]

_MIB = 1 << 20


def draw_loss(axes: Axes, runs: Sequence[RunData]) -> None:
    """What each turn minimised, by turn; with one run, its cross-entropy and KL divergence too."""
    for run, color in zip(runs, COLORS, strict=False):
        line(axes, run, attrgetter("loss"), label="loss" if len(runs) == 1 else short(run.name), color=color)
    if len(runs) == 1:
        line(axes, runs[0], attrgetter("cross_entropy"), label="cross-entropy", color=COLORS[1], linestyle="--")
        line(axes, runs[0], attrgetter("kl_divergence"), label="KL divergence", color=COLORS[2], linestyle=":")
    mark_failures(axes, runs)
    finish(axes, "turn", "nats per label")


def draw_perplexity(axes: Axes, runs: Sequence[RunData]) -> None:
    """Perplexity of the devices' own data in their turns, and on the server where the run evaluated there."""
    for run, color in zip(runs, COLORS, strict=False):
        name = "" if len(runs) == 1 else f"{short(run.name)}: "
        line(axes, run, attrgetter("perplexity"), label=f"{name}in turns", color=color)
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
    finish(axes, "turn", "perplexity")


def draw_cuts(axes: Axes, runs: Sequence[RunData]) -> None:
    """A row for each device of the first run: which turns it had, and with which cut; a cross for a failed turn."""
    run = runs[0]
    turns = [turn for turn in run.turns if turn.mode == "train"]
    cuts = sorted({turn.cut for turn in turns if turn.cut is not None})
    groups = {
        f"cut {cut}": [(turn.index, turn.device) for turn in turns if turn.cut == cut and turn.completed]
        for cut in cuts
    }
    timeline(axes, groups, [(turn.index, turn.device) for turn in turns if not turn.completed])
    finish(axes, "turn", "device")
    legend_above(axes, columns=4)


def draw_bytes(axes: Axes, runs: Sequence[RunData]) -> None:
    """Bytes on the data plane by turn: what the device sent and received, hand-over of layers included."""
    for run, color in zip(runs, COLORS, strict=False):
        name = "" if len(runs) == 1 else f"{short(run.name)}: "
        second = COLORS[1] if len(runs) == 1 else color
        line(axes, run, attrgetter("uplink_bytes"), label=f"{name}up", color=color, scale=1 / _MIB)
        line(axes, run, attrgetter("downlink_bytes"), label=f"{name}down", color=second, linestyle="--", scale=1 / _MIB)
        if len(runs) == 1:
            handover = "hand-over of layers, within both"
            line(
                axes, run, attrgetter("handover_bytes"), label=handover, color=COLORS[2], linestyle=":", scale=1 / _MIB
            )
    finish(axes, "turn", "MiB per turn")
    axes.set_ylim(bottom=0)
    legend_above(axes, columns=3 if len(runs) == 1 else 2)


DRAWINGS = (
    Drawing(title="Loss", draw=draw_loss),
    Drawing(title="Perplexity", draw=draw_perplexity),
    Drawing(title="Bytes", draw=draw_bytes),
    Drawing(title="Cuts", draw=draw_cuts, shared=False, rows=lambda run: len({t.device for t in run.turns})),
    Drawing(title="Measured seconds", draw=draw_seconds, shows=timed, shared=False),
    Drawing(title="Modelled seconds", draw=draw_modelled_seconds, shows=modelled, shared=False),
    Drawing(title="Progress by modelled time", draw=draw_progress_by_time, shows=has_progress),
    Drawing(title="Progress by modelled energy", draw=draw_progress_by_energy, shows=has_progress),
    Drawing(title="Modelled energy", draw=draw_modelled_energy, shows=modelled),
)
"""Every drawing of turns."""


def overview(run: RunData) -> Figure:
    """All drawings of a run in one figure, two in a row; a last one alone takes the whole width."""
    every = chain_drawings([run]) if is_chain(run) else DRAWINGS
    drawings = [drawing for drawing in every if drawing.shows(run)]
    rows = max(1, -(-len(drawings) // 2))
    figure = Figure(figsize=(12, 4 * rows), layout="constrained")
    figure.suptitle(plain(run.name))
    grid = figure.add_gridspec(rows, 2)
    for number, drawing in enumerate(drawings):
        alone = number == len(drawings) - 1 and number % 2 == 0
        # A title of the axes would lie on a legend above them.
        part = figure.add_subfigure(grid[number // 2, :] if alone else grid[number // 2, number % 2])
        part.suptitle(plain(drawing.title), x=0.01, ha="left", fontsize=11)
        drawing.draw(part.subplots(), [run])
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


def _ends_of_rounds(run: RunData) -> dict[int, int]:
    """Turns that had been served when each round was over."""
    ends = {0: 0}
    for turn in run.turns:
        ends[turn.server_round] = turn.index
    return ends
