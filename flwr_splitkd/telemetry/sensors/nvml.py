"""NVIDIA GPUs, through NVML and NVIDIA's own binding of it (``nvidia-ml-py``, of the extra ``energy``).

All GPUs that NVML shows are read, whichever of them this process uses: ``CUDA_VISIBLE_DEVICES`` has no say, a container's
``--gpus`` has. Volta and newer have a counter of energy; of older ones there is the power alone.
Source: NVML API Reference Guide, "Device Queries".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from flwr_splitkd.telemetry.sensors.reading import Reading

__all__ = ["NvmlSensors"]

_SOURCE = "NVML"


@dataclass(frozen=True, slots=True)
class _Gpu:
    name: str
    handle: Any
    counts: bool


class NvmlSensors:
    """What NVML knows of this machine's GPUs. May be read by several threads.

    Parameters
    ----------
    library
        The module `pynvml`; imported when not given.

    Raises
    ------
    ImportError
        If ``nvidia-ml-py`` is not installed.
    """

    name = "NVML"

    def __init__(self, library: Any = None) -> None:
        if library is None:
            library = import_module("pynvml")
        self._library: Any = library
        self._gpus: list[_Gpu] = []
        self._reason = ""
        try:
            library.nvmlInit()
            handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
            self._gpus = [self._gpu(index, handle) for index, handle in enumerate(handles)]
        except library.NVMLError as error:
            self._reason = f"NVML does not start: {error}. Run `nvidia-smi`, which says more."
            missing = (library.NVML_ERROR_LIBRARY_NOT_FOUND, library.NVML_ERROR_DRIVER_NOT_LOADED)
            self._absent = getattr(error, "value", None) in missing
        else:
            self._absent = not self._gpus

    @classmethod
    def find(cls, library: Any = None) -> NvmlSensors | None:
        """Return the sensors; None without the binding, the driver or a GPU."""
        try:
            sensors = cls(library)
        except ImportError:
            return None
        return None if sensors._absent else sensors

    def read(self) -> tuple[Reading, ...]:
        """Read each GPU's clock, load, power, energy, memory and temperature."""
        if self._reason:
            return (self._unavailable("power_w", "NVML", self._reason),)
        return tuple(reading for gpu in self._gpus for reading in self._read(gpu))

    def energy(self) -> tuple[Reading, ...]:
        """Read each GPU's counter of energy, or its power where it has none."""
        if self._reason:
            return (self._unavailable("power_w", "NVML", self._reason),)
        return tuple(self._counter(gpu) if gpu.counts else self._power(gpu) for gpu in self._gpus)

    def _gpu(self, index: int, handle: Any) -> _Gpu:
        name = self._library.nvmlDeviceGetName(handle)
        gpu = _Gpu(f"{name} {index}", handle, counts=True)
        return _Gpu(gpu.name, handle, counts=self._counter(gpu).value is not None)

    def _read(self, gpu: _Gpu) -> tuple[Reading, ...]:
        library, handle = self._library, gpu.handle
        return (
            self._ask(
                "gpu_frequency_hz",
                gpu,
                lambda: library.nvmlDeviceGetClockInfo(handle, library.NVML_CLOCK_GRAPHICS),
                1e6,
            ),
            self._ask("gpu_load", gpu, lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu, 1e-2),
            self._power(gpu),
            self._counter(gpu),
            self._ask("memory_used_bytes", gpu, lambda: library.nvmlDeviceGetMemoryInfo(handle).used, 1.0),
            self._ask("memory_total_bytes", gpu, lambda: library.nvmlDeviceGetMemoryInfo(handle).total, 1.0),
            self._ask(
                "temperature_c",
                gpu,
                lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU),
                1.0,
            ),
        )

    def _power(self, gpu: _Gpu) -> Reading:
        return self._ask("power_w", gpu, lambda: self._library.nvmlDeviceGetPowerUsage(gpu.handle), 1e-3)

    def _counter(self, gpu: _Gpu) -> Reading:
        return self._ask("energy_j", gpu, lambda: self._library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle), 1e-3)

    def _ask(self, quantity: str, gpu: _Gpu, question: Callable[[], Any], scale: float) -> Reading:
        try:
            value = float(question()) * scale
        except self._library.NVMLError as error:
            return self._unavailable(quantity, gpu.name, f"NVML: {error}.{self._remedy(error)}")
        if not (math.isfinite(value) and (value >= 0 or quantity == "temperature_c")):
            return self._unavailable(quantity, gpu.name, f"NVML says {value:g}; expected at least 0.")
        return Reading(quantity=quantity, name=gpu.name, source=_SOURCE, value=value)

    def _remedy(self, error: Any) -> str:
        value, library = getattr(error, "value", None), self._library
        if value == library.NVML_ERROR_NOT_SUPPORTED:
            return " This GPU does not tell it, or not with its driver or in this mode (MIG, vGPU)."
        if value == library.NVML_ERROR_NO_PERMISSION:
            return " Run as root, or ask for the permission."
        return ""

    @staticmethod
    def _unavailable(quantity: str, name: str, reason: str) -> Reading:
        return Reading(quantity=quantity, name=name, source=_SOURCE, value=None, reason=reason)
