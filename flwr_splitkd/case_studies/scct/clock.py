"""What rounds take in the model: the planner of a run, without the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flwr_splitkd.case_studies.scct.settings import LIMITS, Algorithms, Scale, cell, workload
from flwr_splitkd.costs import ChainWorkload
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain import (
    AllocationPolicy,
    AlnsSplitPoints,
    FixedSplitPoints,
    Mechanism,
    SplitPointPolicy,
    mechanism,
)
from flwr_splitkd.schedulers.chain.planner import ChainPlan, ChainPlanner

__all__ = ["BEST_FIXED", "Clock", "best_fixed_split_point", "run_clock"]

BEST_FIXED = "SCCTS*"
"""SCCTS with the common split point that is best for it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clock:
    """Modelled seconds under a mechanism.

    Parameters
    ----------
    mechanism, algorithms
        Who decided.
    devices, edge_flops, seed
        In which cell.
    iteration_s
        An iteration of each epoch, without the link to the cloud. Shape ``[rounds, epochs]``.
    cloud_link_s
        d^4 of an iteration, which no decision changes.
    handover_s
        Of each round. Shape ``[rounds]``.
    split_points
        Of each round. Shape ``[rounds, devices]``.
    """

    mechanism: str
    algorithms: Algorithms
    devices: int
    edge_flops: float
    seed: int
    iteration_s: Float
    cloud_link_s: float
    handover_s: Float
    split_points: Float

    @property
    def mean_iteration_s(self) -> float:
        """Over all epochs, without the link to the cloud."""
        return float(self.iteration_s.mean())

    def ends_s(self, iterations: int, *, cloud_link: bool = True) -> Float:
        """Time at the start and at each epoch's end; a round's hand-over is in its first epoch. Shape ``[1 + rounds * epochs]``."""
        each = iterations * (self.iteration_s + (self.cloud_link_s if cloud_link else 0.0))
        each[:, 0] += self.handover_s
        return np.concatenate([[0.0], np.cumsum(each)])


def run_clock(
    name: Mechanism,
    algorithms: Algorithms,
    *,
    devices: int,
    edge_flops: float,
    scale: Scale,
    seed: int,
    split_point: int | None = None,
    iterations: int = 60,
    epochs: int | None = None,
    rounds: int | None = None,
) -> Clock:
    """Let a mechanism decide round by round and epoch by epoch, and note what everything takes.

    Parameters
    ----------
    name, algorithms
        Who decides.
    devices, edge_flops, seed
        In which cell.
    scale
        How long, on how many draws.
    split_point
        Of SCCTS, in place of the scale's.
    iterations, epochs, rounds
        J; T and R in place of the scale's.
    """
    work = workload(iterations=iterations, epochs=epochs or scale.epochs)
    points, allocation = _policies(name, algorithms, scale, split_point or scale.split_point, seed)
    planner = ChainPlanner(
        ChainPlan(
            workload=work,
            cell=cell(edge_flops, seed=seed),
            split_points=points,
            allocation=allocation,
            limits=LIMITS,
            num_draws=scale.draws,
            seed=seed,
        ),
        work.num_layers,
    )
    return _follow(planner, work, rounds or scale.rounds, name, algorithms, devices, edge_flops, seed)


def best_fixed_split_point(*, devices: int, edge_flops: float, scale: Scale, seed: int) -> Clock:
    """SCCTS with the split point that is best for it, with the exact allocation: what it could be if somebody chose well."""
    best = min(
        (
            run_clock(
                "SCCTS",
                "exact",
                devices=devices,
                edge_flops=edge_flops,
                scale=scale,
                seed=seed,
                split_point=point,
            )
            for point in range(1, workload().num_layers + 1)
        ),
        key=lambda clock: clock.mean_iteration_s,
    )
    return replace(best, mechanism=BEST_FIXED)


def _policies(
    name: Mechanism, algorithms: Algorithms, scale: Scale, split_point: int, seed: int
) -> tuple[SplitPointPolicy, AllocationPolicy]:
    points, allocation = mechanism(name, split_point=split_point, literal=algorithms == "paper", seed=seed)
    if isinstance(points, AlnsSplitPoints):
        points = AlnsSplitPoints(np.random.default_rng(seed), scale.search, allocation=allocation)
    elif isinstance(points, FixedSplitPoints):
        points = FixedSplitPoints(split_point)
    return points, allocation


def _follow(
    planner: ChainPlanner,
    work: ChainWorkload,
    rounds: int,
    name: Mechanism,
    algorithms: Algorithms,
    devices: int,
    edge_flops: float,
    seed: int,
) -> Clock:
    names = [str(number) for number in range(devices)]
    iteration_s, handover_s = np.empty((rounds, work.epochs)), np.empty(rounds)
    split_points, cloud_link_s = np.empty((rounds, devices)), 0.0
    for server_round in range(1, rounds + 1):
        decision = planner.begin_round(names, server_round)
        handover_s[server_round - 1], split_points[server_round - 1] = decision.handover_s, decision.split_points
        for epoch in range(1, work.epochs + 1):
            latency = planner.begin_epoch(names, server_round, epoch).latency
            cloud_link_s = latency.cloud_link_s
            iteration_s[server_round - 1, epoch - 1] = float(latency.slowest_s)
    return Clock(
        mechanism=name,
        algorithms=algorithms,
        devices=devices,
        edge_flops=edge_flops,
        seed=seed,
        iteration_s=iteration_s,
        cloud_link_s=cloud_link_s,
        handover_s=handover_s,
        split_points=split_points,
    )
