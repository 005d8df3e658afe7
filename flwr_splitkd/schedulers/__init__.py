"""Decisions: who takes a turn, where the student is cut, how long a turn lasts, when to stop.

Every policy is a small class behind a `Protocol`: pass your own object with the same method. Policies are pure;
what is random draws from a generator that the policy was given.
"""

from __future__ import annotations

from flwr_splitkd.schedulers.cut import CutCycle, CutPolicy, CutTable, FixedCut, OptimalCut, RandomCut
from flwr_splitkd.schedulers.epochs import EpochsPolicy, FixedEpochs
from flwr_splitkd.schedulers.plan import (
    Decision,
    FrequencyPolicy,
    Options,
    RunnerUp,
    evaluate_options,
    plan_cut_and_frequency,
)
from flwr_splitkd.schedulers.selection import FewestTurnsFirst, RandomOrder, RoundRobin, SelectionPolicy
from flwr_splitkd.schedulers.stopping import NeverStop, StopPolicy, TargetMetric
from flwr_splitkd.schedulers.view import Candidate, DeviceView, Forecast, Outlook

__all__ = [
    "Candidate",
    "CutCycle",
    "CutPolicy",
    "CutTable",
    "Decision",
    "DeviceView",
    "EpochsPolicy",
    "FewestTurnsFirst",
    "FixedCut",
    "FixedEpochs",
    "Forecast",
    "FrequencyPolicy",
    "NeverStop",
    "OptimalCut",
    "Options",
    "Outlook",
    "RandomCut",
    "RandomOrder",
    "RoundRobin",
    "RunnerUp",
    "SelectionPolicy",
    "StopPolicy",
    "TargetMetric",
    "evaluate_options",
    "plan_cut_and_frequency",
]
