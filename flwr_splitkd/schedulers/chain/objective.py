"""What a round takes with given split points: (29) of Wang et al. (SCCT), over draws of resources."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, MemoryLimits
from flwr_splitkd.costs.chain_latency import link_rates_bps
from flwr_splitkd.costs.checks import gib_at_least
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers.chain.minimax import least_latency, least_latency_for
from flwr_splitkd.schedulers.chain.policy import AllocationPolicy
from flwr_splitkd.schedulers.chain.problem import EpochProblem

__all__ = ["RoundObjective"]

_GIB = float(1 << 30)
# Numbers that an array of many instances may have: 8 MB.
_MOST_NUMBERS = 1_000_000


class RoundObjective:
    """``max_n d0_n(s) + T mean_q D_q(s)``, and what split points are allowed.

    Parameters
    ----------
    workload, draws
        What an iteration takes, and the resources that epochs may have.
    limits
        Memory.
    handover_s
        d0 of each device and split point; none when not given. Shape ``[N, L]``.
    allocation
        Who divides the edge in an epoch; the exact solution when not given, all draws at once.

    Raises
    ------
    InfeasibleError
        If a device cannot hold any sub-model, the edge not even the smallest ones, or there are fewer subcarriers than devices.
    """

    def __init__(
        self,
        workload: ChainWorkload,
        draws: ChainResources,
        *,
        limits: MemoryLimits | None = None,
        handover_s: Float | None = None,
        allocation: AllocationPolicy | None = None,
    ) -> None:
        self.workload, self.allocation = workload, allocation
        self.problem = EpochProblem(workload, draws)
        shape = (draws.num_devices, workload.num_layers)
        if handover_s is not None and np.shape(handover_s) != shape:
            raise ConfigError(
                f"`handover_s` has shape {np.shape(handover_s)}; expected {shape}, a row for each device with each split point."
            )
        self.handover_s: Float = np.zeros(shape) if handover_s is None else np.asarray(handover_s, dtype=np.float64)
        limits = limits or MemoryLimits()
        self.edge_bytes = float(limits.edge_bytes)
        self.allowed = _allowed(workload, limits, draws.num_devices)
        self.evaluations = 0
        layers = np.arange(1, workload.num_layers + 1)
        self.lowest: Ints = np.where(self.allowed, layers, workload.num_layers).min(axis=1)
        self.highest: Ints = np.where(self.allowed, layers, 0).max(axis=1)
        least = np.where(self.allowed, workload.edge_memory_bytes, np.inf).min(axis=1).sum()
        if least > self.edge_bytes:
            raise InfeasibleError(
                f"`edge_bytes` is {self.edge_bytes / _GIB:.4g} GiB; expected at least {gib_at_least(least)}, with as much of the "
                f"{draws.num_devices} encoders on the devices as their memory holds. Give the edge or the devices more memory, or "
                "let fewer devices take part."
            )

    @property
    def iterations(self) -> int:
        """T J."""
        return self.workload.epochs * self.workload.iterations_per_epoch

    @property
    def cloud_link_s(self) -> float:
        """Seconds of a round on the link to the cloud, whatever is decided."""
        return self.iterations * self.problem.cloud_link_s

    @property
    def alike(self) -> bool:
        """Whether all layers take the same, and all split points send the same.

        The share that a device needs for V is then ``w (L - s) / (V - t - d s)``, which only rises or only falls with s: the best
        split point is the lowest or the highest.
        """
        workload = self.workload
        arrays = (workload.forward_flops, workload.smashed_bits, workload.gradient_bits)
        return all(bool(np.ptp(array) <= 1e-12 * array.max()) for array in arrays)

    def choices(self) -> list[Ints]:
        """Sets of split points that together have every one that may be best for a device in an epoch. Shape ``[N]`` each."""
        if self.alike:
            return [self.lowest, self.highest]
        layers = range(1, self.workload.num_layers + 1)
        return [np.where(self.allowed[:, layer - 1], layer, self.lowest) for layer in layers]

    def latencies(self, points: Ints) -> Float:
        """The slowest device's seconds of an iteration in each draw, with the exact allocation. Shape ``[N]`` in, ``[Q]`` out."""
        carriers = self.problem.resources.num_subcarriers
        return least_latency(self.problem.work_s(points[None]), self.problem.times(points[None]), carriers).latency_s

    def fits(self, points: Ints) -> NDArray[np.bool_]:
        """Whether split points respect memory on both sides. Shape ``[M, N]`` in, ``[M]`` out."""
        allowed = self.allowed[np.arange(points.shape[1]), points - 1].all(axis=1)
        edge = self.workload.edge_memory_bytes[points - 1].sum(axis=1)
        return np.asarray(allowed & (edge <= self.edge_bytes))

    def fitted(self, points: Ints, order: Ints) -> Ints:
        """Raise split points, device by device, until the rest fits in the edge's memory; the last one only as far as it takes."""
        memory = self.workload.edge_memory_bytes
        points = points.copy()
        for device in order:
            over = memory[points - 1].sum() - self.edge_bytes
            if over <= 0:
                break
            layers = 1 + np.flatnonzero(self.allowed[device])
            enough = layers[memory[layers - 1] <= memory[points[device] - 1] - over]
            points[device] = enough.min() if enough.size else layers[memory[layers - 1].argmin()]
        return points

    def handover(self, points: Ints) -> Float:
        """The hand-over's seconds. Shape ``[M]``."""
        return np.asarray(self.handover_s[np.arange(points.shape[1]), points - 1].max(axis=1))

    def evaluate(self, points: Ints, start: Ints | None = None, *, within: float = 0.0) -> tuple[Float, Ints]:
        """Work out the objective.

        Parameters
        ----------
        points
            Sets of split points. Shape ``[M, N]``.
        start
            Subcarriers to start the search for the best from: of split points that are alike. Shape ``[Q, N]``.
        within
            As for `least_latency`, of each draw.

        Returns
        -------
        objective, subcarriers
            Seconds of a round, and the subcarriers of the best set's epochs. Shapes ``[M]`` and ``[Q, N]``.
        """
        sets, devices = points.shape
        self.evaluations += sets
        if self.allocation is not None:
            return self._by_policy(points, self.allocation)
        carriers, draws = self.problem.resources.num_subcarriers, self.problem.num_draws
        width = 2 * -(-carriers // devices) + 4
        step = max(1, _MOST_NUMBERS // (draws * devices * width))
        objective, best = np.empty(sets), np.empty((draws, devices), dtype=np.int64)
        least = np.inf
        for first in range(0, sets, step):
            some = points[first : first + step]
            solution = least_latency(
                self.problem.work_s(some),
                self.problem.times(some),
                carriers,
                start=None if start is None else np.tile(start, (len(some), 1)),
                within=within,
            )
            value = self._total(some, solution.latency_s)
            objective[first : first + step] = value
            position = int(value.argmin())
            if value[position] < least:
                least = float(value[position])
                best = solution.subcarriers[position * draws : (position + 1) * draws]
        return objective, best

    def evaluate_with(self, points: Ints, subcarriers: Ints) -> Float:
        """The same with these subcarriers, which no set may do worse than: quick. Shape ``[M]``.

        Parameters
        ----------
        points
            Sets of split points. Shape ``[M, N]``.
        subcarriers
            Shape ``[Q, N]``.
        """
        problem, workload = self.problem, self.workload
        up, down = link_rates_bps(problem.resources, subcarriers)
        local = problem.device_s + workload.smashed_bits / up[:, :, None] + workload.gradient_bits / down[:, :, None]
        sets, devices = points.shape
        step = max(1, _MOST_NUMBERS // (8 * problem.num_draws * devices))
        objective = np.empty(sets)
        for first in range(0, sets, step):
            some = points[first : first + step]
            other = local[:, np.arange(devices), some - 1].swapaxes(0, 1).reshape(-1, devices)
            objective[first : first + step] = self._total(some, least_latency_for(problem.work_s(some), other))
        return objective

    def _total(self, points: Ints, latency_s: Float) -> Float:
        mean = latency_s.reshape(len(points), -1).mean(axis=1)
        return np.asarray(self.handover(points) + self.cloud_link_s + self.iterations * mean)

    def _by_policy(self, points: Ints, policy: AllocationPolicy) -> tuple[Float, Ints]:
        objective, best = np.empty(len(points)), np.empty((0, 0), dtype=np.int64)
        for position, one in enumerate(points):
            allocation = policy.allocate(self.workload, self.problem.resources, one)
            objective[position] = self._total(one[None], allocation.latency.slowest_s)[0]
            if objective[position] <= objective[: position + 1].min():
                best = allocation.subcarriers
        return objective, best


def _allowed(workload: ChainWorkload, limits: MemoryLimits, devices: int) -> NDArray[np.bool_]:
    try:
        memory = np.broadcast_to(np.asarray(limits.device_bytes, dtype=np.float64), (devices,))
    except ValueError:
        raise ConfigError(
            f"`device_bytes` has shape {np.shape(limits.device_bytes)}; expected one value for each of {devices} devices."
        ) from None
    allowed = workload.device_memory_bytes <= memory[:, None]
    if not allowed.any(axis=1).all():
        device = int(np.flatnonzero(~allowed.any(axis=1))[0])
        least = workload.device_memory_bytes.min()
        raise InfeasibleError(
            f"`device_bytes` of device {device} is {memory[device] / _GIB:.4g} GiB; expected at least {gib_at_least(least)}, for "
            f"the smallest part of {workload.num_layers} layers. Give it more memory, train with smaller batches, or leave it out."
        )
    return np.asarray(allowed)
