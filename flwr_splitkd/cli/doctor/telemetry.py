"""What the machine's own sensors say, and what they do not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flwr_splitkd.cli.doctor.finding import Finding, ok, skipped, warning

if TYPE_CHECKING:
    from flwr_splitkd.telemetry.sensors import Reading, Sensors

__all__ = ["check_telemetry"]

_ENERGY = ("power_w", "energy_j")
_MODELLED = "Runs go well without; their joules are then those of the cost model alone."


def check_telemetry(sensors: Sequence[Sensors]) -> Iterator[Finding]:
    """Read every sensor once.

    Parameters
    ----------
    sensors
        Of this machine, as ``telemetry.sensors.find_sensors`` returns them.
    """
    readings = [(one.name, reading) for one in sensors for reading in one.read()]
    if not readings:
        yield warning(
            "telemetry",
            "none: this machine has no sensor that is known",
            expected="power or energy, of the board (Jetson), the GPU (NVML) or the processor (RAPL)",
            remedy=f"With an NVIDIA GPU pip install 'flwr_splitkd[energy]'; in a container let it see the host's /sys. {_MODELLED}",
        )
        return
    yield from (_finding(source, reading) for source, reading in readings)
    energy = [reading for _, reading in readings if reading.quantity in _ENERGY]
    if not any(reading.value is not None for reading in energy):
        why = "; ".join(dict.fromkeys(reading.reason for reading in energy)) or "no sensor of it"
        yield warning(
            "measured energy",
            f"unavailable: {why}",
            expected="power or energy of something",
            remedy=f"See to the reason, if you need measured joules. {_MODELLED}",
        )


def _finding(source: str, reading: Reading) -> Finding:
    name = f"{source} {reading.name} {reading.quantity}"
    if reading.value is None:
        return skipped(name, f"unavailable: {reading.reason}")
    return ok(name, f"{reading.value:.6g}")
