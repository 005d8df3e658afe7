"""What the paper says of its figures, in section V.B, held against what came out.

It names orders and shapes and no numbers, so each verdict is a yes or no, with the numbers behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from flwr_splitkd.case_studies.scct.clock import BEST_FIXED, Clock
from flwr_splitkd.case_studies.scct.latency import Convergence
from flwr_splitkd.case_studies.scct.learning import Learned
from flwr_splitkd.case_studies.scct.settings import ALGORITHMS
from flwr_splitkd.schedulers.chain import MECHANISMS

__all__ = ["Verdict", "latency_verdicts", "learning_verdicts"]

_PAPERS_STEPS = {"Algorithm 1": 70, "Algorithm 2": 200}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim in a setting.

    Parameters
    ----------
    figure, claim
        Where the paper has it, and what it says.
    setting
        Edge and algorithms.
    holds
        Whether it came out so.
    came_out
        The numbers.
    """

    figure: str
    claim: str
    setting: str
    holds: bool
    came_out: str


def latency_verdicts(convergences: Sequence[Convergence], clocks: Sequence[Clock]) -> list[Verdict]:
    """Hold figures 6, 7 and 9 against their claims."""
    return [*map(_convergence, convergences), *_latency(clocks)]


def learning_verdicts(learned: Learned) -> list[Verdict]:
    """Hold figures 8, 10 and 11 against their claims."""
    return [*_cloud_only(learned), *_order(learned)]


def mean_s(clocks: Sequence[Clock], name: str, algorithms: str, devices: int, edge_flops: float) -> tuple[float, float]:
    """Mean over the cells of an iteration's seconds, and of the link to the cloud's."""
    found = [
        clock
        for clock in clocks
        if (clock.mechanism, clock.algorithms, clock.devices, clock.edge_flops)
        == (name, algorithms, devices, edge_flops)
    ]
    return float(np.mean([one.mean_iteration_s for one in found])), found[0].cloud_link_s


def setting_words(edge_flops: float, algorithms: str = "") -> str:
    """A setting in a few words."""
    return f"edge of {edge_flops / 1e12:g} TFLOPS" + (f", {algorithms} algorithms" if algorithms else "")


def _convergence(one: Convergence) -> Verdict:
    stated, steps = _PAPERS_STEPS[one.method], one.steps_to()
    first = one.method == "Algorithm 1"
    claim = (
        f"falls from step to step and has converged after {stated}"
        if first
        else f"oscillates and has converged after about {stated} steps"
    )
    gap = f"; {100 * (one.best_s / one.bound_s - 1):.2g} % above a lower bound" if one.bound_s else ""
    known = "the optimum" if first else "what our scan finds" + gap
    came_out = (
        f"within 0.1 % of its last value after {steps} of {len(one.seconds) - 1} steps, {one.ups} of which made it worse; ends "
        f"{100 * one.over_best:.2g} % above {known}"
    )
    holds = steps <= stated * (1.0 if first else 1.25) and (one.ups == 0) == first
    return Verdict(
        figure="6" if first else "7", claim=claim, setting=setting_words(one.edge_flops), holds=holds, came_out=came_out
    )


def _latency(clocks: Sequence[Clock]) -> Iterator[Verdict]:
    numbers = sorted({clock.devices for clock in clocks})
    for edge_flops in dict.fromkeys(clock.edge_flops for clock in clocks):
        for algorithms in ALGORITHMS:
            by_name = {
                name: [mean_s(clocks, name, algorithms, devices, edge_flops) for devices in numbers]
                for name in MECHANISMS
            }
            setting = setting_words(edge_flops, algorithms)
            grows = all(bool(np.all(np.diff([s for s, _ in row]) > 0)) for row in by_name.values())
            rows = (f"{name} {' / '.join(f'{s:.3g}' for s, _ in row)} s" for name, row in by_name.items())
            yield Verdict(
                figure="9",
                claim="latency grows with the number of devices",
                setting=setting,
                holds=grows,
                came_out="; ".join(rows),
            )
            others: list[tuple[str, Sequence[tuple[float, float]]]] = [
                (name, by_name[name]) for name in MECHANISMS if name != "SCCTT"
            ]
            if algorithms == "exact":
                best = [mean_s(clocks, BEST_FIXED, algorithms, devices, edge_flops) for devices in numbers]
                others.append((BEST_FIXED, best))
            for name, row in others:
                apart = [1 - ours / s for (ours, _), (s, _) in zip(by_name["SCCTT"], row, strict=True)]
                within = [
                    1 - (ours + link) / (s + link) for (ours, link), (s, _) in zip(by_name["SCCTT"], row, strict=True)
                ]
                yield Verdict(
                    figure="9",
                    claim=f"SCCTT takes less than {name}",
                    setting=setting,
                    holds=min(apart) > 0,
                    came_out=f"{_percents(apart)} less with {_numbers(numbers)} devices; with the cloud link {_percents(within)}",
                )


def _cloud_only(learned: Learned) -> Iterator[Verdict]:
    for figure, name, measure, more in (
        ("8", "held-out loss", "heldout_loss", False),
        ("10", "F1", "f1", True),
        ("11", "EM", "exact_match", True),
    ):
        chain = [getattr(curve, measure)[-1] for curve in learned.chain]
        cloud = [getattr(curve, measure)[-1] for curve in learned.cloud_only]
        better = min(chain) > max(cloud) if more else max(chain) < min(cloud)
        yield Verdict(
            figure=figure,
            claim=f"{name}: SCCT ends better than CloudO after as many rounds",
            setting=f"training, {len(chain)} seeds",
            holds=better,
            came_out=f"SCCT {_spread(chain)}, CloudO {_spread(cloud)}",
        )
    yield Verdict(
        figure="8, 10, 11",
        claim="by round SCCTT is ahead of SCCTL, and SCCTL of SCCTS",
        setting="training",
        holds=False,
        came_out="the same weights in all three, up to rounding: split points and shares change when a step ends, not what it does",
    )


def _order(learned: Learned) -> Iterator[Verdict]:
    """F1 at equal modelled time: when the fastest mechanism has ended."""
    for edge_flops in dict.fromkeys(clock.edge_flops for clock in learned.clocks):
        for algorithms in ALGORITHMS:
            clocks = {
                clock.mechanism: clock
                for clock in learned.clocks
                if (clock.edge_flops, clock.algorithms) == (edge_flops, algorithms)
            }
            ends = {name: float(learned.round_ends_s(clock)[-1]) for name, clock in clocks.items()}
            until = min(ends.values())
            f1 = {name: learned.reached_by(clock, until, lambda curve: curve.f1) for name, clock in clocks.items()}
            yield Verdict(
                figure="8, 10, 11",
                claim="by time SCCTT is ahead of SCCTL, and SCCTL of SCCTS",
                setting=setting_words(edge_flops, algorithms),
                holds=ends["SCCTT"] < ends["SCCTL"] < ends["SCCTS"],
                came_out="ends after "
                + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in ends.items())
                + f" (modelled, without the cloud link); F1 at {until:.0f} s: "
                + ", ".join(f"{name} {value:.1f}" for name, value in f1.items()),
            )


def _percents(shares: Sequence[float]) -> str:
    return " / ".join(f"{100 * share:.1f}" for share in shares) + " %"


def _numbers(numbers: Sequence[int]) -> str:
    return " / ".join(map(str, numbers))


def _spread(values: Sequence[float]) -> str:
    text = f"{np.mean(values):.3g}"
    return text if len(values) == 1 else f"{text} ({min(values):.3g} to {max(values):.3g})"
