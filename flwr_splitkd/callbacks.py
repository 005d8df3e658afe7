"""What a run tells others: TensorBoard, a figure, or a tracker of the user's own, such as wandb or MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr_splitkd.store import RunFolder
    from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
    from flwr_splitkd.strategies.result import TurnRecord

__all__ = ["Callback"]


class Callback:
    """Told what happens in a run; override what you need.

    The calls come one after another from the thread of the ServerApp. What a callback raises is logged, and the run goes
    on: nobody loses a night's training to a tracker that is down.
    """

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        """A run begins: where its files are, and what ``config.json`` holds."""

    def on_turn(self, turn: TurnRecord) -> None:
        """A turn is over, completed (``turn.outcome``) or not (``turn.error``)."""

    def on_epoch(self, epoch: EpochRecord) -> None:
        """An epoch of the chain is over."""

    def on_device(self, device: DeviceRecord) -> None:
        """A device's part in a round of the chain is over, completed (``device.outcome``) or not (``device.error``).

        Called at the end of the round, or of its evaluation.
        """

    def on_evaluation(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """The user's `evaluate_fn` has returned, in the chain the devices too; round 0 is before training."""

    def on_round(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """A round is over; all its metrics, those of its evaluations included."""

    def on_end(self, error: BaseException | None) -> None:
        """The run is over, because of `error` or as planned. Always called once after `on_start`."""
