"""Fleets from descriptions, and that of the paper's case study."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flwr_splitkd.costs.checks import check_choice
from flwr_splitkd.costs.fleet import Fleet
from flwr_splitkd.costs.links import Link
from flwr_splitkd.costs.links_io import link_from_json
from flwr_splitkd.costs.mobility import street_trajectories
from flwr_splitkd.costs.profiles import (
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

__all__ = ["fleet_from_json", "named_device", "named_server", "table_ii_fleet"]

_TABLE_II = re.compile(r"table-ii/(\d+)")
_FIELDS = ("server", "devices", "default")
_ENTRY = ("profile", "link")


def table_ii_fleet(channel: str, rng: np.random.Generator) -> Fleet:
    """The ten vehicles of Li et al., table II, on a street at 30 km/h, each with its radio.

    Parameters
    ----------
    channel
        ``"good"``, ``"normal"`` or ``"poor"``.
    rng
        Where places and channels are drawn from.

    Returns
    -------
    Fleet
        Devices ``"0"`` to ``"9"``, which are the partition ids of a simulation.

    Raises
    ------
    ConfigError
        If there is no such channel.
    """
    check_choice("channel", channel, RADIO_PRESETS)
    ways = street_trajectories(len(TABLE_II_DEVICES), rng)
    links: dict[str, Link] = {str(i): RadioLink(RADIO_PRESETS[channel], way, rng) for i, way in enumerate(ways)}
    devices = {str(i): device for i, device in enumerate(TABLE_II_DEVICES)}
    return Fleet(server=TABLE_II_SERVER, devices=devices, links=links)


def fleet_from_json(
    description: str | Path | Mapping[str, Any], *, rng: np.random.Generator, folder: str | Path = "."
) -> Fleet:
    """Make a fleet from its description.

    ::

        {"server": "table-ii",
         "devices": {"orin-1": {"profile": "table-ii/1", "link": "normal"},
                     "pi-7": {"profile": "pi.json", "link": {"kind": "trace", "path": "pi.csv"}}},
         "default": {"profile": {"name": "PC", "frequency_hz": 3e9, "cores": 8}, "link": "wired-100m"}}

    A profile is a name (``"table-ii/1"`` to ``"table-ii/10"``, the server's ``"table-ii"``), the path of a file that
    `flwr-splitkd profile` wrote, or an object with the fields of `DeviceProfile` or `ServerProfile`. Links are as in
    `link_from_json`. What is left out is as in `Fleet`.

    Parameters
    ----------
    description
        The object, or the path of a JSON file with it; paths within start at the file's folder.
    rng
        For radio links.
    folder
        Where paths start if the object itself is given.

    Raises
    ------
    ConfigError
        If a file cannot be read, or a field is unknown or out of range; the message says where.
    DataError
        If a trace cannot be read.
    """
    if not isinstance(description, Mapping):
        path = Path(description)
        description, folder = _read(path), path.parent
    where = Path(folder)
    _check_fields("A fleet", description, _FIELDS)
    values: dict[str, Any] = {}
    if "server" in description:
        values["server"] = named_server(description["server"], where)
    entries = description.get("devices", {})
    if not isinstance(entries, Mapping):
        raise ConfigError(
            f"`devices` of the fleet is {entries!r}; expected an object with an entry for each device name."
        )
    devices: dict[str, DeviceProfile] = {}
    links: dict[str, Link] = {}
    for name, entry in [*entries.items(), (None, description.get("default", {}))]:
        profile, link = _entry(name, entry, where, rng)
        if name is None:
            values |= {key: value for key, value in (("default_device", profile), ("default_link", link)) if value}
            continue
        if profile is not None:
            devices[name] = profile
        if link is not None:
            links[name] = link
    return Fleet(devices=devices, links=links, **values)


def named_device(profile: Any, folder: str | Path = ".") -> DeviceProfile:
    """Return a device's profile from a name, a path or an object; see `fleet_from_json`.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    if isinstance(profile, Mapping):
        return device_from_json(profile)
    if match := _TABLE_II.fullmatch(str(profile)):
        number = int(match[1])
        if not 1 <= number <= len(TABLE_II_DEVICES):
            raise ConfigError(
                f"The device is {profile!r}; expected 'table-ii/1' to 'table-ii/{len(TABLE_II_DEVICES)}'."
            )
        return TABLE_II_DEVICES[number - 1]
    return device_from_json(_read(Path(folder) / str(profile), "'table-ii/1' to 'table-ii/10'"))


def named_server(profile: Any, folder: str | Path = ".") -> ServerProfile:
    """Return a server's profile from a name, a path or an object; see `fleet_from_json`.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    if isinstance(profile, Mapping):
        return server_from_json(profile)
    if profile == "table-ii":
        return TABLE_II_SERVER
    return server_from_json(_read(Path(folder) / str(profile), "'table-ii'"))


def _entry(
    name: str | None, entry: Any, folder: Path, rng: np.random.Generator
) -> tuple[DeviceProfile | None, Link | None]:
    what = "`default` of the fleet" if name is None else f"The fleet's device {name!r}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{what} is {entry!r}; expected an object with a 'profile', a 'link' or both.")
    _check_fields(what, entry, _ENTRY)
    try:
        profile = named_device(entry["profile"], folder) if "profile" in entry else None
        link = link_from_json(entry["link"], rng=rng, folder=folder) if "link" in entry else None
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    return profile, link


def _check_fields(what: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in values:
        if key not in known:
            raise ConfigError(f"{what} has {key!r}; expected fields among {', '.join(map(repr, known))}.")


def _read(path: Path, names: str = "") -> Mapping[str, Any]:
    hint = f"{names}, or the path of a JSON file" if names else "the path of a JSON file"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error}; expected {hint}.") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"{str(path)!r} holds a JSON {type(value).__name__}; expected an object.")
    return value
