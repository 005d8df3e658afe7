"""The clock of an NVIDIA GPU for who is not root: set by Zeus's daemon, read by NVML, which anybody may ask.

The daemon runs as root on the edge and listens on a socket, named by the environment variable ``ZEUSD_SOCK_PATH`` (or at an
address, ``ZEUSD_HOST_PORT``). See https://ml.energy/zeus/zeusd.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr_splitkd.errors import ClockError
from flwr_splitkd.tiers.edge.clock.nvml import NvmlSetter

__all__ = ["ZeusdSetter", "zeusd_is_named"]

_VARIABLES = ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT")
_MHZ = 1e6


def zeusd_is_named() -> bool:
    """Whether the environment names a daemon."""
    return any(os.environ.get(name) for name in _VARIABLES)


class ZeusdSetter:
    """Sets the clock of one GPU by the daemon that the environment names.

    Parameters
    ----------
    reader
        Reads it; closed with this.

    Raises
    ------
    ClockError
        If the daemon is not reached, may not set clocks, or does not say which of its GPUs this one is.
    """

    def __init__(self, reader: NvmlSetter) -> None:
        self._reader = reader
        self.key, self.gpu = reader.key, reader.gpu
        self.supported_hz: Sequence[float] = reader.supported_hz
        try:
            library, self._errors = _library()
            with self._told("is not reached"):
                self._client = library.ZeusdClient()
                library.require_capabilities(self._client, control_gpu=True)
            self._gpu_id = self._own_id()
        except BaseException:
            reader.close()
            raise

    def limits(self) -> Mapping[str, int]:
        """Nothing: what is locked cannot be read."""
        return self._reader.limits()

    def lock(self, frequency_hz: float) -> None:
        """Have the clock locked; `ClockError` if the daemon does not."""
        mhz = round(frequency_hz / _MHZ)
        with self._told(f"is not locked at {mhz} MHz"):
            self._client.set_gpu_locked_clocks([self._gpu_id], mhz, mhz)

    def reset(self, limits: Mapping[str, int]) -> None:
        """Have any lock taken away; `ClockError` if the daemon does not."""
        with self._told("is not reset"):
            self._client.reset_gpu_locked_clocks([self._gpu_id])

    def read_hz(self) -> float | None:
        """The clock at this moment, by NVML."""
        return self._reader.read_hz()

    def close(self) -> None:
        """Let go of NVML; a lock stays."""
        self._reader.close()

    def _own_id(self) -> int:
        """By the address on the PCI bus, where the daemon tells it; else by the order, if both see the same GPUs."""
        index, count, name, address = self._reader.place
        known: Sequence[Any] = getattr(self._client, "gpus", ())
        for gpu in known:
            if getattr(gpu, "pci_address", "").lower() == address:
                return int(gpu.id)
        tells_addresses = any(hasattr(gpu, "pci_address") for gpu in known)
        in_order = {int(gpu.id): str(gpu.name) for gpu in known}
        if not tells_addresses and len(known) == count and in_order.get(index) == name:
            return index
        raise ClockError(
            f"zeusd knows {len(known)} GPUs, and does not say which of them is {self.gpu}, the GPU {index} of {count} at {address} "
            "here; expected the same ones on both sides. Run the edge where it sees all GPUs, or upgrade zeusd and zeus to "
            "versions that compare PCI addresses."
        )

    @contextmanager
    def _told(self, outcome: str) -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise ClockError(
                f"The clock of {self.gpu} {outcome}: {type(error).__name__}: {error}. Check that zeusd runs, lets this user in and "
                f"may control GPUs, or unset {' and '.join(_VARIABLES)} to ask NVML itself."
            ) from error


def _library() -> tuple[Any, tuple[type[Exception], ...]]:
    """Zeus's client, and what it raises."""
    try:
        library = importlib.import_module("zeus.utils.zeusd")
        http = importlib.import_module("httpx")
        errors = (
            importlib.import_module("zeus.exception").ZeusBaseError,
            *(http.HTTPError, http.InvalidURL),
            *(AttributeError, LookupError, TypeError, ValueError),  # of an answer that is no zeusd's, or another zeus
        )
    except ImportError as error:
        named = ", ".join(name for name in _VARIABLES if os.environ.get(name))
        raise ClockError(
            f"{named} names zeusd, and zeus is not installed, by which it is asked; pip install 'flwr_splitkd[energy]'."
        ) from error
    return library, errors
