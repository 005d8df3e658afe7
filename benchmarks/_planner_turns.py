"""What simulated turns cost, and what they should have: regret, bounds, weights. The runs are made in planner_simulation.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flwr_splitkd.costs import CutTerms, Fleet, LinkState, ModelShape, Workload, cut_terms, turn_cost
from flwr_splitkd.errors import InfeasibleError
from flwr_splitkd.schedulers import Decision, evaluate_options, plan_cut_and_frequency

__all__ = ["Judged", "Run", "World", "delay_bound_s", "judge", "same_weights"]

# Up and down the street of `street_trajectories`, 2 x 400 m at 30 km/h.
WAY_S = 96
# Two sums of the same terms in another order.
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What turns cost in some runs.

    Parameters
    ----------
    name
        Which models are charged for.
    fleet
        Machines and links, as the app makes them from the same seed.
    student, teacher
        The models.
    workload
        A turn.
    settings
        Run config that goes with it.
    """

    name: str
    fleet: Fleet
    student: ModelShape
    teacher: ModelShape
    workload: Workload
    settings: Mapping[str, str | int | float | bool]

    def terms(self, device: str, num_batches: int) -> CutTerms:
        """Costs of every cut of a device's turn."""
        workload = replace(self.workload, num_batches=num_batches)
        return cut_terms(self.student, self.teacher, workload, self.fleet.device(device))

    def machines(self, device: str) -> dict[str, Any]:
        """The two that take part."""
        return {"device": self.fleet.device(device), "server": self.fleet.server}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run has left.

    Parameters
    ----------
    policy
        Who decided.
    lines
        Of ``metrics.jsonl``.
    weights
        The student at the end.
    """

    policy: str
    lines: Sequence[Mapping[str, Any]]
    weights: Mapping[str, torch.Tensor]

    @property
    def turns(self) -> list[Mapping[str, Any]]:
        """Turns that were completed."""
        return [line for line in self.lines if line["kind"] == "turn" and "error" not in line]

    @property
    def left_out(self) -> list[Mapping[str, Any]]:
        """Turns that were not."""
        return [line for line in self.lines if line["kind"] == "turn" and "error" in line]

    @property
    def order(self) -> tuple[tuple[int, str], ...]:
        """Who had turns, in order; runs with the same order train on the same batches."""
        return tuple((turn["server_round"], turn["device"]) for turn in self.turns)

    @property
    def perplexity(self) -> float:
        """On held-out text, at the end."""
        return float([line for line in self.lines if line["kind"] == "evaluation"][-1]["perplexity"])

    def per_round(self, name: str) -> list[float]:
        """Sum of a figure over the turns of each round."""
        rounds = sorted({turn["server_round"] for turn in self.turns})
        return [sum(turn[name] for turn in self.turns if turn["server_round"] == number) for number in rounds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A turn beside the best that could have been decided for it.

    Parameters
    ----------
    joules, seconds
        As modelled; of the seconds those in which the device was in reach.
    late
        Whether it took longer than the bound, waits included.
    best_j
        Least joules within the bound on the turn's own channel; None if nothing was fast enough.
    """

    joules: float
    seconds: float
    late: bool
    best_j: float | None

    @property
    def regret_j(self) -> float | None:
        """Joules too many; None where the two cannot be compared."""
        return None if self.late or self.best_j is None else self.joules - self.best_j


def delay_bound_s(world: World, devices: Sequence[str], *, quantile: float, slack: float) -> float:
    """Return `slack` times the slowest device's fastest turn, at a quantile (0 to 1) of the rates on its way."""
    fastest = []
    for device in devices:
        states = [world.fleet.link(device).at(float(second)) for second in range(WAY_S)]
        link = LinkState(
            uplink_bps=float(np.quantile([state.uplink_bps for state in states], quantile)),
            downlink_bps=float(np.quantile([state.downlink_bps for state in states], quantile)),
        )
        terms = world.terms(device, world.workload.num_batches)
        options = evaluate_options(terms, **world.machines(device), link=link, frequency="max")
        fastest.append(float(options.seconds.min()))
    return slack * max(fastest)


def judge(world: World, turn: Mapping[str, Any], *, bound_s: float, min_cut: int) -> Judged:
    """Return a turn beside the best one on the same channel.

    Raises
    ------
    ValueError
        If `world` does not explain what the turn took, so that nothing could be compared.
    """
    link = LinkState(uplink_bps=turn["modelled_uplink_bps"], downlink_bps=turn["modelled_downlink_bps"])
    terms, machines = world.terms(turn["device"], turn["num_batches"]), world.machines(turn["device"])
    option = terms.index(turn["cut"])
    cost = turn_cost(terms, option, frequency_hz=turn["planned_frequency_hz"], **machines, link=link)
    if not math.isclose(cost.total_j, turn["modelled_j"], rel_tol=TOLERANCE):
        raise ValueError(
            f"Device {turn['device']} paid {turn['modelled_j']} J in round {turn['server_round']}; expected {cost.total_j} J of "
            f"{world.name}. The run had another world than this one."
        )
    best: Decision | None = None
    try:
        best = plan_cut_and_frequency(terms, **machines, link=link, max_delay_s=bound_s, min_cut=min_cut)
    except InfeasibleError:
        pass
    return Judged(
        joules=turn["modelled_j"],
        seconds=cost.total_s,
        late=turn["modelled_s"] > bound_s * (1 + TOLERANCE),
        best_j=best.cost.total_j if best else None,
    )


def same_weights(runs: Sequence[Run]) -> dict[str, str]:
    """Return for each run whether its weights are those of the first run with the same turns, and where they differ."""
    first: dict[tuple[tuple[int, str], ...], Run] = {}
    words = {}
    for run in runs:
        other = first.setdefault(run.order, run)
        if other is run:
            words[run.policy] = "first of its turns"
            continue
        differ = [name for name, tensor in run.weights.items() if not torch.equal(tensor, other.weights[name])]
        if run.weights.keys() == other.weights.keys() and not differ:
            words[run.policy] = f"equal to {other.policy}"
            continue
        off = max(float((run.weights[name] - other.weights[name]).abs().max()) for name in differ)
        words[run.policy] = f"{len(differ)} tensors differ from {other.policy} by up to {off:.2g}, first {differ[0]}"
    return words
