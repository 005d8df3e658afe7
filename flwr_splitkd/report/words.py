"""A run in words and numbers: totals, what a figure shows, what differs between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from flwr_splitkd.report.costs import (
    MODELLED_TOTALS,
    Point,
    measured_stages,
    modelled,
    modelled_stages,
    prediction_errors,
    progress,
)
from flwr_splitkd.report.lines import TurnLine
from flwr_splitkd.report.load import RunData

__all__ = ["MIB", "alternative", "course", "differences", "flatten", "mebibytes", "number", "sentences", "totals"]

MIB = 1 << 20


def number(value: Any) -> str:
    """A number as a person reads it: four significant digits, thousands set apart; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def mebibytes(count: int | float | None) -> str:
    """Bytes in MiB."""
    return "–" if count is None else f"{count / MIB:,.2f}"


def totals(run: RunData) -> dict[str, str]:
    """What a run came to, by what it is."""
    training = run.training
    failed = [turn for turn in run.turns if not turn.completed]
    rows = {
        "Rounds": number(max((turn.server_round for turn in run.turns), default=0)),
        "Turns completed": number(len(training)),
        "Turns failed": number(len(failed)),
        "Devices": number(len({turn.device for turn in run.turns})),
        "Optimiser steps": number(run.turns[-1].step if run.turns else 0),
        "Tokens or labels": number(sum(turn.num_tokens or 0 for turn in training)),
        "Loss of the last turn": number(training[-1].loss if training else None),
        "Perplexity in the last turn": number(training[-1].perplexity if training else None),
        "Up, MiB": mebibytes(sum(turn.uplink_bytes or 0 for turn in run.turns)),
        "Down, MiB": mebibytes(sum(turn.downlink_bytes or 0 for turn in run.turns)),
        "Hand-over of layers, MiB": mebibytes(sum(turn.handover_bytes or 0 for turn in run.turns)),
        "Time in turns, s": number(round(sum(turn.duration_s or 0.0 for turn in run.turns), 1)),
        "Waited for devices, s": number(round(sum(turn.wait_s or 0.0 for turn in run.turns), 1)),
        **_cost_totals(run),
    }
    if run.evaluations:
        last = max(run.evaluations)
        for name, value in sorted(run.evaluations[last].items()):
            if name not in MODELLED_TOTALS:  # in the totals already
                rows[f"On the server after round {last}: {name}"] = number(value)
    return rows


def alternative(title: str, runs: Sequence[RunData]) -> str:
    """What the figure of this title shows of these runs, for who cannot see it."""
    return sentences(
        _PROGRESS[title](runs) if title in _PROGRESS else [_ALTERNATIVES[title](run) for run in runs], runs
    )


def sentences(texts: Sequence[str], runs: Sequence[RunData]) -> str:
    """What is said of each run as sentences."""
    if len(runs) == 1:
        return f"{texts[0][0].upper()}{texts[0][1:]}."
    return " ".join(f"{run.name}: {text}." for run, text in zip(runs, texts, strict=True))


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its dotted path."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{path}.")
        elif isinstance(value, list):
            yield path, ", ".join(str(item) for item in value) or "–"
        else:
            yield path, number(value) if isinstance(value, float) else str(value)


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Settings that two runs do not share: path, and the value in each."""
    first, second = dict(flatten(one)), dict(flatten(other))
    paths = [*first, *(path for path in second if path not in first)]
    pairs = ((path, first.get(path, "–"), second.get(path, "–")) for path in paths)
    return [pair for pair in pairs if pair[1] != pair[2]]


def course(points: Sequence[tuple[float, float]], what: str, *, unit: str = "", along: str = "turn") -> str:
    """How a value went from its first point to its last."""
    if not points:
        return f"no {what} was recorded"
    lowest = min(points, key=lambda point: point[1])
    return (
        f"{what} from {number(points[0][1])}{unit} in {along} {number(points[0][0])} to {number(points[-1][1])}{unit} in "
        f"{along} {number(points[-1][0])}, lowest {number(lowest[1])}{unit} in {along} {number(lowest[0])}"
    )


def _course(run: RunData, what: str, unit: str, value_of: Callable[[TurnLine], float | None]) -> str:
    points = [(turn.index, value) for turn in run.training if (value := value_of(turn)) is not None]
    return course(points, what, unit=unit)


def _loss(run: RunData) -> str:
    failed = sum(not turn.completed for turn in run.turns)
    text = _course(run, "loss", "", lambda turn: turn.loss)
    return f"{text}; {failed} turns failed" if failed else text


def _perplexity(run: RunData) -> str:
    text = _course(run, "perplexity", "", lambda turn: turn.perplexity)
    held_out = [(r, metrics["perplexity"]) for r, metrics in sorted(run.evaluations.items()) if "perplexity" in metrics]
    if not held_out:
        return text
    (first, start), (last, end) = held_out[0], held_out[-1]
    return f"{text}; on the server {number(start)} after round {first} and {number(end)} after round {last}"


def _cuts(run: RunData) -> str:
    turns: dict[int, int] = {}
    for turn in run.training:
        turns[turn.cut or 0] = turns.get(turn.cut or 0, 0) + 1
    devices = len({turn.device for turn in run.turns if turn.mode == "train"})
    listed = ", ".join(f"{count} turns at cut {cut}" for cut, count in sorted(turns.items()))
    return f"{devices} devices over {len(run.training)} turns of {run.name}: {listed or 'none completed'}"


def _bytes(run: RunData) -> str:
    up = _course(run, "bytes up", " MiB", lambda turn: _in_mib(turn.uplink_bytes))
    return f"{up}; {_course(run, 'down', ' MiB', lambda turn: _in_mib(turn.downlink_bytes))}"


def _in_mib(count: int | None) -> float | None:
    return None if count is None else count / MIB


def _cost_totals(run: RunData) -> dict[str, str]:
    """Modelled time and energy, and how far off predictions were; nothing for a run without either."""
    rows: dict[str, str] = {}
    costs = [turn.modelled for turn in run.training if turn.modelled]
    if costs:
        rows["Modelled time, s"] = number(max(cost.clock_s or 0.0 for cost in costs))
        rows["Modelled energy, J"] = number(sum(cost.total_j or 0.0 for cost in costs))
        rows["Modelled energy of devices, J"] = number(sum(cost.device_j or 0.0 for cost in costs))
        rows["Turns late in modelled time"] = number(sum(cost.late for cost in costs))
    against = ", modelled" if costs else ""
    for stage, error in prediction_errors(run).items():
        rows[f"Median prediction error: {stage}{against}"] = _percent(error)
    return rows


def _seconds(run: RunData) -> str:
    return _stages(run, "measured seconds", lambda turn: turn.duration_s, measured_stages, predicted=not modelled(run))


def _modelled_seconds(run: RunData) -> str:
    def total_s(turn: TurnLine) -> float | None:
        return turn.modelled.total_s if turn.modelled else None

    return _stages(run, "modelled seconds", total_s, modelled_stages, predicted=True)


def _stages(
    run: RunData,
    what: str,
    total_s: Callable[[TurnLine], float | None],
    stages_of: Callable[[TurnLine], Mapping[str, float] | None],
    *,
    predicted: bool,
) -> str:
    """The course of the seconds, their parts in all turns, and how far off the predicted totals were."""
    sums: dict[str, float] = {}
    errors: list[float] = []
    for turn in run.training:
        for stage, seconds in (stages_of(turn) or {}).items():
            sums[stage] = sums.get(stage, 0.0) + seconds
        real = total_s(turn)
        if turn.plan and turn.plan.total_s is not None and real:
            errors.append(abs(turn.plan.total_s - real) / real)
    whole = sum(sums.values())
    parts = ", ".join(f"{stage} {_percent(seconds / whole)}" for stage, seconds in sums.items() if seconds and whole)
    text = _course(run, what, "", total_s) + (f"; {parts}" if parts else "")
    return f"{text}; predicted totals off by {_percent(median(errors))} in the median" if predicted and errors else text


def _modelled_energy(run: RunData) -> str:
    text = _course(run, "modelled energy", " J", lambda turn: turn.modelled.total_j if turn.modelled else None)
    late = sum(turn.modelled.late for turn in run.training if turn.modelled)
    return f"{text}; late turns: {late}" if late else text


def _by_time(runs: Sequence[RunData]) -> list[str]:
    return _progress(runs, lambda point: point.clock_s, "s of modelled time")


def _by_energy(runs: Sequence[RunData]) -> list[str]:
    return _progress(runs, lambda point: point.energy_j, "J of modelled energy")


def _progress(runs: Sequence[RunData], by: Callable[[Point], float], unit: str) -> list[str]:
    measure, points_of_runs = progress(runs)
    return [
        f"{measure} from {number(points[0].value)} at {number(by(points[0]))} {unit} to {number(points[-1].value)} at "
        f"{number(by(points[-1]))} {unit}, lowest {number(min(point.value for point in points))}"
        if points
        else f"no {measure} by modelled costs was recorded"
        for points in points_of_runs
    ]


def _percent(part: float) -> str:
    return f"{number(round(100 * part, 1))} %"


_ALTERNATIVES = {
    "Loss": _loss,
    "Perplexity": _perplexity,
    "Cuts": _cuts,
    "Bytes": _bytes,
    "Measured seconds": _seconds,
    "Modelled seconds": _modelled_seconds,
    "Modelled energy": _modelled_energy,
}
# These show the same of all runs, so that they need to know all.
_PROGRESS = {"Progress by modelled time": _by_time, "Progress by modelled energy": _by_energy}
