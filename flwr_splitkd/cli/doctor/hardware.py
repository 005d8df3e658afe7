"""Which board and which NVIDIA GPUs this is, as the kernel says: it does not take torch to find out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Hardware", "read_hardware"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What the kernel says of the machine.

    Parameters
    ----------
    model
        Of the board; empty where there is no device tree.
    is_jetson
        Whether CPU and GPU are those of a Jetson, and share their memory.
    release
        Of Jetson Linux, such as ``"R36.4.3"``; empty elsewhere, or where it is not told.
    gpus
        Names of the GPUs of NVIDIA's driver; a Jetson's own is not among them.
    """

    model: str = ""
    is_jetson: bool = False
    release: str = ""
    gpus: tuple[str, ...] = ()

    @property
    def gpu(self) -> str:
        """The GPU in words; empty if there is none of NVIDIA's."""
        return f"the GPU of {self.model or 'a Jetson'}" if self.is_jetson else ", ".join(self.gpus)


def read_hardware(root: Path) -> Hardware:
    """Look at a machine's device tree, Jetson Linux's release file and NVIDIA's driver.

    Parameters
    ----------
    root
        Where ``proc`` and ``etc`` lie.
    """
    tree = root / "proc/device-tree"
    release = re.search(r"# (R\d+) \(release\), REVISION: ([\d.]+)", _read(root / "etc/nv_tegra_release"))
    compatible = _read(tree / "compatible")
    models = (
        re.search(r"^Model:\s*(.+?)\s*$", _read(path), flags=re.MULTILINE)
        for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    )
    return Hardware(
        model=_read(tree / "model"),
        is_jetson=release is not None or "nvidia,tegra" in compatible,
        release=f"{release[1]}.{release[2]}" if release else "",
        gpus=tuple(model[1] if model else "an NVIDIA GPU" for model in models),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip(" \t\n\0")
    except OSError:
        return ""
