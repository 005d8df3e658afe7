"""The figures of the case study. Loaded when asked for: matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure

from flwr_splitkd.case_studies.split_kd.claims import CLAIMS, verdicts
from flwr_splitkd.case_studies.split_kd.settings import CLOCKS
from flwr_splitkd.case_studies.split_kd.study import CHANNELS, METHODS, Outcome
from flwr_splitkd.costs.shape import Float

__all__ = ["draw_claims", "draw_rounds"]

# Okabe and Ito: told apart with any kind of colour vision.
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_MARKERS = "os^Dv"
# Reductions below this are drawn on the edge of the figure.
_LEAST_REDUCTION = -1.0
_COLUMNS = 3


def draw_rounds(outcomes: Sequence[Outcome], measure: Callable[[Outcome], Float], label: str) -> Figure:
    """Bars of a round by channel and method, a panel for each outcome; lines are one standard deviation over the rounds.

    Parameters
    ----------
    outcomes
        At least one; three a row.
    measure
        Values by method, channel and round, of an outcome.
    label
        Of the axis, with its unit.
    """
    rows = -(-len(outcomes) // _COLUMNS)
    figure = Figure(figsize=(11, 3.4 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).flat
    places, width = np.arange(len(CHANNELS)), 0.8 / len(METHODS)
    for axes, outcome in zip(panels, outcomes, strict=False):
        values = measure(outcome)
        for m, method in enumerate(METHODS):
            axes.bar(
                places + (m - (len(METHODS) - 1) / 2) * width,
                values[m].mean(axis=-1),
                width,
                yerr=values[m].std(axis=-1),
                color=_COLORS[m],
                error_kw={"elinewidth": 1, "capsize": 2},
                label=method,
            )
        axes.set_title(outcome.setting.name.replace("/", "\n", 1).replace("/device", "\ndevice"), fontsize=8)
        axes.set_xticks(places, CHANNELS)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(figure.axes)[len(outcomes) :]:
        axes.set_visible(False)
    for axes in list(figure.axes)[::_COLUMNS]:
        axes.set_ylabel(label)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_claims(outcomes: Sequence[Outcome]) -> Figure:
    """Every setting by what it saves against server-only, in its worst channel; shaded is where both claims hold."""
    delay, energy, _ = CLAIMS
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for clock, color, marker in zip(CLOCKS, _COLORS, _MARKERS, strict=True):
        found = [verdicts(outcome) for outcome in outcomes if outcome.setting.clock == clock]
        axes.plot(
            [100 * row[0].worst for row in found],
            [100 * max(row[1].worst, _LEAST_REDUCTION) for row in found],
            marker,
            color=color,
            alpha=0.6,
            markersize=5,
            linestyle="none",
            label=f"baseline at {clock} clock",
        )
    axes.axvline(100 * delay.at_least, color="black", linewidth=1, linestyle="--")
    axes.axhline(100 * energy.at_least, color="black", linewidth=1, linestyle="--")
    right, top = max(axes.get_xlim()[1], 30.0), 100.0
    axes.fill_between([100 * delay.at_least, right], 100 * energy.at_least, top, color="black", alpha=0.08, linewidth=0)
    axes.set_xlim(right=right)
    axes.set_ylim(100 * _LEAST_REDUCTION - 5, top)
    axes.set_xlabel("less delay than server-only, %")
    axes.set_ylabel("less energy than server-only, % (below -100 on the edge)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return figure
