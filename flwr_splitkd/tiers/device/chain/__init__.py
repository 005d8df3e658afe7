"""The device's end of the chain device - edge - cloud (SCCT): its own encoder on the disk, and one round with it."""

from __future__ import annotations

from flwr_splitkd.tiers.device.chain.own_encoder import OwnEncoder
from flwr_splitkd.tiers.device.chain.round import REFERENCE, RoundReport, Score, run_round

__all__ = ["REFERENCE", "OwnEncoder", "RoundReport", "Score", "run_round"]
