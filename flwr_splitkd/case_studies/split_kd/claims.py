"""What the paper claims of its case study, held against outcomes; and the tables of a study.

Li et al., "Split Knowledge Distillation for Large Models in IoT", section V.B: "reduced by at least 16%", "at least 22% less
energy than the server-only approach and 19% less than the device-only approach", under three channel conditions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flwr_splitkd.case_studies.split_kd.settings import CLOCKS, Setting
from flwr_splitkd.case_studies.split_kd.study import CHANNELS, METHODS, Outcome
from flwr_splitkd.costs.shape import Float

__all__ = [
    "CLAIMS",
    "Claim",
    "Count",
    "Verdict",
    "claims_csv",
    "count_claims",
    "figure_csv",
    "outcomes_csv",
    "verdicts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim: so much less than a baseline, in every channel.

    Parameters
    ----------
    name
        For tables.
    measure
        Values by method, channel and round, of an outcome.
    baseline
        One of `METHODS`.
    at_least
        Reduction as a share.
    """

    name: str
    measure: Callable[[Outcome], Float]
    baseline: str
    at_least: float


CLAIMS = (
    Claim(name="delay-vs-server-only", measure=lambda o: o.delay_s, baseline="server-only", at_least=0.16),
    Claim(name="energy-vs-server-only", measure=lambda o: o.energy_j, baseline="server-only", at_least=0.22),
    Claim(name="energy-vs-device-only", measure=lambda o: o.energy_j, baseline="device-only", at_least=0.19),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim under a setting.

    Parameters
    ----------
    setting, claim
        Which.
    reductions
        ``1 - mean(proposed) / mean(baseline)`` over the rounds, for each of `CHANNELS`. Negative where the proposed method takes
        more.
    spreads
        Standard deviation of the rounds' own reductions, for each channel.
    """

    setting: Setting
    claim: Claim
    reductions: tuple[float, ...]
    spreads: tuple[float, ...]

    @property
    def worst(self) -> float:
        """Smallest reduction over the channels, which "at least" is about."""
        return min(self.reductions)

    @property
    def reached(self) -> bool:
        """Whether the claim holds in every channel."""
        return self.worst >= self.claim.at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """In how many settings with one clock of the baselines each claim is reached.

    Parameters
    ----------
    clock
        Of `CLOCKS`.
    settings
        How many there are.
    reached
        For each of `CLAIMS`.
    least, most
        Smallest and largest `Verdict.worst` for each of `CLAIMS`.
    delay_and_energy
        Settings in which both claims against server-only are reached.
    every
        Settings in which all claims are.
    """

    clock: str
    settings: int
    reached: tuple[int, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    delay_and_energy: int
    every: int


def verdicts(outcome: Outcome) -> tuple[Verdict, ...]:
    """Hold every claim against an outcome; in the order of `CLAIMS`."""
    return tuple(_verdict(claim, outcome) for claim in CLAIMS)


def _verdict(claim: Claim, outcome: Outcome) -> Verdict:
    values = claim.measure(outcome)
    mine, theirs = values[METHODS.index("proposed")], values[METHODS.index(claim.baseline)]
    return Verdict(
        setting=outcome.setting,
        claim=claim,
        reductions=tuple(float(x) for x in 1 - mine.mean(axis=-1) / theirs.mean(axis=-1)),
        spreads=tuple(float(x) for x in (1 - mine / theirs).std(axis=-1)),
    )


def count_claims(outcomes: Sequence[Outcome]) -> list[Count]:
    """Count by the clock of the baselines; clocks without a setting are left out."""
    counts = []
    for clock in CLOCKS:
        found = [verdicts(outcome) for outcome in outcomes if outcome.setting.clock == clock]
        if not found:
            continue
        reached = np.array([[verdict.reached for verdict in row] for row in found])
        worst = np.array([[verdict.worst for verdict in row] for row in found])
        counts.append(
            Count(
                clock=clock,
                settings=len(found),
                reached=tuple(int(x) for x in reached.sum(axis=0)),
                least=tuple(float(x) for x in worst.min(axis=0)),
                most=tuple(float(x) for x in worst.max(axis=0)),
                delay_and_energy=int(reached[:, :2].all(axis=1).sum()),
                every=int(reached.all(axis=1).sum()),
            )
        )
    return counts


_SETTING = ("models", "clock", "slack", "static_power_w", "device_efficiency", "counted")


def claims_csv(outcomes: Sequence[Outcome]) -> str:
    """Return the claims as a table: a row for each setting and claim."""
    columns = [f"{kind}_{channel}" for kind in ("reduction", "spread") for channel in CHANNELS]
    rows = [
        (
            verdict.setting.name,
            *(getattr(verdict.setting, name) for name in _SETTING),
            verdict.claim.name,
            verdict.claim.at_least,
            *(f"{value:.6f}" for value in (*verdict.reductions, *verdict.spreads)),
            f"{verdict.worst:.6f}",
            "yes" if verdict.reached else "no",
        )
        for outcome in outcomes
        for verdict in verdicts(outcome)
    ]
    return _csv(("setting", *_SETTING, "claim", "at_least", *columns, "worst_reduction", "reached"), rows)


def outcomes_csv(outcomes: Sequence[Outcome]) -> str:
    """Return mean and standard deviation over the rounds: a row for each setting, channel and method."""
    rows = []
    for outcome in outcomes:
        for c, channel in enumerate(CHANNELS):
            for m, method in enumerate(METHODS):
                delay_s, energy_j = outcome.delay_s[m, c], outcome.energy_j[m, c]
                rows.append(
                    (
                        outcome.setting.name,
                        *(getattr(outcome.setting, name) for name in _SETTING),
                        channel,
                        method,
                        *(f"{value:.3f}" for value in (delay_s.mean(), delay_s.std())),
                        *(f"{value:.1f}" for value in (energy_j.mean(), energy_j.std())),
                        f"{outcome.cuts[m, c].mean():.2f}",
                        f"{outcome.frequency_hz[m, c].mean():.6g}",
                        f"{outcome.late[m, c].mean():.4f}",
                    )
                )
    header = (
        "delay_mean_s",
        "delay_std_s",
        "energy_mean_j",
        "energy_std_j",
        "cut_mean",
        "frequency_mean_hz",
        "late_share",
    )
    return _csv(("setting", *_SETTING, "channel", "method", *header), rows)


def figure_csv(outcomes: Sequence[Outcome], measure: Callable[[Outcome], Float], unit: str) -> str:
    """Return what a figure shows: mean and standard deviation over the rounds, by setting, channel and method.

    Parameters
    ----------
    outcomes
        Of the settings in the figure.
    measure
        Values by method, channel and round, of an outcome.
    unit
        For the columns' names: ``"s"`` or ``"j"``.
    """
    rows = [
        (outcome.setting.name, channel, method, f"{values[m, c].mean():.3f}", f"{values[m, c].std():.3f}")
        for outcome in outcomes
        for values in (measure(outcome),)
        for c, channel in enumerate(CHANNELS)
        for m, method in enumerate(METHODS)
    ]
    return _csv(("setting", "channel", "method", f"mean_{unit}", f"std_{unit}"), rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
