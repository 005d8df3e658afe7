"""What NVML says of GPUs. There is no GPU here: a stand-in has its functions, and a test compares them with the real ones."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from flwr_splitkd.telemetry.sensors import EnergyMeter, NvmlSensors

NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, LIBRARY_NOT_FOUND, MISMATCH = 3, 4, 9, 12, 18


class NVMLError(Exception):
    def __init__(self, value: int, text: str = "Not Supported") -> None:
        super().__init__(text)
        self.value = value


class Library:
    """NVML with two GPUs; what is asked of it is noted, and `broken` says which functions fail with what."""

    NVMLError = NVMLError
    NVML_ERROR_NOT_SUPPORTED = NOT_SUPPORTED
    NVML_ERROR_NO_PERMISSION = NO_PERMISSION
    NVML_ERROR_DRIVER_NOT_LOADED = NOT_LOADED
    NVML_ERROR_LIBRARY_NOT_FOUND = LIBRARY_NOT_FOUND
    NVML_CLOCK_GRAPHICS = 0
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, names: tuple[str, ...] = ("NVIDIA H200", "Tesla P100"), **broken: int) -> None:
        self.names, self.broken = names, broken
        self.millijoules = {0: 5_000_000, 1: 7_000_000}
        self.asked: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        def answer(*arguments: Any) -> Any:
            self.asked.add(name)
            if name in self.broken:
                raise NVMLError(self.broken[name])
            return self.say(name, *arguments)

        if not name.startswith("nvml"):
            raise AttributeError(name)
        return answer

    def say(self, name: str, gpu: int = 0, *_more: Any) -> Any:
        if name == "nvmlDeviceGetTotalEnergyConsumption" and "P100" in self.names[gpu]:
            raise NVMLError(NOT_SUPPORTED)
        return {
            "nvmlInit": None,
            "nvmlDeviceGetCount": len(self.names),
            "nvmlDeviceGetHandleByIndex": gpu,
            "nvmlDeviceGetName": self.names[gpu] if self.names else "",
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=40),
            "nvmlDeviceGetPowerUsage": 250_500,
            "nvmlDeviceGetTotalEnergyConsumption": self.millijoules[gpu],
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=150 << 30, used=3 << 30, free=147 << 30),
            "nvmlDeviceGetTemperature": 41,
        }[name]


def test_values_and_units() -> None:
    readings = {(one.name, one.quantity): one.value for one in NvmlSensors(Library()).read()}
    assert {quantity: value for (name, quantity), value in readings.items() if name == "NVIDIA H200 0"} == {
        "gpu_frequency_hz": 1.98e9,
        "gpu_load": pytest.approx(0.97),
        "power_w": pytest.approx(250.5),
        "energy_j": pytest.approx(5000.0),
        "memory_used_bytes": 3 << 30,
        "memory_total_bytes": 150 << 30,
        "temperature_c": 41.0,
    }
    assert readings["Tesla P100 1", "energy_j"] is None
    assert readings["Tesla P100 1", "power_w"] == pytest.approx(250.5)


def test_counters_where_there_are_some_and_power_elsewhere() -> None:
    sensors = NvmlSensors(Library())
    assert [(one.name, one.quantity, one.source) for one in sensors.energy()] == [
        ("NVIDIA H200 0", "energy_j", "NVML"),
        ("Tesla P100 1", "power_w", "NVML"),
    ]


def test_a_counters_difference_is_what_is_measured() -> None:
    library = Library(names=("NVIDIA H200",))
    with EnergyMeter([NvmlSensors(library)]) as meter:
        began = meter.begin()
        library.millijoules[0] += 1234
        assert meter.joules(began).joules == pytest.approx(1.234)
        assert meter.parts == ("NVIDIA H200 0",)


def test_what_a_gpu_does_not_tell_has_a_reason() -> None:
    broken = {"nvmlDeviceGetUtilizationRates": NOT_SUPPORTED, "nvmlDeviceGetPowerUsage": NO_PERMISSION}
    readings = {one.quantity: one for one in NvmlSensors(Library(("NVIDIA H200",), **broken)).read()}
    assert readings["gpu_load"].value is None and "This GPU does not tell it" in readings["gpu_load"].reason
    assert readings["power_w"].value is None and "Run as root" in readings["power_w"].reason
    assert readings["temperature_c"].value == 41.0


def test_values_that_cannot_be() -> None:
    library = Library(("NVIDIA H200",))
    library.say = lambda name, *arguments: -1 if "Usage" in name else Library.say(library, name, *arguments)  # type: ignore[method-assign]
    readings = {one.quantity: one for one in NvmlSensors(library).read()}
    assert readings["power_w"].value is None and "NVML says -0.001; expected at least 0" in readings["power_w"].reason


@pytest.mark.parametrize("error", [NOT_LOADED, LIBRARY_NOT_FOUND])
def test_a_machine_without_a_driver_has_none(error: int) -> None:
    assert NvmlSensors.find(Library(nvmlInit=error)) is None


def test_a_machine_without_a_gpu_has_none() -> None:
    assert NvmlSensors.find(Library(names=())) is None


def test_a_driver_that_does_not_start_says_so() -> None:
    sensors = NvmlSensors.find(Library(nvmlInit=MISMATCH))
    assert sensors is not None
    for readings in (sensors.read(), sensors.energy()):
        (reading,) = readings
        assert reading.value is None and "NVML does not start" in reading.reason and "nvidia-smi" in reading.reason


def test_without_the_binding_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlSensors.find() is None


def test_the_real_binding_has_what_is_asked_of_it() -> None:
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    library = Library()
    sensors = NvmlSensors(library)
    sensors.read()
    names = library.asked | {name for name in vars(Library) if name.startswith("NVML")}
    assert len(names) > 15
    assert [name for name in sorted(names) if not hasattr(pynvml, name)] == []
