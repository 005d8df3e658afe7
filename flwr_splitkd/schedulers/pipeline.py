"""How many micro-batches to have in flight."""

from __future__ import annotations

import math

__all__ = ["FIRST_DEPTH", "pipeline_depth"]

FIRST_DEPTH = 2
"""Micro-batches in flight in a device's first turn, of which nothing was measured yet: one here, one there."""


def pipeline_depth(
    *, device_s: float, uplink_s: float, edge_s: float, downlink_s: float, latency_s: float, num_microbatches: int
) -> int:
    r"""Least number of micro-batches in flight that keeps the slowest stage at work.

    A micro-batch is away for the time of all its stages, and the slowest one takes up a new one every
    :math:`\max_k t_k` seconds, so by Little's law

    .. math:: d = \min\left(M, 1 + \left\lceil \frac{\sum_k t_k + t_\text{latency}}{\max_k t_k} \right\rceil\right)

    are under way, and one more because the device's two passes take turns and come irregularly. Yet more would take memory on the
    device and save next to nothing.

    Parameters
    ----------
    device_s, uplink_s, edge_s, downlink_s
        Seconds of one micro-batch in each stage; the device's are both passes.
    latency_s
        What a message takes beside its payload, both ways together, in seconds.
    num_microbatches
        M, in a step.
    """
    stages = (device_s, uplink_s, edge_s, downlink_s)
    slowest_s = max(stages)
    if num_microbatches <= 1 or slowest_s <= 0:
        return 1
    return max(1, min(num_microbatches, 1 + math.ceil((sum(stages) + latency_s) / slowest_s)))
