"""The two timescales of SCCT in a run: split points for a round, shares of the edge for an epoch, and the modelled clock.

Training is real; the resources are those of a cell that is modelled, and the seconds are worked out from them (SCCT, (12) to (20)).
Everything that comes from there is named ``modelled_*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from flwr_splitkd.costs import (
    ChainCell,
    ChainLatency,
    ChainResources,
    ChainWorkload,
    MemoryLimits,
    handover_table_s,
)
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.chain import Allocation, AllocationPolicy, SplitDecision, SplitPointPolicy, mechanism

__all__ = ["ChainPlan", "ChainPlanner", "ModelledEpoch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainPlan:
    """Who decides, and on what.

    Parameters
    ----------
    workload
        What an iteration takes; its layers are the encoder's blocks.
    cell
        Speeds and channels of every epoch, such as a `ModelledCell`.
    split_points
        Decides at each round's start.
    allocation
        Decides at each epoch's start. Shares are those of the edge's compute, real ones too; subcarriers exist in the model only.
    limits
        Memory.
    num_draws
        Q: epochs of the run's own records that split points are decided on, drawn for each device by itself.
    seed
        Of these draws.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    workload: ChainWorkload
    cell: ChainCell
    split_points: SplitPointPolicy = field(default_factory=lambda: mechanism("SCCTT")[0])
    allocation: AllocationPolicy = field(default_factory=lambda: mechanism("SCCTT")[1])
    limits: MemoryLimits = field(default_factory=MemoryLimits)
    num_draws: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, minimum in (("num_draws", 1), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; expected at least {minimum}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledEpoch:
    """What an epoch took in the model.

    Parameters
    ----------
    iteration_s
        One iteration, the link to the cloud included.
    cloud_link_s
        That link alone, which no decision changes.
    epoch_s
        All its iterations.
    clock_s
        The model's time at its end.
    """

    iteration_s: float
    cloud_link_s: float
    epoch_s: float
    clock_s: float

    def to_json(self) -> dict[str, float]:
        """As part of a line of ``metrics.jsonl``."""
        return {
            "modelled_iteration_s": self.iteration_s,
            "modelled_cloud_link_s": self.cloud_link_s,
            "modelled_s": self.epoch_s,
            "modelled_clock_s": self.clock_s,
        }


class ChainPlanner:
    """Decides in a run, and keeps its clock and records.

    Parameters
    ----------
    plan
        Who decides, and on what.
    num_blocks
        Of the encoder.

    Raises
    ------
    ConfigError
        If the workload is another encoder's.
    """

    def __init__(self, plan: ChainPlan, num_blocks: int) -> None:
        if plan.workload.num_layers != num_blocks:
            raise ConfigError(
                f"The plan's workload has {plan.workload.num_layers} layers; expected {num_blocks}, the blocks of the encoder. "
                "Make it of the encoder's shape."
            )
        self._plan = plan
        self.clock_s = 0.0
        self._points: dict[str, int] = {}
        self._records: dict[str, list[tuple[float, float]]] = {}
        self._latency: ChainLatency | None = None

    def begin_round(self, devices: Sequence[str], server_round: int) -> SplitDecision:
        """Choose the split points of a round, and let the time of their hand-over pass.

        Raises
        ------
        InfeasibleError
            If the devices cannot take part together.
        """
        plan = self._plan
        now = plan.cell.resources(devices, server_round=server_round, epoch=1)
        old = [self._points.get(name, plan.workload.num_layers) for name in devices]
        handover_s = handover_table_s(plan.workload, now, old=old)
        decision = plan.split_points.choose(
            plan.workload, self._draws(devices, now, server_round), plan.limits, handover_s
        )
        self._points.update(zip(devices, decision.split_points.tolist(), strict=True))
        self.clock_s += decision.handover_s
        return decision

    def split_point(self, device: str) -> int:
        """The device's split point; all blocks for one that has not trained."""
        return self._points.get(device, self._plan.workload.num_layers)

    def begin_epoch(self, devices: Sequence[str], server_round: int, epoch: int) -> Allocation:
        """Divide the edge for an epoch."""
        resources = self._plan.cell.resources(devices, server_round=server_round, epoch=epoch)
        for position, name in enumerate(devices):
            flops, gain = resources.device_flops[position], resources.channel_gain[position]
            self._records.setdefault(name, []).append((float(flops), float(gain)))
            del self._records[name][: -self._plan.num_draws]
        points = np.array([self.split_point(name) for name in devices])
        allocation = self._plan.allocation.allocate(self._plan.workload, resources, points)
        self._latency = allocation.latency
        return allocation

    def end_epoch(self, num_iterations: int) -> ModelledEpoch | None:
        """Let the time of an epoch's iterations pass."""
        if self._latency is None:
            return None
        iteration_s = float(self._latency.iteration_s)
        epoch_s = num_iterations * iteration_s
        self.clock_s += epoch_s
        return ModelledEpoch(
            iteration_s=iteration_s,
            cloud_link_s=self._latency.cloud_link_s,
            epoch_s=epoch_s,
            clock_s=self.clock_s,
        )

    def state_dict(self) -> dict[str, Any]:
        """Clock, split points and records, as JSON holds them."""
        return {"clock_s": self.clock_s, "points": dict(self._points), "records": dict(self._records)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another planner has stopped."""
        self.clock_s = float(state["clock_s"])
        self._points = {str(name): int(point) for name, point in state["points"].items()}
        self._records = {
            str(name): [(float(flops), float(gain)) for flops, gain in kept] for name, kept in state["records"].items()
        }

    def _draws(self, devices: Sequence[str], now: ChainResources, server_round: int) -> ChainResources:
        """Epochs as they may come: for each device some of those that it has had, else the present one."""
        rng = np.random.default_rng([self._plan.seed, server_round])
        columns = []
        for position, name in enumerate(devices):
            kept = self._records.get(name) or [(now.device_flops[position], now.channel_gain[position])]
            columns.append(np.array(kept)[rng.integers(len(kept), size=self._plan.num_draws)])
        drawn = np.stack(columns, axis=1)
        power = np.broadcast_to(now.device_power_w, drawn.shape[:2])
        return replace(now, device_flops=drawn[..., 0], channel_gain=drawn[..., 1], device_power_w=power)
