"""Who gets which share of the edge's compute, where many devices are served at once (alpha of SCCT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.view import DeviceView

__all__ = ["EqualShares", "FixedShares", "SharePolicy"]


@runtime_checkable
class SharePolicy(Protocol):
    """Decides at the start of every epoch."""

    def share(self, devices: Sequence[DeviceView]) -> Sequence[float]:
        """Return a weight above 0 for each device; only their ratios count."""


class EqualShares:
    """The same for every device."""

    def share(self, devices: Sequence[DeviceView]) -> list[float]:
        """Return ones."""
        return [1.0] * len(devices)


class FixedShares:
    """Weights by device name.

    Parameters
    ----------
    weights
        By device name; above 0.
    default
        For devices that are not named.

    Raises
    ------
    ConfigError
        If one is not above 0.
    """

    def __init__(self, weights: Mapping[str, float], default: float = 1.0) -> None:
        for name, weight in {**weights, "default": default}.items():
            if not 0 < weight < float("inf"):
                raise ConfigError(f"The weight of {name!r} is {weight}; expected a finite number above 0.")
        self.weights, self.default = dict(weights), default

    def share(self, devices: Sequence[DeviceView]) -> list[float]:
        """Return each device's weight."""
        return [self.weights.get(device.name, self.default) for device in devices]
