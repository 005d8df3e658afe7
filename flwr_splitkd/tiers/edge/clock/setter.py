"""Whoever sets the clock of a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from flwr_splitkd.errors import ClockError

__all__ = ["ClockSetter", "at_or_above"]

_ROUNDING = 1e-9
"""Relative; a clock that was worked out in floating point is the one that it was meant to be."""


class ClockSetter(Protocol):
    """Sets the clock of one GPU, for everybody who uses it; what it has set outlives the process.

    Each method raises a `ClockError` that says why it cannot be done, and what helps.
    """

    @property
    def key(self) -> str:
        """What tells the GPU from every other one, in every process; fit for a file's name."""

    @property
    def gpu(self) -> str:
        """The GPU, for people."""

    @property
    def supported_hz(self) -> Sequence[float]:
        """The clocks that it has, at least one."""

    def limits(self) -> Mapping[str, int]:
        """What a process has to know to put back what is set now; empty where that cannot be read."""

    def lock(self, frequency_hz: float) -> None:
        """Hold the GPU at one of its clocks, as far as its temperature and power allow."""

    def reset(self, limits: Mapping[str, int]) -> None:
        """Put back what `limits` told, or let the GPU choose its clock by itself where it told nothing."""

    def read_hz(self) -> float | None:
        """The clock at this moment; None where it cannot be read."""

    def close(self) -> None:
        """Let go of the library; what is set stays so."""


def at_or_above(wanted_hz: float, supported_hz: Sequence[float]) -> float:
    """The least clock that a GPU has and that is no slower than what is wanted; its largest if all are slower.

    A plan that meets its bound at the clock that is wanted meets it at this one too.

    Raises
    ------
    ClockError
        If the GPU has none, or no number of more than 0 is wanted.
    """
    if not wanted_hz > 0:
        raise ClockError(f"A clock of {wanted_hz:g} Hz is wanted; expected more than 0.")
    if not supported_hz:
        raise ClockError("The GPU tells no clock that it can be held at; expected at least one.")
    fast_enough = [hz for hz in supported_hz if hz >= wanted_hz * (1 - _ROUNDING)]
    return min(fast_enough) if fast_enough else max(supported_hz)
