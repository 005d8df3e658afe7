"""The clock of a Jetson's GPU, through the files of the kernel's devfreq: bounds in Hz, which root may write.

Unlike NVML these can be read, so that what was set before comes back. They are gone after a boot. The kernel's description:
Documentation/ABI/testing/sysfs-class-devfreq.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr_splitkd.errors import ClockError

__all__ = ["KEY_PREFIX", "DevfreqSetter", "gpu_nodes"]

KEY_PREFIX = "devfreq-"
_ROOT = Path("/sys/class/devfreq")
_BOARD, _MAKER = Path("/proc/device-tree/compatible"), b"nvidia,tegra"
# JetPack 6; JetPack 5 on Orin and on Xavier.
_GPU_NAMES = ("*.gpu", "*.ga10b", "*.gv11b")
_LOW, _HIGH = "min_freq", "max_freq"


def gpu_nodes(root: Path = _ROOT, board: Path = _BOARD) -> list[Path]:
    """The GPUs of a Jetson; none on other machines, whose GPUs may have such names too."""
    try:
        if _MAKER not in board.read_bytes():
            return []
    except OSError:
        return []
    return sorted(path for name in _GPU_NAMES for path in root.glob(name))


class DevfreqSetter:
    """Sets the clock of a Jetson's GPU by its bounds.

    Parameters
    ----------
    node
        Its folder.

    Raises
    ------
    ClockError
        If it does not tell its clocks.
    """

    def __init__(self, node: Path) -> None:
        self._node = node
        self.key = KEY_PREFIX + node.name
        self.gpu = f"the Jetson's GPU {node.name}"
        try:
            listed = self._read("available_frequencies")
            self.supported_hz: Sequence[float] = tuple(sorted(float(hz) for hz in listed.split()))
        except ValueError as error:
            raise ClockError(f"{node} has clocks that are not numbers: {error}.") from error
        if not self.supported_hz:
            raise ClockError(f"{node} has no clocks; expected at least one to be held at.")

    def limits(self) -> Mapping[str, int]:
        """The bounds that are set; `ClockError` if they cannot be read."""
        try:
            return {name: int(self._read(name)) for name in (_LOW, _HIGH)}
        except ValueError as error:
            raise ClockError(f"{self._node} has bounds that are not numbers: {error}.") from error

    def lock(self, frequency_hz: float) -> None:
        """Bound the clock from both sides; `ClockError` if the kernel does not."""
        self._bound(round(frequency_hz), round(frequency_hz))

    def reset(self, limits: Mapping[str, int]) -> None:
        """Put the bounds back, or take those of the GPU where they are not known; `ClockError` if the kernel does not."""
        low, high = (round(pick(self.supported_hz)) for pick in (min, max))
        self._bound(limits.get(_LOW, low), limits.get(_HIGH, high))

    def read_hz(self) -> float | None:
        """The clock at this moment; None where it cannot be read."""
        try:
            return float(self._read("cur_freq"))
        except (ClockError, ValueError):
            return None

    def close(self) -> None:
        """Nothing is held."""

    def _bound(self, low: int, high: int) -> None:
        bounds = {_LOW: low, _HIGH: high}
        # The upper one first where it rises: at no moment may it be below the lower one.
        order = (_HIGH, _LOW) if high > self.limits()[_HIGH] else (_LOW, _HIGH)
        for name in order:
            path = self._node / name
            try:
                path.write_text(f"{bounds[name]}\n", encoding="ascii")
            except OSError as error:
                raise ClockError(
                    f"The clock of {self.gpu} is not set to {low / 1e6:g} .. {high / 1e6:g} MHz: {path} cannot be written: "
                    f"{error}. Run the edge as root."
                ) from error

    def _read(self, name: str) -> str:
        path = self._node / name
        try:
            return path.read_text(encoding="ascii").strip()
        except OSError as error:
            raise ClockError(f"{path} cannot be read: {error}. Is it the GPU of a Jetson?") from error
