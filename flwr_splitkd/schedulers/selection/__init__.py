"""Which devices take a turn in a round, and in which order: one policy a file."""

from __future__ import annotations

from flwr_splitkd.schedulers.selection.best_channel import BestChannel
from flwr_splitkd.schedulers.selection.by_name import ByName
from flwr_splitkd.schedulers.selection.clustered_order import ClusteredOrder
from flwr_splitkd.schedulers.selection.deadline_aware import DeadlineAware
from flwr_splitkd.schedulers.selection.energy_aware import EnergyAware
from flwr_splitkd.schedulers.selection.fewest_turns import FewestTurnsFirst
from flwr_splitkd.schedulers.selection.lyapunov_queues import LyapunovQueues
from flwr_splitkd.schedulers.selection.policy import SelectionPolicy
from flwr_splitkd.schedulers.selection.random_order import RandomOrder
from flwr_splitkd.schedulers.selection.round_robin import RoundRobin

__all__ = [
    "BestChannel",
    "ByName",
    "ClusteredOrder",
    "DeadlineAware",
    "EnergyAware",
    "FewestTurnsFirst",
    "LyapunovQueues",
    "RandomOrder",
    "RoundRobin",
    "SelectionPolicy",
]
