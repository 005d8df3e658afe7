"""Figures 6, 7 and 9: both algorithms step by step, and an iteration's latency by devices and mechanism."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flwr_splitkd.case_studies.scct.clock import BEST_FIXED, Clock, best_fixed_split_point, run_clock
from flwr_splitkd.case_studies.scct.settings import ALGORITHMS, LIMITS, Algorithms, Scale, cell, workload
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain import (
    MECHANISMS,
    Algorithm1,
    AlnsSplitPoints,
    allocate_resources,
    optimize_split_points,
)

__all__ = ["Convergence", "algorithm1_steps", "algorithm2_steps", "latencies"]

Mapped = Callable[..., Iterable[Any]]
_Case = tuple[str, Algorithms, int, float, int]

# An epoch in which nothing is decided yet: its split points are those that the paper's figure does not name.
_SPLIT_POINT_RANGE = (1, 12)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Convergence:
    """What a method has reached after each step, beside the best that is known. Both without the link to the cloud.

    Parameters
    ----------
    method, edge_flops, seed
        Which, and where.
    seconds
        Of an iteration, by step.
    best_s
        The exact optimum in figure 6, our decision in figure 7.
    bound_s
        No decision does better; 0 where that is `best_s` itself.
    """

    method: str
    edge_flops: float
    seed: int
    seconds: Float
    best_s: float
    bound_s: float = 0.0

    @property
    def best_so_far_s(self) -> Float:
        """What the method would return after each step."""
        return np.asarray(np.minimum.accumulate(self.seconds))

    def steps_to(self, share: float = 1e-3) -> int:
        """Steps after which nothing improves by more than this share of the last value."""
        so_far = self.best_so_far_s
        return int(np.argmax(so_far <= so_far[-1] * (1 + share)))

    @property
    def over_best(self) -> float:
        """Its result over the best known, less 1."""
        return float(self.best_so_far_s[-1] / self.best_s - 1)

    @property
    def ups(self) -> int:
        """Steps that made it worse."""
        return int((np.diff(self.seconds) > 1e-9 * self.seconds[:-1]).sum())


def algorithm1_steps(scale: Scale, *, seed: int) -> list[Convergence]:
    """Figure 6: Algorithm 1 in one epoch of the largest number of devices, for each edge."""
    found = []
    devices = max(scale.devices)
    points = np.random.default_rng(seed).integers(*_SPLIT_POINT_RANGE, size=devices, endpoint=True)
    for edge_flops in scale.edges:
        resources = cell(edge_flops, seed=seed).resources(_names(devices), server_round=1, epoch=1)
        allocation = Algorithm1(scale.passes).allocate(workload(), resources, points)
        best_s = float(allocate_resources(workload(), resources, points).latency.slowest_s)
        found.append(
            Convergence(
                method="Algorithm 1",
                edge_flops=edge_flops,
                seed=seed,
                seconds=np.array(allocation.history_s),
                best_s=best_s,
            )
        )
    return found


def algorithm2_steps(
    scale: Scale,
    *,
    seed: int,
    mapped: Mapped = map,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Convergence]:
    """Figure 7: Algorithm 2 with Algorithm 1 in it, over the draws of a round, for each edge; `mapped` as in `latencies`."""
    found = []
    for one in mapped(partial(_search, scale, seed), scale.edges):
        found.append(one)
        on_progress(len(found), len(scale.edges))
    return found


def latencies(
    scale: Scale,
    *,
    seed: int,
    mapped: Mapped = map,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Clock]:
    """Figure 9: each mechanism's clock, with ours and with the paper's algorithms, for each number of devices, edge and cell.

    Parameters
    ----------
    scale
        How much.
    seed
        Of the first cell.
    mapped
        Applies a function to every case and yields the results in order, as `map` does, or a process pool's own.
    on_progress
        Told how many cases of how many are done.
    """
    cases: list[_Case] = [
        (name, algorithms, devices, edge_flops, seed + drawn)
        for edge_flops in scale.edges
        for devices in scale.devices
        for drawn in range(scale.cells)
        for algorithms in ALGORITHMS
        for name in (*MECHANISMS, *([BEST_FIXED] if algorithms == "exact" else []))
    ]
    clocks: list[Clock] = []
    for clock in mapped(partial(_clock, scale), cases):
        clocks.append(clock)
        on_progress(len(clocks), len(cases))
    return clocks


def _search(scale: Scale, seed: int, edge_flops: float) -> Convergence:
    work = workload()
    draws = cell(edge_flops, seed=seed).draws(_names(max(scale.devices)), scale.draws)
    ours = optimize_split_points(work, draws, limits=LIMITS)
    search = AlnsSplitPoints(np.random.default_rng(seed), scale.long_search, allocation=Algorithm1())
    theirs = search.choose(work, draws, LIMITS)
    per_iteration = work.epochs * work.iterations_per_epoch
    cloud_s = ours.cloud_link_s
    return Convergence(
        method="Algorithm 2",
        edge_flops=edge_flops,
        seed=seed,
        seconds=(np.array(theirs.history_s) - cloud_s) / per_iteration,
        best_s=(ours.objective_s - cloud_s) / per_iteration,
        bound_s=max(ours.lower_bound_s - cloud_s, 0.0) / per_iteration,
    )


def _clock(scale: Scale, case: _Case) -> Clock:
    name, algorithms, devices, edge_flops, seed = case
    if name == BEST_FIXED:
        return best_fixed_split_point(devices=devices, edge_flops=edge_flops, scale=scale, seed=seed)
    return run_clock(
        name,  # type: ignore[arg-type]  # one of MECHANISMS
        algorithms,
        devices=devices,
        edge_flops=edge_flops,
        scale=scale,
        seed=seed,
    )


def _names(devices: int) -> list[str]:
    return [str(number) for number in range(devices)]
