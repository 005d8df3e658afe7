"""An edge's devices over Q draws of their resources, reduced to what decisions change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints
from flwr_splitkd.costs.chain_latency import cloud_link_s, rate_table_bps
from flwr_splitkd.costs.shape import Float
from flwr_splitkd.errors import InfeasibleError

__all__ = ["EpochProblem", "check_subcarriers"]


def check_subcarriers(resources: ChainResources) -> None:
    """Check that every device can have a subcarrier; (21-3) with beta >= 1.

    Raises
    ------
    InfeasibleError
        If there are fewer.
    """
    devices, carriers = resources.num_devices, resources.num_subcarriers
    if devices > carriers:
        raise InfeasibleError(
            f"`num_subcarriers` is {carriers}; expected at least {devices}, one for each device. Let {carriers} devices at most "
            f"take part in the round, divide the band into {devices} subcarriers, or add an edge."
        )


class EpochProblem:
    """Seconds of devices at split points and subcarriers; an instance is a set of split points in one draw.

    Parameters
    ----------
    workload
        What an iteration takes.
    resources
        One epoch's, or draws.

    Raises
    ------
    InfeasibleError
        If there are fewer subcarriers than devices.
    """

    def __init__(self, workload: ChainWorkload, resources: ChainResources) -> None:
        check_subcarriers(resources)
        self.workload, self.resources = workload, resources.as_draws()
        # (12) and (16) with the whole edge, at every split point. Shapes [Q, N, L] and [L].
        self.device_s: Float = workload.device_work_flops / self.resources.device_flops[:, :, None]
        self.edge_s: Float = workload.edge_work_flops / resources.edge_flops
        self.cloud_link_s = cloud_link_s(workload, resources)
        self._same_bits = bool(np.ptp(workload.smashed_bits) == 0 and np.ptp(workload.gradient_bits) == 0)
        self._inverse: tuple[Float, Float] | None = None
        self._link: Float | None = None

    @property
    def num_draws(self) -> int:
        """Q."""
        return self.resources.num_draws

    @property
    def num_devices(self) -> int:
        """N."""
        return self.resources.num_devices

    def inverse_rates(self, width: int) -> tuple[Float, Float]:
        """Seconds of a bit up and down, for ``1 .. width`` subcarriers. Shape ``[Q, N, width]`` each."""
        if self._inverse is None or self._inverse[0].shape[2] < width:
            up, down = rate_table_bps(self.resources, width)
            self._inverse = 1 / up, 1 / down
        return self._inverse[0][:, :, :width], self._inverse[1][:, :, :width]

    def link_s(self, width: int, split_point: int) -> Float:
        """(15) for ``1 .. width`` subcarriers, where everyone is at the same split point. Shape ``[Q, N, width]``."""
        up, down = self.inverse_rates(width)
        bits = self.workload.smashed_bits[split_point - 1], self.workload.gradient_bits[split_point - 1]
        return bits[0] * up + bits[1] * down

    def work_s(self, points: Ints) -> Float:
        """(16) with the whole edge, one row for each instance: split points times draws. Shape ``[M Q, N]``."""
        return np.repeat(self.edge_s[points - 1], self.num_draws, axis=0)

    def table(self, points: Ints) -> Callable[[Ints, int], Float]:
        """(12) and (15) of instances, as `least_latency` asks for them.

        Parameters
        ----------
        points
            Split points. Shape ``[M, N]``.
        """
        draws, devices = self.num_draws, np.arange(self.num_devices)

        def seconds(instances: Ints, width: int) -> Float:
            of, draw = points[instances // draws] - 1, instances % draws
            local = self.device_s[draw[:, None], devices, of]
            return np.asarray(local[:, :, None] + self._links(of, draw, width))

        return seconds

    def _links(self, of: Ints, draw: Ints, width: int) -> Float:
        if self._same_bits:
            if self._link is None or self._link.shape[2] < width:
                self._link = self.link_s(width, 1)
            return self._link[draw, :, :width]
        up, down = self.inverse_rates(width)
        smashed, gradient = self.workload.smashed_bits[of], self.workload.gradient_bits[of]
        return np.asarray(smashed[:, :, None] * up[draw] + gradient[:, :, None] * down[draw])
