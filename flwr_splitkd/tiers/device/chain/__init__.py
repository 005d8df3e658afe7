"""The device's end of the chain device - edge - cloud (SCCT): its own encoder on the disk, one round with it, or one question."""

from __future__ import annotations

from flwr_splitkd.tiers.device.chain.own_encoder import OwnEncoder
from flwr_splitkd.tiers.device.chain.question import Asked, Asker
from flwr_splitkd.tiers.device.chain.round import REFERENCE, RoundReport, Score, run_round

__all__ = ["REFERENCE", "Asked", "Asker", "OwnEncoder", "RoundReport", "Score", "run_round"]
