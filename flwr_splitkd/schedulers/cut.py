"""Where the student is cut for a device's turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, get_args

import numpy as np

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers.generators import generator_state, set_generator_state
from flwr_splitkd.schedulers.plan import Decision, FrequencyPolicy, plan_cut_and_frequency
from flwr_splitkd.schedulers.view import DeviceView, Outlook

__all__ = ["CutCycle", "CutPolicy", "CutTable", "FixedCut", "OptimalCut", "RandomCut"]


class CutPolicy(Protocol):
    """Chooses the cut layer of a turn.

    A policy with ``needs_outlook = True`` is given `DeviceView.outlook`; one with ``codecs`` may decide on any of them.
    """

    def choose(self, device: DeviceView) -> int | Decision:
        """Return the cut layer: the device runs blocks ``0 .. cut - 1``; ``1 <= cut <= num_blocks - 1``.

        A `Decision` says more: the codec, the server's clock, and the reasons.

        Raises
        ------
        InfeasibleError
            If the device cannot take this turn; it is left out of the round.
        """


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


class OptimalCut:
    """The cut, codec and server clock that take the least energy within a delay bound, see `plan_cut_and_frequency`.

    Parameters
    ----------
    max_delay_s
        Bound on a turn.
    min_cut
        Privacy floor: at least so many blocks stay on the device.
    codecs
        For smashed data and gradients, in order of preference among equals; other than ``"none"`` they are lossy. Those of the
        strategy when not given.
    frequency
        ``"optimal"``, or hold the server's clock at ``"max"`` or ``"nominal"``.
    cuts
        Only these; all when not given.
    """

    needs_outlook = True

    def __init__(
        self,
        *,
        max_delay_s: float = math.inf,
        min_cut: int = 1,
        codecs: Sequence[str] = (),
        frequency: FrequencyPolicy = "optimal",
        cuts: Sequence[int] | None = None,
    ) -> None:
        if not max_delay_s > 0:
            raise ConfigError(f"`max_delay_s` is {max_delay_s}; expected more than 0 seconds.")
        if isinstance(codecs, str):  # a sequence too, of letters
            raise ConfigError(f"`codecs` is {codecs!r}; expected several, such as ('none', {codecs!r}).")
        if frequency not in get_args(FrequencyPolicy):
            raise ConfigError(f"`frequency` is {frequency!r}; expected one of {', '.join(get_args(FrequencyPolicy))}.")
        self.max_delay_s, self.min_cut = max_delay_s, _checked(min_cut, "min_cut")
        self.codecs, self.frequency = tuple(codecs), frequency
        self.cuts = None if cuts is None else tuple(_checked(cut, "cuts") for cut in cuts)

    def choose(self, device: DeviceView) -> Decision:
        """Plan the turn.

        Raises
        ------
        ConfigError
            If the strategy has no planner.
        InfeasibleError
            If no option is feasible; with the values that would make it so.
        """
        if device.outlook is None:
            raise ConfigError(
                "OptimalCut has no outlook on the turn; expected a strategy with a planner, such as SplitKD."
            )
        return self.plan(device.outlook, device.local_epochs)

    def plan(self, outlook: Outlook, local_epochs: int) -> Decision:
        """Plan a turn of so many passes; raises as `choose` does."""
        return plan_cut_and_frequency(
            outlook.terms(local_epochs, self.codecs or (outlook.codec,)),
            device=outlook.device,
            server=outlook.server,
            link=outlook.link,
            max_delay_s=self.max_delay_s,
            min_cut=self.min_cut,
            battery_j=outlook.battery_j,
            frequency=self.frequency if outlook.clock_is_ours else "max",
            cuts=self.cuts,
        )


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
