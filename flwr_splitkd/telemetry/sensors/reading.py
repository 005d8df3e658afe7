"""What a sensor says: a number in SI, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["QUANTITIES", "Reading", "Sensors"]

QUANTITIES = (
    "gpu_frequency_hz",
    "gpu_load",
    "power_w",
    "energy_j",
    "memory_used_bytes",
    "memory_total_bytes",
    "temperature_c",
)
"""What is read. `gpu_load` is a share, 0 to 1; `energy_j` is a counter from some moment on, of which differences count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One value of one rail, zone or device.

    Parameters
    ----------
    quantity
        One of `QUANTITIES`, whose name has its unit.
    name
        Which rail, zone or device, such as ``"VDD_IN"``, ``"gpu-thermal"``, ``"NVIDIA H200 0"`` or ``"package-0"``.
    source
        Where it is from: a path below ``/sys`` or ``/proc``, ``"NVML"`` or ``"zeus"``. Of power that is a product, the current's.
    value
        None if it is unavailable; never a number in its place.
    reason
        Why it is unavailable, with the remedy where there is one; empty otherwise.
    """

    quantity: str
    name: str
    source: str
    value: float | None
    reason: str = ""


class Sensors(Protocol):
    """Sensors of one kind. Nothing of them raises for what a machine does not tell: that is a `Reading` with a reason."""

    name: str

    def read(self) -> tuple[Reading, ...]:
        """Read everything, in a fixed order."""

    def energy(self) -> tuple[Reading, ...]:
        """Read power or energy counters of parts of the machine that do not overlap: no joule is in two of them."""
