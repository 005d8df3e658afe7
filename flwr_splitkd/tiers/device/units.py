"""A plan's units on the device: from the wire or the disk cache, and into the cache.

A failure of the cache costs bytes in the next turn, so it is reported and survived.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from torch import Tensor

from flwr_splitkd.errors import StoreError
from flwr_splitkd.store import DeviceCache
from flwr_splitkd.tiers.units import decode_all
from flwr_splitkd.wire.framing import WireMessage

__all__ = ["Units", "collect_units", "keep_unit"]

_log = logging.getLogger(__name__)


Units = Mapping[str, Mapping[str, Tensor]]


def collect_units(
    begin: WireMessage, cache: DeviceCache, keep: Callable[[str], bool], held: Units | None = None
) -> dict[str, Mapping[str, Tensor]]:
    """Every unit of a plan by name: what came with it, and the rest from the cache.

    Parameters
    ----------
    keep
        Whether a unit that came goes into the cache.
    held
        Units that came on the same connection before, of the versions that the plan has.

    Raises
    ------
    StoreError
        If the cache has lost what it promised.
    """
    units: dict[str, Mapping[str, Tensor]] = {}
    for item in begin.body.units:
        received = decode_all(begin.tensors, f"{item.unit}|")
        if received and keep(item.unit):
            keep_unit(cache, item.unit, item.version, received)
        units[item.unit] = received or (held or {}).get(item.unit) or cache.get(item.unit, item.version)
    return units


def keep_unit(cache: DeviceCache, unit: str, version: str, tensors: Mapping[str, Tensor]) -> None:
    """Put a unit into the cache if it can be written."""
    try:
        cache.put(unit, version, tensors)
    except StoreError as error:
        _log.warning("Unit %s is not cached and will travel again: %s", unit, error)
