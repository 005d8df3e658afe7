"""A lower bound for draws that have to agree on split points: scenario decomposition.

Draws that may choose for themselves (`flwr_splitkd.schedulers.chain.bound`) are faster than any decision makes them, the more so
the more they vary. Multipliers ``lambda_qn(s)`` that sum to zero over the draws cost an agreed decision nothing on average, and
charge a draw for what it does otherwise than the others (Caroe and Schultz, "Dual decomposition in stochastic integer programming",
1999):

    mean_q D_q(s)  >=  mean_q min over s' of ( D_q(s') + sum_n lambda_qn(s'_n) )        for every s

With a latency V, a price p of a subcarrier and a price mu of the edge, a draw's minimum is at least

    min over V of ( V + G(V) ),    G(V) = max over mu >= 0 of  sum_n min_s ( lambda_n(s) + mu A_n(V, s) ) - mu (1 + p K)
    A_n(V, s) = min over beta of ( w_n(s) / (V - t_n(s, beta)) + p beta )

since ``sum_n A_n(V, s_n) <= 1 + p K`` where split points keep to V. G falls with V, so that ``V_i + G(V_i+1)`` holds between two
latencies. The edge's memory, where it binds, has a price nu as well: lambda then has ``nu`` times what a device takes of it on top,
and the bound is nu less. Every lambda, p, mu and nu gives a bound: p is what a subcarrier is worth where the decision stands, and
lambda and nu follow supergradients, by Polyak's steps towards what was reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from flwr_splitkd.costs.chain import Ints
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain.objective import RoundObjective

__all__ = ["NEAR", "Dual", "agreed_bound_s", "latencies_of", "subcarrier_prices"]

NEAR = 0.003
"""Nearer than this to what was reached, no better bound is looked for."""

# Latencies up to this above what was reached, more of them once the multipliers are found; and a few far above.
_LEVELS, _FINE_LEVELS, _ABOVE, _FAR = 24, 120, 1.15, (1.3, 2.0, 4.0)
# Steps at most and at least, and numbers that may be looked at in all of them together: some seconds.
_STEPS, _FEWEST_STEPS, _NUMBERS = 150, 20, 80_000_000
# Of Polyak's step, and of the direction before that goes on; after some steps without progress they become half as long.
_LENGTH, _LEAST_LENGTH, _MOMENTUM, _PATIENCE = 0.5, 0.01, 0.7, 5
# mu is looked for between these, as shares of the highest latency.
_LOWEST_MU, _HIGHEST_MU, _MU_STEPS = 1e-5, 10.0, 14
_MEMORY_WEIGHT = 3.0
_GOLDEN = (math.sqrt(5) - 1) / 2
# Subcarriers that are looked at one by one; the others in groups, each this much larger than what comes before it.
_SINGLE, _GROUP = 20, 0.08
_LOWEST_PRICE, _HIGHEST_PRICE, _PRICE_STEPS = 1e-9, 4.0, 40


def agreed_bound_s(objective: RoundObjective, points: Ints, alone_s: Float, reached_s: Float) -> float:
    """Mean seconds of an iteration that no split points can beat, without the link to the cloud.

    Of many devices `alone_s` is all that is told: a step takes Q N L numbers for each latency.

    Parameters
    ----------
    objective
        Of the round.
    points
        A decision, whose prices are taken. Shape ``[N]``.
    alone_s
        What each draw cannot beat for itself. Shape ``[Q]``.
    reached_s
        The decision's latencies. Shape ``[Q]``.
    """
    alone, allowed = float(alone_s.mean()), objective.allowed.T[:, None, :]
    steps = min(_STEPS, _NUMBERS // (allowed.size * len(alone_s) * (_LEVELS + len(_FAR))))
    memory: Float = objective.workload.edge_memory_bytes / objective.edge_bytes
    binds = bool(memory[objective.lowest - 1].sum() > 1)
    if (len(alone_s) == 1 and not binds) or steps < _FEWEST_STEPS:
        return alone
    prices = subcarrier_prices(objective, points, reached_s)
    dual = Dual.of(objective, prices, latencies_of(alone_s, reached_s, _LEVELS))
    start = Multipliers(
        charges=np.tile(np.where(allowed, 0.0, np.inf), (1, len(alone_s), 1)), memory=memory if binds else 0 * memory
    )
    found = _ascend(dual, start.with_memory_price(dual, float(reached_s.mean())), float(reached_s.mean()), steps)
    dual = Dual.of(objective, prices, latencies_of(alone_s, reached_s, _FINE_LEVELS))
    return max(alone, found.bound(dual)[0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Multipliers:
    """lambda, and the price of the edge's memory.

    Parameters
    ----------
    charges
        lambda, zero on average over the draws, infinite where a split point is not allowed. Shape ``[L, Q, N]``.
    memory
        What a device takes of the edge's memory at each split point, as a share of it; zeros if that never binds. Shape ``[L]``.
    price_s
        nu, of all of the memory, at least 0.
    """

    charges: Float
    memory: Float
    price_s: float = 0.0

    def bound(self, dual: Dual) -> tuple[float, Float, float]:
        """The mean over the draws, and its supergradients: of the charges, shape ``[L, Q, N]``, and of the price."""
        seconds, choices = dual.solve(self.charges + self.price_s * self.memory[:, None, None])
        taken = float((choices.sum(axis=(1, 2)) / len(seconds) * self.memory).sum())
        over = taken - 1 if self.memory.any() else 0.0
        return float(seconds.mean()) - self.price_s, choices - choices.mean(axis=1, keepdims=True), over

    def with_memory_price(self, dual: Dual, reached_s: float) -> Multipliers:
        """The best price for these charges, by the golden section."""
        if not self.memory.any():
            return self
        low, high = 0.0, _HIGHEST_MU * reached_s
        for _ in range(_MU_STEPS):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            values = [replace(self, price_s=price).bound(dual)[0] for price in (left, right)]
            low, high = (low, right) if values[0] > values[1] else (left, high)
        return replace(self, price_s=(low + high) / 2)

    def moved(self, charges: Float, price: float) -> Multipliers:
        """A step further."""
        return replace(self, charges=self.charges + charges, price_s=max(self.price_s + price, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dual:
    """What G takes, at M latencies of each draw.

    Parameters
    ----------
    latencies_s
        V, rising; no draw can beat the first. Shape ``[Q, M + 1]``.
    needed
        A at all but the first, infinite where a device cannot keep to V. Shape ``[L, Q, M, N]``.
    capacity
        ``1 + p K``. Shape ``[Q]``.
    """

    latencies_s: Float
    needed: Float
    capacity: Float

    @classmethod
    def of(cls, objective: RoundObjective, prices: Float, latencies_s: Float) -> Dual:
        """Work out A for latencies, shape ``[Q, M + 1]``, and for each draw's price of a subcarrier, shape ``[Q]``."""
        problem, allowed = objective.problem, objective.allowed.T
        layers, devices = allowed.shape
        draws = problem.num_draws
        first, last = _groups(problem.resources.num_subcarriers - devices + 1)
        times = problem.times(np.repeat(np.arange(1, layers + 1)[:, None], devices, axis=1))
        needed = np.empty((layers, draws, latencies_s.shape[1] - 1, devices))
        for draw in range(draws):
            seconds = times(draws * np.arange(layers) + draw, last[None, None])
            seconds[~allowed] = np.inf
            for level, latency in enumerate(latencies_s[draw, 1:]):
                shares = _shares(problem.edge_s[:, None, None], seconds, latency)
                needed[:, draw, level] = (shares + prices[draw] * first).min(axis=2)
        return cls(latencies_s=latencies_s, needed=needed, capacity=1 + prices * problem.resources.num_subcarriers)

    def solve(self, multipliers: Float) -> tuple[Float, Float]:
        """Bound every draw.

        Parameters
        ----------
        multipliers
            lambda, infinite where a split point is not allowed. Shape ``[L, Q, N]``.

        Returns
        -------
        seconds, choices
            min (V + G), and how much of each device is at each split point there. Shapes ``[Q]`` and ``[L, Q, N]``.
        """
        free = multipliers.min(axis=0).sum(axis=1)
        low, high, best = self._best_prices(multipliers)
        best = np.maximum(best, free[:, None])
        # Behind the last latency nothing is known of G but that all may choose freely.
        bounds = np.concatenate([self.latencies_s[:, :-1] + best, self.latencies_s[:, -1:] + free[:, None]], axis=1)
        draws, lowest = np.arange(len(best)), bounds.argmin(axis=1)
        level = np.minimum(lowest, best.shape[1] - 1)
        ends = np.exp(low[draws, level]), np.exp(high[draws, level])
        return bounds[draws, lowest], _mixed(multipliers, self.needed[:, draws, level], ends, self.capacity)

    def _best_prices(self, multipliers: Float) -> tuple[Float, Float, Float]:
        """Where mu is best, by the golden section of its logarithm: from, to, and the best sum. Shapes ``[Q, M]``."""
        charged, shape = multipliers[:, :, None], self.needed.shape[1:3]

        def value(log_mu: Float) -> Float:
            mu = np.exp(log_mu)
            least = np.full(self.needed.shape[1:], np.inf)
            for charge, need in zip(charged, self.needed, strict=True):
                cost = need * mu[..., None]
                cost += charge
                np.minimum(least, cost, out=least)
            return np.asarray(least.sum(axis=-1) - mu * self.capacity[:, None])

        scale = np.log(self.latencies_s[:, -1:])
        low, high = (np.broadcast_to(np.log(bound) + scale, shape) for bound in (_LOWEST_MU, _HIGHEST_MU))
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        of_left, of_right = value(left), value(right)
        for _ in range(_MU_STEPS):
            lower = of_left > of_right
            low, high = np.where(lower, low, left), np.where(lower, right, high)
            new = np.where(lower, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
            of_new = value(new)
            left, right = np.where(lower, new, right), np.where(lower, left, new)
            of_left, of_right = np.where(lower, of_new, of_right), np.where(lower, of_left, of_new)
        return low, high, np.maximum(of_left, of_right)


def _ascend(dual: Dual, start: Multipliers, reached_s: float, steps: int) -> Multipliers:
    """Multipliers of a higher bound."""
    draws = start.charges.shape[1]
    # So that a device's memory weighs about as much as what draws differ by.
    scale = _MEMORY_WEIGHT / math.sqrt(draws) / float(start.memory.max()) if start.memory.any() else 0.0
    now = best = start
    best_s, length, failed = -np.inf, _LENGTH, 0
    charges: Float = np.zeros_like(start.charges)
    price = 0.0
    for _ in range(steps):
        value_s, rise, over = now.bound(dual)
        # A step need not lead upwards, only nearer to the best multipliers.
        failed = 0 if value_s > best_s else failed + 1
        if value_s > best_s:
            best_s, best = value_s, now
        if failed == _PATIENCE:
            length, failed = length / 2, 0
        charges = _MOMENTUM * charges + rise
        price = _MOMENTUM * price + draws * scale * over
        norm = float((charges * charges).sum()) + price * price
        if reached_s - best_s <= NEAR * reached_s or length < _LEAST_LENGTH or norm == 0:
            break
        step = length * draws * (reached_s - value_s) / norm
        now = now.moved(step * charges, step * price * scale)
    return best


def _mixed(multipliers: Float, needed: Float, prices: tuple[Float, Float], capacity: Float) -> Float:
    """Choices on either side of the best price of the edge, mixed so that they need just all of it. ``[L, Q, N]``."""
    layers = np.arange(len(needed))[:, None, None]
    much, little = (
        (layers == (multipliers + price[:, None] * needed).argmin(axis=0)).astype(np.float64) for price in prices
    )
    uses = [np.where(chosen > 0, needed, 0.0).sum(axis=(0, 2)) for chosen in (much, little)]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((capacity - uses[1]) / (uses[0] - uses[1]), 0.0, 1.0)
    part = np.where(uses[0] <= capacity, 1.0, np.nan_to_num(part))[:, None]
    return np.asarray(part * much + (1 - part) * little)


def latencies_of(alone_s: Float, reached_s: Float, levels: int) -> Float:
    """Latencies from what no draw can beat for itself to a good deal more than was reached. Shape ``[Q, any]``."""
    top = np.maximum(_ABOVE * reached_s, alone_s)[:, None]
    near = alone_s[:, None] + (top - alone_s[:, None]) * np.linspace(0, 1, levels + 1)
    return np.concatenate([near, top * np.array(_FAR)], axis=1)


def _groups(most: int) -> tuple[Ints, Ints]:
    """Groups of numbers of subcarriers, ``1 .. most``: each costs what its first does, and is as fast as its last."""
    first: list[int] = []
    last: list[int] = []
    while not last or last[-1] < most:
        begin = last[-1] + 1 if last else 1
        first.append(begin)
        last.append(begin if begin <= _SINGLE else min(most, begin + int(_GROUP * begin)))
    return np.array(first), np.array(last)


def _shares(work_s: Float, other_s: Float, latency_s: float) -> Float:
    left = latency_s - other_s
    shares: Float = np.full(left.shape, np.inf)
    return np.divide(work_s, left, out=shares, where=left > 0)


def subcarrier_prices(objective: RoundObjective, points: Ints, latency_s: Float) -> Float:
    """What a subcarrier is worth in each draw, as a share of the edge: at more, fewer than there are would be taken.

    Parameters
    ----------
    objective
        Of the round.
    points
        Split points. Shape ``[N]``.
    latency_s
        What they take. Shape ``[Q]``.
    """
    problem = objective.problem
    carriers = problem.resources.num_subcarriers
    first, _ = _groups(carriers - problem.num_devices + 1)
    times, work = problem.times(points[None]), problem.edge_s[points - 1][:, None]
    prices = np.empty(problem.num_draws)
    for draw, latency in enumerate(latency_s):
        # A little above the latency, where those who set it can still be helped.
        shares = _shares(work, times(np.array([draw]), first[None, None])[0], latency * (1 + 1e-6))
        low, high = np.log(_LOWEST_PRICE), np.log(_HIGHEST_PRICE)
        for _ in range(_PRICE_STEPS):
            middle = (low + high) / 2
            taken = first[(shares + np.exp(middle) * first).argmin(axis=1)].sum()
            low, high = (low, middle) if taken <= carriers else (middle, high)
        prices[draw] = np.exp(high)
    return prices
