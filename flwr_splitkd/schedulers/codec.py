"""Which codec each direction is worth."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TypeVar

from flwr_splitkd.schedulers.pipeline import pipelined_step_s

__all__ = ["WORTH", "choose_codecs"]

_Name = TypeVar("_Name", bound=str)

WORTH = 0.05
"""Share of a step's time that a codec which loses more has to save."""


def choose_codecs(
    uplink_s: Mapping[_Name, float],
    downlink_s: Mapping[_Name, float],
    *,
    device_s: float,
    edge_s: float,
    latency_s: float,
    num_microbatches: int,
    depth: int,
) -> tuple[_Name, _Name]:
    """Choose for each direction the codec that loses least and still lets a step be about as short as it can be.

    A direction that is not the slowest stage keeps its values whole: to send less of them would save nothing. Of all pairs whose
    step takes at most `WORTH` more than the fastest pair's, the one that comes first in the orders given is chosen.

    Parameters
    ----------
    uplink_s, downlink_s
        Seconds of one micro-batch on its way with each codec, those that lose least first.
    device_s, edge_s, latency_s, num_microbatches, depth
        As of `pipelined_step_s`.

    Returns
    -------
    tuple of str
        The codecs up and down.
    """
    pairs = {
        (up, down): pipelined_step_s(
            device_s=device_s,
            uplink_s=uplink_s[up],
            edge_s=edge_s,
            downlink_s=downlink_s[down],
            latency_s=latency_s,
            num_microbatches=num_microbatches,
            depth=depth,
        )
        for up, down in product(uplink_s, downlink_s)
    }
    bound_s = min(pairs.values()) * (1 + WORTH)
    up_ranks, down_ranks = ({name: rank for rank, name in enumerate(names)} for names in (uplink_s, downlink_s))
    within = [pair for pair, step_s in pairs.items() if step_s <= bound_s]
    return min(within, key=lambda pair: (up_ranks[pair[0]] + down_ranks[pair[1]], pairs[pair]))
