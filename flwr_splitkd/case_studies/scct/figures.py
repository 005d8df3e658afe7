"""The figures of the study. Loaded when asked for: matplotlib is an extra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flwr_splitkd.case_studies.scct.claims import mean_s, setting_words
from flwr_splitkd.case_studies.scct.clock import BEST_FIXED, Clock
from flwr_splitkd.case_studies.scct.latency import Convergence
from flwr_splitkd.case_studies.scct.learning import Learned
from flwr_splitkd.case_studies.scct.settings import ALGORITHMS
from flwr_splitkd.schedulers.chain import MECHANISMS
from flwr_splitkd.small_chain.curve import Curve

__all__ = ["draw_convergence", "draw_latency", "draw_learned"]

# Okabe and Ito: told apart with any kind of colour vision.
_COLORS = {"SCCTT": "#0072b2", "SCCTL": "#d55e00", "SCCTS": "#009e73", BEST_FIXED: "#cc79a7", "CloudO": "#555555"}
_LINES = {"exact": "-", "paper": "--"}


def draw_convergence(convergences: Sequence[Convergence]) -> Figure:
    """Figure 6 or 7: seconds over steps, a panel for each edge."""
    figure = Figure(figsize=(4 * len(convergences) + 0.5, 3.4), layout="constrained")
    panels = figure.subplots(1, len(convergences), squeeze=False).flat
    for axes, one in zip(panels, convergences, strict=True):
        axes.plot(one.seconds, color="#d55e00", linewidth=1.2, label=one.method)
        axes.axhline(one.best_s, color="#0072b2", linewidth=1.2, label="ours")
        if one.bound_s:
            axes.axhline(one.bound_s, color="#0072b2", linewidth=1, linestyle=":", label="lower bound")
        axes.set_title(setting_words(one.edge_flops), fontsize=9)
        axes.set_xlabel("step")
        _plain(axes)
    figure.axes[0].set_ylabel("s an iteration, without the cloud link")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_latency(clocks: Sequence[Clock]) -> Figure:
    """Figure 9: an iteration by devices and mechanism, a row for each edge; the right column has the link to the cloud as well."""
    edges = list(dict.fromkeys(clock.edge_flops for clock in clocks))
    numbers = sorted({clock.devices for clock in clocks})
    figure = Figure(figsize=(10, 3 * len(edges) + 0.6), layout="constrained")
    bars = [(name, algorithms) for algorithms in ALGORITHMS for name in MECHANISMS] + [(BEST_FIXED, "exact")]
    width = 0.85 / len(bars)
    for row, edge_flops in zip(figure.subplots(len(edges), 2, squeeze=False), edges, strict=True):
        for axes, whole in zip(row, (False, True), strict=True):
            for position, (name, algorithms) in enumerate(bars):
                pairs = [mean_s(clocks, name, algorithms, devices, edge_flops) for devices in numbers]
                axes.bar(
                    np.arange(len(numbers)) + (position - (len(bars) - 1) / 2) * width,
                    [seconds + (link if whole else 0.0) for seconds, link in pairs],
                    width,
                    color=_COLORS[name],
                    alpha=1.0 if algorithms == "exact" else 0.5,
                    hatch="" if algorithms == "exact" else "//",
                    edgecolor="white",
                    linewidth=0,
                    label=name if algorithms == "exact" else f"{name}, paper's algorithms",
                )
            axes.set_xticks(np.arange(len(numbers)), [f"{devices} devices" for devices in numbers])
            axes.set_title(f"{setting_words(edge_flops)}, {'with' if whole else 'without'} the cloud link", fontsize=9)
            _plain(axes)
        row[0].set_ylabel("s an iteration")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_learned(learned: Learned, measure: str, label: str) -> Figure:
    """Figures 8, 10 and 11: by round, then by modelled time for each edge; bands from the lowest to the highest seed."""
    edges = list(dict.fromkeys(clock.edge_flops for clock in learned.clocks))
    figure = Figure(figsize=(4 * (1 + len(edges)) + 0.5, 3.6), layout="constrained")
    panels = list(figure.subplots(1, 1 + len(edges), sharey=True, squeeze=False).flat)
    rounds = np.arange(len(learned.chain[0].f1))
    _band(panels[0], rounds, learned.chain, measure, _COLORS["SCCTT"], "SCCTT = SCCTL = SCCTS")
    _band(panels[0], rounds, learned.cloud_only, measure, _COLORS["CloudO"], "CloudO")
    panels[0].set_xticks(rounds)
    panels[0].set_xlabel("round")
    panels[0].set_ylabel(label)
    panels[0].legend(frameon=False, fontsize=8)
    _plain(panels[0])
    mean = np.mean([getattr(curve, measure) for curve in learned.chain], axis=0)
    for axes, edge_flops in zip(panels[1:], edges, strict=True):
        for clock in learned.clocks:
            if clock.edge_flops == edge_flops:
                axes.plot(
                    learned.round_ends_s(clock),
                    mean,
                    color=_COLORS[clock.mechanism],
                    linestyle=_LINES[clock.algorithms],
                    marker=".",
                    label=clock.mechanism if clock.algorithms == "exact" else f"{clock.mechanism}, paper's",
                )
        axes.set_title(setting_words(edge_flops), fontsize=9)
        axes.set_xlabel("modelled s, without the cloud link")
        _plain(axes)
    panels[1].legend(frameon=False, fontsize=8)
    return figure


def _band(axes: Axes, x: NDArray[np.int64], curves: Sequence[Curve], measure: str, color: str, label: str) -> None:
    values = np.array([getattr(curve, measure) for curve in curves])
    axes.plot(x, values.mean(axis=0), color=color, marker=".", label=label)
    axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.2, linewidth=0)


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
