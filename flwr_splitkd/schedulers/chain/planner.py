"""The two timescales of SCCT in a run: split points for a round, shares of the edge for an epoch, and the modelled clock.

Training is real; seconds are worked out from the resources of a cell (SCCT, (12) to (20)). Of a cell that is modelled
everything that comes from there is named ``modelled_*``, and there is a clock; a `MeasuredCell` is corrected by every epoch, and
what is worked out from it is named ``predicted_*``, beside what was ``measured_*``.
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
    DeviceProfile,
    MeasuredCell,
    MeasuredDevice,
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
        Speeds and channels of every epoch: a `ModelledCell`, or one of your own; or a `MeasuredCell`, which the run corrects.
    split_points
        Decides at each round's start.
    allocation
        Decides at each epoch's start. Shares are those of the edge's compute, real ones too; subcarriers exist in the model only.
    limits
        Memory. With a `MeasuredCell`, a device that says in its enrolment what it has is held to that.
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
    """What an epoch took in the model, or was predicted to take.

    Parameters
    ----------
    iteration_s
        One iteration, the link to the cloud included.
    cloud_link_s
        That link alone, which no decision changes; where it is measured, the cloud's own seconds too.
    epoch_s
        All its iterations.
    clock_s
        The model's time at its end; None where time is real.
    """

    iteration_s: float
    cloud_link_s: float
    epoch_s: float
    clock_s: float | None

    @property
    def word(self) -> str:
        """What such seconds are called."""
        return "predicted" if self.clock_s is None else "modelled"

    def to_json(self) -> dict[str, float]:
        """As part of a line of ``metrics.jsonl``."""
        line = {
            f"{self.word}_iteration_s": self.iteration_s,
            f"{self.word}_cloud_link_s": self.cloud_link_s,
            f"{self.word}_s": self.epoch_s,
        }
        return line if self.clock_s is None else {**line, "modelled_clock_s": self.clock_s}


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
        # What a run learns is the run's: the plan may be another one's as well.
        self.measured = plan.cell.fresh() if isinstance(plan.cell, MeasuredCell) else None
        self._cell: ChainCell = self.measured or plan.cell
        self._memory: dict[str, float] = {}
        self.clock_s = 0.0
        self._points: dict[str, int] = {}
        self._records: dict[str, list[tuple[float, float]]] = {}
        self._latency: ChainLatency | None = None

    @property
    def word(self) -> str:
        """What seconds are called that come from the cell."""
        return "modelled" if self.measured is None else "predicted"

    def introduce(self, device: str, profile: DeviceProfile) -> None:
        """Take a device's own word on its memory, and on its speed until that is measured; none of it counts in a model."""
        if self.measured is not None:
            self._memory[device] = profile.memory_bytes
            self.measured.introduce(device, profile.flops)

    def begin_round(self, devices: Sequence[str], server_round: int) -> SplitDecision:
        """Choose the split points of a round, and let the time of their hand-over pass.

        Raises
        ------
        InfeasibleError
            If the devices cannot take part together.
        """
        plan, workload = self._plan, self._workload
        now = self._cell.resources(devices, server_round=server_round, epoch=1)
        old = [self._points.get(name, workload.num_layers) for name in devices]
        handover_s = handover_table_s(workload, now, old=old)
        decision = plan.split_points.choose(
            workload, self._draws(devices, now, server_round), self._limits(devices), handover_s
        )
        self._points.update(zip(devices, decision.split_points.tolist(), strict=True))
        self.clock_s += decision.handover_s
        return decision

    def split_point(self, device: str) -> int:
        """The device's split point; all blocks for one that has not trained."""
        return self._points.get(device, self._plan.workload.num_layers)

    def begin_epoch(self, devices: Sequence[str], server_round: int, epoch: int) -> Allocation:
        """Divide the edge for an epoch."""
        resources = self._cell.resources(devices, server_round=server_round, epoch=epoch)
        # What is measured goes on record when the epoch is over.
        for position, name in enumerate(devices if self.measured is None else ()):
            flops, gain = resources.device_flops[position], resources.channel_gain[position]
            self._records.setdefault(name, []).append((float(flops), float(gain)))
            del self._records[name][: -self._plan.num_draws]
        points = np.array([self.split_point(name) for name in devices])
        allocation = self._plan.allocation.allocate(self._workload, resources, points)
        self._latency = allocation.latency
        return allocation

    def end_epoch(self, num_iterations: int) -> ModelledEpoch | None:
        """Let the time of an epoch's iterations pass."""
        if self._latency is None:
            return None
        cloud_link_s = self._latency.cloud_link_s
        if self.measured is not None and self.measured.other_s is not None:
            cloud_link_s = self.measured.other_s
        iteration_s = cloud_link_s + float(self._latency.slowest_s)
        epoch_s = num_iterations * iteration_s
        self.clock_s += epoch_s
        return ModelledEpoch(
            iteration_s=iteration_s,
            cloud_link_s=cloud_link_s,
            epoch_s=epoch_s,
            clock_s=self.clock_s if self.measured is None else None,
        )

    def learn(self, devices: Mapping[str, MeasuredDevice], iteration_s: float | None) -> list[str]:
        """Correct a measured cell by an epoch; return the devices whose measurements cannot be."""
        return [] if self.measured is None else self.measured.observe(self._plan.workload, devices, iteration_s)

    def state_dict(self) -> dict[str, Any]:
        """Clock, split points, records and what was measured, as JSON holds them."""
        state = {"clock_s": self.clock_s, "points": dict(self._points), "records": dict(self._records)}
        return state if self.measured is None else {**state, "measured": self.measured.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another planner has stopped."""
        self.clock_s = float(state["clock_s"])
        self._points = {str(name): int(point) for name, point in state["points"].items()}
        self._records = {
            str(name): [(float(flops), float(gain)) for flops, gain in kept] for name, kept in state["records"].items()
        }
        # A run that was modelled before has measured nothing.
        if self.measured is not None and "measured" in state:
            self.measured.load_state_dict(state["measured"])

    @property
    def _workload(self) -> ChainWorkload:
        return self._plan.workload if self.measured is None else self.measured.workload(self._plan.workload)

    def _limits(self, devices: Sequence[str]) -> MemoryLimits:
        limits = self._plan.limits
        if not any(name in self._memory for name in devices):
            return limits
        common = np.broadcast_to(np.asarray(limits.device_bytes), len(devices))
        own = [self._memory.get(name, common[position]) for position, name in enumerate(devices)]
        return replace(limits, device_bytes=np.array(own))

    def _draws(self, devices: Sequence[str], now: ChainResources, server_round: int) -> ChainResources:
        """Epochs as they may come: for each device some of those that it has had, else the present one."""
        rng = np.random.default_rng([self._plan.seed, server_round])
        if self.measured is not None:
            return self.measured.draws(devices, self._plan.num_draws, rng)
        columns = []
        for position, name in enumerate(devices):
            kept = self._records.get(name) or [(now.device_flops[position], now.channel_gain[position])]
            columns.append(np.array(kept)[rng.integers(len(kept), size=self._plan.num_draws)])
        drawn = np.stack(columns, axis=1)
        power = np.broadcast_to(now.device_power_w, drawn.shape[:2])
        return replace(now, device_flops=drawn[..., 0], channel_gain=drawn[..., 1], device_power_w=power)
