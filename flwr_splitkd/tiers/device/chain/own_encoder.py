"""The complete encoder that a device keeps on its disk, with a backup (SCCT, section III.A).

The newest commit is the encoder as of the end of the last round. While a round goes on, the device's half is in memory and
the other on the edge, so the commit is the backup of both. At the round's end the two halves are put together and committed:
the backup is refreshed. A device that drops out loses what is in memory and starts again from the commit, which is restored
by being read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flwr_splitkd.errors import StoreError
from flwr_splitkd.split import Layout
from flwr_splitkd.store import CommitLog
from flwr_splitkd.tiers.units import pack, versioned_units

__all__ = ["OwnEncoder"]


class OwnEncoder:
    """An encoder by units, on the disk.

    Parameters
    ----------
    folder
        Of this device and this encoder; created when missing.
    skeleton
        The encoder without memory.
    layout
        Of it.
    build
        Builds the encoder with its first weights, where there is none on the disk yet. If it has a ``load_part`` method, as
        `PretrainedModel` has, the weights are read unit by unit instead, so that the whole is never in memory. Without `build`
        the folder is only read, also while a round goes on.

    Raises
    ------
    StoreError
        If the folder holds another encoder, or cannot be read or written; without `build` also if it holds none.
    """

    def __init__(
        self, folder: Path, skeleton: nn.Module, layout: Layout, build: Callable[[], nn.Module] | None
    ) -> None:
        self._run = ""
        self._names = versioned_units(skeleton, layout)
        self._log = CommitLog(folder, reads_only=build is None)
        if self._log.latest is None:
            if build is None:
                raise StoreError(
                    f"{folder} holds no encoder; expected the folder of one that a device has trained, such as "
                    "~/.cache/flwr_splitkd/encoders/<run>/<encoder>/<device>. Check the path, or train first."
                )
            self._log.commit(self._first(build), {"next_step": 0, "server_round": 0})
        held = self._log.latest
        if held is not None and set(held.units) != set(self._names):
            odd = sorted(set(held.units) ^ set(self._names))
            raise StoreError(
                f"{folder} holds another encoder; the first unit that differs is {odd[0]!r}. Expected the one that this app "
                "builds: choose another `encoder_folder`, or delete this one."
            )

    @property
    def versions(self) -> dict[str, str]:
        """Digest of every unit."""
        return dict(self._log.latest.units) if self._log.latest else {}

    @property
    def info(self) -> Mapping[str, Any]:
        """What the last commit remembers: ``next_step``, and the ``run`` and ``server_round`` that it is of."""
        return self._log.latest.info if self._log.latest else {}

    def read(self, unit: str) -> dict[str, Tensor]:
        """One unit's tensors, as they travel.

        Raises
        ------
        StoreError
            If it is damaged.
        """
        return self._log.read(unit)

    def begin(self, run: str, server_round: int) -> bool:
        """Drop what a round of a run has made of the encoder, if it is to take place again; whether there was something.

        A run that is resumed goes on after its last whole round. A device may have committed the round after it.

        Parameters
        ----------
        run, server_round
            The round that is about to begin, and to which `refresh` belongs. Rounds of other runs lie before it.

        Raises
        ------
        StoreError
            If no commit from before it is kept.
        """
        self._run = run
        if self._is_before(self.info, run, server_round):
            return False
        for manifest in self._log.kept():
            if self._is_before(manifest.info, run, server_round):
                self._log.go_back(manifest)
                return True
        raise StoreError(
            f"This device's encoder is that of round {self.info.get('server_round')} of run {run!r}; expected one from before "
            f"round {server_round}, which is to begin. Was the run resumed from an older copy of its folder? Resume the newest "
            "one, or delete this device's encoder, which then begins anew."
        )

    @staticmethod
    def _is_before(info: Mapping[str, Any], run: str, server_round: int) -> bool:
        return info.get("run", "") != run or int(info.get("server_round", 0)) < server_round

    def refresh(self, units: Mapping[str, Mapping[str, Tensor]], info: Mapping[str, Any]) -> None:
        """Make the encoder's new state durable; units that are not named stay.

        Raises
        ------
        StoreError
            If the disk is full; the state before stays.
        """
        self._log.commit(units, {**info, "run": self._run})

    def _first(self, build: Callable[[], nn.Module]) -> dict[str, dict[str, Tensor]]:
        load_part = getattr(build, "load_part", None)
        if callable(load_part):
            return {unit: pack(load_part(names), {}) for unit, names in self._names.items()}
        state = build().state_dict()
        return {unit: pack({name: state[name].detach() for name in names}, {}) for unit, names in self._names.items()}
