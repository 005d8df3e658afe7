"""A chain's round, planned: what `flwr-splitkd plan --scct` shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from flwr_splitkd.costs import (
    ChainFleet,
    ChainWorkload,
    ModelShape,
    handover_table_s,
)
from flwr_splitkd.costs.chain_latency import link_rates_bps
from flwr_splitkd.costs.checks import check_number, gib_at_least
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import InfeasibleError
from flwr_splitkd.schedulers.chain import (
    Allocation,
    AllocationPolicy,
    Mechanism,
    SplitDecision,
    SplitPointPolicy,
    mechanism,
)

__all__ = ["Compared", "PlannedChain", "plan_chain"]

_GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """What a mechanism comes to over the draws.

    Parameters
    ----------
    name
        The mechanism's.
    decision
        Its split points.
    average
        Its allocation of every draw. Arrays are ``[Q, N]``.
    """

    name: str
    decision: SplitDecision
    average: Allocation

    @property
    def slowest_s(self) -> float:
        """The slowest device's seconds of an iteration, on average; without the cloud's link."""
        return float(self.average.latency.slowest_s.mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedChain:
    """A chain's first round.

    Parameters
    ----------
    fleet, slm, workload
        Who takes part, and what is to be done.
    chosen
        The mechanism that was asked for.
    epoch
        Its allocation of the fleet's typical epoch.
    handover_s
        Seconds of each device's layers, which it has all of when it joins. Shape ``[N]``.
    lower_bound_s
        No round is shorter, whoever decides.
    others
        Other mechanisms, to compare with.
    impossible
        Those that do not fit, and why.
    """

    fleet: ChainFleet
    slm: ModelShape
    workload: ChainWorkload
    chosen: Compared
    epoch: Allocation
    handover_s: Float
    lower_bound_s: float
    others: tuple[Compared, ...]
    impossible: Mapping[str, str]

    @property
    def num_iterations(self) -> int:
        """Of a round."""
        return self.workload.iterations_per_epoch * self.workload.epochs

    @property
    def highest(self) -> list[int]:
        """The highest split point that each device has memory for."""
        fits = self.workload.device_memory_bytes <= np.array(self.fleet.device_bytes)[:, None]
        return [int(1 + np.flatnonzero(one).max()) for one in fits]

    @property
    def alone_s(self) -> Float:
        """An iteration with all layers on the device, its subcarriers as they are. Shape ``[N]``."""
        return np.asarray(
            self.workload.device_work_flops[-1] / self.fleet.typical.device_flops + self.epoch.latency.link_s
        )

    @property
    def rates_bps(self) -> tuple[Float, Float]:
        """Up and down. Shapes ``[N]``."""
        return link_rates_bps(self.fleet.typical, self.epoch.subcarriers)

    def round_s(self, compared: Compared) -> float:
        """A round with the link to the cloud."""
        return compared.decision.handover_s + self.cloud_s + self.num_iterations * compared.slowest_s

    @property
    def cloud_s(self) -> float:
        """What of a round is the link to the cloud, which no decision changes."""
        return self.num_iterations * self.epoch.latency.cloud_link_s

    def gap(self, compared: Compared) -> float:
        """How far a mechanism may be from the best, relative to the bound; both without the link to the cloud."""
        bound = self.lower_bound_s - self.cloud_s
        return (self.round_s(compared) - self.cloud_s) / bound - 1 if bound > 0 else np.inf

    def reasons(self) -> Iterator[str]:
        """Why each device has its split point, in a few words."""
        slowest_s, rows = float(self.epoch.latency.slowest_s), zip(self.alone_s, self.highest, strict=True)
        for point, (alone_s, highest) in zip(self.chosen.decision.split_points.tolist(), rows, strict=True):
            late = alone_s > slowest_s * (1 + 1e-9)
            if point == self.workload.num_layers:
                yield f"alone it takes {alone_s:.4g} s, within the {slowest_s:.4g} s of the slowest"
            elif late and point == highest:
                yield f"it has no memory for more than {highest} layers"
            elif late:
                yield f"alone it would take {alone_s:.4g} s, longer than the {slowest_s:.4g} s of the slowest"
            else:
                yield "the edge has compute to spare"


def plan_chain(
    fleet: ChainFleet,
    slm: ModelShape,
    workload: ChainWorkload,
    *,
    name: Mechanism = "SCCTT",
    split_point: int = 1,
    literal: bool = False,
    seed: int = 0,
) -> PlannedChain:
    """Decide on a round's split points, and on the shares of its typical epoch.

    Parameters
    ----------
    fleet, slm, workload
        Who takes part, and what is to be done.
    name, split_point, literal, seed
        As in `mechanism`.

    Raises
    ------
    ConfigError
        If the split point is out of range.
    InfeasibleError
        If memory or subcarriers are not enough.
    """
    layers = workload.num_layers
    check_number("split_point", split_point, minimum=1, maximum=layers, remedy=f"{slm.name} has {layers} layers.")
    _check_memory(fleet, workload)
    draws, typical = fleet.draws(), fleet.typical
    table = handover_table_s(workload, typical, old=np.full(len(fleet.devices), layers))

    def decide(title: str, policies: tuple[SplitPointPolicy, AllocationPolicy]) -> Compared:
        decision = policies[0].choose(workload, draws, fleet.limits, table)
        return Compared(
            name=title, decision=decision, average=policies[1].allocate(workload, draws, decision.split_points)
        )

    policies = mechanism(name, split_point=split_point, literal=literal, seed=seed)
    title = _title(name, split_point)
    chosen = decide(f"{title}, Algorithms 1 and 2" if literal else title, policies)
    others, impossible = [], {}
    fixed: list[tuple[Mechanism, int]] = [("SCCTS", point) for point in sorted({1, split_point, layers})]
    rivals: list[tuple[Mechanism, int]] = [("SCCTT", 1), ("SCCTL", 1), *fixed]
    for other, point in rivals:
        title = _title(other, point)
        if title == chosen.name:
            continue
        try:
            others.append(decide(title, mechanism(other, split_point=point)))
        except InfeasibleError as error:
            impossible[title] = str(error)
    points = chosen.decision.split_points
    return PlannedChain(
        fleet=fleet,
        slm=slm,
        workload=workload,
        chosen=chosen,
        epoch=policies[1].allocate(workload, typical, points),
        handover_s=table[np.arange(len(points)), points - 1],
        lower_bound_s=max(one.decision.lower_bound_s for one in (chosen, *others)),
        others=tuple(others),
        impossible=impossible,
    )


def _title(name: Mechanism, split_point: int) -> str:
    return f"{name} at {split_point}" if name == "SCCTS" else name


def _check_memory(fleet: ChainFleet, workload: ChainWorkload) -> None:
    """Name all devices that cannot hold a layer, rather than the first one's position."""
    least = float(workload.device_memory_bytes.min())
    small = {name: size for name, size in zip(fleet.devices, fleet.device_bytes, strict=True) if size < least}
    if small:
        has = ", ".join(f"{size / _GIB:.4g} GiB on {name}" for name, size in small.items())
        raise InfeasibleError(
            f"`memory_bytes` is {has}; expected at least {gib_at_least(least)}, for the smallest part of {workload.num_layers} "
            "layers. Give it more memory, lower `--batch-size` or `--positions`, or leave the device out."
        )
