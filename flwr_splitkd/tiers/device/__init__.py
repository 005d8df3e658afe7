"""The device's runtime: local forward pass, send, receive, local backward pass."""

from __future__ import annotations

from flwr_splitkd.tiers.device.batches import Batch, DeviceData
from flwr_splitkd.tiers.device.turn import OWN_MOMENTS, TurnReport, run_turn

__all__ = ["OWN_MOMENTS", "Batch", "DeviceData", "TurnReport", "run_turn"]
