"""What is measured on a machine, and the modelled clock that stands in for it in simulations.

==============  ================================================================================================
``profile``     seconds of each block of a model, forward and backward, and what follows
``passes``      one pass through the blocks, and the moments at which each begins and ends
``machine``     a machine's name, clock, cores and memory, as far as it tells
``source``      a model with random weights, from a config or a function, to be measured
``spans``       stages of a turn's steps, on both sides and on one clock
``trace``       spans as a trace for ui.perfetto.dev
``bottleneck``  the slowest stage, and what helps
``modelled``    a world made of the cost model: its clock, links and batteries
==============  ================================================================================================
"""

from __future__ import annotations

from flwr_splitkd.telemetry.machine import Machine, read_machine
from flwr_splitkd.telemetry.modelled import ModelledTurn, ModelledWorld, Payment
from flwr_splitkd.telemetry.profile import (
    BlockSamples,
    count_block_flops,
    device_profile,
    edge_profile,
    measure_blocks,
    sample_blocks,
)
from flwr_splitkd.telemetry.source import Source, find_source

__all__ = [
    "BlockSamples",
    "Machine",
    "ModelledTurn",
    "ModelledWorld",
    "Payment",
    "Source",
    "count_block_flops",
    "device_profile",
    "edge_profile",
    "find_source",
    "measure_blocks",
    "read_machine",
    "sample_blocks",
]
