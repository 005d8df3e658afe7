"""How many passes over its data a device makes in one turn."""

from __future__ import annotations

from typing import Protocol

from flwr_splitkd.errors import ConfigError, InfeasibleError
from flwr_splitkd.schedulers.cut import OptimalCut
from flwr_splitkd.schedulers.view import DeviceView

__all__ = ["DeadlineEpochs", "EpochsPolicy", "FixedEpochs", "TargetExamples"]


class EpochsPolicy(Protocol):
    """Chooses the local epochs of a turn.

    A policy with ``needs_outlook = True`` is given `DeviceView.outlook`.
    """

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
        self.local_epochs = _at_least_one(local_epochs, "local_epochs")

    def choose(self, device: DeviceView) -> int:
        """Return the fixed number."""
        return self.local_epochs


class TargetExamples:
    """About the same number of samples in every turn, however much data a device has.

    ``round(target / samples)`` passes over a device's samples, half a pass rounded up, within ``1 .. max_epochs``: the whole
    number whose product with the samples is nearest to the target.

    Parameters
    ----------
    target_examples
        Samples that a turn should go through, repeated ones counted, at least 1.
    max_epochs
        At least 1; also for a device without samples.
    """

    def __init__(self, target_examples: int, max_epochs: int) -> None:
        self.target_examples = _at_least_one(target_examples, "target_examples")
        self.max_epochs = _at_least_one(max_epochs, "max_epochs")

    def choose(self, device: DeviceView) -> int:
        """Return the number that comes nearest to the target."""
        if device.num_examples < 1:
            return self.max_epochs
        nearest = (2 * self.target_examples + device.num_examples) // (2 * device.num_examples)
        return min(max(nearest, 1), self.max_epochs)


class DeadlineEpochs:
    """As many passes as the cut policy can plan within its delay bound and the device's battery.

    ``max { e in 1 .. max_epochs : a cut, codec and clock exist with T(e) <= max_delay_s and device_j(e) <= battery_j }``, which
    takes the device's data, its speed and its link into account. Every stage takes longer and more energy with more passes, so
    that the feasible numbers are ``1 .. e``, and bisection finds the last one in about ``log2(max_epochs)`` plans. If not even
    one pass is feasible it is 1: the cut policy then says why.

    Parameters
    ----------
    max_epochs
        At least 1; what it is without a delay bound and battery.
    cut
        The policy that will choose the cut of the same turn, whose bounds hold.
    """

    needs_outlook = True

    def __init__(self, max_epochs: int, cut: OptimalCut) -> None:
        self.max_epochs, self.cut = _at_least_one(max_epochs, "max_epochs"), cut

    def choose(self, device: DeviceView) -> int:
        """Return the largest feasible number.

        Raises
        ------
        ConfigError
            If the strategy has no planner.
        """
        outlook = device.outlook
        if outlook is None:
            raise ConfigError(
                "DeadlineEpochs has no outlook on the turn; expected a strategy with a planner, such as SplitKD."
            )

        def feasible(local_epochs: int) -> bool:
            try:
                self.cut.plan(outlook, local_epochs)
            except InfeasibleError:
                return False
            return True

        if feasible(self.max_epochs):
            return self.max_epochs
        most, too_many = 1, self.max_epochs
        while too_many - most > 1:
            middle = (most + too_many) // 2
            if feasible(middle):
                most = middle
            else:
                too_many = middle
        return most


def _at_least_one(value: int, name: str) -> int:
    if value < 1:
        raise ConfigError(f"`{name}` is {value}; expected at least 1.")
    return value
