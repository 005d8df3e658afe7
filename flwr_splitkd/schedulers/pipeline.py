"""How many micro-batches to have in flight, and how long a step with them takes."""

from __future__ import annotations

import math

__all__ = ["FIRST_DEPTH", "pipeline_depth", "pipelined_step_s"]

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


def pipelined_step_s(
    *,
    device_s: float,
    uplink_s: float,
    edge_s: float,
    downlink_s: float,
    latency_s: float,
    num_microbatches: int,
    depth: int,
) -> float:
    r"""Seconds of a step of M micro-batches with `depth` of them in flight.

    .. math:: T = (M - 1) \max\left(\max_k t_k, \frac{\sum_k t_k + t_\text{latency}}{d}\right)
                  + \sum_k t_k + t_\text{latency}

    The first one goes through all stages; then one ends each time that the slowest stage has done another, or that one of d
    places is free again. At d = 1 that is lock-step, M times the sum.

    Parameters
    ----------
    device_s, uplink_s, edge_s, downlink_s, latency_s
        As of `pipeline_depth`, in seconds.
    num_microbatches, depth
        M and d, at least 1.
    """
    stages = (device_s, uplink_s, edge_s, downlink_s)
    through_s = sum(stages) + latency_s
    return (num_microbatches - 1) * max(*stages, through_s / depth) + through_s
