"""Flower strategies: who takes a turn, and when. What happens in a turn is the business of `tiers.edge`."""

from __future__ import annotations

from flwr_splitkd.callbacks import Callback, LiveReading
from flwr_splitkd.strategies.callbacks import default_callbacks
from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord, SCCTResult
from flwr_splitkd.strategies.chain.summary import summarize_chain
from flwr_splitkd.strategies.planner import Planner
from flwr_splitkd.strategies.result import SplitKDResult, TurnRecord
from flwr_splitkd.strategies.scct import SCCT
from flwr_splitkd.strategies.split_kd import SplitKD
from flwr_splitkd.strategies.summary import summarize

__all__ = [
    "SCCT",
    "Callback",
    "DeviceRecord",
    "EpochRecord",
    "LiveReading",
    "Planner",
    "SCCTResult",
    "SplitKD",
    "SplitKDResult",
    "TurnRecord",
    "default_callbacks",
    "summarize",
    "summarize_chain",
]
