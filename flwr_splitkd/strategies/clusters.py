"""The turns of a cluster, as a round takes them: decided one by one, served together, recorded one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import WARNING
from typing import Any, cast

from flwr.serverapp import Grid

from flwr_splitkd.errors import SplitKDError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.schedulers import DeviceView
from flwr_splitkd.strategies.console import log
from flwr_splitkd.strategies.planner import PlannedTurn
from flwr_splitkd.strategies.result import TurnRecord
from flwr_splitkd.strategies.turns import Call
from flwr_splitkd.tiers.edge import ClusterTurn, EdgeService, TurnOutcome
from flwr_splitkd.wire.codec import CodecName

__all__ = ["Planned", "serve_together", "short_of_devices"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planned:
    """A device that is connected, and what was decided for its turn.

    Parameters
    ----------
    call, device
        Who it is.
    turn
        As decided.
    paid
        What the modelled turn took; see `Planner.pay_together`.
    record
        What is known of the turn before it begins.
    """

    call: Call
    device: DeviceView
    turn: PlannedTurn
    record: TurnRecord
    paid: Mapping[str, Any]


def serve_together(
    edge: EdgeService, planned: Sequence[Planned], *, info: Mapping[str, Any], run: str, started_s: float
) -> list[TurnRecord]:
    """Serve a cluster's turns; return their records, with the outcome or why there is none.

    Parameters
    ----------
    edge
        Serves them.
    planned
        At least one.
    info
        What the commit shall remember beside the devices.
    run
        Name of the run.
    started_s
        Seconds from the start of the run.

    Raises
    ------
    ConfigError, CutError, StoreError
        If it is no device's fault.
    """
    turns = [
        ClusterTurn(
            session=one.call.session,
            cut=one.turn.cut,
            local_epochs=one.turn.local_epochs,
            info={"node_id": one.call.node_id, "device": one.device.name},
            codec=cast("CodecName | None", one.turn.codec),
            frequency_hz=one.turn.frequency_hz,
        )
        for one in planned
    ]
    outcomes: list[TurnOutcome | SplitKDError] = edge.serve_cluster(turns, info=info, run=run)
    records = []
    for one, outcome in zip(planned, outcomes, strict=True):
        record = replace(one.record, started_s=started_s)
        if isinstance(outcome, SplitKDError):
            records.append(replace(record, error=str(outcome), fault=fault_of(outcome)))
        else:
            records.append(replace(record, outcome=outcome))
    return records


def short_of_devices(grid: Grid, there: int, expected: int) -> int:
    """Say that a cluster begins with fewer devices than it should have; return the size of clusters for the rest of the round.

    In a simulation a device that does not come waits for an actor that others hold, and would in every cluster again.
    """
    # Flower's grid for simulations has no other mark.
    if type(grid).__name__ != "InMemoryGrid":
        log(WARNING, "\ta cluster begins with %d devices that are there, instead of %d", there, expected)
        return expected
    log(
        WARNING,
        "\tclusters have %d devices for the rest of this round, instead of %d: no more got an actor of the simulation in time. "
        "Give it as many CPUs as a cluster has devices (`options.backend.init-args.num-cpus`, or `flwr federation "
        "simulation-config --init-args-num-cpus`), set fewer aside for each (`client-resources.num-cpus`), or lower `cluster_size`",
        there,
        expected,
    )
    return there
