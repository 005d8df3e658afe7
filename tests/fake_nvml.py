"""A machine with GPUs, as nvidia-ml-py shows it: a stand-in for the module ``pynvml``, for machines without GPUs.

What is set lives in a file, as it would live in the driver: it outlives the process, and other processes see it. Where NVML's
documentation says something it is so here: errors carry a code, `nvmlInit` counts, whoever is not root may read and not set, a
lock stays until it is reset. ``monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)``, with the file's path in `STATE`::

    machine = Machine(tmp_path / "gpus.json")
    monkeypatch.setenv(STATE, str(machine.path))
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STATE = "FAKE_NVML_STATE"

NVML_ERROR_UNINITIALIZED = 1
NVML_ERROR_INVALID_ARGUMENT = 2
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_ALREADY_INITIALIZED = 5
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_INSUFFICIENT_SIZE = 7
NVML_ERROR_INSUFFICIENT_POWER = 8
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_TIMEOUT = 10
NVML_ERROR_IRQ_ISSUE = 11
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_FUNCTION_NOT_FOUND = 13
NVML_ERROR_CORRUPTED_INFOROM = 14
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_RESET_REQUIRED = 16
NVML_ERROR_OPERATING_SYSTEM = 17
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
NVML_ERROR_MEMORY = 20
NVML_ERROR_UNKNOWN = 999

NVML_CLOCK_GRAPHICS = 0
NVML_CLOCK_SM = 1
NVML_DEVICE_MIG_DISABLE = 0
NVML_DEVICE_MIG_ENABLE = 1

_WORDS = {
    NVML_ERROR_UNINITIALIZED: "Uninitialized",
    NVML_ERROR_INVALID_ARGUMENT: "Invalid Argument",
    NVML_ERROR_NOT_SUPPORTED: "Not Supported",
    NVML_ERROR_NO_PERMISSION: "Insufficient Permissions",
    NVML_ERROR_NOT_FOUND: "Not Found",
    NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    NVML_ERROR_GPU_IS_LOST: "GPU is lost",
}

# A part of what an H100 has: its real steps are 15 MHz too.
GPU: dict[str, Any] = {
    "uuid": "GPU-00000000-1111-2222-3333-444444444444",
    "name": "NVIDIA H100 80GB HBM3",
    "pci": [0, 0x3B, 0],
    "memory_mhz": [2619, 1593],
    "graphics_mhz": {"2619": list(range(1980, 195, -15)), "1593": [600, 345]},
    "boost_mhz": 1980,
    "mig": NVML_DEVICE_MIG_DISABLE,
    "locked_mhz": None,
    "fails": None,
}


class NVMLError(Exception):
    """As in the original, with the code of NVML's answer."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return _WORDS.get(self.value, f"NVML Error with code {self.value}")


class Machine:
    """The machine, from outside: what is in the file, and what a driver or a person would change.

    Parameters
    ----------
    path
        The file; made when missing.
    gpus
        Differences to `GPU`, one each.
    """

    def __init__(self, path: Path, *gpus: dict[str, Any]) -> None:
        self.path = path
        if not path.exists():
            made = [{**GPU, **gpu} for gpu in gpus or ({},)]
            path.write_text(json.dumps({"root": True, "driver": True, "gpus": made, "calls": []}))

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """Look at the state, and change it."""
        with self.path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            state = json.load(file)
            yield state
            file.seek(0)
            file.truncate()
            json.dump(state, file)

    def set(self, **values: Any) -> None:
        """Change the first GPU, or, for ``root`` and ``driver``, the machine."""
        with self.state() as state:
            for name, value in values.items():
                (state if name in ("root", "driver") else state["gpus"][0])[name] = value

    @property
    def locked_mhz(self) -> list[int] | None:
        """What the first GPU is locked to."""
        with self.state() as state:
            found: list[int] | None = state["gpus"][0]["locked_mhz"]
        return found

    @property
    def locks(self) -> list[int | None]:
        """What GPUs were locked to, in order; None is a reset."""
        with self.state() as state:
            return [call["mhz"] for call in state["calls"]]


_inits = 0


def _machine() -> Machine:
    return Machine(Path(os.environ[STATE]))


@contextmanager
def _gpu(handle: int, *, root: bool = False) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The state and a GPU in it, for a function that may be only root's."""
    if not _inits:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    with _machine().state() as state:
        gpu = state["gpus"][handle]
        # Either a code, or the functions that fail with one.
        fails = gpu["fails"] if isinstance(gpu["fails"], int) else None
        if fails is not None:
            raise NVMLError(fails)
        if root and not state["root"]:
            raise NVMLError(NVML_ERROR_NO_PERMISSION)
        yield state, gpu


def _fail_if(gpu: dict[str, Any], function: str) -> None:
    if isinstance(gpu["fails"], dict) and function in gpu["fails"]:
        raise NVMLError(gpu["fails"][function])


def nvmlInit() -> None:
    global _inits
    with _machine().state() as state:
        if not state["driver"]:
            raise NVMLError(NVML_ERROR_DRIVER_NOT_LOADED)
    _inits += 1


def nvmlShutdown() -> None:
    global _inits
    if not _inits:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    _inits -= 1


def nvmlDeviceGetCount() -> int:
    if not _inits:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    with _machine().state() as state:
        return len(state["gpus"])


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    if not _inits:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    with _machine().state() as state:
        for handle, gpu in enumerate(state["gpus"]):
            if gpu["uuid"] == uuid:
                return handle
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetIndex(handle: int) -> int:
    with _gpu(handle):
        return handle


def nvmlDeviceGetName(handle: int) -> str:
    with _gpu(handle) as (_, gpu):
        return str(gpu["name"])


def nvmlDeviceGetPciInfo(handle: int) -> SimpleNamespace:
    with _gpu(handle) as (_, gpu):
        domain, bus, device = gpu["pci"]
        return SimpleNamespace(domain=domain, bus=bus, device=device, busId=f"{domain:08X}:{bus:02X}:{device:02X}.0")


def nvmlDeviceGetMigMode(handle: int) -> list[int]:
    with _gpu(handle) as (_, gpu):
        if gpu["mig"] is None:
            raise NVMLError(NVML_ERROR_NOT_SUPPORTED)
        return [gpu["mig"], gpu["mig"]]


def nvmlDeviceGetSupportedMemoryClocks(handle: int) -> list[int]:
    with _gpu(handle) as (_, gpu):
        _fail_if(gpu, "nvmlDeviceGetSupportedMemoryClocks")
        return list(gpu["memory_mhz"])


def nvmlDeviceGetSupportedGraphicsClocks(handle: int, memoryClockMHz: int) -> list[int]:
    with _gpu(handle) as (_, gpu):
        if str(memoryClockMHz) not in gpu["graphics_mhz"]:
            raise NVMLError(NVML_ERROR_NOT_FOUND)
        return list(gpu["graphics_mhz"][str(memoryClockMHz)])


def nvmlDeviceGetClockInfo(handle: int, type: int) -> int:
    with _gpu(handle) as (_, gpu):
        _fail_if(gpu, "nvmlDeviceGetClockInfo")
        return int(gpu["locked_mhz"][1] if gpu["locked_mhz"] else gpu["boost_mhz"])


def nvmlDeviceSetGpuLockedClocks(handle: int, minGpuClockMHz: int, maxGpuClockMHz: int) -> None:
    with _gpu(handle, root=True) as (state, gpu):
        _fail_if(gpu, "nvmlDeviceSetGpuLockedClocks")
        if not 0 < minGpuClockMHz <= maxGpuClockMHz:
            raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)
        gpu["locked_mhz"] = [minGpuClockMHz, maxGpuClockMHz]
        state["calls"].append({"pid": os.getpid(), "mhz": maxGpuClockMHz})


def nvmlDeviceResetGpuLockedClocks(handle: int) -> None:
    with _gpu(handle, root=True) as (state, gpu):
        _fail_if(gpu, "nvmlDeviceResetGpuLockedClocks")
        gpu["locked_mhz"] = None
        state["calls"].append({"pid": os.getpid(), "mhz": None})
