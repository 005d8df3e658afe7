"""Decisions of the chain device - edge - cloud on two timescales: split points for a round, shares and subcarriers for an epoch.

The paper's own algorithms stand beside ours, as baselines. docs/explanation/two-timescale.md.
"""

from __future__ import annotations

from flwr_splitkd.schedulers.chain.algorithm1 import Algorithm1
from flwr_splitkd.schedulers.chain.allocation import ExactAllocation, allocate_resources
from flwr_splitkd.schedulers.chain.alns import AlnsSettings, AlnsSplitPoints
from flwr_splitkd.schedulers.chain.equal import EqualAllocation
from flwr_splitkd.schedulers.chain.fixed import FixedSplitPoints
from flwr_splitkd.schedulers.chain.named import MECHANISMS, Mechanism, mechanism
from flwr_splitkd.schedulers.chain.policy import Allocation, AllocationPolicy, SplitDecision, SplitPointPolicy
from flwr_splitkd.schedulers.chain.split_points import OptimalSplitPoints, optimize_split_points

__all__ = [
    "MECHANISMS",
    "Algorithm1",
    "Allocation",
    "AllocationPolicy",
    "AlnsSettings",
    "AlnsSplitPoints",
    "EqualAllocation",
    "ExactAllocation",
    "FixedSplitPoints",
    "Mechanism",
    "OptimalSplitPoints",
    "SplitDecision",
    "SplitPointPolicy",
    "allocate_resources",
    "mechanism",
    "optimize_split_points",
]
