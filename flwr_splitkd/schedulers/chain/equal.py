"""The same for everyone: what the paper's SCCTL does on the small timescale."""

from __future__ import annotations

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, Ints, check_split_points
from flwr_splitkd.schedulers.chain.policy import Allocation
from flwr_splitkd.schedulers.chain.problem import check_subcarriers

__all__ = ["EqualAllocation"]


class EqualAllocation:
    """One Nth of the edge for each device, and of the subcarriers; those left over go to the first devices."""

    def allocate(self, workload: ChainWorkload, resources: ChainResources, split_points: Ints) -> Allocation:
        """Divide by N.

        Raises
        ------
        InfeasibleError
            If there are fewer subcarriers than devices.
        """
        check_subcarriers(resources)
        devices = resources.num_devices
        points = check_split_points(split_points, workload.num_layers, devices)
        each, rest = divmod(resources.num_subcarriers, devices)
        beta = each + (np.arange(devices) < rest).astype(np.int64)
        shape = resources.device_flops.shape
        return Allocation.of(
            workload,
            resources,
            points,
            shares=np.full(shape, 1 / devices),
            subcarriers=np.array(np.broadcast_to(beta, shape)),
            method="equal",
        )
