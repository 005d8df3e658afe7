"""Fleets from descriptions, as configuration files and command lines have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flwr_splitkd.costs.checks import check_choice
from flwr_splitkd.costs.descriptions import as_object, check_keys, located, read_json
from flwr_splitkd.costs.fleet import Fleet
from flwr_splitkd.costs.links import Link
from flwr_splitkd.costs.links_io import link_from_json
from flwr_splitkd.costs.mobility import URBAN_SPEED_MPS, street_trajectories
from flwr_splitkd.costs.profiles import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    DeviceProfile,
    ServerProfile,
    device_from_json,
    server_from_json,
)
from flwr_splitkd.costs.radio import RADIO_PRESETS
from flwr_splitkd.costs.radio_link import RadioLink
from flwr_splitkd.errors import ConfigError

__all__ = ["fleet_from_json", "load_device", "load_server", "table_ii_fleet"]

_T = TypeVar("_T")
_GENERIC = "generic"
_FLEET, _ENTRY = ("server", "devices", "default"), ("profile", "link")


def fleet_from_json(
    description: str | Path | Mapping[str, Any],
    *,
    rng: np.random.Generator | None = None,
    folder: str | Path | None = None,
) -> Fleet:
    """Make a fleet from its description, or from a JSON file with one.

    ::

        {"server": profile,
         "devices": {"0": {"profile": profile, "link": link}, ...},
         "default": {"profile": profile, "link": link}}

    Devices are called by their ``device-name``, or by their partition id. A profile is a name, the path of a profile's file, or
    an object with its fields, see `load_device` and `load_server`; a link is what `link_from_json` takes. All of it may be left
    out: `Fleet` has a common machine and link for what nobody has described. Links draw from the generator in the order of
    the devices, the default last; devices without a link of their own share that one.

    Parameters
    ----------
    description
        See above.
    rng
        For radios.
    folder
        Where paths start; the file's folder, or the working directory, when not given.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a key, name or value in it is unknown or out of range.
    """
    what = "The fleet"
    if not isinstance(description, Mapping):
        file = Path(description).expanduser()
        what, folder = f"The fleet {file}", file.parent if folder is None else folder
        description = as_object(read_json(file, what), what)
    where = Path("." if folder is None else folder)
    check_keys(what, "", description, _FLEET)
    devices = as_object(description.get("devices", {}), f"{what}: `devices`")
    entries = {f"devices.{name}": _entry(what, f"devices.{name}", value) for name, value in devices.items()}
    entries["default"] = _entry(what, "default", description.get("default", {}))
    profiles: dict[str, DeviceProfile] = {}
    links: dict[str, Link] = {}
    for key, entry in entries.items():
        if "profile" in entry:
            profiles[key] = located(f"{what}: `{key}.profile`", partial(load_device, entry["profile"], folder=where))
        if "link" in entry:
            links[key] = located(f"{what}: `{key}.link`", partial(link_from_json, entry["link"], rng=rng, folder=where))
    common = Fleet()
    return Fleet(
        server=located(f"{what}: `server`", partial(load_server, description.get("server", _GENERIC), folder=where)),
        default_device=profiles.get("default", common.default_device),
        default_link=links.get("default", common.default_link),
        devices={name: profiles[key] for name in devices if (key := f"devices.{name}") in profiles},
        links={name: links[key] for name in devices if (key := f"devices.{name}") in links},
    )


def load_device(description: str | int | Mapping[str, Any], *, folder: str | Path = ".") -> DeviceProfile:
    """Return a device's profile.

    Parameters
    ----------
    description
        ``1`` to ``10`` or a name such as ``"Jetson Orin NX 0.91 GHz"`` for a device of `TABLE_II_DEVICES`; ``"generic"``; the
        path of a file as `flwr-splitkd profile` writes it; or an object with the fields of a `DeviceProfile`.
    folder
        Where a path starts, unless it is absolute.

    Raises
    ------
    ConfigError
        If it is none of these, or a field is unknown, missing or out of range.
    """
    known: dict[str, DeviceProfile] = {
        **{device.name.lower(): device for device in reversed(TABLE_II_DEVICES)},
        **{str(number): device for number, device in enumerate(TABLE_II_DEVICES, start=1)},
        _GENERIC: GENERIC_DEVICE,
    }
    names = f"1..{len(TABLE_II_DEVICES)} or a name of table II such as {TABLE_II_DEVICES[0].name!r}"
    return _profile("device", description, known, names, device_from_json, Path(folder))


def load_server(description: str | Mapping[str, Any], *, folder: str | Path = ".") -> ServerProfile:
    """Return a server's profile.

    Parameters
    ----------
    description
        ``"RTX 4090"`` for `TABLE_II_SERVER`; ``"generic"``; the path of a file as ``flwr-splitkd profile --role edge`` writes
        it; or an object with the fields of a `ServerProfile`.
    folder
        Where a path starts, unless it is absolute.

    Raises
    ------
    ConfigError
        If it is none of these, or a field is unknown, missing or out of range.
    """
    known = {TABLE_II_SERVER.name.lower(): TABLE_II_SERVER, _GENERIC: GENERIC_SERVER}
    return _profile("server", description, known, repr(TABLE_II_SERVER.name), server_from_json, Path(folder))


def table_ii_fleet(
    channel: str,
    rng: np.random.Generator,
    *,
    length_m: float = 400.0,
    base_station_m: float = 20.0,
    speed_mps: float = URBAN_SPEED_MPS,
) -> Fleet:
    """Return the vehicles and the server of the paper's case study, in a street.

    Li et al., "Split Knowledge Distillation for Large Models in IoT", table II and section V: devices 1 to 10 are called
    ``"0"`` to ``"9"``, as the partitions of a simulation are.

    Parameters
    ----------
    channel
        ``"good"``, ``"normal"`` or ``"poor"``.
    rng
        Where the vehicles' places, then their channels are drawn from.
    length_m, base_station_m, speed_mps
        As in `street_trajectories`.

    Raises
    ------
    ConfigError
        If there is no such channel, or a number is out of range.
    """
    check_choice("channel", channel, RADIO_PRESETS)
    ways = street_trajectories(
        len(TABLE_II_DEVICES), rng, length_m=length_m, base_station_m=base_station_m, speed_mps=speed_mps
    )
    links = {str(number): RadioLink(RADIO_PRESETS[channel], way, rng) for number, way in enumerate(ways)}
    devices = {str(number): device for number, device in enumerate(TABLE_II_DEVICES)}
    return Fleet(server=TABLE_II_SERVER, devices=devices, links=links)


def _profile(
    kind: str,
    description: Any,
    known: Mapping[str, _T],
    names: str,
    from_json: Callable[[Mapping[str, Any]], _T],
    folder: Path,
) -> _T:
    """Look a profile up, or read it."""
    if isinstance(description, Mapping):
        return from_json(description)
    text = str(description).strip()
    if isinstance(description, bool) or not isinstance(description, str | int | Path) or not text:
        raise ConfigError(
            f"The {kind} is {description!r}; expected {names}, 'generic', the path of a profile, or an object with its fields."
        )
    if text.lower() in known:
        return known[text.lower()]
    file = folder / Path(text).expanduser()
    if not file.is_file():
        raise ConfigError(
            f"The {kind} is {text!r}, and there is no file {file}; expected {names}, 'generic', or the path of a profile. "
            "`flwr-splitkd profile` writes one."
        )
    what = f"The {kind}'s profile {file}"
    data = as_object(read_json(file, what), what)
    return located(what, lambda: from_json(data))


def _entry(what: str, key: str, value: Any) -> Mapping[str, Any]:
    entry = as_object(value, f"{what}: `{key}`")
    check_keys(what, key, entry, _ENTRY)
    return entry
