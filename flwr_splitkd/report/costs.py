"""Where seconds and joules went: the numbers behind the drawings of costs, their words and the totals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from flwr_splitkd.report.lines import ModelledLine, TurnLine
from flwr_splitkd.report.load import RunData

__all__ = [
    "MODELLED_TOTALS",
    "STAGES",
    "Point",
    "decided",
    "has_progress",
    "measured_stages",
    "modelled",
    "modelled_stages",
    "prediction_errors",
    "progress",
    "timed",
    "unit_of",
]

STAGES = ("device", "uplink", "server", "downlink", "set-up, commits", "other", "out of reach")
"""What the seconds of a turn can have gone into. The last one only in modelled worlds, those before it only in real ones."""

MODELLED_TOTALS = ("modelled-s", "modelled-j")
"""A modelled world's clock and energy so far, among the metrics of evaluations and rounds."""

_UNITS = {"s": (("h", 3600.0), ("s", 1.0)), "J": (("MJ", 1e6), ("kJ", 1e3), ("J", 1.0))}
# From so many of a unit on it is easier to read than the smaller one.
_ENOUGH = 5


@dataclass(frozen=True, slots=True)
class Point:
    """How good the student was when a modelled world had got so far.

    Attributes
    ----------
    clock_s, energy_j
        The world's time, and what all have spent until then.
    value
        Perplexity or loss.
    """

    clock_s: float
    energy_j: float
    value: float


def measured_stages(turn: TurnLine) -> dict[str, float] | None:
    """Seconds of a turn by stage; None if it does not tell them."""
    parts = (turn.device_s, turn.uplink_s, turn.edge_s, turn.downlink_s, turn.fixed_s)
    if turn.duration_s is None or all(part is None for part in parts):
        return None
    known = dict(zip(STAGES, (part or 0.0 for part in parts), strict=False))
    return {**known, "other": _rest(turn.duration_s, known)}


def modelled_stages(turn: TurnLine) -> dict[str, float] | None:
    """Modelled seconds of a turn by stage; None if it has none."""
    costs = turn.modelled
    if costs is None or costs.total_s is None:
        return None
    parts = (costs.device_s, costs.uplink_s, costs.server_s, costs.downlink_s)
    known = dict(zip(STAGES, (part or 0.0 for part in parts), strict=False))
    return {**known, "out of reach": _rest(costs.total_s, known)}


def timed(run: RunData) -> bool:
    """Whether turns tell where their seconds went."""
    return any(measured_stages(turn) for turn in run.training)


def modelled(run: RunData) -> bool:
    """Whether costs are those of a modelled world."""
    return any(turn.modelled for turn in run.training)


def decided(run: RunData) -> bool:
    """Whether a planner decided on turns."""
    return any(turn.plan for turn in run.training)


def prediction_errors(run: RunData) -> dict[str, float]:
    """Median relative error of the predictions by stage, against what was measured, or modelled where the world is."""
    errors: dict[str, list[float]] = {}
    for turn in run.training:
        if turn.plan is None:
            continue
        by_stage = turn.plan.error or _modelled_error(turn)
        for stage, error in by_stage.items():
            errors.setdefault(stage.removesuffix("_s"), []).append(error)
    order = [*(stage for stage in STAGES if stage in errors), *sorted(errors.keys() - set(STAGES))]
    return {stage: median(errors[stage]) for stage in order}


def progress(runs: Sequence[RunData]) -> tuple[str, list[list[Point]]]:
    """What shows how good the students were, by modelled time and energy: the same for all runs.

    On the server where all runs with modelled costs evaluated there, and perplexity before loss.

    Returns
    -------
    tuple
        What it is, and the points of each run; none for a run without modelled costs.
    """
    with_costs = [run for run in runs if modelled(run)]
    for name, points_of in _MEASURES.items():
        if with_costs and all(points_of(run) for run in with_costs):
            return name, [points_of(run) for run in runs]
    return "perplexity in turns", [[] for _ in runs]


def has_progress(run: RunData) -> bool:
    """Whether there is something to show by modelled time and energy."""
    return any(progress([run])[1])


def unit_of(largest: float, unit: str) -> tuple[str, float]:
    """The unit for numbers up to `largest` seconds or joules (``"s"``, ``"J"``), and how many of them it is."""
    return next(((name, size) for name, size in _UNITS[unit] if largest >= _ENOUGH * size), (unit, 1.0))


def _rest(whole_s: float, known: Mapping[str, float]) -> float:
    """What the known stages leave of the whole, unless that is a matter of rounding."""
    rest_s = whole_s - sum(known.values())
    return rest_s if rest_s > 1e-6 * whole_s else 0.0


def _modelled_error(turn: TurnLine) -> Mapping[str, float]:
    plan, costs = turn.plan, turn.modelled
    if plan is None or costs is None:
        return {}
    pairs = {
        "device_s": (plan.device_s, costs.device_s),
        "uplink_s": (plan.uplink_s, costs.uplink_s),
        "server_s": (plan.server_s, costs.server_s),
        "downlink_s": (plan.downlink_s, costs.downlink_s),
    }
    return {stage: abs(mine - real) / real for stage, (mine, real) in pairs.items() if mine is not None and real}


def _on_server(name: str) -> Callable[[RunData], list[Point]]:
    def points(run: RunData) -> list[Point]:
        wanted = (*MODELLED_TOTALS, name)
        lines = (metrics for _, metrics in sorted(run.evaluations.items()))
        return [Point(*(metrics[key] for key in wanted)) for metrics in lines if metrics.keys() >= set(wanted)]

    return points


def _in_turns(value_of: Callable[[TurnLine], float | None]) -> Callable[[RunData], list[Point]]:
    def points(run: RunData) -> list[Point]:
        made: list[Point] = []
        energy_j = 0.0
        for turn in run.training:
            costs = turn.modelled or ModelledLine()
            energy_j += costs.total_j or 0.0
            value = value_of(turn)
            if costs.clock_s is not None and value is not None:
                made.append(Point(costs.clock_s, energy_j, value))
        return made

    return points


_MEASURES: Mapping[str, Callable[[RunData], list[Point]]] = {
    "perplexity on the server": _on_server("perplexity"),
    "loss on the server": _on_server("loss"),
    "perplexity in turns": _in_turns(lambda turn: turn.perplexity),
    "loss in turns": _in_turns(lambda turn: turn.loss),
}
