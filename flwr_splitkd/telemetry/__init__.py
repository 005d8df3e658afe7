"""What is measured on a machine, and the modelled clock that stands in for it in simulations.

==============  ================================================================================================
``sensors``     power, energy, clock, load, memory and temperature as the machine's own sensors say
``profile``     seconds of each block of a model, forward and backward, and what follows
``passes``      one pass through the blocks, and the moments at which each begins and ends
``machine``     a machine's name, clock, cores and memory, as far as it tells
``source``      a model with random weights, from a config or a function, to be measured
``spans``       stages of a turn's steps, on both sides and on one clock
``trace``       spans as a trace for ui.perfetto.dev
``bottleneck``  the slowest stage, and what helps
``modelled``    a world made of the cost model: its clock, links and batteries
==============  ================================================================================================

What needs torch is imported when it is first asked for, so that sensors can be read without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_IMPORTED_ON_USE = {
    "BlockSamples": "profile",
    "Machine": "machine",
    "ModelledTurn": "modelled",
    "ModelledWorld": "modelled",
    "Payment": "modelled",
    "Source": "source",
    "count_block_flops": "profile",
    "device_profile": "profile",
    "edge_profile": "profile",
    "find_source": "source",
    "measure_blocks": "profile",
    "read_machine": "machine",
    "sample_blocks": "profile",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first asked for."""
    if name in _IMPORTED_ON_USE:
        return getattr(import_module(f"{__name__}.{_IMPORTED_ON_USE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
