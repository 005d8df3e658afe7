"""The drawings of runs of the chain and of its baselines: by epoch, and by round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import attrgetter

from matplotlib.axes import Axes

from flwr_splitkd.report.chain import (
    by_epoch,
    by_round,
    first_of_round,
    handover_bytes,
    later_in_round,
    metric_name,
    metric_points,
    metric_source,
    metrics_of,
    on_timeline,
    payload_of_evaluations,
    trained,
)
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.style import COLORS, Drawing, curve, finish, legend_above, short, timeline

__all__ = [
    "chain_drawings",
    "draw_chain_bytes",
    "draw_chain_loss",
    "draw_iteration_seconds",
    "draw_metric",
    "draw_split_points",
]

_MIB = 1 << 20


def chain_drawings(runs: Sequence[RunData]) -> list[Drawing]:
    """Every drawing for these runs; one for each metric that any of them evaluated."""
    return [
        Drawing(title="Loss", draw=draw_chain_loss, shows=lambda run: bool(run.epochs)),
        *(_metric(number, metric) for number, metric in enumerate(metrics_of(runs))),
        Drawing(title="Bytes", draw=draw_chain_bytes, shows=lambda run: bool(run.devices)),
        Drawing(title="Seconds an iteration", draw=draw_iteration_seconds, shows=lambda run: bool(run.epochs)),
        Drawing(
            title="Split points",
            draw=draw_split_points,
            shows=lambda run: bool(run.devices),
            shared=False,
            rows=lambda run: len({one.device for one in run.devices}),
        ),
    ]


def draw_chain_loss(axes: Axes, runs: Sequence[RunData]) -> None:
    """The mean loss of each epoch at its end, and that of the LLM without the encoder where it was asked for."""
    for run, color in zip(runs, COLORS, strict=False):
        name = short(run.name) if len(runs) > 1 else "all devices"
        reference = by_epoch(run, attrgetter("reference_loss"))
        label = name if reference or len(runs) > 1 else None
        curve(axes, by_epoch(run, attrgetter("loss")), label=label, color=color)
        without = "LLM without the encoder" if len(runs) == 1 else f"{name}: without the encoder"
        curve(axes, reference, label=without, color=COLORS[1] if len(runs) == 1 else color, linestyle="--")
    finish(axes, "iterations", "nats per label")


def draw_metric(axes: Axes, runs: Sequence[RunData], *, metric: str) -> None:
    """A metric of the evaluations by round."""
    for run, color in zip(runs, COLORS, strict=False):
        label = None if len(runs) == 1 else short(run.name)
        curve(axes, metric_points(run, metric), label=label, color=color)
    finish(axes, "round", short(metric_name(metric)))


def draw_chain_bytes(axes: Axes, runs: Sequence[RunData]) -> None:
    """Bytes between devices and edge by round, all devices together: training, its layers, and evaluations."""
    for run, color in zip(runs, COLORS, strict=False):
        name = "" if len(runs) == 1 else f"{short(run.name)}: "
        second = COLORS[1] if len(runs) == 1 else color
        training = trained(run)
        curve(axes, by_round(training, attrgetter("uplink_bytes")), 1 / _MIB, label=f"{name}up", color=color)
        down = by_round(training, attrgetter("downlink_bytes"))
        curve(axes, down, 1 / _MIB, label=f"{name}down", color=second, linestyle="--")
        if len(runs) == 1:
            layers, evaluations = by_round(training, handover_bytes), payload_of_evaluations(run)
            curve(axes, layers, 1 / _MIB, label="layers, within both", color=COLORS[2], linestyle=":")
            curve(axes, evaluations, 1 / _MIB, label="evaluation, both ways", color=COLORS[3], linestyle="-.")
    finish(axes, "round", "MiB per round")
    axes.set_ylim(bottom=0)
    legend_above(axes, columns=2)


def draw_iteration_seconds(axes: Axes, runs: Sequence[RunData]) -> None:
    """Seconds that an iteration took in the mean of each epoch; the first of a round waits for its devices to come."""
    for run, color in zip(runs, COLORS, strict=False):
        alone = len(runs) == 1
        name = "" if alone else f"{short(run.name)}: "
        first, later = by_epoch(run, first_of_round), by_epoch(run, later_in_round)
        # With a run's name before it there is room for a word.
        of_first, of_later = ("first epoch of a round", "later epochs") if alone else ("first", "later")
        label = f"{name}{of_first}" if later else None if alone else short(run.name)
        curve(axes, first, label=label, color=color)
        second = COLORS[1] if alone else color
        curve(axes, later, label=f"{name}{of_later}", color=second, linestyle="--")
    finish(axes, "iterations", "seconds an iteration")
    axes.set_ylim(bottom=0)
    legend_above(axes, columns=2)


def draw_split_points(axes: Axes, runs: Sequence[RunData]) -> None:
    """A row for each device of the first run: its split point in each round; a cross where it was left out."""
    shown = on_timeline(runs[0])
    points = sorted({one.split_point for one in shown if one.split_point is not None and one.completed})
    groups = {
        f"split point {point}": [
            (one.server_round, one.device) for one in shown if one.split_point == point and one.completed
        ]
        for point in points
    }
    left_out = [(one.server_round, one.device) for one in shown if not one.completed]
    timeline(axes, groups, left_out, label="left out")
    finish(axes, "round", "device")
    legend_above(axes, columns=3)


def _metric(number: int, metric: str) -> Drawing:
    # A metric is called as its app likes, which need not be a name for HTML, nor be told from another one's.
    return Drawing(
        title=f"{metric_source(metric)}: {metric_name(metric)}",
        draw=partial(draw_metric, metric=metric),
        shows=lambda run: bool(metric_points(run, metric)),
        slug=f"metric-{number}-",
    )
