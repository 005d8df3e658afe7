"""Where a run of SCCT stands: what a resumed run goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store.tensor_file import write_atomically

__all__ = ["ChainProgress"]

_FILE = "progress.json"


@dataclass(slots=True)
class ChainProgress:
    """The rounds that are over, and the devices by position.

    Parameters
    ----------
    run
        Name of the run, the same after it was resumed.
    server_round
        The last round that is over, evaluation included; 0 before the first.
    positions
        Of every device that has been called, by its name: orders sums and seeds dropout.
    steps
        Of each device's encoder, by its name, as of the last round that it was in.
    planner
        State of the planner, if there is one.
    """

    run: str
    server_round: int = 0
    positions: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    planner: dict[str, Any] = field(default_factory=dict)

    def place(self, names: Iterable[str]) -> dict[str, int]:
        """Positions of some devices; those who are new come after all others, in the order of their names."""
        for name in sorted(names, key=_natural):
            self.positions.setdefault(name, len(self.positions))
        return {name: self.positions[name] for name in names}

    def save(self, folder: Path) -> None:
        """Make it durable in a run's folder.

        Raises
        ------
        StoreError
            If the disk is full.
        """
        write_atomically(folder / _FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ChainProgress:
        """Read it from a run's folder.

        Raises
        ------
        StoreError
            If it is not there, or cannot be read.
        """
        try:
            content = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return cls(
                run=str(content["run"]),
                server_round=int(content["server_round"]),
                positions={str(name): int(position) for name, position in content["positions"].items()},
                steps={str(name): int(number) for name, number in content.get("steps", {}).items()},
                planner=dict(content.get("planner", {})),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{folder / _FILE} cannot be read: {error!r}. Expected the folder of a run of SCCT; start a new run."
            ) from error


def _natural(name: str) -> tuple[int, str]:
    """Numbers by value: device 10 comes after device 9."""
    return (int(name), "") if name.isdecimal() else (1 << 62, name)
