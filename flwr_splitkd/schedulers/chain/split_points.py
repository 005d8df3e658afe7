"""Split points of a round: the large timescale.

Wang et al. (SCCT), section IV.B, search (29) by adaptive large neighbourhoods (`AlnsSplitPoints`). Where layers are alike, the
share of the edge that a device needs to keep to V only rises or only falls with its split point (`RoundObjective.alike`). So in one
epoch every device is best at its lowest or its highest split point, the fast ones at the highest. That is where the search
begins: the k fastest devices at their highest, the others at their lowest, for every k. The best of these is then changed device
by device and pair by pair for as long as that helps. A lower bound says how much may be left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, MemoryLimits
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.schedulers.chain.bound import decision
from flwr_splitkd.schedulers.chain.objective import RoundObjective
from flwr_splitkd.schedulers.chain.policy import AllocationPolicy, SplitDecision

__all__ = ["OptimalSplitPoints", "optimize_split_points"]

# Changes that are worked out in full at a time, the most promising first, and how many of them may fail in a row.
_AT_A_TIME, _PATIENCE = 16, 64
# Up to so many devices times layers every pair of changes is looked at, and so many may fail.
_SMALL, _SMALL_PATIENCE = 64, 320
# Devices of about the same speed that one may swap split points with.
_NEIGHBOURS = 4
# Lengths of the hand-over that are looked at.
_LENGTHS = 6
# Lowest split points that are looked at where the edge has not memory for the lowest of all.
_LEVELS = 6
# Up to so many sets are all tried.
_FEW = 200
# Up to so many devices every k is tried; of more first some, then some around the best of these, and so on, down to so small a
# share of the devices. Seconds change by less than k does, so that so much of a step is near enough to tell which k is better.
_EVERY_COUNT, _COUNTS, _FINEST, _NEAR = 128, 17, 1 / 2000, 0.1
# Of more devices than this no single one is worth a change.
_POLISHED = 256
# Layers that two devices trade while the edge's memory binds, and how many on either side are looked at.
_TRADED, _TRADERS = (1, 2, 3, 5, 8), 24
# An objective that is lower by less is not.
_RELATIVE = 1e-10


def optimize_split_points(
    workload: ChainWorkload,
    draws: ChainResources,
    *,
    limits: MemoryLimits | None = None,
    handover_s: Float | None = None,
    allocation: AllocationPolicy | None = None,
    bound: bool = True,
) -> SplitDecision:
    """Choose split points for a round.

    Parameters
    ----------
    workload
        What an iteration takes.
    draws
        Resources of Q epochs, from the run's own records.
    limits
        Memory of devices and edge.
    handover_s
        What each device's change to each split point takes, see `handover_table_s`. Shape ``[N, L]``.
    allocation
        Who divides the edge in an epoch; the exact solution when not given.
    bound
        Whether the lower bound is worked out; it holds for every allocation.

    Raises
    ------
    InfeasibleError
        If memory or subcarriers are not enough for any split points.
    """
    objective = RoundObjective(workload, draws, limits=limits, handover_s=handover_s, allocation=allocation)
    order = _fastest_first(objective)
    few = _all_of_few(objective)
    if len(few):
        points, value = _best(objective, few)
        proven = bound and allocation is None  # nothing else is left, with the best allocation there is
        tried = decision(objective, points, value, "every set", (value,), bound=bound and not proven)
        return replace(tried, lower_bound_s=value) if proven else tried
    starts = [best for ends in _ends(objective) if (best := _scan(objective, ends, order)) is not None]
    if not starts or draws.num_devices <= _EVERY_COUNT:
        starts += [_best(objective, sets) for sets in _least_on_edge(objective)]
    starts.sort(key=lambda start: start[1])
    points, value = starts[0]
    history = [value]
    small = draws.num_devices * workload.num_layers <= _SMALL
    seen: set[bytes] = set()
    for start, _ in starts if small else starts[: draws.num_devices <= _POLISHED]:
        found, seconds = _polish(objective, start, order, seen)
        if seconds < value * (1 - _RELATIVE):
            points, value = found, seconds
            history.append(value)
    return decision(objective, points, value, "k fastest", tuple(history), bound=bound)


class OptimalSplitPoints:
    """`optimize_split_points`, as a `SplitPointPolicy`.

    Parameters
    ----------
    allocation
        Who divides the edge in an epoch; the exact solution when not given.
    """

    def __init__(self, allocation: AllocationPolicy | None = None) -> None:
        self.allocation = allocation

    def choose(
        self, workload: ChainWorkload, draws: ChainResources, limits: MemoryLimits, handover_s: Float | None = None
    ) -> SplitDecision:
        """Solve the round."""
        return optimize_split_points(workload, draws, limits=limits, handover_s=handover_s, allocation=self.allocation)


def _fastest_first(objective: RoundObjective) -> Ints:
    """Devices by the mean of their speed."""
    return np.argsort(-objective.problem.resources.device_flops.mean(axis=0), kind="stable")


def _scan(objective: RoundObjective, ends: tuple[Ints, Ints], order: Ints) -> tuple[Ints, float] | None:
    """The k fastest at their highest split point, the others at their lowest; more of them if the edge is too small for that.

    None if no k fits in the edge's memory.
    """
    low, high = ends

    def sets(counts: Ints) -> Ints:
        made = []
        for count in counts:
            points = low.copy()
            points[order[:count]] = high[order[:count]]
            made.append(objective.fitted(points, order[count:]))
        return np.stack(made)

    devices = len(order)
    if devices <= _EVERY_COUNT:
        every = np.unique(sets(np.arange(devices + 1)), axis=0)
        every = every[objective.fits(every)]
        return _best(objective, every) if len(every) else None
    best, least, subcarriers, first, last = None, math.inf, None, 0, devices
    while True:
        step = -(-(last - first) // (_COUNTS - 1))
        counts = np.unique(np.linspace(first, last, _COUNTS).round().astype(np.int64))
        some = sets(counts)
        fit = objective.fits(some)
        if not fit.any():
            break
        values, used = objective.evaluate(some[fit], subcarriers, within=_NEAR * step / devices)
        position = int(values.argmin())
        if values[position] < least:
            best, least, subcarriers = some[fit][position], float(values[position]), used
        if step <= max(1, _FINEST * devices):
            break
        middle = int(counts[fit][position])
        first, last = max(middle - step, 0), min(middle + step, devices)
    return None if best is None else _best(objective, best[None])


def _least_on_edge(objective: RoundObjective) -> list[Ints]:
    """The set that takes the least memory on the edge: where memory does not fall with every layer, an end may be out of bounds."""
    memory = np.where(objective.allowed, objective.workload.edge_memory_bytes, np.inf)
    least: Ints = 1 + memory.argmin(axis=1)[None]
    return [least] if objective.fits(least)[0] else []


def _best(objective: RoundObjective, sets: Ints) -> tuple[Ints, float]:
    values, _ = objective.evaluate(sets)
    best = int(values.argmin())
    return sets[best], float(values[best])


def _ends(objective: RoundObjective) -> list[tuple[Ints, Ints]]:
    """Lowest and highest split points: of all, within lengths of the hand-over, and from levels that the edge has memory for.

    The hand-over takes as long as the slowest device's. Up to that everyone may move for nothing, so that the ends are also those
    that can be reached within a few lengths of it.
    """
    ends = [(objective.lowest, objective.highest)]
    allowed = np.where(objective.allowed, objective.handover_s, np.inf)
    least, most = allowed.min(axis=1).max(), objective.handover_s[objective.allowed].max()
    if most > least:
        layers = np.arange(1, objective.workload.num_layers + 1)
        lengths = np.sort(allowed[(allowed >= least) & (allowed < most)])
        for length in np.unique(lengths[np.linspace(0, len(lengths) - 1, _LENGTHS).astype(int)]):
            within = allowed <= length
            ends.append((np.where(within, layers, layers[-1]).min(axis=1), np.where(within, layers, 0).max(axis=1)))
    if not objective.fits(objective.lowest[None])[0]:
        levels = np.linspace(objective.lowest.min(), objective.highest.max(), _LEVELS).astype(int)
        ends += [
            (objective.lowest.clip(min=np.minimum(level, objective.highest)), objective.highest) for level in levels
        ]
    return ends


def _all_of_few(objective: RoundObjective) -> Ints:
    """Every set that fits in memory, if they are few; else none."""
    layers = [1 + np.flatnonzero(allowed) for allowed in objective.allowed]
    none = np.empty((0, len(layers)), dtype=np.int64)
    if sum(math.log(max(len(one), 1)) for one in layers) > math.log(10 * _FEW):
        return none
    sets = np.stack([axis.ravel() for axis in np.meshgrid(*layers, indexing="ij")], axis=1)
    sets = sets[objective.fits(sets)]
    return sets if len(sets) <= _FEW else none


def _polish(objective: RoundObjective, points: Ints, order: Ints, seen: set[bytes]) -> tuple[Ints, float]:
    """Change split points for as long as that helps, or until another start has been here: `seen`."""
    values, subcarriers = objective.evaluate(points[None])
    value = float(values[0])
    while points.tobytes() not in seen:
        seen.add(points.tobytes())
        if (better := _improve(objective, points, value, subcarriers, order)) is None:
            break
        points, value, subcarriers = better
    return points, value


def _improve(
    objective: RoundObjective, points: Ints, value: float, subcarriers: Ints, order: Ints
) -> tuple[Ints, float, Ints] | None:
    """The best of the first changes that help, or None."""
    changed = _changes(objective, points, order)
    if not objective.fits(objective.lowest[None])[0]:
        changed = np.concatenate([changed, _trades(objective, points, subcarriers)])
    changed = changed[objective.fits(changed)]
    if not len(changed):
        return None
    if objective.allocation is None:
        changed = changed[objective.evaluate_with(changed, subcarriers).argsort(kind="stable")]
    patience = _SMALL_PATIENCE if points.size * objective.workload.num_layers <= _SMALL else _PATIENCE
    for first in range(0, min(len(changed), patience), _AT_A_TIME):
        some = changed[first : first + _AT_A_TIME]
        values, used = objective.evaluate(some, subcarriers if objective.allocation is None else None)
        if values.min() < value * (1 - _RELATIVE):
            best = int(values.argmin())
            return some[best], float(values[best]), used
    return None


def _changes(objective: RoundObjective, points: Ints, order: Ints) -> Ints:
    """One device to another split point, and two devices at once."""
    devices = len(points)
    single = []
    for device in range(devices):
        layers = 1 + np.flatnonzero(objective.allowed[device])
        if objective.alike and devices * objective.workload.num_layers > _SMALL:
            near = abs(layers - points[device]) <= 1
            layers = layers[near | (layers == objective.lowest[device]) | (layers == objective.highest[device])]
        single += [(device, int(layer)) for layer in layers if layer != points[device]]
    if devices * objective.workload.num_layers <= _SMALL:
        pairs = [(a, b) for a in single for b in single if a[0] < b[0]]
    else:
        pairs = _swaps(objective, points, order)
    return _changed(points, [*((move,) for move in single), *pairs])


def _changed(points: Ints, changes: Sequence[tuple[tuple[int, int], ...]]) -> Ints:
    """A set for each change, in which some devices have other split points."""
    sets = np.tile(points, (len(changes), 1))
    for row, change in enumerate(changes):
        for device, layer in change:
            sets[row, device] = layer
    return sets


def _trades(objective: RoundObjective, points: Ints, subcarriers: Ints) -> Ints:
    """One device takes layers from the edge so that another may leave it some: those whom it helps most, or hurts least."""
    sides: list[list[tuple[int, int]]] = []
    for sign in (1, -1):
        moves = [
            (device, int(layer))
            for device in range(len(points))
            for layer in points[device] + sign * np.array(_TRADED)
            if 1 <= layer <= objective.workload.num_layers and objective.allowed[device, layer - 1]
        ]
        ranked = objective.evaluate_with(_changed(points, [(move,) for move in moves]), subcarriers).argsort(
            kind="stable"
        )
        sides.append([moves[rank] for rank in ranked[:_TRADERS]])
    return _changed(points, [(up, down) for up in sides[0] for down in sides[1] if up[0] != down[0]])


def _swaps(objective: RoundObjective, points: Ints, order: Ints) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Split points change between devices of about the same speed, each as far as the other's memory goes."""
    swaps = []
    for position, one in enumerate(order):
        others = [other for other in order[position + 1 :] if points[other] != points[one]][:_NEIGHBOURS]
        for other in others:
            to_one = int(np.clip(points[other], objective.lowest[one], objective.highest[one]))
            to_other = int(np.clip(points[one], objective.lowest[other], objective.highest[other]))
            swaps.append(((int(one), to_one), (int(other), to_other)))
    return swaps
