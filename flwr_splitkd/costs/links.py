"""Links between a device and the edge: how many bytes a second, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from flwr_splitkd.errors import ConfigError

__all__ = ["Link", "LinkState", "WiredLink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkState:
    """A link at one moment.

    Parameters
    ----------
    uplink_bps, downlink_bps
        Bits a second from the device and to it.
    """

    uplink_bps: float
    downlink_bps: float

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If a rate is not a number of at least 0.
        """
        for name in ("uplink_bps", "downlink_bps"):
            value = getattr(self, name)
            if math.isnan(value) or value < 0:
                raise ConfigError(f"`{name}` is {value}; expected at least 0 bits a second.")


class Link(Protocol):
    """A device's link over time."""

    def at(self, time_s: float) -> LinkState:
        """Return its rates at a time, in seconds from the start of the run. Times do not run backwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WiredLink:
    """The same rates all the time.

    Parameters
    ----------
    uplink_bps, downlink_bps
        Bits a second.
    """

    uplink_bps: float
    downlink_bps: float

    def at(self, time_s: float) -> LinkState:
        """Return the rates."""
        return LinkState(uplink_bps=self.uplink_bps, downlink_bps=self.downlink_bps)
