"""Decisions: who takes a turn, where the student is cut, how long a turn lasts, when to stop.

Every policy is a small class behind a `Protocol`: pass your own object with the same method. Policies are pure;
what is random draws from a generator that the policy was given.
"""

from __future__ import annotations

from flwr_splitkd.schedulers.baselines import DeviceOnly, ServerOnly, device_only, fixed_cut, server_only
from flwr_splitkd.schedulers.clusters import cluster_by_similarity, similarity_features
from flwr_splitkd.schedulers.cut import CutCycle, CutPolicy, CutTable, FixedCut, OptimalCut, RandomCut
from flwr_splitkd.schedulers.epochs import DeadlineEpochs, EpochsPolicy, FixedEpochs, TargetExamples
from flwr_splitkd.schedulers.idle import idle_frequency
from flwr_splitkd.schedulers.plan import (
    Decision,
    FrequencyPolicy,
    Options,
    RunnerUp,
    evaluate_options,
    plan_cut_and_frequency,
)
from flwr_splitkd.schedulers.selection import (
    BestChannel,
    ByName,
    ClusteredOrder,
    DeadlineAware,
    EnergyAware,
    FewestTurnsFirst,
    LyapunovQueues,
    RandomOrder,
    RoundRobin,
    SelectionPolicy,
)
from flwr_splitkd.schedulers.shares import EqualShares, FixedShares, SharePolicy
from flwr_splitkd.schedulers.stopping import NeverStop, StopPolicy, TargetMetric
from flwr_splitkd.schedulers.together import AlikeTogether, ClusterPolicy, InOrder
from flwr_splitkd.schedulers.view import Candidate, DeviceView, Forecast, Outlook

__all__ = [
    "AlikeTogether",
    "BestChannel",
    "ByName",
    "Candidate",
    "ClusterPolicy",
    "ClusteredOrder",
    "CutCycle",
    "CutPolicy",
    "CutTable",
    "DeadlineAware",
    "DeadlineEpochs",
    "Decision",
    "DeviceOnly",
    "DeviceView",
    "EnergyAware",
    "EpochsPolicy",
    "EqualShares",
    "FewestTurnsFirst",
    "FixedCut",
    "FixedEpochs",
    "FixedShares",
    "Forecast",
    "FrequencyPolicy",
    "InOrder",
    "LyapunovQueues",
    "NeverStop",
    "OptimalCut",
    "Options",
    "Outlook",
    "RandomCut",
    "RandomOrder",
    "RoundRobin",
    "RunnerUp",
    "SelectionPolicy",
    "ServerOnly",
    "SharePolicy",
    "StopPolicy",
    "TargetExamples",
    "TargetMetric",
    "cluster_by_similarity",
    "device_only",
    "evaluate_options",
    "fixed_cut",
    "idle_frequency",
    "plan_cut_and_frequency",
    "server_only",
    "similarity_features",
]
