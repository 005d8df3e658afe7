"""What a turn costs in seconds, joules and bytes, from the sizes of models, machines and links. Numpy only, and pure."""

from __future__ import annotations

from flwr_splitkd.costs.architectures import shape_from_config
from flwr_splitkd.costs.catalog import load_shape, named_shape
from flwr_splitkd.costs.links import Link, LinkState, WiredLink
from flwr_splitkd.costs.profiles import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    BlockTimes,
    DeviceProfile,
    ServerProfile,
    device_from_json,
    server_from_json,
    to_json,
)
from flwr_splitkd.costs.shape import ModelShape
from flwr_splitkd.costs.turn import CutTerms, TurnCost, Workload, cut_terms, turn_cost

__all__ = [
    "GENERIC_DEVICE",
    "GENERIC_SERVER",
    "TABLE_II_DEVICES",
    "TABLE_II_SERVER",
    "BlockTimes",
    "CutTerms",
    "DeviceProfile",
    "Link",
    "LinkState",
    "ModelShape",
    "ServerProfile",
    "TurnCost",
    "WiredLink",
    "Workload",
    "cut_terms",
    "device_from_json",
    "load_shape",
    "named_shape",
    "server_from_json",
    "shape_from_config",
    "to_json",
    "turn_cost",
]
