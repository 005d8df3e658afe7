"""What a run of SCCT is made of: its rounds, where it stands, what it decides, what it gives back."""

from __future__ import annotations

from flwr_splitkd.schedulers.chain.planner import ChainPlan

__all__ = ["ChainPlan"]
