"""The edge's runtime: the whole student and teacher, one turn from hello to commit."""

from __future__ import annotations

from flwr_splitkd.tiers.edge.clock import ServerClock, TurnClock
from flwr_splitkd.tiers.edge.cluster import Member, run_cluster
from flwr_splitkd.tiers.edge.compute import EdgeCompute
from flwr_splitkd.tiers.edge.objective import Objective, TaskName
from flwr_splitkd.tiers.edge.plan import TurnMode, TurnOutcome, TurnPlan, TurnSettings
from flwr_splitkd.tiers.edge.service import ClusterTurn, EdgeService
from flwr_splitkd.tiers.edge.setup import EdgeSetup
from flwr_splitkd.tiers.edge.student import EdgeStudent, HandoverName
from flwr_splitkd.tiers.edge.teacher import EdgeTeacher
from flwr_splitkd.tiers.edge.turn import run_turn

__all__ = [
    "ClusterTurn",
    "EdgeCompute",
    "EdgeService",
    "EdgeSetup",
    "EdgeStudent",
    "EdgeTeacher",
    "HandoverName",
    "Member",
    "Objective",
    "ServerClock",
    "TaskName",
    "TurnClock",
    "TurnMode",
    "TurnOutcome",
    "TurnPlan",
    "TurnSettings",
    "run_cluster",
    "run_turn",
]
