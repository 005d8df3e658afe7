"""What the machine's own sensors say, in SI: power, energy, clock, load, memory, temperature. Standard library only.

===========  ==========================================================================================
``reading``  a value of a rail, zone or device, or why it is unavailable
``nodes``    files of one number below ``/sys`` and ``/proc``
``jetson``   Jetsons: GPU, rails, memory, temperatures
``nvml``     NVIDIA GPUs, with the extra ``energy``
``rapl``     processors' energy counters
``zeus``     counters that zeus alone gives, with the extra ``energy``
``find``     which of them this machine has
``meter``    joules between two moments
===========  ==========================================================================================

What is in the joules, and what is not: docs/explanation/telemetry.md.
"""

from __future__ import annotations

from flwr_splitkd.telemetry.sensors.find import find_sensors
from flwr_splitkd.telemetry.sensors.jetson import JetsonSensors
from flwr_splitkd.telemetry.sensors.meter import Energy, EnergyMeter, Moment
from flwr_splitkd.telemetry.sensors.nvml import NvmlSensors
from flwr_splitkd.telemetry.sensors.rapl import RaplSensors
from flwr_splitkd.telemetry.sensors.reading import QUANTITIES, Reading, Sensors
from flwr_splitkd.telemetry.sensors.zeus import ZeusSensors

__all__ = [
    "QUANTITIES",
    "Energy",
    "EnergyMeter",
    "JetsonSensors",
    "Moment",
    "NvmlSensors",
    "RaplSensors",
    "Reading",
    "Sensors",
    "ZeusSensors",
    "find_sensors",
]
