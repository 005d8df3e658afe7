"""Links from descriptions, as configuration files and command lines have them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from flwr_splitkd.costs.checks import check_choice, check_number
from flwr_splitkd.costs.links import Link, WiredLink
from flwr_splitkd.costs.mobility import Trajectory, street_trajectories
from flwr_splitkd.costs.radio import RADIO_PRESETS, RadioSettings
from flwr_splitkd.costs.radio_link import RadioLink
from flwr_splitkd.costs.trace import TraceLink
from flwr_splitkd.errors import ConfigError

__all__ = ["link_from_json"]

_WIRED = re.compile(r"wired-(\d+(?:\.\d+)?)([kmg])")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_WAY = ("speed_mps", "way_points", "closed", "offset_m")
_KINDS = {
    "wired": ("uplink_bps", "downlink_bps"),
    "trace": ("path", "repeat"),
    "radio": (
        "preset",
        *_WAY,
        *(field.name for field in fields(RadioSettings)),
    ),
}


def link_from_json(
    description: str | Mapping[str, Any], *, rng: np.random.Generator | None = None, folder: str | Path = "."
) -> Link:
    """Make a link from its description.

    ===========================================  ==================================================================
    ``"wired-100m"``, ``"wired-1g"``, ...        the same rate in both directions, in k, m or g bits a second
    ``"good"``, ``"normal"``, ``"poor"``         a preset of `RADIO_PRESETS`, on a vehicle in a street
    ``{"kind": "wired", ...}``                   ``uplink_bps`` and ``downlink_bps``
    ``{"kind": "trace", ...}``                   ``path`` of a CSV file; ``repeat``
    ``{"kind": "radio", ...}``                   fields of `RadioSettings`, over those of a ``preset``; ``speed_mps``,
                                                 ``way_points``, ``closed`` and ``offset_m`` as in `Trajectory`
    ===========================================  ==================================================================

    A radio without ``way_points`` is on a vehicle of `street_trajectories`; without ``offset_m`` its start is drawn.

    Parameters
    ----------
    description
        See above.
    rng
        For radios: the vehicle's start, then the channel.
    folder
        Where a trace's path starts, unless it is absolute.

    Raises
    ------
    ConfigError
        If a kind, name or field is unknown, missing or out of range, or a radio has no generator.
    DataError
        If a trace cannot be read.
    """
    values = _mapping(description)
    kind = values.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"`kind` of a link is {kind!r}; expected one of {', '.join(map(repr, _KINDS))}.")
    for field in values:
        if field not in _KINDS[kind]:
            raise ConfigError(
                f"A {kind} link has {field!r}; expected fields among {', '.join(map(repr, _KINDS[kind]))}."
            )
    if kind == "wired":
        return _wired(values)
    return _trace(values, Path(folder)) if kind == "trace" else _radio(values, rng)


def _mapping(description: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(description, Mapping):
        return dict(description)
    if isinstance(description, str):
        if description in RADIO_PRESETS:
            return {"kind": "radio", "preset": description}
        if match := _WIRED.fullmatch(description):
            rate_bps = float(match[1]) * _UNITS[match[2]]
            return {"kind": "wired", "uplink_bps": rate_bps, "downlink_bps": rate_bps}
    names = ", ".join(map(repr, RADIO_PRESETS))
    raise ConfigError(
        f"A link is {description!r}; expected {names}, 'wired-<rate>' such as 'wired-100m' or 'wired-1g', or an object with a "
        "'kind'."
    )


def _wired(values: Mapping[str, Any]) -> WiredLink:
    _require("wired", values, ("uplink_bps", "downlink_bps"))
    for name, value in values.items():
        check_number(name, value, above=0, unit="bits a second")
    return WiredLink(uplink_bps=float(values["uplink_bps"]), downlink_bps=float(values["downlink_bps"]))


def _trace(values: Mapping[str, Any], folder: Path) -> TraceLink:
    _require("trace", values, ("path",))
    path, repeat = values["path"], values.get("repeat", False)
    if not isinstance(path, str | Path):
        raise ConfigError(f"`path` of a trace is {path!r}; expected the name of a CSV file.")
    if not isinstance(repeat, bool):
        raise ConfigError(f"`repeat` of a trace is {repeat!r}; expected true or false.")
    return TraceLink.from_csv(folder / Path(path).expanduser(), repeat=repeat)


def _radio(values: dict[str, Any], rng: np.random.Generator | None) -> RadioLink:
    if rng is None:
        raise ConfigError("A radio link has no generator; expected one, for its channel. Pass `rng`.")
    settings = RadioSettings()
    if (preset := values.pop("preset", None)) is not None:
        check_choice("preset", preset, RADIO_PRESETS)
        settings = RADIO_PRESETS[preset]
    way: dict[str, Any] = {name: values.pop(name) for name in _WAY if name in values}
    return RadioLink(replace(settings, **values), _trajectory(way, rng), rng)


def _trajectory(way: dict[str, Any], rng: np.random.Generator) -> Trajectory:
    if "way_points" in way:
        return Trajectory(**way)
    if "closed" in way:
        raise ConfigError("`closed` of a radio link is given without `way_points`; expected both. Add `way_points`.")
    return replace(street_trajectories(1, rng)[0], **way)


def _require(kind: str, values: Mapping[str, Any], names: Collection[str]) -> None:
    for name in names:
        if name not in values:
            raise ConfigError(f"A {kind} link has no {name!r}; expected {' and '.join(map(repr, names))}.")
