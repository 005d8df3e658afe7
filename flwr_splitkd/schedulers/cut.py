"""Where the student is cut for a device's turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.generators import generator_state, set_generator_state
from flwr_splitkd.schedulers.view import DeviceView

__all__ = ["CutCycle", "CutPolicy", "CutTable", "FixedCut", "RandomCut"]


class CutPolicy(Protocol):
    """Chooses the cut layer of a turn."""

    def choose(self, device: DeviceView) -> int:
        """Return the cut layer: the device runs blocks ``0 .. cut - 1``; ``1 <= cut <= num_blocks - 1``."""


class FixedCut:
    """The same cut for every device.

    Parameters
    ----------
    cut
        At least 1.
    """

    def __init__(self, cut: int) -> None:
        self.cut = _checked(cut, "cut")

    def choose(self, device: DeviceView) -> int:
        """Return the fixed cut."""
        return self.cut


class CutTable:
    """A cut for each device by name.

    Parameters
    ----------
    cuts
        Cut by device name; the name of a simulated device is its partition id, e.g. ``{"0": 2, "1": 4}``.
    default
        For devices that are not in the table; without it such a device ends the run.
    """

    def __init__(self, cuts: Mapping[str, int], default: int | None = None) -> None:
        self.cuts = {name: _checked(cut, f"cuts[{name!r}]") for name, cut in cuts.items()}
        self.default = None if default is None else _checked(default, "default")

    def choose(self, device: DeviceView) -> int:
        """Return the device's entry.

        Raises
        ------
        ConfigError
            If the table has neither the device nor a default.
        """
        cut = self.cuts.get(device.name, self.default)
        if cut is None:
            raise ConfigError(
                f"The cut table has no device {device.name!r}; expected one of {sorted(self.cuts)}. "
                "Add the device, or give the table a `default`."
            )
        return cut


class CutCycle:
    """Different cuts for different devices without naming them: each new device gets the next one, and keeps it.

    Parameters
    ----------
    cuts
        Dealt out in this order, over and over.
    """

    def __init__(self, cuts: Sequence[int]) -> None:
        if not cuts:
            raise ConfigError("`cuts` is empty; expected at least one cut.")
        self.cuts = tuple(_checked(cut, "cuts") for cut in cuts)
        self._dealt: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Which cut each node has."""
        return {"dealt": {str(node_id): cut for node_id, cut in self._dealt.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Deal on where another one has stopped."""
        self._dealt = {int(node_id): int(cut) for node_id, cut in state["dealt"].items()}

    def choose(self, device: DeviceView) -> int:
        """Return the device's cut."""
        return self._dealt.setdefault(device.node_id, self.cuts[len(self._dealt) % len(self.cuts)])


class RandomCut:
    """A cut drawn evenly for each turn; for tests and for exploring.

    Parameters
    ----------
    low, high
        Inclusive bounds.
    rng
        Where the draws come from.
    """

    def __init__(self, low: int, high: int, rng: np.random.Generator) -> None:
        self.low, self.high, self.rng = _checked(low, "low"), _checked(high, "high"), rng
        if self.high < self.low:
            raise ConfigError(f"`high` is {high}; expected at least `low`, which is {low}.")

    def state_dict(self) -> dict[str, Any]:
        """The generator's state."""
        return generator_state(self.rng)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another generator of the same kind was."""
        set_generator_state(self.rng, state)

    def choose(self, device: DeviceView) -> int:
        """Draw a cut."""
        return int(self.rng.integers(self.low, self.high, endpoint=True))


def _checked(cut: int, name: str) -> int:
    # The upper bound depends on the student, so it is checked where the student is at hand.
    if cut < 1:
        raise ConfigError(f"`{name}` is {cut}; expected at least 1, because the token embedding stays on the device.")
    return cut
