"""The paper's Algorithm 1: subcarriers with shares fixed, shares with subcarriers fixed, in turns. A baseline.

Wang et al. (SCCT), section IV.A. What it leaves open, and what is wrong with it:

- The shares that the first pass over subcarriers starts from are not given: everyone has one Nth here.
- Line 1 sets beta to ones before the outer loop, not in it. As printed, every further pass hands out K - N subcarriers *more*, and
  (21-4) is broken from the second one on. What is meant is that each pass starts from ones; `reset_subcarriers=False` is the print.
- The greedy pass counts the decrease of the *slowest* device's latency. That is 0 for everyone else, and for the slowest too once
  two are equally slow; the first device then gets the subcarrier. Nor does the pass see that a subcarrier for one device frees
  shares of the edge for another. So the turns may settle above the optimum.
- Lines 15 to 19 solve the conditions of (25) by Newton's method. (25) has M where V is minimised, and ``mu_n (alpha_n - 1)`` where
  ``-mu_n alpha_n`` belongs to (24-2); with both put right, its solution is the root that `least_latency_for` finds.
"""

from __future__ import annotations

import heapq

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, check_split_points
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain.minimax import least_latency_for, shares_for
from flwr_splitkd.schedulers.chain.policy import Allocation
from flwr_splitkd.schedulers.chain.problem import EpochProblem

__all__ = ["Algorithm1"]


class Algorithm1:
    """The paper's allocation, an `AllocationPolicy`.

    Parameters
    ----------
    iterations
        I, passes over both subproblems; the last one's result counts.
    reset_subcarriers
        Whether each pass starts from one subcarrier for each device. Without it the algorithm is as printed, and takes more
        subcarriers than there are from the second pass on.

    Raises
    ------
    ConfigError
        If `iterations` is less than 1.
    """

    def __init__(self, iterations: int = 10, *, reset_subcarriers: bool = True) -> None:
        check_number("iterations", iterations, minimum=1)
        self.iterations, self.reset_subcarriers = iterations, reset_subcarriers

    def allocate(self, workload: ChainWorkload, resources: ChainResources, split_points: Ints) -> Allocation:
        """Take turns; with draws of resources, in each of them.

        Raises
        ------
        InfeasibleError
            If there are fewer subcarriers than devices.
        """
        points = check_split_points(split_points, workload.num_layers, resources.num_devices)
        problem = EpochProblem(workload, resources)
        work = problem.work_s(points[None])
        seconds = problem.times(points[None])
        spare = resources.num_subcarriers - resources.num_devices
        most = 1 + spare * (1 if self.reset_subcarriers else self.iterations)
        columns = np.arange(1, most + 1)[None, None]
        shares, beta = np.empty_like(work), np.empty(work.shape, dtype=np.int64)
        histories = []
        for draw in range(len(work)):
            times = seconds(np.array([draw]), columns)[0]
            shares[draw], beta[draw], history = self._one(work[draw], times, spare)
            histories.append(history)
        if resources.device_flops.ndim == 1:
            shares, beta = shares[0], beta[0]
        return Allocation.of(
            workload,
            resources,
            points,
            shares=shares,
            subcarriers=beta,
            method="Algorithm 1",
            history_s=tuple(float(step) for step in np.mean(histories, axis=0)),
        )

    def _one(self, work_s: Float, times: Float, spare: int) -> tuple[Float, Ints, list[float]]:
        devices = np.arange(len(work_s))
        beta = np.ones(len(work_s), dtype=np.int64)
        alpha = np.full(len(work_s), 1 / len(work_s))
        columns = times.tolist()
        history: list[float] = []
        for _ in range(self.iterations):
            edge_s = np.divide(work_s, alpha, out=np.zeros_like(work_s), where=work_s > 0)
            start = np.ones_like(beta) if self.reset_subcarriers else beta
            handed = np.array(_hand_out(columns, edge_s.tolist(), start.tolist(), spare))
            if history and np.array_equal(handed, beta):
                # Shares follow from subcarriers alone, so that all further passes end here as well.
                return alpha, beta, history + history[-1:] * (self.iterations - len(history))
            beta = handed
            other = times[devices, beta - 1][None]
            best = least_latency_for(work_s[None], other)
            alpha = shares_for(work_s[None], other, best)[0]
            history.append(float(best[0]))
        return alpha, beta, history


def _hand_out(times: list[list[float]], edge_s: list[float], beta: list[int], spare: int) -> list[int]:
    """Lines 4 to 13: one subcarrier after another to whom it helps most, where only the slowest can be helped.

    Plain numbers and a heap, since each step changes one device of many. ``times[n][k - 1]`` are device n's seconds, but for the
    edge's, with k subcarriers.
    """
    latency = [times[n][k - 1] + edge for n, (k, edge) in enumerate(zip(beta, edge_s, strict=True))]
    slowest_first = [(-seconds, n) for n, seconds in enumerate(latency)]
    heapq.heapify(slowest_first)
    for _ in range(spare):
        _drop_old(slowest_first, latency)
        slowest = slowest_first[0][1]
        heapq.heappop(slowest_first)
        _drop_old(slowest_first, latency)
        others = -slowest_first[0][0] if slowest_first else 0.0
        faster = times[slowest][beta[slowest]] + edge_s[slowest]
        # Where everyone's gain is 0, the first one's is taken.
        to = slowest if max(others, faster) < latency[slowest] else 0
        beta[to] += 1
        latency[to] = times[to][beta[to] - 1] + edge_s[to]
        for changed in {slowest, to}:
            heapq.heappush(slowest_first, (-latency[changed], changed))
    return beta


def _drop_old(slowest_first: list[tuple[float, int]], latency: list[float]) -> None:
    """Remove from the top what is no device's latency any more."""
    while slowest_first and -slowest_first[0][0] != latency[slowest_first[0][1]]:
        heapq.heappop(slowest_first)
