"""What is measured of machines, and the modelled clock that stands in for them in simulations."""

from __future__ import annotations

from flwr_splitkd.telemetry.modelled import ModelledTurn, ModelledWorld

__all__ = ["ModelledTurn", "ModelledWorld"]
