"""Handlers for a Flower ClientApp: they answer the messages of the strategies."""

from __future__ import annotations

from flwr_splitkd.clients.enrolment import enrol
from flwr_splitkd.clients.mod import SplitKDMod
from flwr_splitkd.clients.scct import SCCTClient
from flwr_splitkd.clients.split_kd import SplitKDClient

__all__ = ["SCCTClient", "SplitKDClient", "SplitKDMod", "enrol"]
