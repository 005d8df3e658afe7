"""Trees of what Jetsons have below ``/sys`` and ``/proc``, made from what is documented of them. The values are made up.

- AGX Orin, Orin Nano: device trees ``tegra234-p3701.dtsi`` and ``tegra234-p3767.dtsi`` of Linux (inputs and labels of the power
  monitors); NVIDIA Jetson Linux Developer Guide r36, "Jetson Orin Nano Series, Jetson Orin NX Series and Jetson AGX Orin Series":
  "Software-Based Power Consumption Modeling" and "Thermal Zones".
- Xavier NX, AGX Xavier: the guide r35, "Jetson Xavier NX Series and Jetson AGX Xavier Series"; AGX Xavier's rails also in its
  Product Design Guide DG-09840, "Power Monitor".
- Thor: names of rails, zones and devfreq nodes as ``tegrastats`` and users of JetPack 7 show them; an INA238 at the developer kit's
  input as NVIDIA's forum describes it (topic 366461), with the nodes of Linux's ``ina238.rst``.
- Nano: L4T r32's guide, "Power Management for Jetson Nano Devices": the INA3221 as an iio device.

A tree has files where the kernel has links; the paths that are read are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MODULES", "Module", "make_tree", "write"]

MEMINFO = "MemTotal:       {total} kB\nMemFree:         1000000 kB\nMemAvailable:   {available} kB\nBuffers:           100 kB\n"


@dataclass(frozen=True)
class Module:
    """A module, in short.

    Attributes
    ----------
    model, compatible
        Of its device tree.
    gpu
        Name of the devfreq node, Hz, and permille of load; None where the driver has no such node.
    monitors
        Of each INA3221, the inputs: label, mV and mA.
    input_uw
        Of an INA238 at the board's input, microwatts.
    zones
        Thousandths of a °C by thermal zone.
    kib
        Memory in all, and available.
    files
        Further files.
    """

    model: str
    compatible: str
    gpu: tuple[str, int, int | None]
    monitors: tuple[tuple[tuple[str, int, int], ...], ...] = ()
    input_uw: int | None = None
    zones: Mapping[str, int] = field(default_factory=dict)
    kib: tuple[int, int] = (8_000_000, 5_000_000)
    files: Mapping[str, str] = field(default_factory=dict)


MODULES = {
    "agx-orin": Module(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        compatible="nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
        gpu=("17000000.gpu", 1_300_500_000, 873),
        monitors=(
            (("VDD_GPU_SOC", 15000, 800), ("VDD_CPU_CV", 15000, 400), ("VIN_SYS_5V0", 5000, 1000)),
            (("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 300), ("NC", 0, 0)),
        ),
        zones={"cpu-thermal": 48_500, "gpu-thermal": 46_031, "tj-thermal": 48_500},
        kib=(64_000_000, 40_000_000),
    ),
    "orin-nano": Module(
        model="NVIDIA Orin Nano Developer Kit",
        compatible="nvidia,p3768-0000+p3767-0003\0nvidia,p3767-0003\0nvidia,tegra234\0",
        gpu=("17000000.ga10b", 624_750_000, 0),
        monitors=((("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 280)),),
        zones={"cpu-thermal": 50_000},
    ),
    "xavier-nx": Module(
        model="NVIDIA Jetson Xavier NX Developer Kit",
        compatible="nvidia,p3449-0000+p3668-0000\0nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0",
        gpu=("17000000.gv11b", 1_109_250_000, 990),
        monitors=((("VDD_IN", 4900, 2000), ("VDD_CPU_GPU_CV", 4900, 1000), ("VDD_SOC", 4900, 300)),),
        zones={"AO-therm": 40_500, "GPU-therm": 42_000},
    ),
    "agx-xavier": Module(
        model="Jetson-AGX",
        compatible="nvidia,p2972-0000\0nvidia,tegra194\0",
        gpu=("17000000.gv11b", 318_750_000, 12),
        monitors=(
            (("GPU", 19000, 100), ("CPU", 19000, 50), ("SOC", 19000, 100)),
            (("CV", 19000, 0), ("VDDRQ", 19000, 20), ("SYS5V", 5000, 500)),
        ),
        zones={"CPU-therm": 35_500},
    ),
    "thor": Module(
        model="NVIDIA Jetson AGX Thor Developer Kit",
        compatible="nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
        gpu=("gpu-gpc-0", 1_575_000_000, None),
        monitors=((("VDD_GPU", 20000, 1500), ("VDD_CPU_SOC_MSS", 20000, 600), ("VIN_SYS_5V0", 5000, 1300)),),
        input_uw=62_750_000,
        zones={"cpu-thermal": 53_700, "gpu-thermal": 55_062, "tj-thermal": 55_100},
        kib=(128_000_000, 100_000_000),
        files={"sys/class/devfreq/gpu-nvd-0/cur_freq": "1377000000"},
    ),
    "nano": Module(
        model="NVIDIA Jetson Nano Developer Kit",
        compatible="nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210\0",
        gpu=("57000000.gpu", 921_600_000, 500),
        zones={"GPU-therm": 31_000},
        files={
            f"sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/{name}": text
            for name, text in {
                **{"rail_name_0": "POM_5V_IN", "in_power0_input": "3900"},
                **{"rail_name_1": "POM_5V_GPU", "in_power1_input": "900"},
                **{"rail_name_2": "POM_5V_CPU", "in_power2_input": "1100"},
            }.items()
        },
    ),
}


def write(root: Path, path: str, text: str) -> Path:
    """Write a file of a tree, as the kernel ends it."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text if text.endswith("\0") else f"{text}\n", encoding="utf-8")
    return file


def make_tree(root: Path, name: str) -> Path:
    """Write the tree of one of `MODULES`, and return its root."""
    module = MODULES[name]
    gpu, frequency_hz, load = module.gpu
    files = {
        "proc/device-tree/model": f"{module.model}\0",
        "proc/device-tree/compatible": module.compatible,
        "proc/meminfo": MEMINFO.format(total=module.kib[0], available=module.kib[1]).rstrip("\n"),
        f"sys/class/devfreq/{gpu}/cur_freq": f"{frequency_hz}",
        **module.files,
    }
    if load is not None:
        files[f"sys/class/devfreq/{gpu}/device/load"] = f"{load}"
    files["sys/class/hwmon/hwmon0/name"] = "tmp451"  # there are other chips too
    files["sys/class/hwmon/hwmon0/temp1_input"] = "41000"
    for number, inputs in enumerate(module.monitors, start=1):
        chip = f"sys/class/hwmon/hwmon{number}"
        files |= {f"{chip}/name": "ina3221", f"{chip}/in7_label": "sum of shunt voltages", f"{chip}/in7_input": "20"}
        for channel, (label, millivolts, milliamperes) in enumerate(inputs, start=1):
            files[f"{chip}/in{channel}_label"] = label
            files[f"{chip}/in{channel}_input"] = f"{millivolts}"
            files[f"{chip}/curr{channel}_input"] = f"{milliamperes}"
    if module.input_uw is not None:
        chip = "sys/class/hwmon/hwmon10"
        files |= {f"{chip}/name": "ina238", f"{chip}/label": "VIN", f"{chip}/power1_input": f"{module.input_uw}"}
    for number, (zone, millidegrees) in enumerate(module.zones.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = zone
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = f"{millidegrees}"
    for path, text in files.items():
        write(root, path, text)
    return root
