"""Split knowledge distillation for Flower.

Distill a large language model into a small one on data that stays on devices too small to train alone.
`SplitKD` is a Flower strategy for the ServerApp; `SplitKDClient` serves a new ClientApp, `SplitKDMod` one that exists.
`SCCT` and `SCCTClient` do so for the chain device - edge - cloud.

::

    strategies/   Flower strategies: who takes a turn and when
    clients/      Flower ClientApp handlers
    tiers/        what runs on the device, on the edge and in the cloud, without Flower
    wire/         the data plane between them: gRPC streams
    split/        cut a model in two, move layers, check that a cut changes nothing
    distill/      the distillation loss
    models/       build models in part, ties, heads, fingerprints
    costs/        what a turn costs in seconds, joules and bytes, from models, machines and links
    schedulers/   decisions: device, cut, server clock, local epochs, when to stop
    telemetry/    what machines measure, and the modelled clock of simulations
    store/        commits, the devices' cache, the run's folder
    data/         built-in text, loaders for your own
    config        run configs, checked; records: Flower records; callbacks: who is told; errors: every error in one tree;
                  faults: their kinds in a word
    report/       figures of a run, and the page that shows them
    small_chain/  an encoder and a language model made here, for the example app and a case study
    case_studies/ what the papers report, worked out again
    cli/          `flwr-splitkd`, one file a command
    testing       fakes for your own tests
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr_splitkd.clients import SCCTClient, SplitKDClient, SplitKDMod
    from flwr_splitkd.distill import DistillationLoss
    from flwr_splitkd.schedulers import (
        CutCycle,
        CutTable,
        EnergyAware,
        FewestTurnsFirst,
        FixedCut,
        OptimalCut,
        RandomOrder,
        RoundRobin,
    )
    from flwr_splitkd.strategies import SCCT, Planner, SplitKD
    from flwr_splitkd.tiers.optimizer import OptimizerSettings

__all__ = [
    "SCCT",
    "CutCycle",
    "CutTable",
    "DistillationLoss",
    "EnergyAware",
    "FewestTurnsFirst",
    "FixedCut",
    "OptimalCut",
    "OptimizerSettings",
    "Planner",
    "RandomOrder",
    "RoundRobin",
    "SCCTClient",
    "SplitKD",
    "SplitKDClient",
    "SplitKDMod",
]

_ROOMS = {
    "SCCT": "strategies",
    "CutCycle": "schedulers",
    "CutTable": "schedulers",
    "DistillationLoss": "distill",
    "EnergyAware": "schedulers",
    "FewestTurnsFirst": "schedulers",
    "FixedCut": "schedulers",
    "OptimalCut": "schedulers",
    "OptimizerSettings": "tiers.optimizer",
    "Planner": "strategies",
    "RandomOrder": "schedulers",
    "RoundRobin": "schedulers",
    "SCCTClient": "clients",
    "SplitKD": "strategies",
    "SplitKDClient": "clients",
    "SplitKDMod": "clients",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that a planner need not load torch."""
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
