"""From the run config to the objects that decide: who is next, where the student is cut, and what turns cost."""

from __future__ import annotations

import numpy as np

from flwr_splitkd.costs import Fleet, fleet_from_json, load_shape, table_ii_fleet
from flwr_splitkd.schedulers import (
    AlikeTogether,
    BestChannel,
    ByName,
    ClusterPolicy,
    CutCycle,
    CutPolicy,
    DeadlineAware,
    DeviceOnly,
    EnergyAware,
    FewestTurnsFirst,
    InOrder,
    OptimalCut,
    RandomOrder,
    RoundRobin,
    SelectionPolicy,
    ServerOnly,
)
from flwr_splitkd.strategies import Planner
from split_kd_app.config import AppConfig


def cut_policy(config: AppConfig) -> CutPolicy:
    """Where turns cut the student."""
    frequency = config.server_frequency
    max_delay_s = config.max_delay or float("inf")
    if config.cut_policy == "optimal":
        return OptimalCut(
            max_delay_s=max_delay_s,
            min_cut=config.min_cut,
            codecs=config.codec_list,
            frequency=frequency,  # type: ignore[arg-type]  # one of the allowed choices
        )
    if config.cut_policy == "server-only":
        return ServerOnly(
            frequency=frequency,  # type: ignore[arg-type]  # one of the allowed choices
            max_delay_s=max_delay_s,
        )
    if config.cut_policy == "device-only":
        return DeviceOnly(
            frequency=frequency,  # type: ignore[arg-type]  # one of the allowed choices
            max_delay_s=max_delay_s,
        )
    return CutCycle(config.cut_list)


def selection(config: AppConfig) -> SelectionPolicy:
    """Who is next."""
    made: dict[str, SelectionPolicy] = {
        "round-robin": RoundRobin(),
        "random": RandomOrder(np.random.default_rng(config.seed)),
        "fewest-turns-first": FewestTurnsFirst(),
        "by-name": ByName(),
        "best-channel": BestChannel(),
        "energy-aware": EnergyAware(),
        "deadline-aware": DeadlineAware(config.round_deadline),
    }
    return made[config.selection]


def clusters(config: AppConfig) -> ClusterPolicy:
    """Who trains at the same time."""
    return AlikeTogether() if config.clusters == "alike" else InOrder()


def planner(config: AppConfig) -> Planner | None:
    """What turns cost; None where neither a policy nor the user asks for it."""
    by_cost = config.cut_policy != "cycle" or config.selection in ("best-channel", "energy-aware", "deadline-aware")
    by_cost = by_cost or config.clusters == "alike"
    if not (config.fleet or config.modelled or by_cost):
        return None
    return Planner(
        fleet=_fleet(config),
        sequence_length=config.sequence_length,
        modelled=config.modelled,
        channel="fresh" if config.foresight else "last",
        frequency=config.server_frequency,  # type: ignore[arg-type]  # one of the allowed choices
        student=load_shape(config.modelled_student) if config.modelled_student else None,
        teacher=load_shape(config.modelled_teacher) if config.modelled_teacher else None,
    )


def _fleet(config: AppConfig) -> Fleet:
    rng = np.random.default_rng(config.seed)
    if config.fleet == "table-ii":
        return table_ii_fleet(config.channel, rng)
    return fleet_from_json(config.fleet, rng=rng) if config.fleet else Fleet()
