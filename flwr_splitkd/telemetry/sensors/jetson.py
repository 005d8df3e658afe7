"""A Jetson's GPU, power rails, memory and temperatures, from the nodes that its kernel has.

==============  =============================================================================  ========================
what            node                                                                           on the node
==============  =============================================================================  ========================
GPU frequency   ``/sys/class/devfreq/<gpu>/cur_freq``                                          Hz
GPU load        ``load`` of the devfreq node's device                                          permille
power           INA3221: ``in<n>_label``, ``in<n>_input``, ``curr<n>_input`` in its hwmon      name, mV, mA
power           INA238 and others with a power register: ``label``, ``power1_input``           name, microwatt
power           INA3221 of JetPack 4: ``rail_name_<n>``, ``in_power<n>_input`` in its iio      name, mW
memory          ``/proc/meminfo``                                                              KiB
temperatures    ``/sys/class/thermal/thermal_zone<n>/{type,temp}``                             name, thousandths of a °C
==============  =============================================================================  ========================

Sources: Linux, ``Documentation/hwmon/ina3221.rst``, ``ina238.rst`` and ``driver-api/thermal/sysfs-api.rst``; NVIDIA Jetson Linux
Developer Guide, "Platform Power and Performance", for the rails of each module; the device trees
``tegra234-p3701.dtsi`` and ``tegra234-p3767.dtsi``. On Thor (JetPack 7) the GPU's nodes are ``gpu-gpc-0`` and, of its video
engines, ``gpu-nvd-0``; they have no load, which NVML knows there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from flwr_splitkd.telemetry.sensors.nodes import Node, folders, measured
from flwr_splitkd.telemetry.sensors.reading import Reading

__all__ = ["JetsonSensors"]

_HWMON, _DEVFREQ, _THERMAL = "/sys/class/hwmon", "/sys/class/devfreq", "/sys/class/thermal"
_GPUS = r"[0-9a-f]+\.(?:gpu|gm20b|gp10b|gv11b|ga10b|gb10b)|gpu-(?:gpc|nvd)-\d+"
_VIDEO = "gpu-nvd-"
_NOT_CONNECTED = "NC"
"""What an input of the power monitor is called that measures nothing."""

_TOTALS = (
    ("VIN",),
    ("VDD_IN",),
    ("POM_5V_IN",),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that are all that a module takes: the first line of which all are there.

- ``VIN``: Thor's developer kit with its carrier board, by an INA238 at the input.
- ``VDD_IN``: Orin Nano, Orin NX, Xavier NX, TX2; ``POM_5V_IN``: Nano. All other rails are parts of these.
- AGX Thor without that INA238, and AGX Orin: the rails at the module's two inputs. AGX Orin's ``VDDQ_VDD2_1V8AO`` is a part of
  ``VIN_SYS_5V0`` (NVIDIA's developer guide says so of them).
- AGX Xavier: six rails, each with a shunt of its own between the module's inputs and its regulators (its product design guide,
  "Power Monitor").
"""

_OFFSET_MA = -80.0
"""What an INA3221 may say of a rail without current: up to 80 µV below zero (its data sheet's largest offset, two of its steps),
which are 80 mA over a shunt of 1 mOhm. Thor's ``VDD_GPU`` at rest is seen at -20 mA. Such a current is what it is in a sum."""

_COLDEST_MILLI_C, _HOTTEST_MILLI_C = -60e3, 200e3
"""Beyond these no silicon works: older kernels say -256 °C of a zone that is off."""


@dataclass(frozen=True, slots=True)
class _Rail:
    name: str
    nodes: tuple[Node, ...]
    to_w: float

    def power(self) -> Reading:
        return measured("power_w", self.name, *self.nodes, scale=self.to_w)


class JetsonSensors:
    """What a Jetson measures. Which nodes there are is looked up once.

    Parameters
    ----------
    root
        ``/``, or where a recorded tree lies.
    """

    name = "Jetson"

    def __init__(self, root: Path = Path("/")) -> None:
        self._gpus = list(_find_gpus(root))
        self._rails = list(_find_rails(root))
        self._zones = [
            (Node(root, f"{_THERMAL}/{zone}/type").text()[0] or zone, Node(root, f"{_THERMAL}/{zone}/temp"))
            for zone in folders(root, _THERMAL, r"thermal_zone\d+")
        ]
        self._memory = Node(root, "/proc/meminfo")
        rails = {rail.name: rail for rail in self._rails}
        names = next((total for total in _TOTALS if all(name in rails for name in total)), ())
        self._total = [rails[name] for name in names]

    @staticmethod
    def present(root: Path = Path("/")) -> bool:
        """Whether the machine is a Jetson, by its device tree or, where a container hides that, by its SoC's family."""
        compatible, _ = Node(root, "/proc/device-tree/compatible").text()
        model, _ = Node(root, "/proc/device-tree/model").text()
        family, _ = Node(root, "/sys/devices/soc0/family").text()
        is_tegra = any(name.startswith("nvidia,tegra") for name in compatible.split("\0"))
        return is_tegra or "Jetson" in model or family == "Tegra"

    def read(self) -> tuple[Reading, ...]:
        """Read GPU, rails, memory and temperatures."""
        readings = [measured("gpu_frequency_hz", name, frequency) for name, frequency, _ in self._gpus]
        readings += [_load(name, load) for name, _, load in self._gpus if load is not None]
        readings += [rail.power() for rail in self._rails]
        readings += _memory(self._memory)
        readings += [
            measured("temperature_c", name, node, scale=1e-3, low=_COLDEST_MILLI_C, high=_HOTTEST_MILLI_C)
            for name, node in self._zones
        ]
        return tuple(readings)

    def energy(self) -> tuple[Reading, ...]:
        """Read the power of the whole module: that of the rail that has all of it, or of rails that add up to it.

        It is one reading, so that none of its rails can be left out of the sum; its name has all of them. A rail at rest may be a
        little below zero, the whole may not.
        """
        if not self._total:
            found = ", ".join(rail.name for rail in self._rails) or "none"
            reason = (
                f"the rails are {found}; expected those of a known module, since others may be parts of each other."
            )
            return (Reading(quantity="power_w", name="module", source=_HWMON, value=None, reason=reason),)
        powers = [rail.power() for rail in self._total]
        whole = replace(powers[0], name=" + ".join(power.name for power in powers))
        missing = next((power for power in powers if power.value is None), None)
        if missing is not None:
            return (replace(whole, source=missing.source, value=None, reason=missing.reason),)
        watts = sum(power.value or 0.0 for power in powers)
        if watts < 0:
            return (replace(whole, value=None, reason=f"{whole.name} is {watts:g} W; expected at least 0."),)
        return (replace(whole, value=watts),)


def _find_gpus(root: Path) -> Iterator[tuple[str, Node, Node | None]]:
    """Names with the nodes of frequency and load; video engines have no load of their own."""
    for name in folders(root, _DEVFREQ, _GPUS):
        loads = [Node(root, f"{_DEVFREQ}/{name}/device/load")]
        loads += [Node(root, path) for path in ("/sys/devices/platform/gpu.0/load", "/sys/devices/gpu.0/load")]
        load = next((node for node in loads if os.path.exists(node.path)), loads[0])
        yield name, Node(root, f"{_DEVFREQ}/{name}/cur_freq"), None if name.startswith(_VIDEO) else load


def _load(name: str, node: Node) -> Reading:
    reading = measured("gpu_load", name, node, scale=1e-3, high=1000.0)
    if reading.value is None and not os.path.exists(node.path):
        remedy = "Where this GPU's driver has no such node, NVML may know its load: pip install 'flwr_splitkd[energy]'."
        return replace(reading, reason=f"{reading.reason} {remedy}")
    return reading


def _find_rails(root: Path) -> Iterator[_Rail]:
    for chip in folders(root, _HWMON, r"hwmon\d+"):
        folder = f"{_HWMON}/{chip}"
        kind, _ = Node(root, f"{folder}/name").text()
        if kind.startswith("ina3221"):
            yield from _channels(root, folder)
        elif kind.startswith("ina"):
            label, _ = Node(root, f"{folder}/label").text()
            yield _Rail(label or kind, (Node(root, f"{folder}/power1_input"),), 1e-6)
    drivers = "/sys/bus/i2c/drivers/ina3221x"  # JetPack 4
    for chip in folders(root, drivers, r"\d+-[0-9a-f]+"):
        for device in folders(root, f"{drivers}/{chip}", r"iio:device\d+"):
            folder = f"{drivers}/{chip}/{device}"
            for index in range(3):
                label, _ = Node(root, f"{folder}/rail_name_{index}").text()
                if label and label != _NOT_CONNECTED:
                    yield _Rail(label, (Node(root, f"{folder}/in_power{index}_input"),), 1e-3)


def _channels(root: Path, folder: str) -> Iterator[_Rail]:
    """Channels 1 to 3 of an INA3221; further labels are of sums of shunt voltages."""
    for index in (1, 2, 3):
        label, _ = Node(root, f"{folder}/in{index}_label").text()
        if label and label != _NOT_CONNECTED:
            current = Node(root, f"{folder}/curr{index}_input", low=_OFFSET_MA)
            yield _Rail(label, (current, Node(root, f"{folder}/in{index}_input")), 1e-6)


def _memory(node: Node) -> list[Reading]:
    """Memory that CPU and GPU share: all of it, and what is not available to new processes."""
    text, reason = node.text()
    kibibytes: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if name in ("MemTotal", "MemAvailable") and number and number[0].isdecimal():
            kibibytes[name] = float(number[0])
    total, available = kibibytes.get("MemTotal"), kibibytes.get("MemAvailable")
    used = None if total is None or available is None else total - available
    lacks = reason or f"{node.source} lacks MemTotal or MemAvailable; expected both, in kB."
    return [
        Reading(
            quantity=quantity,
            name="RAM",
            source=node.source,
            value=None if kib is None else 1024 * kib,
            reason=lacks if kib is None else "",
        )
        for quantity, kib in (("memory_used_bytes", used), ("memory_total_bytes", total))
    ]
