"""Energy counters that only ``zeus`` gives (of the extra ``energy``).

- **Processors without being root**: ``zeusd``, a daemon of zeus's, reads RAPL as root and tells others. It is asked when
  ``ZEUSD_SOCK_PATH`` or ``ZEUSD_HOST_PORT`` says where it is and this process may not read the counters itself.
- **AMD's GPUs**: their counters, through zeus and AMD's library, where ``/dev/kfd`` says that there are any.

Where zeus adds nothing it is not asked, and not even imported:

- of NVIDIA's GPUs it reads the same counter of NVML, and of those without one the same power, from a process of its own;
- of a Jetson it multiplies power by time every 0.1 s, in a spawned process that imports the caller's main module again, and
  knows as the total only rails with ``_in``, ``system`` or ``total`` in their names, which AGX Orin, AGX Xavier and Thor lack;
- it reads the processors' counters as this package does where that is allowed.

Written against zeus 0.16.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr_splitkd.telemetry.sensors.nodes import Node
from flwr_splitkd.telemetry.sensors.reading import Reading

__all__ = ["ZeusSensors"]

_SOURCE = "zeus"
_DAEMON = ("ZEUSD_SOCK_PATH", "ZEUSD_HOST_PORT")


@dataclass(frozen=True, slots=True)
class _Counter:
    """A counter by name, and what to ask for its joules, or for its watts where it has no energy."""

    name: str
    ask: Callable[[], float]
    quantity: str = "energy_j"


class ZeusSensors:
    """What zeus counts and nobody else here does.

    Parameters
    ----------
    counters
        As `find` makes them.
    """

    name = "zeus"

    def __init__(self, counters: Sequence[_Counter]) -> None:
        self._counters = tuple(counters)

    @classmethod
    def find(cls, *, processors: bool, gpus: bool, root: Path = Path("/")) -> ZeusSensors | None:
        """Return the sensors; None if zeus is not installed or has nothing to add.

        Parameters
        ----------
        processors, gpus
            Whether counters of these are missing.
        root
            ``/``, or where a recorded tree lies.
        """
        counters: list[_Counter] = []
        try:
            if processors and any(os.environ.get(name) for name in _DAEMON):
                counters += _processors(root)
            if gpus and os.path.exists(root / "dev/kfd"):
                counters += _amd_gpus()
        except ImportError:
            return None
        return cls(counters) if counters else None

    def read(self) -> tuple[Reading, ...]:
        """Read each counter."""
        return tuple(_read(counter) for counter in self._counters)

    def energy(self) -> tuple[Reading, ...]:
        """Read each counter: no two of them overlap."""
        return self.read()


def _read(counter: _Counter) -> Reading:
    try:
        value = counter.ask()
    except Exception as error:  # zeus's, its HTTP client's and AMD's library's errors have no class in common
        return Reading(
            quantity=counter.quantity,
            name=counter.name,
            source=_SOURCE,
            value=None,
            reason=f"zeus: {type(error).__name__}: {error}",
        )
    if not (math.isfinite(value) and value >= 0):
        reason = f"zeus says {value:g}; expected at least 0."
        return Reading(quantity=counter.quantity, name=counter.name, source=_SOURCE, value=None, reason=reason)
    return Reading(quantity=counter.quantity, name=counter.name, source=_SOURCE, value=value)


def _processors(root: Path) -> list[_Counter]:
    """Packages and their memory, by `zeusd`; the platform as a whole is left out, since it has both."""
    from zeus.utils.zeusd import ZeusdClient

    try:
        client = ZeusdClient()
        zones = list(zip(client.cpu_ids, client.dram_available, strict=True))
    except Exception as error:  # as in `_read`; and whatever becomes of what is no answer of zeusd
        return [_failed("package-0", error)]
    counters: list[_Counter] = []
    for zone, has_memory in zones:
        name, reason = Node(root, f"/sys/class/powercap/intel-rapl:{zone}/name").text()
        if reason and zone == 0:  # the kernel registers the first package first, and a container sees no names
            name, reason = "package-0", ""
        if reason:
            counters.append(_failed(f"intel-rapl:{zone}", LookupError(f"which zone this is, is not known: {reason}")))
        elif not name.startswith("psys"):
            counters.append(_Counter(name, _microjoules(client, zone, "cpu_energy_uj")))
            if has_memory:
                counters.append(_Counter(f"dram of {name}", _microjoules(client, zone, "dram_energy_uj")))
    return counters


def _microjoules(client: Any, zone: int, field: str) -> Callable[[], float]:
    """What asks for one counter in joules. Zeusd itself counts on where it starts anew."""
    memory = field == "dram_energy_uj"
    return lambda: 1e-6 * float(getattr(client.get_cpu_energy([zone], cpu=not memory, dram=memory)[zone], field))


def _amd_gpus() -> list[_Counter]:
    from zeus.device import get_gpus

    try:
        gpus = get_gpus()
        counters = []
        for index in range(len(gpus)):
            counts = gpus.supports_get_total_energy_consumption(index)
            ask = gpus.get_total_energy_consumption if counts else gpus.get_average_power_usage
            name = f"{gpus.get_name(index)} {index}"
            counters.append(_Counter(name, _thousandths(ask, index), "energy_j" if counts else "power_w"))
        return counters
    except Exception as error:  # as in `_read`
        return [_failed("AMD GPU", error)]


def _thousandths(ask: Callable[[int], float], index: int) -> Callable[[], float]:
    return lambda: 1e-3 * float(ask(index))


def _failed(name: str, error: Exception) -> _Counter:
    """A counter that says why it is not there."""

    def fail() -> float:
        raise error

    return _Counter(name, fail)
