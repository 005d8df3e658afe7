"""A device's disk cache of the units that it last held. Only a cache: losing it costs bytes, never state."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store.tensor_file import read_tensors, remove_leftovers, write_tensors

__all__ = ["DeviceCache", "cache_root"]

_VERSION_KEY_SEPARATOR = "@"
_NAME = re.compile(r"[\w-][\w.-]*")


def cache_root() -> Path:
    """Where everything that may be deleted goes: ``$FLWR_SPLITKD_CACHE``, or ``~/.cache/flwr_splitkd``."""
    root = os.environ.get("FLWR_SPLITKD_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "flwr_splitkd"


class DeviceCache:
    """The newest version of each unit, one file a unit.

    Parameters
    ----------
    folder
        Of one device and one model: units of another model must not be found here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def versions(self) -> dict[str, str]:
        """Version of every unit in the cache, by unit name."""
        names = (path.stem for path in self._folder.glob(f"*{_VERSION_KEY_SEPARATOR}*.safetensors"))
        return dict(name.split(_VERSION_KEY_SEPARATOR, 1) for name in names if not name.startswith("."))

    def get(self, unit: str, version: str) -> dict[str, Tensor]:
        """Read a unit.

        Raises
        ------
        StoreError
            If it is missing or damaged; a damaged file is removed, so that the next Hello does not promise it.
        """
        path = self._path(unit, version)
        try:
            return read_tensors(path)
        except StoreError:
            path.unlink(missing_ok=True)
            raise

    def put(self, unit: str, version: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a unit, instead of any other version of it.

        Raises
        ------
        StoreError
            If the disk is full or cannot be written.
        """
        path = self._path(unit, version)
        remove_leftovers(self._folder)
        write_tensors(path, tensors, durable=False)
        for other in self._folder.glob(f"{unit}{_VERSION_KEY_SEPARATOR}*.safetensors"):
            if other != path:
                other.unlink(missing_ok=True)

    def _path(self, unit: str, version: str) -> Path:
        # Both come from the other side of a stream.
        for name in (unit, version):
            if not _NAME.fullmatch(name):
                raise StoreError(
                    f"A unit in the cache would be named {name!r}; expected letters, digits, '.', '_' and '-'."
                )
        return self._folder / f"{unit}{_VERSION_KEY_SEPARATOR}{version}.safetensors"
