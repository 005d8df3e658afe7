"""A run as TensorBoard events, in ``tensorboard/`` of its folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from flwr_splitkd.callbacks import Callback
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
from flwr_splitkd.strategies.result import TurnRecord, perplexity

__all__ = ["TensorBoard"]


class TensorBoard(Callback):
    """Writes scalars: turns by optimiser step of the run, evaluations and rounds by round.

    Of the chain: epochs by step of the cloud's module, and every device by round.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None
        self._step = 0
        self._evaluated = "server"

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        """Open the events file."""
        self._writer, self._step = SummaryWriter(str(run.path / "tensorboard")), 0
        strategy = config.get("strategy")
        chain = isinstance(strategy, Mapping) and strategy.get("name") == "SCCT"
        # In the chain it is the devices that evaluate.
        self._evaluated = "evaluation" if chain else "server"

    def on_turn(self, turn: TurnRecord) -> None:
        """Write a completed turn."""
        outcome = turn.outcome
        if outcome is None or turn.mode == "deliver":
            return
        if turn.mode == "train":
            self._step += outcome.num_steps
        scalars = {
            "loss": outcome.loss,
            "cross-entropy": outcome.cross_entropy,
            "kl-divergence": outcome.kl_divergence,
            "perplexity": perplexity(outcome.cross_entropy),
            "cut": outcome.cut,
            "tokens-per-second": outcome.num_tokens / max(outcome.duration_s, 1e-9),
            "uplink-bytes": outcome.uplink_bytes,
            "downlink-bytes": outcome.downlink_bytes,
            "handover-bytes": outcome.handover_bytes,
            "device-s": outcome.device_s,
            "edge-s": outcome.edge_s,
            "uplink-s": outcome.uplink_s,
            "downlink-s": outcome.downlink_s,
            "fixed-s": outcome.fixed_s,
            "duration-s": outcome.duration_s,
        }
        scalars |= {name.replace("_", "-"): joules for name, joules in outcome.measured_j.items()}
        for name, value in turn.costs.items():
            if isinstance(value, int | float):
                scalars[name.replace("_", "-")] = value
        self._write(turn.mode, scalars, self._step)

    def on_epoch(self, epoch: EpochRecord) -> None:
        """Write an epoch of the chain."""
        scalars = {
            "loss": epoch.loss,
            "iteration-s": epoch.seconds / max(epoch.num_iterations, 1),
            "missed": epoch.num_missed,
            "learning-rate": epoch.learning_rate,
            "grad-norm": epoch.grad_norm,
        }
        if epoch.reference_loss is not None:
            scalars["reference-loss"] = epoch.reference_loss
        self._write("epoch", scalars, epoch.module_step)

    def on_device(self, device: DeviceRecord) -> None:
        """Write a device's part in a round of the chain."""
        outcome = device.outcome
        if outcome is None:
            return
        scalars = {
            "loss": outcome.loss,
            "split-point": outcome.split_point,
            "missed": outcome.num_missed,
            "uplink-bytes": outcome.uplink_bytes,
            "downlink-bytes": outcome.downlink_bytes,
            "uplink-handover-bytes": outcome.uplink_handover_bytes,
            "downlink-handover-bytes": outcome.downlink_handover_bytes,
            "device-s": outcome.device_s,
            "edge-s": outcome.edge_s,
            "cloud-s": outcome.cloud_s,
            "duration-s": outcome.duration_s,
        }
        self._write(f"{device.mode}/{device.device}", scalars, device.server_round)

    def on_evaluation(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Write the evaluation: the server's, or the chain's."""
        self._write(self._evaluated, metrics, server_round)

    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Write the round's means over its devices."""
        self._write("round", metrics, server_round)

    def on_end(self, error: BaseException | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, prefix: str, scalars: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            return
        for name, value in scalars.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)
        self._writer.flush()
