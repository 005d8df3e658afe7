"""A run in words and numbers: totals, what a figure shows, what differs between two runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr_splitkd.report.load import RunData, TurnLine

__all__ = ["alternative", "differences", "flatten", "mebibytes", "number", "totals"]

_MIB = 1 << 20


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
    return "–" if count is None else f"{count / _MIB:,.2f}"


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
    }
    if run.evaluations:
        last = max(run.evaluations)
        for name, value in sorted(run.evaluations[last].items()):
            rows[f"On the server after round {last}: {name}"] = number(value)
    return rows


def alternative(title: str, runs: Sequence[RunData]) -> str:
    """What the figure of this title shows, for who cannot see it."""
    of_run = _ALTERNATIVES[title]
    texts = [of_run(run) for run in (runs[:1] if title == "Cuts" else runs)]
    if len(runs) == 1 or title == "Cuts":
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


def _course(run: RunData, what: str, unit: str, value_of: Callable[[TurnLine], float | None]) -> str:
    points = [(turn.index, value) for turn in run.training if (value := value_of(turn)) is not None]
    if not points:
        return f"no {what} was recorded"
    lowest = min(points, key=lambda point: point[1])
    return (
        f"{what} from {number(points[0][1])}{unit} in turn {points[0][0]} to {number(points[-1][1])}{unit} in turn "
        f"{points[-1][0]}, lowest {number(lowest[1])}{unit} in turn {lowest[0]}"
    )


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
    return None if count is None else count / _MIB


_ALTERNATIVES = {"Loss": _loss, "Perplexity": _perplexity, "Cuts": _cuts, "Bytes": _bytes}
