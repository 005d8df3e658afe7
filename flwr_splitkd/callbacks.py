"""What a run tells others: TensorBoard, a figure, or a tracker of the user's own, such as wandb or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr_splitkd.store import RunFolder
    from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord
    from flwr_splitkd.strategies.result import TurnRecord

__all__ = ["Callback", "LiveReading"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReading:
    """A run at one moment, in the midst of a turn too. Sums are those since `on_start`.

    Parameters
    ----------
    sessions
        Devices by what they are about: ``called``, ``waiting`` for their turn, ``serving`` (at their turn) or ``away``
        (their connection is lost for the moment).
    num_streams
        Connections to the data plane, those that have not been let in included.
    uplink_bytes, downlink_bytes
        On the data plane, everything that came to nothing or was sent again included.
    stream_faults
        Of connections, by kind: those that were refused, and what was overcome, see `flwr_splitkd.wire.tally`.
    num_steps
        Optimiser steps that are in a commit; None in the chain, where epochs tell.
    cloud_uplink_bytes, cloud_downlink_bytes
        Between edge and cloud, in the chain.
    num_cloud_losses
        How often the cloud was lost and found again, in the chain.
    """

    sessions: Mapping[str, int] = field(default_factory=dict)
    num_streams: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    stream_faults: Mapping[str, int] = field(default_factory=dict)
    num_steps: int | None = None
    cloud_uplink_bytes: int = 0
    cloud_downlink_bytes: int = 0
    num_cloud_losses: int = 0


class Callback:
    """Told what happens in a run; override what you need.

    The calls come one after another from the thread of the ServerApp. What a callback raises is logged, and the run goes
    on: nobody loses a night's training to a tracker that is down. Only a `ConfigError` from `on_start` ends the run: what was
    asked for cannot be had, and nothing is lost yet.
    """

    def on_start(self, run: RunFolder, config: Mapping[str, Any]) -> None:
        """A run begins: where its files are, and what ``config.json`` holds."""

    def on_live(self, read: Callable[[], LiveReading]) -> None:
        """Follows `on_start`: `read` tells how the run is, to any thread and at any time until `on_end`."""

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
