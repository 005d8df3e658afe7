"""Which sensors this machine has."""

from __future__ import annotations

from pathlib import Path

from flwr_splitkd.telemetry.sensors.jetson import JetsonSensors
from flwr_splitkd.telemetry.sensors.nvml import NvmlSensors
from flwr_splitkd.telemetry.sensors.rapl import RaplSensors
from flwr_splitkd.telemetry.sensors.reading import Sensors
from flwr_splitkd.telemetry.sensors.zeus import ZeusSensors

__all__ = ["find_sensors"]


def find_sensors(root: Path = Path("/")) -> tuple[Sensors, ...]:
    """Return all sensors that the machine has, readable or not; none if it has none.

    Parameters
    ----------
    root
        ``/``, or where a recorded tree lies: that has what is below ``/sys`` and ``/proc``, and no libraries.
    """
    found: list[Sensors] = []
    is_jetson = JetsonSensors.present(root)
    if is_jetson:
        found.append(JetsonSensors(root))
    is_here = root == Path("/")
    nvml = NvmlSensors.find() if is_here else None
    if nvml is not None:
        found.append(nvml)
    processors = False
    if RaplSensors.present(root):
        rapl = RaplSensors(root)
        found.append(rapl)
        processors = any(reading.value is not None for reading in rapl.energy())
    if is_here and not is_jetson:
        zeus = ZeusSensors.find(processors=not processors, gpus=nvml is None)
        if zeus is not None:
            found.append(zeus)
    return tuple(found)
