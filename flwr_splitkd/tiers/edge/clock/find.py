"""Who sets the clock of the GPU that the edge computes on."""

from __future__ import annotations

import torch

from flwr_splitkd.errors import ClockError
from flwr_splitkd.tiers.edge.clock.devfreq import KEY_PREFIX, DevfreqSetter, gpu_nodes
from flwr_splitkd.tiers.edge.clock.nvml import NvmlSetter
from flwr_splitkd.tiers.edge.clock.setter import ClockSetter
from flwr_splitkd.tiers.edge.clock.zeusd import ZeusdSetter, zeusd_is_named

__all__ = ["find_setter", "key_of", "setter_of"]


def find_setter(device: torch.device) -> ClockSetter:
    """Find who sets the clock of a torch device.

    Raises
    ------
    ClockError
        If nobody does; a processor's clock is its system's.
    """
    return setter_of(key_of(device))


def key_of(device: torch.device) -> str:
    """What tells a GPU from every other one: its UUID, or the name of a Jetson's.

    Raises
    ------
    ClockError
        If it is no GPU of NVIDIA.
    """
    if device.type != "cuda":
        what = "a CPU" if device.type == "cpu" else repr(str(device))
        raise ClockError(f"The edge computes on {what}, whose clock is not set; expected an NVIDIA GPU.")
    gpu = torch.cuda.get_device_properties(device)
    nodes = gpu_nodes() if gpu.is_integrated else []  # a Jetson may have another GPU in a slot
    if len(nodes) > 1:
        raise ClockError(f"This Jetson has {len(nodes)} GPUs: {', '.join(map(str, nodes))}; expected 1.")
    return KEY_PREFIX + nodes[0].name if nodes else f"GPU-{gpu.uuid}"


def setter_of(key: str) -> ClockSetter:
    """Find who sets the clock of a GPU by what `key_of` told.

    Raises
    ------
    ClockError
        If nobody does.
    """
    if key.startswith(KEY_PREFIX):
        for node in gpu_nodes():
            if KEY_PREFIX + node.name == key:
                return DevfreqSetter(node)
        name = key.removeprefix(KEY_PREFIX)
        raise ClockError(f"{name} is not among this machine's GPUs; expected a Jetson that has it.")
    reader = NvmlSetter(key)
    return ZeusdSetter(reader) if zeusd_is_named() else reader
