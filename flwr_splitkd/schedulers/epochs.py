"""How many passes over its data a device makes in one turn."""

from __future__ import annotations

from typing import Protocol

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.view import DeviceView

__all__ = ["EpochsPolicy", "FixedEpochs"]


class EpochsPolicy(Protocol):
    """Chooses the local epochs of a turn."""

    def choose(self, device: DeviceView) -> int:
        """Return the passes over the device's data, at least 1."""


class FixedEpochs:
    """The same number for every device.

    Parameters
    ----------
    local_epochs
        At least 1.
    """

    def __init__(self, local_epochs: int) -> None:
        if local_epochs < 1:
            raise ConfigError(f"`local_epochs` is {local_epochs}; expected at least 1.")
        self.local_epochs = local_epochs

    def choose(self, device: DeviceView) -> int:
        """Return the fixed number."""
        return self.local_epochs
