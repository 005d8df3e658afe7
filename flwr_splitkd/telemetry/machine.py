"""What a machine tells about itself; what it does not tell stays unknown."""

from __future__ import annotations

import math
import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flwr_splitkd.errors import ConfigError

__all__ = ["Machine", "compute_device", "read_machine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine that models are measured on.

    Parameters
    ----------
    name
        Of its processor or its GPU.
    cores
        Threads that torch computes with, or multiprocessors of a GPU.
    min_frequency_hz, max_frequency_hz
        Range of its clock; None where it does not tell.
    memory_bytes
        Of the processor or the GPU, no more than the control group allows; None where it does not tell.
    """

    name: str
    cores: int
    min_frequency_hz: float | None = None
    max_frequency_hz: float | None = None
    memory_bytes: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises
        ------
        ConfigError
            If one is not a finite number of more than 0.
        """
        for name in ("cores", "min_frequency_hz", "max_frequency_hz", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"`{name}` of {self.name} is {value}; expected a finite number of more than 0.")

    def told(self, **values: float | None) -> Machine:
        """Return it with some of its fields as the user says; None leaves what it tells itself.

        Raises
        ------
        ConfigError
            If one is out of range.
        """
        return replace(self, **{name: value for name, value in values.items() if value is not None})  # type: ignore[arg-type]

    def known(self, name: str) -> float:
        """Return a field that somebody has to know.

        Raises
        ------
        ConfigError
            If nobody does.
        """
        value: float | None = getattr(self, name)
        if value is None:
            option = {"max_frequency_hz": "--frequency", "memory_bytes": "--memory"}.get(name, name)
            raise ConfigError(
                f"`{name}` of {self.name} is not known, since it does not tell; expected a number. Give it, to the command as "
                f"`{option}`."
            )
        return value


def compute_device(name: str) -> torch.device:
    """Read the name of a device of torch, and check that this machine has it.

    Raises
    ------
    ConfigError
        If it is none of ``"cpu"``, ``"cuda"`` and ``"cuda:<index>"``, or is not here.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"The compute device is {name!r}; expected 'cpu', 'cuda' or 'cuda:<index>'.") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ConfigError(
            f"The compute device is {name!r}, whose work cannot be timed here; expected 'cpu', 'cuda' or 'cuda:<index>'."
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index if device.index is not None else 0
    if not 0 <= index < found:
        raise ConfigError(
            f"The compute device is {name!r}, and torch {torch.__version__} finds {found} CUDA devices; expected an index below "
            "that. Choose 'cpu', or install a driver and a build of torch with CUDA."
        )
    return torch.device("cuda", index)


def read_machine(device: torch.device) -> Machine:
    """Read what is known of a processor or a GPU."""
    return _read_gpu(device) if device.type == "cuda" else _read_processor()


def _read_gpu(device: torch.device) -> Machine:
    found = torch.cuda.get_device_properties(device)
    clock_khz = getattr(found, "clock_rate", None)  # not in every version of torch
    return Machine(
        name=found.name,
        cores=found.multi_processor_count,
        max_frequency_hz=1e3 * clock_khz if clock_khz else None,
        memory_bytes=float(found.total_memory),
    )


def _read_processor() -> Machine:
    return Machine(
        name=_processor_name(),
        cores=torch.get_num_threads(),
        min_frequency_hz=_clock("cpuinfo_min_freq"),
        max_frequency_hz=_clock("cpuinfo_max_freq") or _current_clock(),
        memory_bytes=_memory(),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip(" \t\n\0")
    except OSError:
        return ""


def _cpuinfo(field: str) -> list[str]:
    """Values of one field of each processor; empty on other systems than Linux."""
    pairs = (line.partition(":") for line in _read("/proc/cpuinfo").splitlines())
    return [value.strip() for name, _, value in pairs if name.strip() == field]


def _processor_name() -> str:
    models = _cpuinfo("model name") or [_read("/proc/device-tree/model")]  # the latter on ARM boards, such as Jetson
    return models[0] or platform.processor() or platform.machine()


def _clock(file: str) -> float | None:
    kilohertz = _read(f"/sys/devices/system/cpu/cpu0/cpufreq/{file}")
    return 1e3 * float(kilohertz) if kilohertz.isdecimal() and int(kilohertz) else None


def _current_clock() -> float | None:
    """The fastest processor's clock at this moment, where the range is not told, as in many virtual machines."""
    try:
        return max((1e6 * float(value) for value in _cpuinfo("cpu MHz")), default=0.0) or None
    except ValueError:
        return None


def _memory() -> float | None:
    try:
        physical = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    allowed = _read("/sys/fs/cgroup/memory.max")
    return min(physical, float(allowed)) if allowed.isdecimal() else physical
