"""The clock of an NVIDIA GPU, through NVML: locked clocks, from Volta on, for which root is needed.

A lock belongs to the GPU, not to the process: it stays until somebody resets it, the driver is loaded anew or the machine
boots. NVML does not tell what is locked, so that a reset is to the GPU's default. NVML counts in MHz. See "Device Commands" of
https://docs.nvidia.com/deploy/nvml-api.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr_splitkd.errors import ClockError

__all__ = ["NvmlSetter"]

_MHZ = 1e6


class NvmlSetter:
    """Sets the clock of one GPU by NVML.

    Parameters
    ----------
    uuid
        As NVML has it: ``GPU-...``.

    Raises
    ------
    ClockError
        If NVML or the GPU is not there, the GPU is shared by MIG, or does not tell its clocks.
    """

    def __init__(self, uuid: str) -> None:
        self._nvml = _library()
        self.key = self.gpu = uuid
        with self._told("is not reached"):
            self._nvml.nvmlInit()
        try:
            with self._told("is not found"):
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid)
                self.gpu = f"{self._nvml.nvmlDeviceGetName(self._handle)} ({uuid})"
            self._refuse_shared()
            self.supported_hz: Sequence[float] = self._supported()
        except BaseException:
            self.close()
            raise

    @property
    def place(self) -> tuple[int, int, str, str]:
        """Among all GPUs that NVML finds: its index and how many there are; its name, and its address on the PCI bus."""
        with self._told("does not say where it is"):
            pci = self._nvml.nvmlDeviceGetPciInfo(self._handle)
            address = f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
            name = str(self._nvml.nvmlDeviceGetName(self._handle))
            return self._nvml.nvmlDeviceGetIndex(self._handle), self._nvml.nvmlDeviceGetCount(), name, address

    def limits(self) -> Mapping[str, int]:
        """Nothing: NVML does not tell what is locked."""
        return {}

    def lock(self, frequency_hz: float) -> None:
        """Lock the clock of the multiprocessors; `ClockError` if NVML does not."""
        mhz = round(frequency_hz / _MHZ)
        with self._told(f"is not locked at {mhz} MHz"):
            self._nvml.nvmlDeviceSetGpuLockedClocks(self._handle, mhz, mhz)

    def reset(self, limits: Mapping[str, int]) -> None:
        """Take away any lock; `ClockError` if NVML does not."""
        with self._told("is not reset"):
            self._nvml.nvmlDeviceResetGpuLockedClocks(self._handle)

    def read_hz(self) -> float | None:
        """The clock of the multiprocessors at this moment; None where NVML does not tell it."""
        try:
            return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)) * _MHZ
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        """Let go of NVML; a lock stays."""
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError:  # the driver is gone, and NVML with it
            return

    def _refuse_shared(self) -> None:
        nvml = self._nvml
        with self._told("does not say whether it is shared"):
            try:
                current, _ = nvml.nvmlDeviceGetMigMode(self._handle)
            except nvml.NVMLError as error:
                if error.value != nvml.NVML_ERROR_NOT_SUPPORTED:  # by GPUs that cannot be divided
                    raise
                return
        if current == nvml.NVML_DEVICE_MIG_ENABLE:
            raise ClockError(
                f"{self.gpu} is divided by MIG, and has one clock for all its instances; expected a GPU that the edge has for "
                "itself. Choose another one, or end MIG mode (`nvidia-smi -mig 0`)."
            )

    def _supported(self) -> tuple[float, ...]:
        """The clocks of the multiprocessors at the memory's largest, at which models compute."""
        with self._told("does not tell the clocks that it has"):
            memory = self._nvml.nvmlDeviceGetSupportedMemoryClocks(self._handle)
            found = self._nvml.nvmlDeviceGetSupportedGraphicsClocks(self._handle, max(memory)) if memory else []
        if not found:
            raise ClockError(f"{self.gpu} has {len(found)} clocks that it tells; expected at least one to be held at.")
        return tuple(sorted(mhz * _MHZ for mhz in found))

    @contextmanager
    def _told(self, outcome: str) -> Iterator[None]:
        """Say NVML's errors in our words, with what helps."""
        try:
            yield
        except self._nvml.NVMLError as error:
            raise ClockError(
                f"The clock of {self.gpu} {outcome}: NVML says {str(error)!r}. {_remedy(self._nvml, error)}"
            ) from error


def _library() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise ClockError(
            "nvidia-ml-py is not installed, by which the clock of an NVIDIA GPU is set; pip install 'flwr_splitkd[energy]'."
        ) from error


def _remedy(nvml: Any, error: Any) -> str:
    remedies = {
        nvml.NVML_ERROR_NO_PERMISSION: "Run the edge as root (a container with `--cap-add SYS_ADMIN`), or run zeusd on this "
        "machine and set ZEUSD_SOCK_PATH to its socket.",
        nvml.NVML_ERROR_NOT_SUPPORTED: "Clocks can be locked from Volta on, and not in a virtual machine that has a part of a GPU.",
        nvml.NVML_ERROR_NOT_FOUND: "Is it a MIG instance, or a part of a GPU? These have no clock of their own.",
        nvml.NVML_ERROR_GPU_IS_LOST: "The driver no longer reaches it; `nvidia-smi` says more. Reset it, or boot.",
        nvml.NVML_ERROR_RESET_REQUIRED: "It has to be reset before it can be used: `nvidia-smi --gpu-reset`.",
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND: "The driver is too old for locked clocks; install a newer one.",
        nvml.NVML_ERROR_LIBRARY_NOT_FOUND: "NVIDIA's driver is not installed, or is not visible in this container.",
        nvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA's driver is not loaded.",
    }
    return remedies.get(error.value, "`nvidia-smi -q -d CLOCK` may say more.")
