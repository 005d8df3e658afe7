"""Fleets from their descriptions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flwr_splitkd.costs.fleet import Fleet
from flwr_splitkd.costs.fleet_io import fleet_from_json, load_device, load_server, table_ii_fleet
from flwr_splitkd.costs.links import WiredLink
from flwr_splitkd.costs.mobility import street_trajectories
from flwr_splitkd.costs.profiles import (
    GENERIC_DEVICE,
    GENERIC_SERVER,
    TABLE_II_DEVICES,
    TABLE_II_SERVER,
    to_json,
)
from flwr_splitkd.costs.radio import RADIO_PRESETS
from flwr_splitkd.costs.radio_link import RadioLink
from flwr_splitkd.errors import ConfigError


def test_every_part_is_read(tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text(json.dumps(to_json(TABLE_II_DEVICES[7])))
    (tmp_path / "drive.csv").write_text("time_s,uplink_bps,downlink_bps\n0,1000,2000\n")
    (tmp_path / "fleet.json").write_text(
        json.dumps(
            {
                "server": "rtx 4090",
                "devices": {
                    "0": {"profile": 1, "link": "wired-10m"},
                    "van": {"profile": "board.json", "link": {"kind": "trace", "path": "drive.csv"}},
                    "own": {"profile": {"name": "own", "frequency_hz": 1e9, "cores": 4}},
                    "bus": {"link": "normal"},
                },
                "default": {"profile": "Jetson AGX Xavier 1.2 GHz", "link": "wired-1g"},
            }
        )
    )
    fleet = fleet_from_json(tmp_path / "fleet.json", rng=np.random.default_rng(0))
    assert fleet.server == TABLE_II_SERVER
    assert fleet.device("0") == TABLE_II_DEVICES[0]
    assert fleet.device("van") == TABLE_II_DEVICES[7]
    assert fleet.device("own").flops == 8e9
    assert fleet.device("bus") == fleet.device("nobody") == TABLE_II_DEVICES[8]
    assert fleet.link("0") == WiredLink(uplink_bps=10e6, downlink_bps=10e6)
    assert fleet.link("van").at(0).downlink_bps == 2000
    assert fleet.link("own") == WiredLink(uplink_bps=1e9, downlink_bps=1e9)
    assert isinstance(fleet.link("bus"), RadioLink)


def test_what_is_left_out_is_common() -> None:
    assert fleet_from_json({}) == Fleet()
    assert fleet_from_json({"devices": {"0": {}}}) == Fleet()


def test_the_same_seed_gives_the_same_channel() -> None:
    description = {"devices": {"0": {"link": "normal"}, "1": {"link": "poor"}}, "default": {"link": "good"}}
    one, same, other = (fleet_from_json(description, rng=np.random.default_rng(seed)) for seed in (5, 5, 6))
    for name in ("0", "1", "nobody"):
        there, again, elsewhere = (
            [fleet.link(name).at(time_s) for time_s in range(0, 90, 9)] for fleet in (one, same, other)
        )
        assert there == again != elsewhere


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"servers": "RTX 4090"}, "The fleet has `servers`; expected keys among server, devices, default"),
        ({"devices": []}, "The fleet: `devices` is []; expected an object"),
        ({"devices": {"a": "normal"}}, "`devices.a` is 'normal'; expected an object"),
        ({"devices": {"a": {"profil": 1}}}, "has `devices.a.profil`; expected keys among profile, link"),
        ({"devices": {"a": {"profile": 11}}}, "`devices.a.profile`: The device is '11', and there is no file"),
        ({"devices": {"a": {"profile": True}}}, "The device is True; expected 1..10"),
        ({"devices": {"a": {"profile": ""}}}, "The device is ''; expected 1..10"),
        ({"devices": {"a": {"profile": {"name": "x", "frequency_hz": 0, "cores": 1}}}}, "`frequency_hz` of x is 0"),
        ({"devices": {"a": {"profile": {"name": "x"}}}}, "`devices.a.profile`: A DeviceProfile of"),
        ({"devices": {"a": {"link": "wired-fast"}}}, "`devices.a.link`: A link is 'wired-fast'"),
        (
            {"devices": {"a": {"link": {"kind": "radio", "closed": 1}}}},
            "`devices.a.link`: A radio link has no generator",
        ),
        ({"devices": {"a": {"link": {"kind": "trace", "path": "no.csv"}}}}, "`devices.a.link`:"),
        ({"default": {"profile": "Jetson Nano"}}, "`default.profile`: The device is 'Jetson Nano'"),
        ({"default": {"link": None}}, "`default.link`: A link is None"),
        ({"default": {"link": {"kind": "wired", "uplink_bps": "a", "downlink_bps": 1}}}, "`uplink_bps` is 'a'"),
        ({"server": "A100"}, "`server`: The server is 'A100', and there is no file"),
        ({"server": None}, "`server`: The server is None; expected 'RTX 4090'"),
        ({"server": {"name": "x", "max_frequency_hz": 1e9, "cores": -1}}, "`cores` of x is -1; expected"),
    ],
)
def test_what_is_malformed_is_named(description: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        fleet_from_json(description)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[1]", r"is \[1\]; expected an object"), ("[" * 100_000, "cannot be read")],
)
def test_a_file_that_holds_no_fleet(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "fleet.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        fleet_from_json(file)
    assert str(file) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no.json cannot be read"):
        fleet_from_json(tmp_path / "no.json")


def test_profiles_by_number_name_and_path(tmp_path: Path) -> None:
    assert [load_device(number) for number in range(1, 11)] == list(TABLE_II_DEVICES)
    assert load_device("10") == TABLE_II_DEVICES[9]
    assert load_device("jetson orin nx 0.76 ghz") == TABLE_II_DEVICES[6]
    assert load_device("generic") == GENERIC_DEVICE
    assert load_server("RTX 4090") == TABLE_II_SERVER
    assert load_server("generic") == GENERIC_SERVER
    (tmp_path / "edge.json").write_text(json.dumps(to_json(GENERIC_SERVER)))
    assert load_server("edge.json", folder=tmp_path) == GENERIC_SERVER
    with pytest.raises(ConfigError, match=r"edge.json: A DeviceProfile has"):
        load_device("edge.json", folder=tmp_path)


@pytest.mark.parametrize("channel", list(RADIO_PRESETS))
def test_the_paper_s_fleet(channel: str) -> None:
    fleet = table_ii_fleet(channel, np.random.default_rng(3))
    assert list(fleet.devices) == list(fleet.links) == [str(number) for number in range(10)]
    assert tuple(fleet.devices.values()) == TABLE_II_DEVICES
    assert fleet.server == TABLE_II_SERVER
    ways = street_trajectories(10, np.random.default_rng(3))
    for link, way in zip(fleet.links.values(), ways, strict=True):
        assert isinstance(link, RadioLink)
        assert link.settings == RADIO_PRESETS[channel]
        assert link.trajectory == way
        assert link.trajectory.speed_mps == pytest.approx(30 / 3.6)


def test_channels_of_the_same_seed_differ_in_noise_alone() -> None:
    good, poor = (table_ii_fleet(channel, np.random.default_rng(1)) for channel in ("good", "poor"))
    for name in good.links:
        for time_s in (0.0, 40.0):
            assert good.link(name).at(time_s).uplink_bps >= poor.link(name).at(time_s).uplink_bps


def test_no_such_channel() -> None:
    with pytest.raises(ConfigError, match="`channel` is 'bad'; expected one of 'good', 'normal', 'poor'"):
        table_ii_fleet("bad", np.random.default_rng(0))
