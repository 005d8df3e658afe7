"""What a turn costs in seconds, joules and bytes, from the sizes of models, machines and links. Numpy only, and pure."""

from __future__ import annotations

from flwr_splitkd.costs.architectures import shape_from_config
from flwr_splitkd.costs.catalog import load_shape, named_shape
from flwr_splitkd.costs.chain import ChainResources, ChainWorkload, MemoryLimits
from flwr_splitkd.costs.chain_cell import CellDevice, ChainCell, ModelledCell
from flwr_splitkd.costs.chain_io import ChainFleet, chain_fleet_from_json, table_iii_fleet
from flwr_splitkd.costs.chain_latency import ChainLatency, RoundLatency, chain_latency, handover_s, handover_table_s
from flwr_splitkd.costs.chain_measured import MeasuredCell, MeasuredDevice, equivalent_gain
from flwr_splitkd.costs.cluster import MemberTurn, cluster_s, member_turn
from flwr_splitkd.costs.estimates import DeviceEstimate, EdgeEstimate, MeasuredTurn, correct, relative_error
from flwr_splitkd.costs.fleet import Fleet
from flwr_splitkd.costs.fleet_io import fleet_from_json, load_device, load_server, table_ii_fleet
from flwr_splitkd.costs.links import Link, LinkState, WiredLink
from flwr_splitkd.costs.links_io import link_from_json
from flwr_splitkd.costs.memory import RUNTIME_BYTES, DeviceMemory, device_memory
from flwr_splitkd.costs.mobility import Trajectory, street_trajectories
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
from flwr_splitkd.costs.radio import RADIO_PRESETS, RadioSettings
from flwr_splitkd.costs.radio_link import RadioLink, RadioState
from flwr_splitkd.costs.shape import ModelShape
from flwr_splitkd.costs.trace import TraceLink
from flwr_splitkd.costs.turn import CutTerms, TurnCost, cut_terms, turn_cost
from flwr_splitkd.costs.workload import Workload

__all__ = [
    "GENERIC_DEVICE",
    "GENERIC_SERVER",
    "RADIO_PRESETS",
    "RUNTIME_BYTES",
    "TABLE_II_DEVICES",
    "TABLE_II_SERVER",
    "BlockTimes",
    "CellDevice",
    "ChainCell",
    "ChainFleet",
    "ChainLatency",
    "ChainResources",
    "ChainWorkload",
    "CutTerms",
    "DeviceEstimate",
    "DeviceMemory",
    "DeviceProfile",
    "EdgeEstimate",
    "Fleet",
    "Link",
    "LinkState",
    "MeasuredCell",
    "MeasuredDevice",
    "MeasuredTurn",
    "MemberTurn",
    "MemoryLimits",
    "ModelShape",
    "ModelledCell",
    "RadioLink",
    "RadioSettings",
    "RadioState",
    "RoundLatency",
    "ServerProfile",
    "TraceLink",
    "Trajectory",
    "TurnCost",
    "WiredLink",
    "Workload",
    "chain_fleet_from_json",
    "chain_latency",
    "cluster_s",
    "correct",
    "cut_terms",
    "device_from_json",
    "device_memory",
    "equivalent_gain",
    "fleet_from_json",
    "handover_s",
    "handover_table_s",
    "link_from_json",
    "load_device",
    "load_server",
    "load_shape",
    "member_turn",
    "named_shape",
    "relative_error",
    "server_from_json",
    "shape_from_config",
    "street_trajectories",
    "table_ii_fleet",
    "table_iii_fleet",
    "to_json",
    "turn_cost",
]
