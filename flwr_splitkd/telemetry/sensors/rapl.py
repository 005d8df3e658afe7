"""Energy counters of processors: RAPL, through Linux's powercap framework.

A zone is a folder of ``/sys/class/powercap``: ``intel-rapl:0`` (also on AMD's processors) with ``name``, ``energy_uj``
(microjoules) and ``max_energy_range_uj``, at which the counter starts from 0 again; ``intel-rapl:0:1`` is a part of it.
Source: Linux, ``Documentation/power/powercap/powercap.rst``.

Since 2020 ``energy_uj`` is for root alone, since fine readings give away what other processes compute (CVE-2020-8694), and since
2023 Docker hides the whole folder from containers (GHSA-jq35-85cj-fj4p).
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from flwr_splitkd.telemetry.sensors.nodes import Node, folders, measured
from flwr_splitkd.telemetry.sensors.reading import Reading

__all__ = ["RaplSensors"]

_POWERCAP = "/sys/class/powercap"
_ZONES = r"intel-rapl:\d+(?::\d+)?"
"""Not ``intel-rapl-mmio:0``, which is another way to the first package's counter."""
_REMEDY = (
    "Or run zeusd as root and set ZEUSD_SOCK_PATH: pip install 'flwr_splitkd[energy]'. Who may read it can find out secrets "
    "of other processes (CVE-2020-8694)."
)


@dataclass(slots=True)
class _Zone:
    """A zone and how often its counter has started anew."""

    name: str
    is_part: bool
    node: Node
    range_node: Node
    last_j: float | None = None
    base_j: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether it is a package or memory beside one: cores and graphics are in the package, the platform has it all."""
        return self.name.startswith("dram") if self.is_part else not self.name.startswith("psys")

    def energy(self) -> Reading:
        """The counter as if it never started anew, provided that it is read at least once in between."""
        reading = measured("energy_j", self.name, self.node, scale=1e-6)
        if reading.value is None:
            denied = reading.reason.startswith("permission denied")
            return replace(reading, reason=f"{reading.reason} {_REMEDY}") if denied else reading
        if self.last_j is not None and reading.value < self.last_j:
            range_uj, reason = self.range_node.number()
            if range_uj is None:
                self.last_j = None  # whoever takes differences sees a counter that fell
                return replace(reading, value=None, reason=f"the counter started anew, and {reason}")
            self.base_j += 1e-6 * range_uj
        self.last_j = reading.value
        return replace(reading, value=self.base_j + reading.value)


class RaplSensors:
    """Joules of processors' packages and of what is in them. May be read by several threads.

    Parameters
    ----------
    root
        ``/``, or where a recorded tree lies.
    """

    name = "RAPL"

    def __init__(self, root: Path = Path("/")) -> None:
        self._lock = threading.Lock()
        self._zones = [_zone(root, folder) for folder in folders(root, _POWERCAP, _ZONES)]

    @staticmethod
    def present(root: Path = Path("/")) -> bool:
        """Whether the machine has such counters, readable or not."""
        return bool(folders(root, _POWERCAP, _ZONES))

    def read(self) -> tuple[Reading, ...]:
        """Read all zones, parts included: ``"core of package-0"`` is in ``"package-0"``."""
        with self._lock:
            return tuple(zone.energy() for zone in self._zones)

    def energy(self) -> tuple[Reading, ...]:
        """Read the packages, and their memory where that has a counter (``"dram of package-0"``), which they do not contain."""
        with self._lock:
            return tuple(zone.energy() for zone in self._zones if zone.counts)


def _zone(root: Path, folder: str) -> _Zone:
    name = Node(root, f"{_POWERCAP}/{folder}/name").text()[0] or folder
    parent = re.match(r"(intel-rapl:\d+):\d+", folder)
    if parent:
        name = f"{name} of {Node(root, f'{_POWERCAP}/{parent[1]}/name').text()[0] or parent[1]}"
    return _Zone(
        name=name,
        is_part=parent is not None,
        node=Node(root, f"{_POWERCAP}/{folder}/energy_uj"),
        range_node=Node(root, f"{_POWERCAP}/{folder}/max_energy_range_uj"),
    )
