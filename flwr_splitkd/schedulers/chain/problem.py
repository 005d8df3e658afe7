"""An edge's devices over Q draws of their resources, reduced to what decisions change."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints
from flwr_splitkd.costs.chain_latency import cloud_link_s, rates_bps
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
        overhead_s = np.asarray(self.resources.device_overhead_s)
        self.device_s: Float = (
            workload.device_work_flops / self.resources.device_flops[:, :, None] + overhead_s[:, :, None]
        )
        self.edge_s: Float = workload.edge_work_flops / resources.edge_flops
        self.cloud_link_s = cloud_link_s(workload, resources)

    @property
    def num_draws(self) -> int:
        """Q."""
        return self.resources.num_draws

    @property
    def num_devices(self) -> int:
        """N."""
        return self.resources.num_devices

    def work_s(self, points: Ints) -> Float:
        """(16) with the whole edge, one row for each instance: split points times draws. Shape ``[M Q, N]``."""
        return np.repeat(self.edge_s[points - 1], self.num_draws, axis=0)

    def times(self, points: Ints) -> Callable[[Ints, Ints], Float]:
        """(12) and (15) of instances, as `least_latency` asks for them.

        Parameters
        ----------
        points
            Split points. Shape ``[M, N]``.
        """
        draws, at = self.num_draws, points - 1
        local = self.device_s[:, np.arange(self.num_devices), at].swapaxes(0, 1).reshape(-1, self.num_devices, 1)
        smashed, gradient = self.workload.smashed_bits[at][:, :, None], self.workload.gradient_bits[at][:, :, None]
        rates = rates_bps(self.resources)

        def seconds(instances: Ints, subcarriers: Ints) -> Float:
            of = instances // draws
            up, down = rates(instances % draws, subcarriers)
            return np.asarray(local[instances] + smashed[of] / up + gradient[of] / down)

        return seconds
