"""Least latency of the slowest device, over shares of a server and whole subcarriers: exact, and for many instances at once.

For each of I instances: device n has ``w_n`` seconds of work for the whole server, and ``t_n(beta)`` seconds of everything else,
convex and falling in its subcarriers. With a share alpha it takes ``t_n(beta_n) + w_n / alpha_n``. Within V seconds it needs
``alpha_n = w_n / (V - t_n(beta_n))``, so V can be kept if and only if

    F(V) = min over beta of sum_n w_n / (V - t_n(beta_n)) <= 1,    beta_n >= 1, sum_n beta_n <= K

Each term is convex and falling in beta_n once ``t_n < V``. So the minimum is reached by first giving everyone as many subcarriers as
it takes to get below V, then the others one by one to whom they help most: the K - N largest decreases. F is a minimum of falling
functions, so its root is found from above in a few steps: find the best beta for a V that can be kept, then the least V for that
beta, which is less, and so on until V cannot be beaten. Where a device without work for the server sets V, steps halve the
interval between what can be kept and what cannot, until few candidates are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flwr_splitkd.costs.chain import Ints
from flwr_splitkd.costs.shape import Float

__all__ = ["Solution", "least_latency", "least_latency_for", "shares_for"]

# V is beaten if there is a solution this much below it.
_RELATIVE = 1e-12
# Halving goes on until this much is left of V.
_CLOSE = 1e-3


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
    return np.maximum(latency, np.where(works, 0.0, other_s).max(axis=1))


def least_latency(
    work_s: Float,
    table: Callable[[Ints, int], Float],
    num_subcarriers: int,
    *,
    start: Ints | None = None,
) -> Solution:
    """Solve every instance.

    Parameters
    ----------
    work_s
        w. Shape ``[I, N]``.
    table
        ``table(instances, width)`` gives t of these instances for ``1 .. width`` subcarriers. Shape ``[len(instances), N, width]``.
    num_subcarriers
        K, at least N.
    start
        Subcarriers to start from, summing to at most K; an equal part for each when not given. Shape ``[I, N]``.
    """
    instances, devices = work_s.shape
    most = num_subcarriers - devices + 1
    beta = _equal(instances, devices, num_subcarriers) if start is None else start.copy()
    width = min(most, max(4 * -(-num_subcarriers // devices) + 4, int(beta.max())))
    active = np.arange(instances)
    times = table(active, width)
    first = _picked(times, beta)
    high = least_latency_for(work_s, first)
    low = np.zeros(instances)
    halve = _set_by_idle(work_s, first, high)
    while active.size:
        work, top, bottom = work_s[active], high[active], low[active]
        middle = halve[active] & (top - bottom > _CLOSE * top)
        probe = np.where(middle, (top + bottom) / 2, top * (1 - _RELATIVE))
        while True:
            chosen, kept = _select(work, times, probe, num_subcarriers - devices)
            if width == most or not (chosen == width).any():
                break
            width = min(most, 2 * width)
            times = table(active, width)
        other = _picked(times, chosen)
        reached = least_latency_for(work, other)
        # What was chosen for a V that cannot be kept may still be better than what there was.
        better = reached < top
        took = active[better]
        high[took], beta[took] = reached[better], chosen[better]
        halve[took] = _set_by_idle(work[better], other[better], reached[better])
        low[active[~kept]] = probe[~kept]
        going = middle | (reached < top * (1 - _RELATIVE / 2))
        if not going.all():
            active, times = active[going], times[going]
    return Solution(latency_s=high, subcarriers=beta)


def _select(work_s: Float, times: Float, latency_s: Float, spare: int) -> tuple[Ints, np.ndarray]:
    """Subcarriers of least ``F(V)``, and whether V may be kept with them."""
    instances, devices, width = times.shape
    left = latency_s[:, None, None] - times
    works = (work_s > 0)[:, :, None]
    late = (left < 0) | ((left == 0) & works)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(works, work_s[:, :, None] / left, 0.0)
        shares[late] = np.inf
        gains = shares[:, :, :-1] - shares[:, :, 1:]
    gains[late[:, :, :-1]] = np.inf
    flat = gains.reshape(instances, -1)
    if spare >= flat.shape[1]:
        chosen = np.full((instances, devices), width, dtype=np.int64)
    elif spare == 0:
        chosen = np.ones((instances, devices), dtype=np.int64)
    else:
        # The largest of everyone's, which fall from one subcarrier to the next: so they are each one's first ones.
        best = np.argpartition(flat, flat.shape[1] - spare, axis=1)[:, -spare:] // (width - 1)
        best += devices * np.arange(instances)[:, None]
        chosen = 1 + np.bincount(best.ravel(), minlength=instances * devices).reshape(instances, devices)
    needs = 1 + late[:, :, :-1].sum(axis=2)
    enough = ~late[:, :, -1].any(axis=1) & (needs.sum(axis=1) <= spare + devices)
    total = np.take_along_axis(shares, chosen[:, :, None] - 1, axis=2)[:, :, 0].sum(axis=1)
    return chosen, enough & (total <= 1)


def _picked(times: Float, beta: Ints) -> Float:
    return np.asarray(np.take_along_axis(times, beta[:, :, None] - 1, axis=2)[:, :, 0])


def _set_by_idle(work_s: Float, other_s: Float, latency_s: Float) -> np.ndarray:
    """Whether a device without work for the server is what keeps V from being less."""
    return np.asarray((np.where(work_s > 0, 0.0, other_s).max(axis=1) >= latency_s) & (latency_s > 0))


def _equal(instances: int, devices: int, num_subcarriers: int) -> Ints:
    each, rest = divmod(num_subcarriers, devices)
    one = np.full(devices, each, dtype=np.int64)
    one[:rest] += 1
    return np.tile(one, (instances, 1))
