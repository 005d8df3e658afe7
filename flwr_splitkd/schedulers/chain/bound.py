"""A latency that no split points and no allocation can beat.

First every draw may have split points of its own: that makes the bound lower, and draws independent. Where this leaves much open,
`flwr_splitkd.schedulers.chain.scenarios` has them agree. For one draw and a latency V, with
``a_n(beta) = min_s w_n(s) / (V - t_n(s, beta))`` over the split points that the device can hold, V can be kept only if

    max over p >= 0 of sum_n min_beta (a_n(beta) + p beta) - p K <= 1

since p is the price of a subcarrier: whatever respects (21-4) pays no more than p K. Any p at which the sum is above 1 proves that
V is out of reach. V is found by halving. The edge's memory is left out here, which makes the bound lower still, and so may that
a_n need not be convex.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_splitkd.costs.chain import Ints
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain.objective import RoundObjective
from flwr_splitkd.schedulers.chain.policy import SplitDecision
from flwr_splitkd.schedulers.chain.scenarios import NEAR, agreed_bound_s

__all__ = ["alone_s", "decision", "lower_bound_s"]

_STEPS, _PRICE_STEPS = 22, 26
# Prices are searched for in between: a share of the whole edge for a subcarrier, and next to nothing.
_LOWEST_PRICE, _HIGHEST_PRICE = 1e-9, 4.0


def decision(
    objective: RoundObjective,
    points: Ints,
    value_s: float,
    method: str,
    history_s: tuple[float, ...] = (),
    *,
    bound: bool,
) -> SplitDecision:
    """Put a decision together, with its bound if that is asked for."""
    return SplitDecision(
        split_points=points,
        objective_s=value_s,
        handover_s=float(objective.handover(points[None])[0]),
        cloud_link_s=objective.cloud_link_s,
        lower_bound_s=lower_bound_s(objective, points) if bound else 0.0,
        evaluations=objective.evaluations,
        method=method,
        history_s=history_s,
    )


def lower_bound_s(objective: RoundObjective, points: Ints) -> float:
    """Seconds of a round that no split points can beat.

    Parameters
    ----------
    objective
        Of the round.
    points
        Some split points, below whose latencies it is searched. Shape ``[N]``.
    """
    reached_s = objective.latencies(points)
    bound_s = alone_s(objective, reached_s)
    seconds = float(bound_s.mean())
    if seconds < (1 - NEAR) * float(reached_s.mean()):
        seconds = agreed_bound_s(objective, points, bound_s, reached_s)
    handover = float(np.where(objective.allowed, objective.handover_s, np.inf).min(axis=1).max())
    return handover + objective.cloud_link_s + objective.iterations * seconds


def alone_s(objective: RoundObjective, reached_s: Float) -> Float:
    """What each draw cannot beat with split points of its own. Shape ``[Q]``."""
    problem = objective.problem
    full = problem.resources.num_subcarriers - problem.num_devices + 1
    width = min(full, 8 * -(-problem.resources.num_subcarriers // problem.num_devices))
    choices = [(points, _seconds(objective, points, width, full)) for points in objective.choices()]
    # As if everyone had the whole edge, and all subcarriers that the others can do without.
    alone = [times[:, :, -1] + problem.edge_s[points - 1] for points, times in choices]
    high = np.asarray(reached_s, dtype=np.float64)
    low = np.minimum(np.min(alone, axis=0).max(axis=1), high)
    works = [(problem.edge_s[points - 1], times) for points, times in choices]
    for _ in range(_STEPS):
        middle = (low + high) / 2
        beyond = _out_of_reach(works, middle, problem.resources.num_subcarriers)
        low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
    return np.asarray(low)


def _seconds(objective: RoundObjective, points: Ints, width: int, full: int) -> Float:
    """Seconds without the edge, for ``1 .. width`` subcarriers; the last column has those of `full`. ``[Q, N, width]``."""
    draws = np.arange(objective.problem.num_draws)
    columns = np.append(np.arange(1, width), full)[None, None]
    return objective.problem.times(points[None])(draws, columns)


def _out_of_reach(choices: list[tuple[Float, Float]], latency_s: Float, num_subcarriers: int) -> NDArray[np.bool_]:
    """Whether the dual proves that nothing keeps to a latency. Shape ``[Q]``."""
    shares: Float = np.full(choices[0][1].shape, np.inf)
    for work_s, times in choices:
        left = latency_s[:, None, None] - times
        work = np.broadcast_to(work_s[:, None], left.shape)
        needed = np.divide(work, left, out=np.full_like(left, np.inf), where=left > 0)
        needed[(left == 0) & (work == 0)] = 0.0
        np.minimum(shares, needed, out=shares)
    beta = np.arange(1, shares.shape[-1] + 1)
    low, high = np.full(len(latency_s), np.log(_LOWEST_PRICE)), np.full(len(latency_s), np.log(_HIGHEST_PRICE))
    beyond = np.isinf(shares[:, :, -1]).any(axis=1)
    for _ in range(_PRICE_STEPS):
        price = np.exp((low + high) / 2)
        paid = shares + price[:, None, None] * beta
        chosen = paid.argmin(axis=2)
        total = np.take_along_axis(paid, chosen[:, :, None], axis=2)[:, :, 0].sum(axis=1) - price * num_subcarriers
        beyond |= total > 1
        dear = (chosen + 1).sum(axis=1) <= num_subcarriers
        low, high = np.where(dear, low, np.log(price)), np.where(dear, np.log(price), high)
        if beyond.all():
            break
    return np.asarray(beyond)
