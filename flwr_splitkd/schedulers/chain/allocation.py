"""Shares and subcarriers of least latency: the small timescale, solved exactly.

Wang et al. (SCCT), section IV.A, solve P1-1 and P1-2 in turns (`Algorithm1`), which may end anywhere. Both together are one
problem of `flwr_splitkd.schedulers.chain.minimax`, whose optimum is found in milliseconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, check_split_points
from flwr_splitkd.schedulers.chain.minimax import least_latency, shares_for
from flwr_splitkd.schedulers.chain.policy import Allocation
from flwr_splitkd.schedulers.chain.problem import EpochProblem

__all__ = ["ExactAllocation", "allocate_resources"]


def allocate_resources(workload: ChainWorkload, resources: ChainResources, split_points: ArrayLike) -> Allocation:
    """Give everyone the share and the subcarriers with which the slowest device is as fast as it can be.

    Parameters
    ----------
    workload
        What an iteration takes.
    resources
        One epoch's; with draws every draw is solved, all of them at once.
    split_points
        ``1 .. L``; a device at L gets a share of 0. Shape ``[N]``.

    Raises
    ------
    InfeasibleError
        If there are fewer subcarriers than devices.
    ConfigError
        If a split point is out of range.
    """
    points = check_split_points(split_points, workload.num_layers, resources.num_devices)
    problem = EpochProblem(workload, resources)
    work = problem.work_s(points[None])
    times = problem.times(points[None])
    solution = least_latency(work, times, resources.num_subcarriers)
    beta = solution.subcarriers
    other = times(np.arange(len(work)), beta[:, :, None])[:, :, 0]
    alpha = shares_for(work, other, solution.latency_s)
    if resources.device_flops.ndim == 1:
        alpha, beta = alpha[0], beta[0]
    return Allocation.of(workload, resources, points, shares=alpha, subcarriers=beta, method="exact")


class ExactAllocation:
    """`allocate_resources`, as an `AllocationPolicy`."""

    def allocate(self, workload: ChainWorkload, resources: ChainResources, split_points: Ints) -> Allocation:
        """Solve the epoch."""
        return allocate_resources(workload, resources, split_points)
