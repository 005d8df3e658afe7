"""From runs to figures: learning rates chosen, means and ranges over seeds, forgetting, who wins. Torch-free."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Measured", "Range", "best_rate", "early", "forgetting", "heatmap", "verdict"]


class Measured(Protocol):
    """What is read of a run; see `_quality_runs.Result`."""

    rate: float
    seed: int
    validation: float
    heldout: float
    own: list[float]
    order: list[int]
    after_turn: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Mean, smallest and largest value over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Summarise at least one value."""
        return cls(mean=statistics.fmean(values), low=min(values), high=max(values))

    def text(self, digits: int) -> str:
        """``mean (low..high)``."""
        mean, low, high = (f"{value:,.{digits}f}" for value in (self.mean, self.low, self.high))
        return f"{mean} ({low}..{high})"


def best_rate(runs: Sequence[Measured], *, lower_is_better: bool) -> float:
    """Return the learning rate with the best mean validation figure; of equals the lowest."""
    figures: dict[float, list[float]] = {}
    for run in runs:
        figures.setdefault(run.rate, []).append(run.validation)
    sign = 1 if lower_is_better else -1
    return min(figures, key=lambda rate: (sign * statistics.fmean(figures[rate]), rate))


def forgetting(run: Measured, *, lower_is_better: bool) -> list[float]:
    """How much worse each device's own text is at the end of the last round than right after its turn there.

    Returns
    -------
    list of float
        In the order of the turns; the last device's is 0. Rise of the perplexity in percent, or points of accuracy lost.
        Negative where later turns helped.
    """
    lost = []
    for figures, device in zip(run.after_turn, run.order, strict=True):
        then, end = figures[device], run.after_turn[-1][device]
        lost.append(100.0 * (end / then - 1.0) if lower_is_better else then - end)
    return lost


def early(lost: Sequence[float]) -> float:
    """Mean over the first half of the turns."""
    return statistics.fmean(lost[: max(1, len(lost) // 2)])


def heatmap(runs: Sequence[Measured]) -> list[list[float]]:
    """Mean over runs of the figure on each device's own text (rows) after each turn of the last round (columns).

    The runs must have taken their turns in the order of device numbers.
    """
    devices = range(len(runs[0].order))
    if any(run.order != list(devices) for run in runs):
        raise ValueError(f"Orders are {[run.order for run in runs]}; expected device numbers from 0 up in each.")
    return [[statistics.fmean(run.after_turn[turn][device] for run in runs) for turn in devices] for device in devices]


def verdict(
    name: str, values: Mapping[int, float], other: str, others: Mapping[int, float], *, lower_is_better: bool
) -> str:
    """Say which of two arms has the better figure in how many of the seeds that both have."""
    seeds = sorted(values.keys() & others.keys())
    wins = sum((values[seed] < others[seed]) == lower_is_better and values[seed] != others[seed] for seed in seeds)
    losses = sum((values[seed] > others[seed]) == lower_is_better and values[seed] != others[seed] for seed in seeds)
    means = [statistics.fmean(figures[seed] for seed in seeds) for figures in (values, others)]
    figures = f"{means[0]:.1f} against {means[1]:.1f}"
    if wins == len(seeds):
        return f"{name} beats {other} in all {wins} seeds: {figures}"
    if losses == len(seeds):
        return f"{name} LOSES to {other} in all {losses} seeds: {figures}"
    if not wins and not losses:
        return f"{name} and {other} are equal in all {len(seeds)} seeds: {figures}"
    return (
        f"{name} and {other}: no clear winner, better in {wins} and worse in {losses} of {len(seeds)} seeds: {figures}"
    )
