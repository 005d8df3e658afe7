"""What a run of SCCT gives back: Flower's Result, and a record of every device in every round."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Result

from flwr_splitkd.schedulers.chain.planner import ModelledEpoch
from flwr_splitkd.tiers.edge.chain import DeviceOutcome

__all__ = ["DeviceRecord", "EpochRecord", "SCCTResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRecord:
    """One device's part in one round, completed or not.

    Parameters
    ----------
    server_round
        From 1.
    node_id, device
        Flower's identifier and the device's name.
    mode
        ``"train"`` or ``"evaluate"``.
    outcome
        None if it came to nothing.
    error
        Why; empty otherwise.
    fault
        The kind of that, one of `flwr_splitkd.faults.FAULTS`; empty otherwise.
    """

    server_round: int
    node_id: int
    device: str
    mode: str
    outcome: DeviceOutcome | None = None
    error: str = ""
    fault: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a line of ``metrics.jsonl``."""
        line = {
            "kind": "device",
            "server_round": self.server_round,
            "node_id": self.node_id,
            "device": self.device,
            "mode": self.mode,
        }
        return {**line, "error": self.error} if self.outcome is None else {**line, **asdict(self.outcome)}


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of a round, all devices together.

    Parameters
    ----------
    server_round, epoch
        From 1.
    num_iterations
        That were closed.
    loss, reference_loss
        Means over the labels of all devices (equation (7)), and of the LLM without the encoder if it was asked for.
    seconds
        Of the epoch.
    num_missed
        How often a device was still at work when an iteration was closed.
    module_step
        Steps of the cloud's module so far.
    learning_rate, grad_norm
        Of its last step; the norm before clipping.
    modelled
        What it took in the modelled cell, or was predicted to take, if there is a plan.
    """

    server_round: int
    epoch: int
    num_iterations: int
    loss: float
    reference_loss: float | None
    seconds: float
    num_missed: int
    module_step: int
    learning_rate: float
    grad_norm: float
    modelled: ModelledEpoch | None = None

    def to_json(self) -> dict[str, Any]:
        """As a line of ``metrics.jsonl``."""
        line = {"kind": "epoch", **asdict(self)}
        del line["modelled"]
        return line if self.modelled is None else {**line, **self.modelled.to_json()}


@dataclass
class SCCTResult(Result):
    """Flower's `Result` with the devices and epochs behind the rounds.

    Attributes
    ----------
    devices
        Every device's part in every round.
    epochs
        Every epoch.
    run_folder
        Where the run's metrics lie.
    stopped
        Why the run ended before its last round; empty if it did not.
    """

    devices: list[DeviceRecord] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    run_folder: Path | None = None
    stopped: str = ""
