"""Runs of the chain device - edge - cloud: the numbers behind their drawings, words and totals.

A baseline of the chain trains without it: it has the chain's epochs and evaluations, or evaluations alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from flwr_splitkd.report.chain_lines import DeviceLine, EpochLine
from flwr_splitkd.report.load import RunData

__all__ = [
    "by_epoch",
    "by_round",
    "first_of_round",
    "handover_bytes",
    "is_chain",
    "last_round",
    "later_in_round",
    "metric_name",
    "metric_points",
    "metric_source",
    "metrics_of",
    "on_timeline",
    "payload_of_evaluations",
    "trained",
]

_EVALUATED = "eval-"
_NAMES = {"f1": "F1", "exact_match": "exact match"}


def is_chain(run: RunData) -> bool:
    """Whether a run is one of the chain or of its baselines, by the kinds of its lines; by its settings if it has none."""
    if run.turns:
        return False
    if run.devices or run.epochs:
        return True
    strategy = run.config.get("strategy")
    if isinstance(strategy, Mapping):
        return strategy.get("name") == "SCCT"
    return any(name.startswith(_EVALUATED) for metrics in run.evaluations.values() for name in metrics)


def trained(run: RunData) -> list[DeviceLine]:
    """Completed parts in rounds of training."""
    return [one for one in run.devices if one.mode == "train" and one.completed]


def last_round(run: RunData) -> int:
    """The last round that left a line."""
    devices, epochs = ([one.server_round for one in lines] for lines in (run.devices, run.epochs))
    return max([*devices, *epochs, *run.evaluations, *run.rounds], default=0)


def on_timeline(run: RunData) -> list[DeviceLine]:
    """Whose split points are shown: those of training; of a run that only evaluated, those of its evaluations."""
    training = [one for one in run.devices if one.mode == "train"]
    return training or run.devices


def by_epoch(run: RunData, value_of: Callable[[EpochLine], float | None]) -> list[tuple[float, float]]:
    """A value of each epoch that has it, at the iterations of the run up to its end."""
    ends = accumulate(epoch.num_iterations for epoch in run.epochs)
    pairs = zip(ends, run.epochs, strict=True)
    return [(end, value) for end, epoch in pairs if (value := value_of(epoch)) is not None]


def first_of_round(epoch: EpochLine) -> float | None:
    """Seconds an iteration, if the epoch is the first of its round, which has the wait for devices to come."""
    return epoch.iteration_s if epoch.epoch == 1 else None


def later_in_round(epoch: EpochLine) -> float | None:
    """Seconds an iteration, if the epoch is not the first of its round."""
    return None if epoch.epoch == 1 else epoch.iteration_s


def by_round(lines: Sequence[DeviceLine], value_of: Callable[[DeviceLine], float | None]) -> list[tuple[float, float]]:
    """The sum of a value over the devices of each round."""
    sums: dict[int, float] = {}
    for one in lines:
        value = value_of(one)
        if value is not None:
            sums[one.server_round] = sums.get(one.server_round, 0) + value
    return sorted(sums.items())


def handover_bytes(one: DeviceLine) -> int | None:
    """Layers up and down."""
    parts = [part for part in (one.uplink_handover_bytes, one.downlink_handover_bytes) if part is not None]
    return sum(parts) if parts else None


def payload_of_evaluations(run: RunData) -> list[tuple[float, float]]:
    """Bytes up and down of the evaluations by round."""
    lines = [one for one in run.devices if one.mode == "evaluate" and one.uplink_bytes is not None]
    return by_round(lines, lambda one: (one.uplink_bytes or 0) + (one.downlink_bytes or 0))


def metrics_of(runs: Sequence[RunData]) -> list[str]:
    """Every metric of the evaluations of these runs, those of the devices first."""
    names = {name for run in runs for metrics in run.evaluations.values() for name in metrics}
    return sorted(names, key=lambda name: (not name.startswith(_EVALUATED), name))


def metric_name(metric: str) -> str:
    """What a metric is called, without where it comes from."""
    plain = metric.removeprefix(_EVALUATED)
    return _NAMES.get(plain, plain)


def metric_source(metric: str) -> str:
    """Where a metric comes from: what a device evaluated is called after it, what the user's function returned is not."""
    return "Evaluation" if metric.startswith(_EVALUATED) else "On the server"


def metric_points(run: RunData, metric: str) -> list[tuple[float, float]]:
    """A metric by round."""
    return [(number, values[metric]) for number, values in sorted(run.evaluations.items()) if metric in values]
