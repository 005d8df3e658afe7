"""Least latency of the slowest device, over shares of a server and whole subcarriers: exact, and for many instances at once.

For each of I instances: device n has ``w_n`` seconds of work for the whole server, and ``t_n(beta)`` seconds of everything else,
convex and falling in its subcarriers. With a share alpha it takes ``t_n(beta_n) + w_n / alpha_n``. Within V seconds it needs
``alpha_n = w_n / (V - t_n(beta_n))``, so V can be kept if and only if

    F(V) = min over beta of sum_n w_n / (V - t_n(beta_n)) <= 1,    beta_n >= 1, sum_n beta_n <= K

Each term is convex and falling in beta_n once ``t_n < V``. So the minimum is reached by first giving everyone as many subcarriers
as it takes to get below V, then the others one by one to whom they help most: the largest decreases of all. F is a minimum of
falling functions, so its root is found from above in a few steps: the best beta for a V that can be kept, then the least V for that
beta, which is less, and so on until V cannot be beaten. Where a device without work for the server sets V, steps halve the
interval between what can be kept and what cannot, until few numbers of subcarriers are left in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flwr_splitkd.costs.chain import Ints
from flwr_splitkd.costs.shape import Float

__all__ = ["Solution", "least_latency", "least_latency_for", "shares_for"]

Times = Callable[[Ints, Ints], Float]
Flags = NDArray[np.bool_]

# V is beaten if there is a solution this much below it.
_RELATIVE = 1e-12
# Halving goes on until this much is left of V.
_CLOSE = 1e-5
_FIRST_STRIDE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Solution:
    """The least latency of each instance, and the subcarriers that reach it. Shapes ``[I]`` and ``[I, N]``."""

    latency_s: Float
    subcarriers: Ints


def shares_for(work_s: Float, other_s: Float, latency_s: Float) -> Float:
    """Shares with which everyone keeps to a latency; they sum to 1 at most at the least one. Shape ``[I, N]``."""
    # V is never less than t + w, so that rounding cannot make a share of more than 1.
    left = np.maximum(latency_s[:, None] - other_s, work_s)
    alpha = np.divide(work_s, left, out=np.zeros_like(left), where=work_s > 0)
    return np.asarray(alpha / np.maximum(alpha.sum(axis=1, keepdims=True), 1.0))


def least_latency_for(work_s: Float, other_s: Float) -> Float:
    """Least V with given subcarriers: the root of ``sum w / (V - t) = 1``, or the slowest without work. Shape ``[I]``.

    ``1 / sum`` is concave and rises with V, so that Newton's steps from ``max(t + w)``, where it is at most 1, never overshoot.
    """
    works = work_s > 0
    latency = np.where(works, other_s + work_s, 0.0).max(axis=1)
    active = np.flatnonzero(works.any(axis=1))
    work, other = work_s[active], other_s[active]
    for _ in range(100):
        left = np.maximum(latency[active, None] - other, work)
        shares = np.divide(work, left, out=np.zeros_like(left), where=work > 0)
        total = shares.sum(axis=1)
        slope = np.divide(shares, left, out=np.zeros_like(left), where=work > 0).sum(axis=1)
        step = np.maximum(total * total - total, 0.0) / slope
        latency[active] += step
        moving = step > 1e-15 * latency[active]
        if not moving.any():
            break
        active, work, other = active[moving], work[moving], other[moving]
    return np.asarray(np.maximum(latency, np.where(works, 0.0, other_s).max(axis=1)))


def least_latency(
    work_s: Float, times: Times, num_subcarriers: int, *, start: Ints | None = None, within: float = 0.0
) -> Solution:
    """Solve every instance.

    Parameters
    ----------
    work_s
        w. Shape ``[I, N]``.
    times
        ``times(instances, beta)`` gives t of these instances for whole subcarriers. Shape ``[len(instances), N, any]`` in and out.
    num_subcarriers
        K, at least N.
    start
        Subcarriers to start from, summing to at most K; an equal part for each when not given. Shape ``[I, N]``.
    within
        By how much the least may be below the latency that is found, as a share of the latter: less work. 0 for the least.
    """
    instances, devices = work_s.shape
    most = num_subcarriers - devices + 1
    beta = _equal(instances, devices, num_subcarriers) if start is None else start.copy()
    search = _Search(
        work_s=work_s,
        times=times,
        num_subcarriers=num_subcarriers,
        within=max(within, _RELATIVE),
        beta=beta,
        high=np.zeros(instances),
        low=np.zeros(instances),
        stride=np.zeros(instances),
        fewest=np.ones_like(beta),
        enough=np.full_like(beta, most),
    )
    active = np.arange(instances)
    other = times(active, beta[:, :, None])[:, :, 0]
    search.keep(active, other, least_latency_for(work_s, other))
    width = min(most, 2 * -(-num_subcarriers // devices) + 4)
    while active.size:
        active = search.solve(active, width)
        width = min(most, 2 * width)
    return Solution(latency_s=search.high, subcarriers=search.beta)


@dataclass(slots=True, kw_only=True, eq=False)
class _Search:
    """All instances, and what is known of each.

    Parameters
    ----------
    work_s, times, num_subcarriers, within
        The instances, and how close to the least is near enough.
    beta, high
        The best subcarriers so far, and V with them.
    low
        A V that cannot be kept.
    stride
        How far below `high` to look while nothing is known of what is there, as a share of it; 0 for just below.
    fewest, enough
        For whatever lies between both V, a device needs at least `fewest` subcarriers, and `enough` will do for it alone.
    """

    work_s: Float
    times: Times
    num_subcarriers: int
    within: float
    beta: Ints
    high: Float
    low: Float
    stride: Float
    fewest: Ints
    enough: Ints

    def solve(self, active: Ints, width: int) -> Ints:
        """Solve instances, looking at `width` numbers of subcarriers for each device; return those that need more."""
        wider = [active[:0]]
        while active.size:
            top, bottom, stride = self.high[active], self.low[active], self.stride[active]
            coarse = (stride > 0) & (top - bottom > max(_CLOSE, self.within) * top)
            below = np.where(bottom > 0, (top - bottom) / 2, stride * top)
            probe = np.where(coarse, top - below, top * (1 - self.within))
            base = self._needed(active, probe)
            # Where not even everyone alone keeps to V there is no need to look closer.
            possible = base.sum(axis=1) <= self.num_subcarriers
            self._fail(active[~possible], base[~possible], probe[~possible])
            going, short = coarse.copy(), np.zeros(len(active), dtype=bool)
            if possible.any():
                less, short[possible] = self._probe(active[possible], base[possible], probe[possible], width)
                going[possible] |= less
            wider.append(active[short])
            active = active[going & ~short]
        return np.concatenate(wider)

    def keep(self, which: Ints, other_s: Float, latency_s: Float) -> None:
        """Note what was reached. Where a device without work sets V, the next look is further and further below."""
        self.high[which] = latency_s
        idle = np.where(self.work_s[which] > 0, 0.0, other_s).max(axis=1, initial=0.0)
        stride = np.clip(16 * self.stride[which], _FIRST_STRIDE, 0.5)
        self.stride[which] = np.where((idle >= latency_s) & (latency_s > 0), stride, 0.0)

    def _fail(self, which: Ints, base: Ints, latency_s: Float) -> None:
        self.low[which], self.enough[which] = latency_s, base

    def _probe(self, which: Ints, base: Ints, latency_s: Float, width: int) -> tuple[Flags, Flags]:
        """Try to keep to a latency. Returns where less than before was found, and where the columns were too few."""
        work, top = self.work_s[which], self.high[which]
        table = self.times(which, base[:, :, None] + np.arange(width))
        more, kept = _select(work, table, latency_s, self.num_subcarriers - base.sum(axis=1))
        # More columns change nothing for a device without work: what it was given beyond its first is what nobody else wants.
        short = ((more == width - 1) & (work > 0)).any(axis=1) & (width < self.num_subcarriers - work.shape[1] + 1)
        other = np.take_along_axis(table, more[:, :, None], axis=2)[:, :, 0]
        reached = least_latency_for(work, other)
        # What was chosen for a V that cannot be kept may still be better than what there was.
        better = reached < top
        self.beta[which[better]] = (base + more)[better]
        self.keep(which[better], other[better], reached[better])
        self.fewest[which[kept]] = base[kept]
        failed = ~kept & ~short
        self._fail(which[failed], base[failed], latency_s[failed])
        return np.asarray(reached < top * (1 - self.within / 2)), short

    def _needed(self, which: Ints, latency_s: Float) -> Ints:
        """The fewest subcarriers with which each device alone keeps to V without the edge. Shape ``[I, N]``."""
        low, high = self.fewest[which], self.enough[which]
        while (low < high).any():
            middle = (low + high) // 2
            late = self.times(which, middle[:, :, None])[:, :, 0] > latency_s[:, None]
            low, high = np.where(late, np.minimum(middle + 1, high), low), np.where(late, high, middle)
        return np.asarray(low)


def _select(work_s: Float, table: Float, latency_s: Float, spare: Ints) -> tuple[Ints, Flags]:
    """Columns of least ``F(V)`` that sum to at most `spare`, and whether V may be kept with them."""
    instances, devices, width = table.shape
    left = latency_s[:, None, None] - table
    works = (work_s > 0)[:, :, None]
    late = (left < 0) | ((left == 0) & works)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(works, work_s[:, :, None] / left, 0.0)
        shares[late] = np.inf
        gains = shares[:, :, :-1] - shares[:, :, 1:]
    gains[late[:, :, :-1]] = np.inf
    flat = gains.reshape(instances, -1)
    # The largest of everyone's, which fall from one subcarrier to the next: so they are each one's first ones.
    most = int(min(spare.max(), flat.shape[1]))
    if most < flat.shape[1]:
        order = np.argpartition(-flat, most, axis=1)[:, :most]
    else:
        order = np.broadcast_to(np.arange(most), flat.shape)
    falling = np.argsort(-np.take_along_axis(flat, order, axis=1), axis=1, kind="stable")
    owner = np.take_along_axis(order, falling, axis=1) // max(width - 1, 1) + devices * np.arange(instances)[:, None]
    taken = owner[np.arange(most) < spare[:, None]]
    more = np.bincount(taken, minlength=instances * devices).reshape(instances, devices)
    enough = ~late[:, :, -1].any(axis=1) & (late.sum(axis=(1, 2)) <= spare)
    total = np.take_along_axis(shares, more[:, :, None], axis=2)[:, :, 0].sum(axis=1)
    return more, enough & (total <= 1)


def _equal(instances: int, devices: int, num_subcarriers: int) -> Ints:
    each, rest = divmod(num_subcarriers, devices)
    one = np.full(devices, each, dtype=np.int64)
    one[:rest] += 1
    return np.tile(one, (instances, 1))
