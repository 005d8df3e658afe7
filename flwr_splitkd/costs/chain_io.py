"""Fleets of the chain device - edge - cloud, from descriptions as files of JSON have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flwr_splitkd.costs.chain import ChainResources, MemoryLimits
from flwr_splitkd.costs.chain_cell import ModelledCell
from flwr_splitkd.costs.checks import check_number
from flwr_splitkd.costs.descriptions import as_object, check_keys, located, read_json
from flwr_splitkd.costs.fleet_io import load_device, load_server
from flwr_splitkd.costs.radio import MAX_DISTANCE_M
from flwr_splitkd.errors import ConfigError

__all__ = ["ChainFleet", "chain_fleet_from_json", "table_iii_fleet"]

_DRAWS, _MOST_DRAWS = 50, 1000
# SCCT, table III.
_EDGE_FLOPS, _EDGE_BYTES = 312e12, 6e12

_FLEET = ("edge", "radio", "cloud_bps", "devices", "default", "draws", "variation")
_EDGE = ("profile", "flops", "memory_bytes", "power_dbm", "gain_dbi")
_RADIO = (
    "num_subcarriers",
    "subcarrier_hz",
    "noise_dbm_per_hz",
    "carrier_frequency_hz",
    "device_gain_dbi",
    "shadowing",
    "shared_edge_power",
)
_DEVICE = ("profile", "flops", "distance_m", "gain_db", "power_dbm", "memory_bytes")
# Two ways to say one thing: who gives one of them does not get the default's other one.
_SPEED, _PLACE = ("profile", "flops"), ("distance_m", "gain_db")

_RANGES: dict[str, dict[str, Any]] = {
    "flops": {"minimum": 1, "maximum": 1e30, "unit": "FLOP/s"},
    "memory_bytes": {"above": 0, "unit": "bytes"},
    "power_dbm": {"minimum": -100, "maximum": 100, "unit": "dBm"},
    "gain_dbi": {"minimum": -100, "maximum": 100, "unit": "dBi"},
    "device_gain_dbi": {"minimum": -100, "maximum": 100, "unit": "dBi"},
    "num_subcarriers": {"minimum": 1, "maximum": 100_000},
    "subcarrier_hz": {"minimum": 1, "maximum": 1e12, "unit": "Hz"},
    "noise_dbm_per_hz": {"minimum": -300, "maximum": 0, "unit": "dBm/Hz"},
    "carrier_frequency_hz": {"minimum": 0.5e9, "maximum": 100e9, "unit": "Hz"},
    "cloud_bps": {"minimum": 1, "maximum": 1e18, "unit": "bits a second"},
    "distance_m": {"above": 0, "maximum": MAX_DISTANCE_M, "unit": "m"},
    "gain_db": {"minimum": -300, "maximum": 0, "unit": "dB"},
    "draws": {"minimum": 1, "maximum": _MOST_DRAWS},
    "variation": {"minimum": 0, "maximum": 0.99},
}
_WHOLE, _YES_OR_NO = ("num_subcarriers", "draws"), ("shadowing", "shared_edge_power")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFleet:
    """Devices around an edge that has a cloud.

    Parameters
    ----------
    cell
        Speeds and channels.
    devices
        Names, in order.
    device_bytes
        Memory of each; infinite where nothing is said.
    edge
        The edge's name.
    edge_bytes
        Its memory.
    num_draws
        Q, the epochs that split points are decided on.
    """

    cell: ModelledCell
    devices: tuple[str, ...]
    device_bytes: tuple[float, ...]
    edge: str
    edge_bytes: float = math.inf
    num_draws: int = _DRAWS

    @property
    def limits(self) -> MemoryLimits:
        """Memory."""
        return MemoryLimits(device_bytes=np.array(self.device_bytes), edge_bytes=self.edge_bytes)

    @property
    def typical(self) -> ChainResources:
        """Mean speeds, and channels without shadowing. Arrays are ``[N]``."""
        return self.cell.typical(self.devices)

    def draws(self) -> ChainResources:
        """Epochs of a round. Arrays are ``[Q, N]``."""
        return self.cell.draws(self.devices, self.num_draws)


def chain_fleet_from_json(
    description: str | Path | Mapping[str, Any], *, seed: int = 0, folder: str | Path | None = None
) -> ChainFleet:
    """Make a chain's fleet from its description, or from a JSON file with one.

    ::

        {"edge": {"profile": server, "memory_bytes": 48e9, "power_dbm": 50, "gain_dbi": 20},
         "radio": {"num_subcarriers": 200, "subcarrier_hz": 2e6, "noise_dbm_per_hz": -174, "carrier_frequency_hz": 3.5e9,
                   "device_gain_dbi": 5, "shadowing": true, "shared_edge_power": true},
         "cloud_bps": 1e9,
         "devices": {"0": {"profile": profile, "distance_m": 60, "power_dbm": 23, "memory_bytes": 8e9}, ...},
         "default": {"flops": 1e12, "gain_db": -90},
         "variation": 0.3, "draws": 50}

    Profiles are what `load_server` and `load_device` take, or ``flops`` says the speed; an edge is at its nominal clock. A
    place is a ``distance_m``, or the channel's ``gain_db`` with all antennas in it. What a device leaves out it has from
    ``default``; of its speed and its place one or the other has to say something. Memory is the profile's unless given, and
    without both it is not a bound. All the rest may be left out and is then that of `ModelledCell`, table III of the paper.

    Parameters
    ----------
    description
        See above.
    seed
        Of the draws of speeds and channels.
    folder
        Where paths start; the file's folder, or the working directory, when not given.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key, name or value in it is unknown, missing or out of range.
    """
    what = "The fleet"
    if not isinstance(description, Mapping):
        file = Path(description).expanduser()
        what, folder = f"The fleet {file}", file.parent if folder is None else folder
        description = as_object(read_json(file, what), what)
    where = Path("." if folder is None else folder)
    check_keys(what, "", description, _FLEET)
    _check_values(what, "", description)
    edge = _part(what, "edge", description.get("edge", {}), _EDGE)
    radio = _part(what, "radio", description.get("radio", {}), _RADIO)
    default = _part(what, "default", description.get("default", {}), _DEVICE)
    entries = as_object(description.get("devices", {}), f"{what}: `devices`")
    if not entries:
        raise ConfigError(f"{what} has no devices; expected at least one to plan for. Add it to `devices`.")
    devices = {name: _device(what, name, entry, default) for name, entry in entries.items()}
    speeds, memory = {}, {}
    for name, device in devices.items():
        load = partial(load_device, device.get("profile"), folder=where)  # type: ignore[arg-type]  # which it checks
        speeds[name], memory[name], _ = _machine(what, f"devices.{name}", device, load, lambda profile: profile.flops)
    edge_flops, edge_bytes, edge_name = _edge(what, edge, where)
    settings = {**radio, **{key: description[key] for key in ("cloud_bps", "variation") if key in description}}
    settings |= {f"edge_{key}": edge[key] for key in ("power_dbm", "gain_dbi") if key in edge}
    settings |= {f"named_{key}": _named(key, devices) for key in ("distance_m", "gain_db", "power_dbm")}
    return ChainFleet(
        cell=located(what, lambda: ModelledCell(edge_flops=edge_flops, named_flops=speeds, seed=seed, **settings)),
        devices=tuple(devices),
        device_bytes=tuple(memory.values()),
        edge=edge_name,
        edge_bytes=edge_bytes,
        num_draws=description.get("draws", _DRAWS),
    )


def table_iii_fleet(num_devices: int = 30, *, seed: int = 0) -> ChainFleet:
    """Return the fleet of the paper's simulation.

    Wang et al. (SCCT), table III. The paper says neither how fast the devices are nor where: both are drawn, see
    `ModelledCell`. Devices are called ``"0"``, ``"1"`` and so on, as the partitions of a simulation are.

    Parameters
    ----------
    num_devices
        N; the paper's are 10, 20 and 30.
    seed
        Of everything that is drawn.

    Raises
    ------
    ConfigError
        If there is no device.
    """
    check_number("num_devices", num_devices, minimum=1)
    return ChainFleet(
        cell=ModelledCell(edge_flops=_EDGE_FLOPS, seed=seed),
        devices=tuple(str(number) for number in range(num_devices)),
        device_bytes=(math.inf,) * num_devices,
        edge="edge",
        edge_bytes=_EDGE_BYTES,
    )


def _device(what: str, name: str, value: Any, default: Mapping[str, Any]) -> dict[str, Any]:
    """A device's entry, with the default's where it says nothing."""
    if not name.strip():
        raise ConfigError(
            f"{what}: `devices` has the name {name!r}; expected names that can be read. Call it something."
        )
    key = f"devices.{name}"
    own = _part(what, key, value, _DEVICE)
    device = {**default, **own}
    for ways in (_SPEED, _PLACE):
        if any(way in own for way in ways):
            device = {way: item for way, item in device.items() if way not in ways or way in own}
        if not any(way in device for way in ways):
            missing = " nor ".join(f"`{way}`" for way in ways)
            raise ConfigError(f"{what}: `{key}` has neither {missing}; expected one of them, there or in `default`.")
    return device


def _edge(what: str, entry: Mapping[str, Any], folder: Path) -> tuple[float, float, str]:
    """The edge's FLOPs a second, memory and name; table III's where its speed is not said."""
    if not any(way in entry for way in _SPEED):
        entry = {"flops": _EDGE_FLOPS, "memory_bytes": _EDGE_BYTES, **entry}
    load = partial(load_server, entry.get("profile"), folder=folder)  # type: ignore[arg-type]
    return _machine(what, "edge", entry, load, lambda profile: profile.flops_at(profile.nominal_frequency_hz))


def _machine(
    what: str, key: str, entry: Mapping[str, Any], load: Callable[[], Any], flops_of: Callable[[Any], float]
) -> tuple[float, float, str]:
    """FLOPs a second, memory and name of what has a profile or says its speed."""
    if "profile" not in entry:
        return float(entry["flops"]), float(entry.get("memory_bytes", math.inf)), key
    profile = located(f"{what}: `{key}.profile`", load)
    return flops_of(profile), float(entry.get("memory_bytes", profile.memory_bytes)), profile.name


def _part(what: str, key: str, value: Any, names: tuple[str, ...]) -> Mapping[str, Any]:
    part = as_object(value, f"{what}: `{key}`")
    check_keys(what, key, part, names)
    _check_values(what, key, part)
    for ways in (_SPEED, _PLACE):
        if all(way in part for way in ways):
            both = " and ".join(f"`{way}`" for way in ways)
            raise ConfigError(f"{what}: `{key}` has {both}; expected one of them. Leave the other out.")
    return part


def _check_values(what: str, key: str, part: Mapping[str, Any]) -> None:
    """Check the numbers and switches among an object's values."""
    for name, value in part.items():
        place = f"{key}.{name}" if key else name
        if name in _RANGES:
            located(what, partial(check_number, place, value, **_RANGES[name]))
        if name in _WHOLE and not isinstance(value, int):
            raise ConfigError(f"{what}: `{place}` is {value!r}; expected a whole number.")
        if name in _YES_OR_NO and not isinstance(value, bool):
            raise ConfigError(f"{what}: `{place}` is {value!r}; expected true or false.")


def _named(key: str, devices: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(device[key]) for name, device in devices.items() if key in device}
